//! A VT-d unit with tables built by hand, and a device or two behind it.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::Arc;

use portcullis_models::bus::{AddressType, Operation, Pasid, Prefix, Request, RequesterId};
use portcullis_models::complex::{Complex, Work};
use portcullis_models::endpoint::{Endpoint, Idle};
use portcullis_models::iommu::Width;
use portcullis_models::log::{Event, What};
use portcullis_models::memory::Memory;
use portcullis_models::testing::{Events, Ram};
use portcullis_models::vtd::{Config, Vtd};
use portcullis_spec::vtd::qi::{Desc, InvWait};
use portcullis_spec::vtd::regs::offset;

pub const ROOT: u64 = 0x1000;
pub const CONTEXTS: u64 = 0x2000;
pub const PASID_DIR: u64 = 0x3000;
pub const PASID_TABLE: u64 = 0x4000;
pub const STATUS: u64 = 0x5000;
pub const QUEUE: u64 = 0x8000;
pub const PAGE_QUEUE: u64 = 0x9000;
/// The same where they may be as large as there are any, 512 KiB.
pub const LARGE_QUEUE: u64 = 0x20_0000;
pub const LARGE_PAGE_QUEUE: u64 = 0x30_0000;
/// Tables of domain `n` start at `DOMAIN + n * 0x8000`: four levels, one page each.
pub const DOMAIN: u64 = 0x10_000;
/// Data pages.
pub const DATA: u64 = 0x10_0000;

pub const A: RequesterId = RequesterId(0x08);
pub const B: RequesterId = RequesterId(0x10);
/// PASID-table index of RID_PASID of each device.
pub const RID_A: u32 = 1;
pub const RID_B: u32 = 2;

const TE: u64 = 1 << 31;
const SRTP: u64 = 1 << 30;
const QIE: u64 = 1 << 26;

/// A first-stage or second-stage table set for one domain.
#[derive(Clone, Copy)]
pub struct Tables {
    pub base: u64,
    pub first_stage: bool,
}

impl Tables {
    pub fn new(ram: &Ram, n: u64, first_stage: bool) -> Self {
        let base = DOMAIN + n * 0x8000;
        let flags = if first_stage { 0x27 } else { 3 };
        for level in 0..3 {
            ram.put64(base + level * 0x1000, (base + (level + 1) * 0x1000) | flags);
        }
        Tables { base, first_stage }
    }

    /// Address of the leaf entry of a page below 2 MiB.
    pub fn entry(&self, iova: u64) -> u64 {
        self.base + 0x3000 + (iova >> 12) * 8
    }

    pub fn map(&self, ram: &Ram, iova: u64, phys: u64, write: bool) {
        let bits = match (self.first_stage, write) {
            (true, true) => 7,
            (true, false) => 5,
            (false, true) => 3,
            (false, false) => 1,
        };
        ram.put64(self.entry(iova), phys | bits);
    }

    pub fn unmap(&self, ram: &Ram, iova: u64) {
        ram.put64(self.entry(iova), 0);
    }
}

/// A PASID-table entry: second stage (2), first stage (1) or pass-through (4).
pub fn pasid_entry(ram: &Ram, pasid: u32, pgtt: u64, table: u64, did: u64) {
    let at = PASID_TABLE + u64::from(pasid) * 64;
    let (ss, fs) = if pgtt == 1 { (0, table) } else { (table, 0) };
    ram.put64(at + 8, did | 1 << 23);
    ram.put64(at + 16, fs);
    ram.put64(at, ss | 2 << 2 | pgtt << 6 | 1);
}

/// A scalable-mode context entry of a device below 16: DTE, PASIDE, PRE and 128 directory entries.
pub fn context_entry(ram: &Ram, id: RequesterId, rid_pasid: u32, flags: u64) {
    let at = CONTEXTS + u64::from(id.0) * 32;
    ram.put128(at, u128::from(rid_pasid) << 64 | u128::from(PASID_DIR | flags));
}

pub const ALL_FLAGS: u64 = 0b1_1101;

pub struct Rig {
    pub ram: Arc<Ram>,
    pub complex: Complex,
    pub log: Events,
    pub now: u64,
    /// Where the invalidation queue is, and its bytes.
    queue: (u64, u64),
    tail: u64,
    waits: u32,
    seen: usize,
}

impl Rig {
    /// A complex with devices A and B, translation off.
    pub fn bare(config: Config) -> Self {
        let ram = Arc::new(Ram::new(0x40_0000));
        let log = Events::default();
        let mem: Arc<dyn Memory> = ram.clone();
        let mut complex = Complex::new(mem, Box::new(log.clone()));
        let unit = complex.add_unit(Box::new(Vtd::new(config)));
        for id in [A, B] {
            complex.add_endpoint(Endpoint::new(id, 1, Box::new(Idle)), Some(unit));
        }
        Rig { ram, complex, log, now: 0, queue: (QUEUE, 4096), tail: 0, waits: 0, seen: 0 }
    }

