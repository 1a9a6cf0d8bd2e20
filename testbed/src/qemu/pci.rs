//! PCI configuration space by the ports 0xcf8 and 0xcfc.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::QemuError;
use crate::qtest::{Qtest, QtestError};

/// A PCI function: bus, device, function. The 16 bits are its requester id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bdf(u16);

impl Bdf {
    /// The function `function` (0 to 7) of the device `device` (0 to 31) on `bus`.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 0x1f) << 3 | (function as u16 & 7))
    }

    /// The requester id that its requests carry.
    #[must_use]
    pub const fn requester_id(self) -> u16 {
        self.0
    }

    /// The device number.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 0x1f
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bus, function) = (self.0 >> 8, self.0 & 7);
        write!(f, "{bus:02x}:{:02x}.{function}", self.device())
    }
}

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;

/// Bit 31 of the address port: the data port reaches configuration space.
const ENABLE: u32 = 1 << 31;

const ID: u8 = 0x00;
const COMMAND: u8 = 0x04;
const BAR0: u8 = 0x10;
const BAR1: u8 = 0x14;

/// Command register: memory space enable, bus master enable.
const MEMORY_AND_BUS_MASTER: u32 = 1 << 1 | 1 << 2;

/// BAR bits 2:1 of a memory BAR that takes two registers.
const BAR_IS_64_BIT: u32 = 0b10 << 1;

/// Configuration space of one QEMU.
#[derive(Debug)]
pub struct PciConfig {
    /// Address and data port are used as a pair.
    ports: Mutex<Arc<Qtest>>,
}

impl PciConfig {
    pub(super) fn new(qtest: Arc<Qtest>) -> Self {
        Self { ports: Mutex::new(qtest) }
    }

    /// Reads the register at `offset`, a multiple of 4.
    ///
    /// # Errors
    /// Any [`QtestError`].
    pub fn read32(&self, at: Bdf, offset: u8) -> Result<u32, QtestError> {
        let qtest = self.ports.lock();
        qtest.out32(ADDRESS_PORT, address(at, offset))?;
        qtest.in32(DATA_PORT)
    }

    /// Writes the register at `offset`, a multiple of 4.
    ///
    /// # Errors
    /// Any [`QtestError`].
    pub fn write32(&self, at: Bdf, offset: u8, value: u32) -> Result<(), QtestError> {
        let qtest = self.ports.lock();
        qtest.out32(ADDRESS_PORT, address(at, offset))?;
        qtest.out32(DATA_PORT, value)
    }

    /// Turns bus mastering on or off; off, the device may not start a request.
    ///
    /// # Errors
    /// Any [`QtestError`].
    pub fn set_bus_master(&self, at: Bdf, on: bool) -> Result<(), QtestError> {
        let command = self.read32(at, COMMAND)? & 0xffff; // The upper half is status, cleared by ones.
        let command = match on {
            true => command | 1 << 2,
            false => command & !(1 << 2),
        };
        self.write32(at, COMMAND, command)
    }

    pub(super) fn expect(&self, at: Bdf, expected: u32) -> Result<(), QemuError> {
        let found = self.read32(at, ID)?;
        if found == expected { Ok(()) } else { Err(QemuError::NoDevice { at, expected, found }) }
    }

    /// Puts BAR 0 at `bar` and lets the device decode it and master the bus.
    pub(super) fn enable(&self, at: Bdf, bar: u64) -> Result<(), QtestError> {
        let kind = self.read32(at, BAR0)?;
        self.write32(at, BAR0, bar as u32)?;
        if kind & BAR_IS_64_BIT != 0 {
            self.write32(at, BAR1, (bar >> 32) as u32)?;
        }
        self.write32(at, COMMAND, MEMORY_AND_BUS_MASTER)
    }
}

const fn address(at: Bdf, offset: u8) -> u32 {
    ENABLE | (at.0 as u32) << 8 | (offset & 0xfc) as u32
}
