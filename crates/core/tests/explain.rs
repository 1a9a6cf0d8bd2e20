//! What a person is told about a fault.

use crate::common::*;
use portcullis::{
    Access, Config, Direction, DmaOptions, FaultKind, FaultRecord, Provenance, RawFault, Reason, Scope,
    SourceId, Stage, Storms, Subscription,
};
use portcullis_pgtable::{Phys, Prot};
use snapbox::{assert_data_eq, str};
use std::{sync::Arc, time::Duration};

const PAGE: u64 = 0x1000;

/// A machine that keeps so many events of each domain.
fn keeping(provenance: usize) -> (World, Subscription<Board>) {
    let w = World::with(Config { provenance, storms: Storms::NEVER, ..Config::default() });
    w.board.advance(portcullis::Time(1_000_000));
    let told = w.iommu.observe(Scope::All, 64).unwrap();
    (w, told)
}

fn dma(source: u32, access: Access, address: u64, reason: Reason) -> RawFault {
    RawFault {
        source: Some(SourceId(source)),
        access,
        address: Some(address),
        address_mask: !0xfff,
        stage: Some(Stage::Second),
        code: 0x71,
        ..RawFault::new(FaultKind::Dma, reason)
    }
}

impl Faulty for (World, Subscription<Board>) {
    fn faults(&self, fault: RawFault) -> FaultRecord {
        self.0.hw.faults(fault);
        self.0.iommu.service(IOMMU);
        self.1.try_next().expect("told").record
    }
}

trait Faulty {
    /// The hardware records it; what observers are told.
    fn faults(&self, fault: RawFault) -> FaultRecord;
}

