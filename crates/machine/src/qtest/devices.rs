//! The DMA masters of the machine, with the registers of the ones that QEMU has for tests: edu,
//! which reads and writes without telling how it went, and iommu-testdev, which writes and tells.

/// An access that a device wants made, in its own name.
pub(super) trait Bus {
    /// Writes memory; false if any of it was refused.
    fn write(&mut self, address: u64, bytes: &[u8]) -> bool;
    /// Reads memory; `None` if any of it was refused.
    fn read(&mut self, address: u64, len: usize) -> Option<Vec<u8>>;
    /// What the CPU sees at a physical address.
    fn look(&self, physical: u64, len: usize) -> Option<Vec<u8>>;
}

/// edu: a buffer of 4 KiB, and a DMA engine between it and memory that takes 100 ms a transfer.
pub(super) struct Edu {
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    liveness: u32,
    /// When the transfer under way is made.
    pub(super) due: Option<u64>,
    buffer: Vec<u8>,
}

/// Byte offsets in edu's BAR.
mod edu {
    pub const ID: u64 = 0x00;
    pub const LIVENESS: u64 = 0x04;
    pub const SOURCE: u64 = 0x80;
    pub const DESTINATION: u64 = 0x88;
    pub const COUNT: u64 = 0x90;
    pub const COMMAND: u64 = 0x98;

    /// Version 1.0 and the magic number.
    pub const IDENTITY: u32 = 0x0100_00ed;
    /// COMMAND: start; reads as one while a transfer is under way.
    pub const START: u64 = 1 << 0;
    /// COMMAND: from the buffer to memory; clear, from memory to the buffer.
    pub const TO_MEMORY: u64 = 1 << 1;
    /// The DMA engine's address of its buffer.
    pub const BUFFER: u64 = 0x4_0000;
    pub const BUFFER_BYTES: usize = 4096;
    /// Nanoseconds of a transfer.
    pub const DURATION: u64 = 100_000_000;
}

impl Default for Edu {
    fn default() -> Self {
        Edu {
            source: 0,
            destination: 0,
            count: 0,
            command: 0,
            liveness: 0,
            due: None,
            buffer: vec![0; edu::BUFFER_BYTES],
        }
    }
}

impl Edu {
    pub(super) const ID: u32 = 0x11e8_1234;
    pub(super) const BAR_BYTES: u32 = 1 << 20;

    pub(super) fn load(&self, offset: u64) -> u64 {
        match offset {
            edu::ID => edu::IDENTITY.into(),
            edu::LIVENESS => self.liveness.into(),
            edu::SOURCE => self.source,
            edu::DESTINATION => self.destination,
            edu::COUNT => self.count,
            edu::COMMAND => self.command,
            _ => u64::MAX,
        }
    }

    pub(super) fn store(&mut self, offset: u64, value: u64, now: u64) {
        if offset == edu::LIVENESS {
            self.liveness = !(value as u32);
        }
        // What a transfer works with stays as it is while it is under way.
        if self.due.is_some() {
            return;
        }
        match offset {
            edu::SOURCE => self.source = value,
            edu::DESTINATION => self.destination = value,
            edu::COUNT => self.count = value,
            edu::COMMAND => {
                self.command = value;
                if value & edu::START != 0 {
                    self.due = Some(now.saturating_add(edu::DURATION));
                }
            }
            _ => {}
        }
    }

    /// Makes the transfer whose time has come. One outside of the buffer moves nothing.
    pub(super) fn transfer(&mut self, bus: &mut impl Bus) {
        self.due = None;
        self.command &= !edu::START;
        let to_memory = self.command & edu::TO_MEMORY != 0;
        let (place, address) =
            if to_memory { (self.source, self.destination) } else { (self.destination, self.source) };
        let Some(part) = self.part(place) else { return };
        if to_memory {
            bus.write(address, part);
        } else if let Some(data) = bus.read(address, part.len()) {
            part.copy_from_slice(&data);
        }
    }

