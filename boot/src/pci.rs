//! PCI configuration space by the ports 0xcf8 and 0xcfc, and the driver of QEMU's edu device.

use core::fmt;
use core::time::Duration;

use crate::clock::Clock;
use crate::port::{in32, out32};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;

/// Bit 31 of the address port: the data port reaches configuration space.
const ENABLE: u32 = 1 << 31;

const ID: u8 = 0x00;
const COMMAND: u8 = 0x04;
const BAR0: u8 = 0x10;

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

/// The edu device: a buffer of 4 KiB and a DMA engine between it and memory. It does not tell
/// whether an access went through.
pub struct Edu {
    at: Function,
    registers: *mut u8,
    clock: Clock,
}

/// Registers of edu, by offset in its BAR 0.
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;

/// DMA command: start; reads as one while the transfer is under way.
const START: u64 = 1 << 0;
/// DMA command: from the buffer to memory; clear, from memory to the buffer.
const TO_MEMORY: u64 = 1 << 1;

/// Where the DMA engine has its buffer: an address of its own, reached by DMA only.
const BUFFER: u64 = 0x4_0000;

/// A transfer takes 100 ms.
const PATIENCE: Duration = Duration::from_secs(5);

/// The transfer did not end.
pub struct Unfinished;

impl Edu {
    /// Bytes of the buffer, and so the most of one transfer.
    pub const BUFFER_BYTES: usize = 4096;

    /// Finds the device, places its registers and turns its memory space on.
    pub fn find(clock: Clock) -> Option<Self> {
        let at = Function::find(0x11e8_1234)?;
        if at.read(BAR0) & !0xf == 0 {
            at.write(BAR0, SPARE_BAR);
        }
        at.write(COMMAND, MEMORY);
        let bar = at.read(BAR0) & !0xf;
        Some(Self { at, registers: core::ptr::with_exposed_provenance_mut(bar as usize), clock })
    }

    /// The device's place, and requester id.
    pub fn function(&self) -> Function {
        self.at
    }

    /// Lets the device start requests.
    pub fn let_master_the_bus(&self) {
        self.at.write(COMMAND, MEMORY | BUS_MASTER);
    }

    /// Copies `count` bytes, at most [`Edu::BUFFER_BYTES`], from one address to another, as the
    /// device sees them, through its buffer.
    pub fn copy(&self, from: u64, to: u64, count: usize) -> Result<(), Unfinished> {
        let count = count.min(Self::BUFFER_BYTES);
        self.transfer(from, BUFFER, count, 0)?;
        self.transfer(BUFFER, to, count, TO_MEMORY)
    }

    fn transfer(&self, from: u64, to: u64, count: usize, way: u64) -> Result<(), Unfinished> {
        self.write(SOURCE, from);
        self.write(DESTINATION, to);
        self.write(COUNT, count as u64);
        self.write(DMA_COMMAND, START | way);
        let done = || self.read(DMA_COMMAND) & START == 0;
        if self.clock.wait_for(PATIENCE, done) { Ok(()) } else { Err(Unfinished) }
    }

    fn read(&self, register: usize) -> u64 {
        // SAFETY: BAR 0 has 1 MiB and lies in the uncached part of the identity map; the register
        // is one of the constants above. Registers are no memory of Rust's.
        unsafe { self.registers.add(register).cast::<u64>().read_volatile() }
    }

    fn write(&self, register: usize, value: u64) {
        // SAFETY: as in `read`. A DMA that this starts goes where the translation lets it, or,
        // without one, to the pages the caller names: those are reached by volatile access only.
        unsafe {
            self.registers.add(register).cast::<u64>().write_volatile(value);
        }
    }
}
