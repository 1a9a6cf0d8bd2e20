//! The machine behind the protocol: memory from address 0, one VT-d, three DMA masters that are
//! found by PCI configuration space, and a clock.

use super::{
    LARGEST_TRANSFER,
    command::{Command, Refused, Width},
    devices::{Bus, Edu, TestDev},
    text,
};
use crate::{
    board::BusMemory,
    memory::{MemoryError, Ram},
};
use parking_lot::Mutex;
use portcullis_models::{
    adversary::Adversary,
    bus::RequesterId,
    complex::Complex,
    endpoint::{Endpoint, Engine, Failure, Intent, Port},
    iommu::Width as Registers,
    log::Silent,
    vtd as model,
};
use portcullis_pgtable::FRAME_SIZE;
use std::{collections::BTreeMap, fs::File, io, sync::Arc};
use vm_memory::{FileOffset, MmapRegion};

/// A PCI function, by the 16 bits of its requester id.
pub type Bdf = u16;

/// Where the registers of the VT-d are, as on a q35.
pub const VTD_REGISTERS: u64 = 0xfed9_0000;
/// Their bytes: the fault recording registers are in the second page.
const VTD_BYTES: u64 = 0x2000;

/// The functions on bus 0: two edu devices, and an iommu-testdev.
pub const FUNCTIONS: [Bdf; 3] = [0x80, 0x88, 0x90];

/// Where there is no memory, so that BARs can be put there.
pub const BARS: u64 = 0x8000_0000;