    fn part(&mut self, place: u64) -> Option<&mut [u8]> {
        let start = usize::try_from(place.checked_sub(edu::BUFFER)?).ok()?;
        let end = start.checked_add(usize::try_from(self.count).ok()?)?;
        self.buffer.get_mut(start..end)
    }
}

/// iommu-testdev: writes a pattern to an IOVA, then looks for it at a physical address.
pub(super) struct TestDev {
    iova: u64,
    physical: u64,
    length: u32,
    attributes: u32,
    armed: bool,
    result: u32,
}

/// Byte offsets in iommu-testdev's BAR.
mod testdev {
    /// Reading it runs the armed transfer.
    pub const TRIGGER: u64 = 0x00;
    pub const IOVA_LOW: u64 = 0x04;
    pub const IOVA_HIGH: u64 = 0x08;
    pub const LENGTH: u64 = 0x0c;
    pub const RESULT: u64 = 0x10;
    /// Writing bit 0 arms the transfer.
    pub const DOORBELL: u64 = 0x14;
    pub const ATTRIBUTES: u64 = 0x18;
    pub const PHYSICAL_LOW: u64 = 0x1c;
    pub const PHYSICAL_HIGH: u64 = 0x20;

    pub const OK: u32 = 0;
    pub const IDLE: u32 = u32::MAX;
    pub const BAD_LENGTH: u32 = 0xdead_0001;
    pub const WRITE_FAILED: u32 = 0xdead_0002;
    pub const MISMATCH: u32 = 0xdead_0004;
    pub const NOT_ARMED: u32 = 0xdead_0005;

    /// The most bytes of a transfer.
    pub const LONGEST: u32 = 64 << 10;
    /// What is written, again and again, low byte first.
    pub const PATTERN: u32 = 0x1234_5678;
}

impl Default for TestDev {
    fn default() -> Self {
        TestDev { iova: 0, physical: 0, length: 0, attributes: 0, armed: false, result: testdev::IDLE }
    }
}

impl TestDev {
    pub(super) const ID: u32 = 0x0005_1b36;
    pub(super) const BAR_BYTES: u32 = 4096;

    pub(super) fn load(&mut self, offset: u64, bus: &mut impl Bus) -> u32 {
        match offset {
            testdev::TRIGGER => {
                self.result = self.transfer(bus);
                self.armed = false;
                0
            }
            testdev::IOVA_LOW => self.iova as u32,
            testdev::IOVA_HIGH => (self.iova >> 32) as u32,
            testdev::LENGTH => self.length,
            testdev::RESULT => self.result,
            testdev::ATTRIBUTES => self.attributes,
            testdev::PHYSICAL_LOW => self.physical as u32,
            testdev::PHYSICAL_HIGH => (self.physical >> 32) as u32,
            _ => 0,
        }
    }

    pub(super) fn store(&mut self, offset: u64, value: u32) {
        let low = |word: u64| word & !0xffff_ffff | u64::from(value);
        let high = |word: u64| word & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            testdev::IOVA_LOW => self.iova = low(self.iova),
            testdev::IOVA_HIGH => self.iova = high(self.iova),
            testdev::LENGTH => self.length = value,
            testdev::DOORBELL => {
                self.armed = value & 1 != 0;
                self.result = testdev::IDLE;
            }
            testdev::ATTRIBUTES => self.attributes = value,
            testdev::PHYSICAL_LOW => self.physical = low(self.physical),
            testdev::PHYSICAL_HIGH => self.physical = high(self.physical),
            _ => {}
        }
    }

    fn transfer(&self, bus: &mut impl Bus) -> u32 {
        if !self.armed {
            return testdev::NOT_ARMED;
        }
        if self.length == 0 || self.length > testdev::LONGEST {
            return testdev::BAD_LENGTH;
        }
        let len = self.length as usize;
        let bytes: Vec<u8> = testdev::PATTERN.to_le_bytes().into_iter().cycle().take(len).collect();
        if !bus.write(self.iova, &bytes) {
            return testdev::WRITE_FAILED;
        }
        if bus.look(self.physical, len).is_some_and(|there| there == bytes) {
            testdev::OK
        } else {
            testdev::MISMATCH
        }
    }
}