#[test]
fn a_buffer_that_was_unmapped_is_named_with_who_mapped_and_unmapped_it() {
    let w = keeping(16);
    let d = w.0.device(0x101);
    let dom = w.0.plain(&d);
    let _a = w.0.attach(&dom, &d);
    dom.map_range(0x10000, Phys(0x80000), 2 * PAGE, RW).unwrap();
    w.0.pass(Duration::from_micros(5));
    let mut unmapping = dom.unmapping();
    unmapping.unmap(0x10000, 2 * PAGE).unwrap();
    let early = w.faults(dma(0x101, Access::Write, 0x11040, Reason::NotMapped));
    assert_data_eq!(
        dom.explain(&early).to_string(),
        str![[r#"
device 0x101 (01:00.1) wrote in the 4096 bytes at 0x11000 and was refused: nothing is mapped there.
  where:   iommu7, group 0x101, domain 1, second stage; record 1 at 0.001005000s, code 0x71
  mapping: 0x10000..=0x11fff to 0x80000, read and write
           mapped at 0.001000000s by crates/core/tests/explain.rs:[..]
           unmapped at 0.001005000s by crates/core/tests/explain.rs:[..]
           not invalidated yet: caches may still hold it
  next:    the device used a buffer after it was unmapped: let its driver stop the DMA, or wait for it, first.
"#]]
    );
    w.0.pass(Duration::from_micros(5));
    unmapping.sync(&cx()).unwrap();
    let late = w.faults(dma(0x101, Access::Write, 0x11040, Reason::NotMapped));
    let said = w.0.iommu.explain(&late).to_string();
    assert!(said.contains("\n           out of every cache since 0.001010000s\n"), "{said}");
}

#[test]
fn each_page_of_a_mapping_goes_for_itself() {
    let w = keeping(16);
    let d = w.0.device(1);
    let dom = w.0.plain(&d);
    dom.map_range(0x10000, Phys(0x80000), 3 * PAGE, Prot::READ).unwrap();
    let mut first = dom.unmapping();
    first.unmap(0x10000, PAGE).unwrap();
    let mut second = dom.unmapping();
    second.unmap(0x11000, PAGE).unwrap();
    first.sync(&cx()).unwrap();
    let gone = |iova| match dom.provenance(iova) {
        Provenance::Known(m) => {
            assert_eq!((m.iova, m.len, m.phys, m.prot), (0x10000, 3 * PAGE, Phys(0x80000), Prot::READ));
            m.gone.map(|g| g.invalidated.is_some())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!([0x10fff, 0x11000, 0x12000].map(gone), [Some(true), Some(false), None]);
    drop(second);
    dom.flush(&cx()).unwrap();
    assert_eq!([0x10fff, 0x11000, 0x12000].map(gone), [Some(true), Some(true), None]);
    dom.map_range(0x11000, Phys(0x90000), PAGE, RW).unwrap();
    assert!(
        matches!(dom.provenance(0x11000), Provenance::Known(m) if m.phys == Phys(0x90000) && m.gone.is_none())
    );
    assert_eq!(dom.provenance(0x13000), Provenance::Never);
}

#[test]
fn an_invalidation_that_began_before_an_unmap_does_not_cover_it() {
    let w = keeping(16);
    let d = w.0.device(1);
    let dom = w.0.plain(&d);
    let _a = w.0.attach(&dom, &d);
    for n in 0..2 {
        dom.map_range(n * PAGE, Phys(0x80000 + n * PAGE), PAGE, RW).unwrap();
    }
    let mut one = dom.unmapping();
    one.unmap(0, PAGE).unwrap();
    let mut two = dom.unmapping();
    w.0.hw.state().hold = true;
    let mut flush = dom.start_flush();
    assert!(flush.step().is_pending(), "submitted, and the hardware has not answered");
    two.unmap(PAGE, PAGE).unwrap();
    w.0.hw.state().hold = false;
    while flush.step().is_pending() {
        w.0.iommu.service(IOMMU);
    }
    let invalidated = |iova| match dom.provenance(iova) {
        Provenance::Known(m) => m.gone.unwrap().invalidated.is_some(),
        other => panic!("{other:?}"),
    };
    assert_eq!((invalidated(0), invalidated(PAGE)), (true, false));
}

#[test]
fn the_history_is_bounded_and_says_what_it_forgot() {
    let w = keeping(4);
    let d = w.0.device(1);
    let dom = w.0.plain(&d);
    for n in 0..6 {
        dom.map_range(n * PAGE, Phys(0x80000 + n * PAGE), PAGE, RW).unwrap();
    }
    assert_eq!(dom.provenance(PAGE), Provenance::Forgotten);
    assert!(matches!(dom.provenance(2 * PAGE), Provenance::Known(_)));
    let off = World::new();
    let dom = off.plain(&off.device(1));
    dom.map_range(0, Phys(0x80000), PAGE, RW).unwrap();
    assert_eq!(dom.provenance(0), Provenance::Off);
}

#[test]
fn what_is_said_without_a_history_without_a_domain_and_without_a_device() {
    let w = keeping(0);
    let d = w.0.device(2);
    let dom = w.0.plain(&d);
    let a = w.0.attach(&dom, &d);
    dom.map_range(0x10000, Phys(0x80000), PAGE, Prot::READ).unwrap();
    let denied = w.faults(dma(2, Access::Write, 0x10000, Reason::Permission));
    let unmapped = w.faults(dma(2, Access::Read, 0x7000, Reason::NotMapped));
    let said = [denied, unmapped].map(|r| w.0.iommu.explain(&r).to_string()).join("\n");
    assert_data_eq!(
        said,
        str![[r#"
device 0x2 (00:00.2) wrote in the 4096 bytes at 0x10000 and was refused: the mapping does not allow it.
  where:   iommu7, group 0x2, domain 1, second stage; record 1 at 0.001000000s, code 0x71
  now:     0x80000, read only
  next:    map with the direction in which the device moves data, or find out why it goes the other way.
device 0x2 (00:00.2) read in the 4096 bytes at 0x7000 and was refused: nothing is mapped there.
  where:   iommu7, group 0x2, domain 1, second stage; record 2 at 0.001000000s, code 0x71
  now:     not mapped; no history is kept
  next:    check the address that the driver programmed, and that it maps before it starts the device.
"#]]
    );
    drop(a.begin_detach(&cx()));
    let gone = w.0.iommu.explain(&unmapped).to_string();
    assert!(gone.contains("domain 1, to which nothing is attached any more, second stage;"), "{gone}");
    assert!(dom.explain(&unmapped).to_string().contains("now:     not mapped"), "who holds it can still ask");

    let blocked = w.0.iommu.blocked_domain().unwrap();
    let _b = w.0.iommu.attach(&cx(), &blocked, &d, None, Arc::new(())).unwrap();
    let records = [
        dma(2, Access::Atomic, 0x1000, Reason::Blocked),
        dma(0x3ff, Access::Read, 0x2000, Reason::Blocked),
        RawFault {
            pasid: pasid(5),
            address_mask: u64::MAX,
            privileged: true,
            ..dma(2, Access::Execute, 0x3, Reason::AddressRange)
        },
        RawFault {
            source: Some(SourceId(2)),
            access: Access::Write,
            ..RawFault::new(FaultKind::InterruptRemapping, Reason::NotMapped)
        },
        RawFault::new(FaultKind::Overflow, Reason::QueueOverflow),
    ];
    let said = records.map(|raw| w.0.iommu.explain(&w.faults(raw)).to_string()).join("\n");
    assert_data_eq!(
        said,
        str![[r#"
device 0x2 (00:00.2) did an atomic operation in the 4096 bytes at 0x1000 and was refused: the requester is blocked, or nobody knows it.
  where:   iommu7, group 0x2, domain 2, which blocks everything, second stage; record 3 at 0.001000000s, code 0x71
  next:    nothing lets this requester pass: attach the device, or the PASID, before it is started.
an unknown requester (03:1f.7) read in the 4096 bytes at 0x2000 and was refused: the requester is blocked, or nobody knows it.
  where:   iommu7, nothing attached, second stage; record 4 at 0.001000000s, code 0x71
  next:    nothing lets this requester pass: attach the device, or the PASID, before it is started.
device 0x2 (00:00.2), PASID 5, fetched an instruction at 0x3, privileged, and was refused: the address is outside what the table can translate.
  where:   iommu7, group 0x2, nothing attached, second stage; record 5 at 0.001000000s, code 0x71
  next:    the address is wider than the table: limit the device's DMA mask, or ask for a wider table.
device 0x2 (00:00.2) raised an interrupt and was refused: the entry of the interrupt is not present.
  where:   iommu7, group 0x2, domain 2, which blocks everything; record 6 at 0.001000000s, code 0x0
  next:    no interrupt is set up under this index: check what was written to the device's MSI registers.
iommu7 lost records or requests: a queue overflowed.
  where:   iommu7; record 7 at 0.001000000s, code 0x0
  next:    requests came faster than they were read: lower the shares, or service the instance sooner.
"#]]
    );
}

#[test]
fn every_reason_has_its_words() {
    use Reason::*;
    let w = keeping(0);
    let reasons = [
        NotMapped,
        Permission,
        AddressRange,
        Blocked,
        RequestType,
        InterruptRange,
        BadEntry,
        TableAccess,
        Quota,
        QueueOverflow,
        Deadline,
        DeviceTimeout,
        UnexpectedCompletion,
        Hardware,
        Other,
    ];
    let said = reasons.map(|r| {
        let e = w.0.iommu.explain(&w.faults(dma(1, Access::Read, 0, r)));
        let first = e.to_string().lines().next().unwrap().split_once("refused: ").unwrap().1.to_owned();
        format!("{r:?}: {first} {}.", e.advice())
    });
    assert_data_eq!(
        said.join("\n"),
        str![[r#"
NotMapped: nothing is mapped there. check the address that the driver programmed, and that it maps before it starts the device.
Permission: the mapping does not allow it. map with the direction in which the device moves data, or find out why it goes the other way.
AddressRange: the address is outside what the table can translate. the address is wider than the table: limit the device's DMA mask, or ask for a wider table.
Blocked: the requester is blocked, or nobody knows it. nothing lets this requester pass: attach the device, or the PASID, before it is started.
RequestType: it has no right to requests of this kind. the device sent a kind of request that it was not granted: check which features are on, and its trust.
InterruptRange: the address is in the interrupt range. the interrupt range is no memory: keep buffers out of it; if it was meant as an interrupt, check MSI.
BadEntry: an entry of the IOMMU's tables is invalid. the IOMMU found a bad entry in its tables: a fault of its driver; keep the raw words for a report.
TableAccess: the IOMMU could not reach its tables. the IOMMU could not reach its own tables: check that memory holds, and that nobody else writes there.
Quota: it is over its share. the device asks for more pages at once than its share: raise its credits if that is legitimate.
QueueOverflow: a queue overflowed. requests came faster than they were read: lower the shares, or service the instance sooner.
Deadline: nobody answered before the deadline. no resolver answered in time: look for one that hangs, add workers, or raise the deadline.
DeviceTimeout: it did not complete an invalidation of its own TLB. the device does not invalidate its own TLB: it was cut off, and needs a reset before it is used again.
UnexpectedCompletion: nobody had told it to. the device, or another under its id, makes up answers: do not trust it, and reset it.
Hardware: it does not respond any more. the IOMMU does not answer: its devices are lost until the machine, or the unit, is reset.
Other: the vendor's code says why. see the vendor's code.
"#]]
    );
}

#[test]
fn a_mapping_of_the_dma_api_is_traced_to_the_driver_that_made_and_ended_it() {
    let w = keeping(16);
    let d = w.0.device(1);
    let dom = w.0.iommu.kernel_dma_domain(&[&d], DmaOptions::default()).unwrap();
    let here = line!() + 1;
    let mapping = dom.dma_map(Phys(0x50_0234), 0x10, Direction::Both).unwrap();
    let iova = mapping.iova();
    mapping.unmap(&cx()).unwrap();
    let Provenance::Known(history) = dom.provenance(iova) else { panic!("{:?}", dom.provenance(iova)) };
    let gone = history.gone.unwrap();
    let by =
        [history.mapped.by, gone.unmapped.by].map(|by| (by.file().ends_with("explain.rs"), by.line() - here));
    assert_eq!(by, [(true, 0), (true, 2)]);
    assert!(gone.invalidated.is_some());
}
