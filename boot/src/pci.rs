//! PCI configuration space by the ports 0xcf8 and 0xcfc.

use core::fmt;

use portcullis::topology::Buses;

use crate::port::{in32, out32};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;

/// Bit 31 of the address port: the data port reaches configuration space.
const ENABLE: u32 = 1 << 31;

const ID: u8 = 0x00;
const COMMAND: u8 = 0x04;
const HEADER_TYPE: u8 = 0x0c;
const BAR0: u8 = 0x10;
/// Of a bridge: primary bus in bits 7:0, secondary in 15:8, subordinate in 23:16.
const BUSES: u8 = 0x18;

/// Command register: memory space enable.
const MEMORY: u32 = 1 << 1;
/// Command register: bus master enable. Without it the device may not start a request.
const BUS_MASTER: u32 = 1 << 2;

/// A BAR that no firmware has placed goes here: below the APICs, above memory.
const SPARE_BAR: u32 = 0xfe00_0000;

/// A PCI function; the number is its requester id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Function(pub u16);

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(id) = self;
        write!(f, "{:02x}:{:02x}.{}", id >> 8, id >> 3 & 0x1f, id & 7)
    }
}

impl Function {
    /// The first function with this device id (upper half) and vendor id (lower half).
    pub fn find(id: u32) -> Option<Self> {
        (0..=u16::MAX).map(Self).find(|at| at.read(ID) == id)
    }

    /// The buses behind a bridge; `None` if it is none.
    pub fn buses(self) -> Option<Buses> {
        // Header type: bits 22:16 of this register. All ones where nothing is.
        let is_bridge = self.read(HEADER_TYPE) >> 16 & 0x7f == 1;
        let [_, secondary, subordinate, _] = self.read(BUSES).to_le_bytes();
        is_bridge.then_some(Buses { secondary, subordinate })
    }

    /// Turns the function's memory space on, and gives the base of its BAR 0.
    pub fn open(self) -> u32 {
        if self.read(BAR0) & !0xf == 0 {
            self.write(BAR0, SPARE_BAR);
        }
        self.write(COMMAND, MEMORY);
        self.read(BAR0) & !0xf
    }

    /// Whether the function may start requests.
    pub fn is_bus_master(self) -> bool {
        self.read(COMMAND) & BUS_MASTER != 0
    }

    /// Lets the function start requests, or no longer.
    pub fn set_bus_master(self, on: bool) {
        self.write(COMMAND, if on { MEMORY | BUS_MASTER } else { MEMORY });
    }

    fn read(self, offset: u8) -> u32 {
        self.select(offset);
        in32(DATA_PORT)
    }

    fn write(self, offset: u8, value: u32) {
        self.select(offset);
        out32(DATA_PORT, value);
    }

    fn select(self, offset: u8) {
        out32(ADDRESS_PORT, ENABLE | u32::from(self.0) << 8 | u32::from(offset));
    }
}