    /// Scalable mode, translation and both queues on; no PASID entry is present yet.
    pub fn scalable(config: Config) -> Self {
        let mut rig = Rig::bare(config);
        rig.ram.put128(ROOT, u128::from(CONTEXTS | 1));
        rig.ram.put64(PASID_DIR, PASID_TABLE | 1);
        context_entry(&rig.ram, A, RID_A, ALL_FLAGS);
        context_entry(&rig.ram, B, RID_B, ALL_FLAGS);
        rig.write(offset::RTADDR, Width::Qword, ROOT | 1 << 10);
        rig.write(offset::PQA, Width::Qword, PAGE_QUEUE);
        rig.write(offset::IQA, Width::Qword, QUEUE | 1 << 11);
        for command in [SRTP, QIE, QIE | TE] {
            rig.write(offset::GCMD, Width::Dword, command);
            rig.settle();
        }
        assert_eq!(rig.read(offset::GSTS, Width::Dword), TE | SRTP | QIE);
        rig
    }

    /// Other queues, empty, of 2^`order` pages each, in scalable mode.
    pub fn resize_queues(&mut self, order: u64) {
        (self.queue, self.tail) = ((LARGE_QUEUE, 4096 << order), 0);
        self.write(offset::GCMD, Width::Dword, TE);
        self.settle();
        self.write(offset::IQT, Width::Qword, 0);
        self.write(offset::IQA, Width::Qword, LARGE_QUEUE | 1 << 11 | order);
        self.write(offset::PQA, Width::Qword, LARGE_PAGE_QUEUE | order);
        self.write(offset::GCMD, Width::Dword, QIE | TE);
        self.settle();
    }

    pub fn read(&mut self, off: u32, width: Width) -> u64 {
        self.complex.mmio_read(0, u64::from(off), width)
    }

    pub fn write(&mut self, off: u32, width: Width, value: u64) {
        self.complex.mmio_write(0, u64::from(off), width, value);
    }

    pub fn works(&self) -> Vec<Work> {
        let mut works = Vec::new();
        self.complex.runnable(self.now, &mut works);
        works
    }

    /// Takes steps until none is possible, the first one each time.
    pub fn settle(&mut self) {
        self.settle_except(|_| false);
    }

    /// The same, leaving out some steps.
    pub fn settle_except(&mut self, hold: impl Fn(&Work) -> bool) {
        // Enough for the longest queue, several times over.
        for _ in 0..200_000 {
            let Some(work) = self.works().into_iter().find(|w| !hold(w)) else {
                return;
            };
            self.complex.run(self.now, work);
        }
        panic!("the complex does not settle");
    }

    /// Submits descriptors without letting the unit run.
    pub fn submit(&mut self, descriptors: &[Desc]) {
        for d in descriptors {
            for (i, word) in (0..).zip(d) {
                self.ram.put64(self.queue.0 + self.tail + i * 8, *word);
            }
            self.tail = (self.tail + 32) % self.queue.1;
        }
        self.write(offset::IQT, Width::Qword, self.tail);
    }

    /// Submits descriptors with a wait behind them, and returns the wait's number.
    pub fn submit_wait(&mut self, descriptors: &[Desc], wait: impl Fn(InvWait) -> InvWait) -> u32 {
        self.waits += 1;
        let status = InvWait::status(STATUS, self.waits);
        let mut all = descriptors.to_vec();
        all.push(wait(status).desc());
        self.submit(&all);
        self.waits
    }

    pub fn status(&self) -> u32 {
        self.ram.load64(STATUS).unwrap() as u32
    }

    /// Submits descriptors, waits for them and asserts that they complete.
    pub fn invalidate(&mut self, descriptors: &[Desc]) {
        let n = self.submit_wait(descriptors, |w| w);
        self.settle();
        assert_eq!(self.status(), n, "the wait completes");
    }

    /// Events since the last call.
    pub fn news(&mut self) -> Vec<Event> {
        let all = self.log.all();
        let news = all[self.seen..].to_vec();
        self.seen = all.len();
        news
    }

    pub fn issue(&mut self, id: RequesterId, pasid: Option<u32>, at: AddressType, addr: u64, op: Operation) {
        let place = self.complex.place_of(id).unwrap();
        let prefix = pasid.and_then(Pasid::new).map(Prefix::user);
        let request = Request { source: id, prefix, at, addr, op };
        self.complex.endpoint_mut(place).unwrap().port_mut().raw_request(request);
    }

    /// Runs an untranslated request: its physical address, or its fault reason.
    pub fn go(&mut self, id: RequesterId, pasid: Option<u32>, addr: u64, op: Operation) -> Result<u64, u8> {
        self.news();
        self.issue(id, pasid, AddressType::Untranslated, addr, op);
        self.settle();
        self.news()
            .iter()
            .find_map(|e| match &e.what {
                What::Finish(reach) => Some(Ok(reach.phys)),
                What::Blocked { reason, .. } => Some(Err(*reason)),
                _ => None,
            })
            .expect("the request ends")
    }

    pub fn load(&mut self, id: RequesterId, addr: u64) -> Result<u64, u8> {
        self.go(id, None, addr, Operation::Read(8))
    }

    pub fn store(&mut self, id: RequesterId, addr: u64) -> Result<u64, u8> {
        self.go(id, None, addr, Operation::Write(vec![7; 8]))
    }
}
