//! The driver against a scripted unit: plain memory, a register file, and hands that complete what
//! a test wants completed. Expected bytes are literals worked out from the manual. That hardware
//! reads them so is shown elsewhere, by a model and by QEMU.

mod attach;
mod comes_back;
mod directory;
mod fake;
mod levels;
mod mute;
mod private_data;
mod queues;
mod recovery;
mod starting;

use self::fake::Fake;
use super::{Options, Vtd};
use core::task::Poll;
use portcullis::{
    At, DomainTag, Pasid, SourceId, Window,
    driver::{Driver, Features, InvSeq, Start, Target},
};
use portcullis_pgtable::{FormatDesc, FormatId, Phys, Space, VTD_SECOND_STAGE, X86_FIRST_STAGE};
use portcullis_spec::vtd::regs::{Cap, Ecap};

/// 01:02.3.
const SOURCE: SourceId = SourceId(0x0113);

fn cap() -> Cap {
    Cap::new()
        .with_nd(6)
        .with_sagaw(0b00100)
        .with_mgaw(47)
        .with_fro(0x22)
        .with_nfr(3)
        .with_sslps(0b11)
        .with_psi(true)
        .with_mamv(18)
        .with_dwd(true)
        .with_drd(true)
        .with_esrtps(true)
}

fn legacy_ecap() -> Ecap {
    Ecap::new().with_c(true).with_qi(true).with_dt(true).with_pt(true).with_iro(0xf)
}

fn scalable_ecap() -> Ecap {
    legacy_ecap()
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

/// A running unit.
fn running(cap: Cap, ecap: Ecap) -> (Fake, Vtd<Fake>) {
    running_with(cap, ecap, Options::default())
}

fn running_with(cap: Cap, ecap: Ecap, options: Options) -> (Fake, Vtd<Fake>) {
    let fake = Fake::new(cap, ecap);
    let vtd = Vtd::new(fake.clone(), Window(0), options);
    assert_eq!(finish_start(&fake, &vtd), Ok(()));
    (fake, vtd)
}

fn finish_start(fake: &Fake, vtd: &Vtd<Fake>) -> Result<(), portcullis::driver::StartError> {
    for _ in 0..20 {
        if let Poll::Ready(r) = vtd.start(Start::Fresh) {
            return r;
        }
        fake.complete_all();
    }
    panic!("the start does not end");
}

fn legacy() -> (Fake, Vtd<Fake>) {
    running(cap(), legacy_ecap())
}

fn scalable() -> (Fake, Vtd<Fake>) {
    running(cap(), scalable_ecap())
}

fn all_features() -> Features {
    Features { pasid_bits: 20, ats: true, pri: true, ..Features::default() }
}

fn ats() -> Features {
    Features { ats: true, ..Features::default() }
}

fn rid() -> At {
    At { source: SOURCE, pasid: None }
}

fn with_pasid(n: u32) -> At {
    At { source: SOURCE, pasid: Pasid::new(n) }
}

fn desc(id: FormatId) -> FormatDesc {
    FormatDesc {
        id,
        levels: 4,
        space: Space::Lower,
        input_bits: 47,
        output_bits: 46,
        page_sizes: 1 << 12 | 1 << 21,
        coherent: true,
        dirty: false,
    }
}

fn second_stage(tag: u32, root: u64) -> Target {
    Target::Table { desc: desc(VTD_SECOND_STAGE), root: Phys(root), tag: DomainTag(tag) }
}

fn first_stage(tag: u32, root: u64) -> Target {
    Target::Table { desc: desc(X86_FIRST_STAGE), root: Phys(root), tag: DomainTag(tag) }
}

/// Prepares and commits.
fn attach(vtd: &Vtd<Fake>, at: At, to: Target) -> InvSeq {
    let prepared = vtd.prepare(at, to).unwrap();
    vtd.commit(prepared).unwrap()
}
