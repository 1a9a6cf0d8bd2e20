//! QEMU's DMA masters for tests: edu, which reads and writes without telling how it went, and
//! iommu-testdev, which writes and tells.

use std::sync::Arc;
use std::time::Duration;

use crate::qtest::{Qtest, QtestError};

/// The edu device: a buffer of 4 KiB and a DMA engine between it and memory.
///
/// It ignores failed DMA: the bytes stay what they were, on either side.
#[derive(Clone, Debug)]
pub struct Edu {
    qtest: Arc<Qtest>,
    bar: u64,
}

/// Registers of edu, by offset in its BAR 0.
mod edu {
    pub const SOURCE: u64 = 0x80;
    pub const DESTINATION: u64 = 0x88;
    pub const COUNT: u64 = 0x90;
    pub const COMMAND: u64 = 0x98;

    /// Command: start; reads as one while a transfer is under way.
    pub const START: u64 = 1 << 0;
    /// Command: from the buffer to memory; clear, from memory to the buffer.
    pub const TO_MEMORY: u64 = 1 << 1;

    /// Where the DMA engine has its buffer: an address of its own, reached by DMA only.
    pub const BUFFER: u64 = 0x4_0000;
}

/// A transfer takes 100 ms of the virtual clock.
const EDU_DMA_TIME: Duration = Duration::from_millis(150);

impl Edu {
    /// Device id 0x11e8, vendor id 0x1234.
    pub(super) const ID: u32 = 0x11e8_1234;

    /// Bytes of its buffer, and so the most of one transfer.
    pub const BUFFER_BYTES: usize = 4096;

    pub(super) fn new(qtest: Arc<Qtest>, bar: u64) -> Self {
        Self { qtest, bar }
    }

    /// Reads `count` bytes of memory at `iova` into the buffer at `offset`.
    ///
    /// # Errors
    /// Any [`DmaFailure`]; not that the access was blocked, which this device does not tell.
    pub fn read_memory(&self, iova: u64, offset: usize, count: usize) -> Result<(), DmaFailure> {
        let place = Self::place(offset, count)?;
        self.transfer(iova, place, count, 0)
    }

    /// Writes `count` bytes of the buffer at `offset` to memory at `iova`.
    ///
    /// # Errors
    /// As [`Edu::read_memory`].
    pub fn write_memory(&self, iova: u64, offset: usize, count: usize) -> Result<(), DmaFailure> {
        let place = Self::place(offset, count)?;
        self.transfer(place, iova, count, edu::TO_MEMORY)
    }

    fn transfer(&self, from: u64, to: u64, count: usize, way: u64) -> Result<(), DmaFailure> {
        let write = |offset, value| self.qtest.write64(self.bar + offset, value);
        write(edu::SOURCE, from)?;
        write(edu::DESTINATION, to)?;
        write(edu::COUNT, count as u64)?;
        write(edu::COMMAND, edu::START | way)?;
        self.qtest.clock_step(EDU_DMA_TIME)?;
        match self.qtest.read64(self.bar + edu::COMMAND)? & edu::START {
            0 => Ok(()),
            _ => Err(DmaFailure::Unfinished),
        }
    }

    /// The engine's address of a part of the buffer. QEMU ends itself on one outside.
    fn place(offset: usize, count: usize) -> Result<u64, DmaFailure> {
        match offset.checked_add(count) {
            Some(end) if end <= Self::BUFFER_BYTES => Ok(edu::BUFFER + offset as u64),
            _ => Err(DmaFailure::OutsideBuffer),
        }
    }
}

/// The iommu-testdev: writes a fixed pattern to an IOVA, then looks for it at a physical address.
#[derive(Clone, Debug)]
pub struct TestDev {
    qtest: Arc<Qtest>,
    bar: u64,
}

/// Registers of iommu-testdev, by offset in its BAR 0.
mod testdev {
    /// Reading it runs the armed transfer.
    pub const TRIGGER: u64 = 0x00;
    pub const IOVA_LOW: u64 = 0x04;
    pub const IOVA_HIGH: u64 = 0x08;
    pub const LENGTH: u64 = 0x0c;
    pub const RESULT: u64 = 0x10;
    /// Writing 1 arms the transfer.
    pub const DOORBELL: u64 = 0x14;
    pub const PHYSICAL_LOW: u64 = 0x1c;
    pub const PHYSICAL_HIGH: u64 = 0x20;

    pub const RESULT_OK: u32 = 0;
    pub const RESULT_WRITE_FAILED: u32 = 0xdead_0002;
    pub const RESULT_MISMATCH: u32 = 0xdead_0004;
}

impl TestDev {
    /// Device id 0x0005, vendor id 0x1b36.
    pub(super) const ID: u32 = 0x0005_1b36;

    pub(super) fn new(qtest: Arc<Qtest>, bar: u64) -> Self {
        Self { qtest, bar }
    }

    /// Writes `count` bytes, a multiple of 4, to `iova`, and checks that they are at `physical`.
    ///
    /// # Errors
    /// [`DmaFailure::Blocked`], [`DmaFailure::Elsewhere`], or what else the device reports.
    pub fn write_memory(&self, iova: u64, physical: u64, count: u32) -> Result<(), DmaFailure> {
        let write = |offset, value| self.qtest.write32(self.bar + offset, value);
        write(testdev::IOVA_LOW, iova as u32)?;
        write(testdev::IOVA_HIGH, (iova >> 32) as u32)?;
        write(testdev::PHYSICAL_LOW, physical as u32)?;
        write(testdev::PHYSICAL_HIGH, (physical >> 32) as u32)?;
        write(testdev::LENGTH, count)?;
        write(testdev::DOORBELL, 1)?;
        self.qtest.read32(self.bar + testdev::TRIGGER)?;
        match self.qtest.read32(self.bar + testdev::RESULT)? {
            testdev::RESULT_OK => Ok(()),
            testdev::RESULT_WRITE_FAILED => Err(DmaFailure::Blocked),
            testdev::RESULT_MISMATCH => Err(DmaFailure::Elsewhere),
            other => Err(DmaFailure::Device(other)),
        }
    }
}

/// Why a device's transfer did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaFailure {
    /// The connection to QEMU failed.
    #[error("a qtest command failed")]
    Qtest(#[from] QtestError),
    /// The part named is not in the device's buffer.
    #[error("outside the device's buffer")]
    OutsideBuffer,
    /// The engine is still at it although its time has passed.
    #[error("the transfer does not end")]
    Unfinished,
    /// The write was not let through.
    #[error("the write was blocked")]
    Blocked,
    /// The write was let through, and its bytes are not at the physical address named.
    #[error("the write went elsewhere")]
    Elsewhere,
    /// The device reports something else.
    #[error("the device reports {0:#010x}")]
    Device(u32),
}
