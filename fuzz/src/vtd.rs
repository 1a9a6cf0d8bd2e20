//! The VT-d driver over a unit whose registers and queues hold anything: fault records, page
//! requests, errors of the invalidation queue.

use portcullis::driver::{Driver, Features, More, PageRequest, QueuePos, Stall, Start, Taken};
use portcullis::{Intake, RawFault, SourceId, Turn, Window};
use portcullis_drivers::vtd::{Options, Vtd};
use portcullis_spec::vtd::regs::{Cap, Ecap, offset};
use std::task::Poll;

use crate::bytes::Bytes;
use fake::Fake;

/// The scripted unit of the driver's own tests.
#[allow(dead_code, missing_docs, reason = "a part of it is used here")]
#[path = "../../crates/drivers/src/vtd/tests/fake.rs"]
mod fake;

/// The one device that the driver knows.
const SOURCE: SourceId = SourceId(0x0113);

/// Registers that hardware changes by itself: what is in them is anything.
const VOLATILE: [u32; 6] = [offset::FSTS, offset::PQT, offset::PRS, offset::IQH, offset::ICS, offset::IQERCD];

/// Where the four fault recording registers are; see FRO below.
const FRCD: u32 = 0x220;

/// The most service turns after one change.
const TURNS: usize = 64;

/// Entries of the page-request queue, of four pages by default: a queue that does not move holds at
/// most one fewer.
const ENTRIES: usize = 512;

/// Fills the unit's queues and registers, and lets the driver look at them.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    let fake = Fake::new(cap(), ecap(input.u8() & 1 != 0));
    let vtd = Vtd::new(fake.clone(), Window(0), Options::default());
    for _ in 0..20 {
        match vtd.start(Start::Fresh) {
            Poll::Pending => fake.complete_all(),
            Poll::Ready(started) => {
                started.expect("the unit is as it should be");
                break;
            }
        }
    }
    vtd.add_device(SOURCE, Features::default()).expect("there is memory");
    let mut log = Log::default();
    while !input.is_empty() {
        match input.u8() % 4 {
            0 => request(&fake, &mut input),
            1 => record(&fake, &mut input),
            2 => {
                let register = VOLATILE[usize::from(input.u8()) % VOLATILE.len()];
                fake.set32(register, input.u32());
            }
            _ => {
                log.room = input.u8() & 1 == 0;
                look(&vtd, &mut log);
            }
        }
    }
    log.room = true;
    look(&vtd, &mut log);
}

/// A page request, in the queue's next entry.
fn request(fake: &Fake, input: &mut Bytes<'_>) {
    let pqa = fake.get64(offset::PQA);
    // PQS: 2^PQS pages.
    let (base, size) = (pqa & !0xfff, 4096 << (pqa & 7));
    let tail = fake.get64(offset::PQT) & (size - 32);
    if base == 0 {
        return;
    }
    for word in 0..4 {
        fake.poke(base + tail + 8 * word, input.u64());
    }
    fake.set64(offset::PQT, (tail + 32) & (size - 1));
    fake.set32(offset::PRS, fake.get32(offset::PRS) | 1);
}

/// A fault record, in any of the recording registers.
fn record(fake: &Fake, input: &mut Bytes<'_>) {
    let index = u32::from(input.u8()) % 4;
    fake.set64(FRCD + 16 * index, input.u64());
    fake.set64(FRCD + 16 * index + 8, input.u64());
    let fsts = fake.get32(offset::FSTS) & !0xff00;
    fake.set32(offset::FSTS, fsts | 0b10 | index << 8);
}

fn look(vtd: &Vtd<Fake>, log: &mut Log) {
    vtd.interrupt();
    log.taken = 0;
    for _ in 0..TURNS {
        if vtd.service(&mut Turn::new(log, 32)) == More::No {
            return;
        }
    }
}

/// Takes what the driver hands over, and checks what the core relies on.
#[derive(Default)]
struct Log {
    room: bool,
    passed: u64,
    taken: usize,
}

impl Log {
    fn take(&mut self, request: &PageRequest) -> Taken {
        assert_eq!(request.address % 4096, 0, "{request:?}");
        assert!(request.index < 1 << 9, "{request:?}");
        assert!(request.source.0 <= 0xffff, "{request:?}");
        if !self.room {
            return Taken::NoRoom;
        }
        self.taken += 1;
        assert!(self.taken < ENTRIES, "more than the queue holds");
        Taken::Yes
    }
}

impl Intake for Log {
    fn page_request(&mut self, request: PageRequest) -> Taken {
        self.take(&request)
    }

    fn malformed(&mut self, request: PageRequest) -> Taken {
        self.take(&request)
    }

    fn stalled(&mut self, stall: Stall) -> Taken {
        unreachable!("VT-d stalls nothing: {stall:?}")
    }

    fn stalls_ended(&mut self, source: SourceId) {
        unreachable!("VT-d stalls nothing: {source}")
    }

    fn fault(&mut self, fault: RawFault) {
        assert!(fault.source.is_none_or(|source| source.0 <= 0xffff), "{fault:?}");
        // A person reads it.
        let _ = format!("{fault:?}");
    }

    fn passed(&mut self, head: QueuePos) {
        assert!(self.passed <= head.0, "the head went back");
        self.passed = head.0;
    }

    fn overflow(&mut self) {}

    fn completed(&mut self) {}
}

fn cap() -> Cap {
    Cap::new()
        .with_nd(6)
        .with_sagaw(0b00100)
        .with_mgaw(47)
        .with_fro(FRCD as u16 / 16)
        .with_nfr(3)
        .with_sslps(0b11)
        .with_psi(true)
        .with_mamv(18)
        .with_dwd(true)
        .with_drd(true)
        .with_esrtps(true)
}

fn ecap(scalable: bool) -> Ecap {
    let legacy = Ecap::new().with_c(true).with_qi(true).with_dt(true).with_pt(true).with_iro(0xf);
    if !scalable {
        return legacy;
    }
    legacy
        .with_smts(true)
        .with_ssts(true)
        .with_fsts(true)
        .with_smpwcs(true)
        .with_pasid(true)
        .with_pss(19)
        .with_prs(true)
        .with_pds(true)
        .with_sms(true)
        .with_sc(true)
}
