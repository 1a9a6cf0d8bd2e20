//! The models as the hardware of a platform.

use crate::{
    costs,
    hardware::{Hardware, HwWork, Msi, Width},
    memory::{MemoryError, Ram},
};
use portcullis::{Time, Window};
use portcullis_models::{
    bus::{MsiSource, RequesterId},
    complex::{Complex, Cost, Work},
    iommu::Width as ModelWidth,
    memory::{MemError, Memory},
};
use std::collections::BTreeMap;

/// A root complex on a board: register window `n` belongs to unit `n`, and units' interrupts go to
/// the processor.
pub struct Board {
    /// The models.
    pub complex: Complex,
    work: Vec<Work>,
    /// Interrupts that endpoints sent by writing to the interrupt range. They arrive: nothing
    /// remaps interrupts.
    from_endpoints: BTreeMap<RequesterId, u64>,
}

/// Steps of accesses in flight share one lane, behind those of the endpoints and units.
const ACCESSES: u32 = u32::MAX;
/// Lanes of units begin here.
const UNITS: u32 = 1 << 16;

impl Board {
    /// A board with this complex.
    pub fn new(complex: Complex) -> Board {
        Board { complex, work: Vec::new(), from_endpoints: BTreeMap::new() }
    }

    /// Interrupts that an endpoint has sent.
    pub fn interrupts_from(&self, source: RequesterId) -> u64 {
        self.from_endpoints.get(&source).copied().unwrap_or(0)
    }
}

fn encode(work: Work) -> HwWork {
    let place = |kind: u64, i: usize| HwWork { lane: i as u32, item: kind << 56 | i as u64 };
    match work {
        Work::Endpoint(i) => place(0, i),
        Work::Upstream(i) => place(1, i),
        Work::Downstream(i) => place(2, i),
        Work::Begin(id) => HwWork { lane: ACCESSES, item: 3 << 56 | id },
        Work::Finish(id) => HwWork { lane: ACCESSES, item: 4 << 56 | id },
        Work::Unit { unit, step } => {
            HwWork { lane: UNITS + unit as u32, item: 5 << 56 | (unit as u64) << 32 | u64::from(step) }
        }
    }
}

fn decode(work: HwWork) -> Option<Work> {
    let id = work.item & ((1 << 56) - 1);
    Some(match work.item >> 56 {
        0 => Work::Endpoint(id as usize),
        1 => Work::Upstream(id as usize),
        2 => Work::Downstream(id as usize),
        3 => Work::Begin(id),
        4 => Work::Finish(id),
        5 => Work::Unit { unit: (id >> 32) as usize, step: id as u32 },
        _ => return None,
    })
}

fn price(cost: Cost) -> u64 {
    let walk = |reads: u32| u64::from(reads) * costs::WALK_LOAD;
    match cost {
        Cost::Nothing => 0,
        Cost::Endpoint => costs::ENDPOINT_STEP,
        Cost::Translate { table_reads } => costs::TRANSLATE_HIT + walk(table_reads),
        Cost::Move { bytes } => costs::MOVE + u64::from(bytes) / costs::BYTES_PER_NS,
        Cost::Message => costs::MESSAGE,
        Cost::Unit { table_reads } => costs::UNIT_STEP + walk(table_reads),
    }
}

impl Hardware for Board {
    fn runnable(&mut self, now: Time, out: &mut Vec<HwWork>) {
        self.work.clear();
        self.complex.runnable(now.0, &mut self.work);
        out.extend(self.work.iter().map(|w| encode(*w)));
    }

    fn run(&mut self, now: Time, work: HwWork) -> u64 {
        decode(work).map_or(0, |w| price(self.complex.run(now.0, w)))
    }

    fn next_deadline(&mut self, now: Time) -> Option<Time> {
        self.complex.next_deadline(now.0).map(Time)
    }

    fn mmio_read(&mut self, _: Time, window: Window, offset: u32, width: Width) -> u64 {
        self.complex.mmio_read(window.0 as usize, u64::from(offset), model_width(width))
    }

    fn mmio_write(&mut self, _: Time, window: Window, offset: u32, width: Width, value: u64) {
        self.complex.mmio_write(window.0 as usize, u64::from(offset), model_width(width), value);
    }

    fn take_interrupts(&mut self, out: &mut Vec<Msi>) {
        for msi in self.complex.take_interrupts() {
            match msi.from {
                MsiSource::Unit(_) => out.push(Msi { address: msi.addr, data: msi.data }),
                MsiSource::Requester(id) => *self.from_endpoints.entry(id).or_default() += 1,
            }
        }
    }
}

fn model_width(width: Width) -> ModelWidth {
    match width {
        Width::Dword => ModelWidth::Dword,
        Width::Qword => ModelWidth::Qword,
    }
}

/// The machine's memory as the models reach it.
pub struct BusMemory(pub Ram);

fn refused(e: MemoryError, addr: u64, len: usize) -> MemError {
    match e {
        MemoryError::Misaligned(addr) => MemError::Misaligned { addr },
        _ => MemError::OutOfRange { addr, len },
    }
}

impl Memory for BusMemory {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), MemError> {
        let len = buf.len();
        self.0.read(addr, buf).map_err(|e| refused(e, addr, len))
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), MemError> {
        self.0.write(addr, data).map_err(|e| refused(e, addr, data.len()))
    }

    fn load64(&self, addr: u64) -> Result<u64, MemError> {
        self.0.walk64(addr).map_err(|e| refused(e, addr, 8))
    }

    fn load128(&self, addr: u64) -> Result<u128, MemError> {
        self.0.walk128(addr).map_err(|e| refused(e, addr, 16))
    }

    fn cas64(&self, addr: u64, old: u64, new: u64) -> Result<u64, MemError> {
        self.0.cas64_at(addr, old, new).map_err(|e| refused(e, addr, 8))
    }
}
