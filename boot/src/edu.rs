//! The driver of QEMU's edu device.

use core::fmt;
use core::time::Duration;

use portcullis::driver::DeviceControl;

use crate::clock::Clock;
use crate::mmio::Registers;
use crate::pci::Function;

/// A buffer of 4 KiB and a DMA engine between it and memory. It does not tell whether an access
/// went through.
pub struct Edu {
    at: Function,
    registers: Registers,
    clock: Clock,
}

/// Device id and vendor id.
const ID: u32 = 0x11e8_1234;

/// Bytes of BAR 0.
const BAR_BYTES: u32 = 1 << 20;

/// Registers, by offset in BAR 0.
const SOURCE: u32 = 0x80;
const DESTINATION: u32 = 0x88;
const COUNT: u32 = 0x90;
const DMA_COMMAND: u32 = 0x98;

/// DMA command: start; reads as one while the transfer is under way.
const START: u64 = 1 << 0;
/// DMA command: from the buffer to memory; clear, from memory to the buffer.
const TO_MEMORY: u64 = 1 << 1;

/// Where the DMA engine has its buffer: an address of its own, reached by DMA only.
const BUFFER: u64 = 0x4_0000;

/// A transfer takes 100 ms.
const PATIENCE: Duration = Duration::from_secs(5);

/// The transfer did not end.
#[derive(Debug)]
pub struct Unfinished;

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the device's transfer does not end")
    }
}

impl core::error::Error for Unfinished {}

impl Edu {
    /// Bytes of the buffer, and so the most of one transfer.
    pub const BUFFER_BYTES: usize = 4096;

    /// Finds the device and reaches its registers. It may not start requests yet.
    pub fn find(clock: Clock) -> Option<Self> {
        let at = Function::find(ID)?;
        let base = at.open() as usize;
        // SAFETY: BAR 0, in the uncached part of the identity map. The DMA that a write starts goes
        // where the translation lets it: to pages that are reached by volatile access only.
        let registers = unsafe { Registers::new(base, BAR_BYTES) };
        Some(Self { at, registers, clock })
    }

    /// The device's place, and requester id.
    pub fn function(&self) -> Function {
        self.at
    }

    /// Lets the device start requests.
    pub fn let_master_the_bus(&self) {
        self.at.set_bus_master(true);
    }

    /// Reads `count` bytes, at most [`Edu::BUFFER_BYTES`], from an IOVA into the buffer.
    pub fn fetch(&self, from: u64, count: usize) -> Result<(), Unfinished> {
        self.transfer(from, BUFFER, count, 0)
    }

    /// Writes `count` bytes, at most [`Edu::BUFFER_BYTES`], of the buffer to an IOVA.
    pub fn store(&self, to: u64, count: usize) -> Result<(), Unfinished> {
        self.transfer(BUFFER, to, count, TO_MEMORY)
    }

    fn transfer(&self, from: u64, to: u64, count: usize, way: u64) -> Result<(), Unfinished> {
        self.registers.write(SOURCE, from);
        self.registers.write(DESTINATION, to);
        self.registers.write(COUNT, count.min(Self::BUFFER_BYTES) as u64);
        self.registers.write(DMA_COMMAND, START | way);
        self.wait_until_idle()
    }

    fn wait_until_idle(&self) -> Result<(), Unfinished> {
        let idle = || self.registers.read::<u64>(DMA_COMMAND).is_some_and(|command| command & START == 0);
        if self.clock.wait_for(PATIENCE, idle) { Ok(()) } else { Err(Unfinished) }
    }
}

/// The device has none of the PCIe capabilities, and is added as such: the core asks for none.
impl DeviceControl for Edu {
    fn set_pasid(&self, _: bool) {}

    fn set_ats(&self, _: bool) {}

    fn set_pri(&self, _: Option<u32>) {}

    /// It has no function level reset: a transfer under way ends without reaching memory.
    fn reset(&self) {
        let master = self.at.is_bus_master();
        self.at.set_bus_master(false);
        // One that does not end stays without the bus.
        if self.wait_until_idle().is_ok() {
            self.at.set_bus_master(master);
        }
    }
}