/// Steps of the models after one command; what is left is done after the next one.
const STEPS: usize = 1 << 20;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PcError {
    /// The file cannot be looked at or mapped.
    #[error("the memory cannot be mapped: {0}")]
    File(io::Error),
    /// It is no memory of this machine.
    #[error("{0} bytes of memory: whole pages, at least one, and at most {BARS:#x} bytes")]
    Size(u64),
    /// Its mapping does not serve as memory.
    #[error("the memory cannot be used: {0}")]
    Memory(#[from] MemoryError),
}

/// The machine.
pub struct Pc {
    ram: Ram,
    bus: Buses,
    edus: [Edu; 2],
    testdev: TestDev,
    functions: [Function; 3],
    /// Port 0xcf8.
    selected: u32,
}

/// What the devices and the VT-d see of one another.
struct Buses {
    complex: Complex,
    ended: Ended,
    ram: Ram,
    now: u64,
}

impl Pc {
    /// A machine whose memory is all of a file, shared with whoever else maps it.
    ///
    /// # Errors
    /// See [`PcError`].
    pub fn over(file: File, unit: model::Config) -> Result<Pc, PcError> {
        let size = Self::memory_size(file.metadata().map_err(PcError::File)?.len())?;
        let region = MmapRegion::from_file(FileOffset::new(file, 0), size)
            .map_err(|e| PcError::File(io::Error::other(e.to_string())))?;
        let ram = Ram::over(0, Arc::new(region))?;
        let mut complex = Complex::new(Arc::new(BusMemory(ram.clone())), Box::new(Silent));
        let place = complex.add_unit(Box::new(model::Vtd::new(unit)));
        let ended = Ended::default();
        for id in FUNCTIONS {
            let endpoint = Endpoint::new(RequesterId(id), id.into(), Box::new(ended.clone()));
            complex.add_endpoint(endpoint, Some(place));
        }
        Ok(Pc {
            bus: Buses { complex, ended, ram: ram.clone(), now: 0 },
            ram,
            edus: Default::default(),
            testdev: TestDev::default(),
            functions: [
                Function::new(Edu::ID, Edu::BAR_BYTES),
                Function::new(Edu::ID, Edu::BAR_BYTES),
                Function::new(TestDev::ID, TestDev::BAR_BYTES),
            ],
            selected: 0,
        })
    }

    /// The size of a memory of so many bytes, if a machine may have that.
    ///
    /// # Errors
    /// [`PcError::Size`].
    pub fn memory_size(bytes: u64) -> Result<usize, PcError> {
        let size = usize::try_from(bytes).ok().filter(|_| bytes <= BARS);
        size.filter(|s| *s > 0 && s.is_multiple_of(FRAME_SIZE)).ok_or(PcError::Size(bytes))
    }

    /// Does what a command asks for, and all that follows from it; what is to be answered.
    ///
    /// # Errors
    /// [`Refused`], for what this machine has not got.
    pub fn obey(&mut self, command: Command) -> Result<String, Refused> {
        let reply = match command {
            Command::ClockStep(by) => self.clock(by),
            Command::ClockSet(to) => self.clock(Some(to.saturating_sub(self.bus.now))),
            Command::In(width, port) => format!("{:#06x}", self.port_in(width, port)),
            Command::Out(width, port, value) => self.port_out(width, port, value),
            Command::Load(width, address) => format!("{:#018x}", self.load(width, address)),
            Command::Store(width, address, value) => self.store(width, address, value),
            Command::Read(address, size) => text::to_hex(&self.bytes(address, size)),
            Command::ReadBase64(address, size) => text::to_base64(&self.bytes(address, size)),
            Command::Write(address, data) => self.put(address, &data),
            Command::Memset(address, size, value) => self.fill(address, size, value)?,
            Command::Endianness => "little".into(),
        };
        self.bus.settle();
        Ok(reply)
    }

    /// Moves the clock on, by default to the next timer, and runs the timers on the way.
    fn clock(&mut self, by: Option<u64>) -> String {
        let now = self.bus.now;
        let to = match by {
            Some(by) => now.saturating_add(by),
            None => self.next_timer().unwrap_or(now),
        };
        while let Some(at) = self.next_timer().filter(|at| *at <= to) {
            self.bus.now = at;
            for i in 0..self.edus.len() {
                if self.edus[i].due.is_some_and(|due| due <= at) {
                    let mastering = self.functions[i].masters();
                    self.edus[i].transfer(&mut self.bus.of(i, mastering));
                }
            }
            self.bus.settle();
        }
        self.bus.now = to;
        self.bus.settle();
        to.to_string()
    }

    fn next_timer(&self) -> Option<u64> {
        let edus = self.edus.iter().filter_map(|e| e.due);
        edus.chain(self.bus.complex.next_deadline(self.bus.now)).min()
    }

    /// One access, as the CPU would make it; zero where nothing answers.
    fn load(&mut self, width: Width, address: u64) -> u64 {
        let offset = |base: u64| address - base;
        match self.place(width, address) {
            Place::Ram => {
                let mut bytes = [0; 8];
                let read = self.ram.read(address, &mut bytes[..width as usize]);
                if read.is_ok() { u64::from_le_bytes(bytes) } else { 0 }
            }
            Place::Vtd(registers) => self.bus.complex.mmio_read(0, offset(VTD_REGISTERS), registers),
            Place::Edu(i, base) => self.edus[i].load(offset(base)) & mask(width),
            Place::TestDev(base) => {
                let mastering = self.functions[2].masters();
                self.testdev.load(offset(base), &mut self.bus.of(2, mastering)).into()
            }
            Place::Nowhere => 0,
        }
    }

    fn store(&mut self, width: Width, address: u64, value: u64) -> String {
        let offset = |base: u64| address - base;
        match self.place(width, address) {
            Place::Ram => {
                // The place was found to be memory.
                let _ = self.ram.write(address, &value.to_le_bytes()[..width as usize]);
            }
            Place::Vtd(registers) => {
                self.bus.complex.mmio_write(0, offset(VTD_REGISTERS), registers, value & mask(width));
            }
            Place::Edu(i, base) => self.edus[i].store(offset(base), value & mask(width), self.bus.now),
            Place::TestDev(base) => self.testdev.store(offset(base), value as u32),
            Place::Nowhere => {}
        }
        String::new()
    }

    /// What an access of the CPU meets. Devices answer to accesses of the widths that they know.
    fn place(&self, width: Width, address: u64) -> Place {
        let bytes = width as u64;
        let within = |base: u64, size: u64| base <= address && address - base <= size - bytes;
        if self.is_ram(address, bytes) {
            return Place::Ram;
        }
        if !address.is_multiple_of(bytes) {
            return Place::Nowhere;
        }
        let registers = match width {
            Width::Long => Registers::Dword,
            Width::Quad => Registers::Qword,
            Width::Byte | Width::Word => return Place::Nowhere,
        };
        if within(VTD_REGISTERS, VTD_BYTES) {
            return Place::Vtd(registers);
        }
        let bar = |f: &Function| f.bar().filter(|base| within(*base, f.bar_bytes.into()));
        let found = self.functions.iter().enumerate().find_map(|(i, f)| Some((i, bar(f)?)));
        match (found, width) {
            (Some((i @ (0 | 1), base)), Width::Long) => Place::Edu(i, base),
            // Only the registers of its DMA engine are that wide.
            (Some((i @ (0 | 1), base)), _) if address - base >= 0x80 => Place::Edu(i, base),
            (Some((2, base)), Width::Long) => Place::TestDev(base),
            _ => Place::Nowhere,
        }
    }

    fn is_ram(&self, address: u64, bytes: u64) -> bool {
        let size = self.ram.size() as u64;
        bytes <= size && address <= size - bytes
    }

    /// A stretch of addresses; zeros where there is no memory.
    fn bytes(&mut self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        let there = self.in_ram(address, size);
        if self.ram.read(address, &mut bytes[..there]).is_err() {
            bytes[..there].fill(0);
        }
        bytes
    }

    /// What lies behind the end of memory goes nowhere.
    fn put(&mut self, address: u64, data: &[u8]) -> String {
        let there = self.in_ram(address, data.len());
        if there > 0 {
            // That much is memory.
            let _ = self.ram.write(address, &data[..there]);
        }
        String::new()
    }

    fn fill(&mut self, address: u64, size: u64, value: u8) -> Result<String, Refused> {
        let Some(end) = address.checked_add(size).filter(|_| self.is_ram(address, size)) else {
            return Err(Refused(format!("memset: {size:#x} bytes at {address:#x} are not all memory")));
        };
        let part = vec![value; LARGEST_TRANSFER.min(size as usize)];
        let mut at = address;
        while at < end {
            let now = part.len().min((end - at) as usize);
            self.put(at, &part[..now]);
            at += now as u64;
        }
        Ok(String::new())
    }

    /// How many of the bytes from an address on are memory.
    fn in_ram(&self, address: u64, len: usize) -> usize {
        let rest = (self.ram.size() as u64).saturating_sub(address);
        usize::try_from(rest).map_or(len, |rest| rest.min(len))
    }

    fn port_in(&mut self, width: Width, port: u16) -> u32 {
        let value = match port {
            0xcf8 if width == Width::Long => self.selected,
            0xcfc..=0xcff => {
                let register = self.function().map_or(u32::MAX, |(f, register)| f.load(register));
                register >> (8 * (port - 0xcfc))
            }
            _ => u32::MAX,
        };
        value & mask(width) as u32
    }

    fn port_out(&mut self, width: Width, port: u16, value: u32) -> String {
        match port {
            0xcf8 if width == Width::Long => self.selected = value & 0x80ff_fffc,
            0xcfc..=0xcff => {
                let shift = 8 * (port - 0xcfc);
                let mask = (mask(width) as u32) << shift;
                if let Some((function, register)) = self.function() {
                    function.store(register, mask, value << shift);
                }
            }
            _ => {}
        }
        String::new()
    }

    /// The function and the register that port 0xcf8 selects.
    fn function(&mut self) -> Option<(&mut Function, usize)> {
        if self.selected >> 31 == 0 {
            return None;
        }
        let id = (self.selected >> 8) as u16;
        let i = FUNCTIONS.iter().position(|f| *f == id)?;
        Some((&mut self.functions[i], (self.selected >> 2) as usize & 63))
    }
}

/// What an access of the CPU meets; of a BAR, its base too.
enum Place {
    Ram,
    Vtd(Registers),
    Edu(usize, u64),
    TestDev(u64),
    Nowhere,
}

const fn mask(width: Width) -> u64 {
    u64::MAX >> (64 - 8 * width as u32)
}

/// Configuration space of a function: a header of type 0 with one memory BAR.
struct Function {
    id: u32,
    bar_bytes: u32,
    command: u32,
    bar: u32,
    interrupt_line: u32,
}

/// COMMAND: memory space enable, bus master enable.
const MEMORY: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;

impl Function {
    fn new(id: u32, bar_bytes: u32) -> Function {
        Function { id, bar_bytes, command: 0, bar: 0, interrupt_line: 0 }
    }

    fn masters(&self) -> bool {
        self.command & BUS_MASTER != 0
    }

    fn bar(&self) -> Option<u64> {
        (self.command & MEMORY != 0).then_some(self.bar.into())
    }

    fn load(&self, register: usize) -> u32 {
        match register {
            0 => self.id,
            1 => self.command,
            // Class: a device that fits in no class.
            2 => 0xff00_0000,
            4 => self.bar,
            15 => self.interrupt_line,
            _ => 0,
        }
    }

    /// Writes the bits of `mask`. Whoever writes ones to the BAR reads its size back.
    fn store(&mut self, register: usize, mask: u32, value: u32) {
        let merge = |old: u32, writable: u32| old & !(mask & writable) | value & mask & writable;
        match register {
            1 => self.command = merge(self.command, MEMORY | BUS_MASTER),
            4 => self.bar = merge(self.bar, !(self.bar_bytes - 1)),
            15 => self.interrupt_line = merge(self.interrupt_line, 0xff),
            _ => {}
        }
    }
}

impl Buses {
    fn of(&mut self, place: usize, mastering: bool) -> Master<'_> {
        Master { bus: self, place, mastering }
    }

    /// Lets the models work until there is nothing left that they could do now.
    fn settle(&mut self) {
        let mut work = Vec::new();
        let mut left = STEPS;
        while left > 0 {
            work.clear();
            self.complex.runnable(self.now, &mut work);
            if work.is_empty() {
                break;
            }
            for step in work.drain(..).take(left) {
                self.complex.run(self.now, step);
                left -= 1;
            }
        }
        for msi in self.complex.take_interrupts() {
            // A message is a write. To the interrupt controller it is lost: there is none.
            let _ = self.ram.write(msi.addr, &msi.data.to_le_bytes());
        }
    }
}

/// One device's way to memory.
struct Master<'a> {
    bus: &'a mut Buses,
    place: usize,
    mastering: bool,
}

impl Master<'_> {
    /// Makes an access for each page; true once all were made.
    fn access(
        &mut self,
        address: u64,
        len: usize,
        mut intent: impl FnMut(usize, usize) -> Intent,
    ) -> Vec<End> {
        let mut ends = Vec::new();
        let mut at = 0;
        while at < len && self.mastering {
            // A request does not cross a page.
            let room = FRAME_SIZE - (address.wrapping_add(at as u64) % FRAME_SIZE as u64) as usize;
            let now = room.min(len - at);
            let Some(endpoint) = self.bus.complex.endpoint_mut(self.place) else { break };
            let ticket = endpoint.port_mut().access(address.wrapping_add(at as u64), intent(at, now));
            self.bus.settle();
            ends.push(self.bus.ended.0.lock().remove(&ticket).unwrap_or(Err(Failure::NoProgress)));
            at += now;
        }
        ends
    }
}

impl Bus for Master<'_> {
    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let ends = self.access(address, bytes.len(), |at, len| Intent::Write(bytes[at..at + len].to_vec()));
        self.mastering && ends.iter().all(Result::is_ok)
    }

    fn read(&mut self, address: u64, len: usize) -> Option<Vec<u8>> {
        let ends = self.access(address, len, |_, len| Intent::Read(len as u32));
        let parts = ends.into_iter().collect::<Result<Vec<_>, _>>().ok()?;
        Some(parts.concat()).filter(|all| all.len() == len)
    }

    fn look(&self, physical: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.bus.ram.read(physical, &mut bytes).ok().map(|()| bytes)
    }
}

/// The data of a read, empty for a write, or why there is none.
type End = Result<Vec<u8>, Failure>;

/// An engine without a will: its port is driven by a [`Master`]; what ended lies here, by ticket.
/// Each access is waited for before the next, so that devices do not meet under one number.
#[derive(Clone, Default)]
struct Ended(Arc<Mutex<BTreeMap<u64, End>>>);

impl Engine for Ended {
    fn wants(&self, _: &Port) -> bool {
        false
    }

    fn step(&mut self, _: &mut Port, _: &mut Adversary, _: usize) {}

    fn ended(&mut self, _: &mut Port, ticket: u64, result: End) {
        self.0.lock().insert(ticket, result);
    }

    fn reset(&mut self) {
        self.0.lock().clear();
    }
}
