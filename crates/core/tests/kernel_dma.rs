//! The kernel's DMA API as owner: IOVAs that are given out, parked and given out again, and data
//! that changes hands.

use crate::common::*;
use portcullis::driver::Incompatible;
use portcullis::driver::Target;
use portcullis::error::{AttachError, DmaMapError, DomainMapError, SyncError};
use portcullis::{At, Direction, DmaOptions, Domain, KernelDma, RegionKind, Scope, SourceId};
use portcullis_pgtable::{Phys, Prot};
use std::sync::Arc;

type Dma = Domain<Board, KernelDma>;

fn dma(w: &World, d: &Dev, options: DmaOptions) -> Dma {
    w.iommu.kernel_dma_domain(&[d], options).expect("made")
}

/// IOVAs below 64 KiB.
fn small() -> DmaOptions {
    DmaOptions { limit: 0xffff, ..DmaOptions::default() }
}

#[test]
fn memory_is_mapped_where_the_domain_wants_and_unmapped_strictly() {
    let w = World::new();
    let d = w.device(1);
    let dom = dma(&w, &d, small());
    let _a = w.iommu.attach(&cx(), &dom, &d, None, Arc::new(())).unwrap();
    let at = At { source: SourceId(1), pasid: None };
    assert!(matches!(w.hw.entry(at), Some(Target::Table { .. })));
    let m = dom.dma_map(Phys(0x50_0234), 0x1000, Direction::ToDevice).unwrap();
    assert_eq!((m.iova(), m.len(), m.is_empty()), (0xe234, 0x1000, false), "two pages, from the top");
    assert_eq!(m.direction(), Direction::ToDevice);
    let next = dom.dma_map(Phys(0x60_0000), 1, Direction::Both).unwrap();
    assert_eq!(next.iova(), 0xd000);
    w.hw.take_log();
    m.unmap(&cx()).unwrap();
    let gone = Call::Submit { range: Some((0xe000, 0xffff)), tags: 1, ats: 1 };
    assert_eq!(w.hw.take_log(), [gone]);
    let again = dom.dma_map(Phys(0x70_0000), 0x2000, Direction::FromDevice).unwrap();
    assert_eq!(again.iova(), 0xe000, "free when the unmap returns");
    next.unmap(&cx()).unwrap();
    again.unmap(&cx()).unwrap();
}

#[test]
fn directions_are_permissions() {
    let w = World::new();
    let d = w.device(1);
    let dom = dma(&w, &d, small());
    let _a = w.iommu.attach(&cx(), &dom, &d, None, Arc::new(())).unwrap();
    let at = At { source: SourceId(1), pasid: None };
    let Some(Target::Table { root, .. }) = w.hw.entry(at) else { panic!("it translates") };
    let prot = |iova| w.board.walk(root, iova).expect("mapped").1;
    for (direction, wanted) in [
        (Direction::ToDevice, Prot::READ),
        (Direction::FromDevice, Prot::WRITE),
        (Direction::Both, Prot::READ | Prot::WRITE),
    ] {
        let m = dom.dma_map(Phys(0x50_0000), 0x10, direction).unwrap();
        assert_eq!(prot(m.iova()), wanted, "{direction:?}");
        m.unmap(&cx()).unwrap();
    }
}

#[test]
fn a_dropped_mapping_keeps_its_iova_until_a_flush_that_began_later() {
    let w = World::new();
    let d = w.device(1);
    let dom = dma(&w, &d, DmaOptions { limit: 0x2fff, ..DmaOptions::default() });
    let _a = w.iommu.attach(&cx(), &dom, &d, None, Arc::new(())).unwrap();
    let map = || dom.dma_map(Phys(0x50_0000), 0x1000, Direction::Both);
    let (one, two) = (map().unwrap(), map().unwrap());
    assert_eq!((one.iova(), two.iova()), (0x2000, 0x1000));
    drop(one);
    let full = DmaMapError::NoIova { len: 0x1000, limit: 0x2fff };
    assert_eq!(map().err(), Some(full), "nothing was invalidated");
    // While the flush runs, the other one is dropped: too late for this flush.
    w.hw.state().hold = true;
    let mut flush = dom.start_flush();
    assert!(flush.step().is_pending());
    drop(two);
    assert_eq!(map().err(), Some(full), "the flush is not over");
    w.hw.state().hold = false;
    while flush.step().is_pending() {}
    drop(flush);
    let one = map().unwrap();
    assert_eq!(one.iova(), 0x2000);
    assert_eq!(map().err(), Some(full), "the other one was parked after this flush began");
    dom.flush(&cx()).unwrap();
    assert_eq!(map().unwrap().iova(), 0x1000);
}

#[test]
fn an_unmap_whose_hardware_is_lost_keeps_the_iova_for_ever() {
    let w = World::new();
    let d = w.device(1);
    let dom = dma(&w, &d, DmaOptions { limit: 0x1fff, ..DmaOptions::default() });
    let _a = w.iommu.attach(&cx(), &dom, &d, None, Arc::new(())).unwrap();
    let m = dom.dma_map(Phys(0x50_0000), 0x1000, Direction::Both).unwrap();
    w.hw.state().lost = true;
    assert!(matches!(m.unmap(&cx()), Err(SyncError::Lost(_))));
    assert!(matches!(dom.flush(&cx()), Err(SyncError::Lost(_))));
    let full = dom.dma_map(Phys(0x50_0000), 0x1000, Direction::Both);
    assert!(matches!(full, Err(DmaMapError::NoIova { .. })), "{full:?}");
}

#[test]
fn reserved_ranges_and_direct_regions_are_never_given_out() {
    let w = World::new();
    let d = w.device_with_direct(1, 0x3000);
    let dom = dma(&w, &d, DmaOptions { limit: 0x6fff, ..DmaOptions::default() });
    let other = w.device_with_direct(2, 0x5000);
    let _a = w.iommu.attach(&cx(), &dom, &d, None, Arc::new(())).unwrap();
    let _b = w.iommu.attach(&cx(), &dom, &other, None, Arc::new(())).unwrap();
    let mut given = Vec::new();
    while let Ok(m) = dom.dma_map(Phys(0x50_0000), 0x1000, Direction::Both) {
        given.push(m);
    }
    // 0x5000 to 0x6fff belong to a device that came later: they are found in the table.
    assert_eq!(given.iter().map(|m| m.iova()).collect::<Vec<_>>(), [0x2000, 0x1000]);
    let high = DmaOptions { limit: 0xfef0_0fff, ..DmaOptions::default() };
    let dom = dma(&w, &d, high);
    let m = dom.dma_map(Phys(0), 0x2000, Direction::Both).unwrap();
    assert_eq!(m.iova(), 0xfedf_e000, "below the interrupt range, since above it is too little");
    let [r] = dom.reserved() else { panic!("one range") };
    assert_eq!((r.start, r.last(), r.kind), (0xfee0_0000, 0xfeef_ffff, RegionKind::Msi));
}

#[test]
fn what_cannot_be_mapped_says_why_and_takes_nothing() {
    let w = World::new();
    let d = w.device(1);
    let dom = dma(&w, &d, DmaOptions { mappings: 1, ..small() });
    let map = |phys, len| dom.dma_map(Phys(phys), len, Direction::Both);
    assert_eq!(map(0x1000, 0).err(), Some(DmaMapError::ZeroLength(Phys(0x1000))));
    assert_eq!(map(u64::MAX, 2).err(), Some(DmaMapError::Wraps(Phys(u64::MAX), 2)));
    assert_eq!(map(1, u64::MAX).err(), Some(DmaMapError::Wraps(Phys(1), u64::MAX)));
    assert_eq!(map(0, 0x10_0000).err(), Some(DmaMapError::NoIova { len: 0x10_0000, limit: 0xffff }));
    let interrupt = map(0xfee0_0010, 4);
    let never = matches!(interrupt, Err(DmaMapError::Map(DomainMapError::ReservedOutput { .. })));
    assert!(never, "an interrupt stays one: {interrupt:?}");
    assert!(matches!(map(1 << 50, 4), Err(DmaMapError::Map(DomainMapError::Table(_)))));
    let only = map(0x1000, 4).unwrap();
    assert_eq!(map(0x1000, 4).err(), Some(DmaMapError::TooMany));
    drop(only);
    assert_eq!(map(0x1000, 4).err(), Some(DmaMapError::TooMany), "a parked IOVA counts too");
    dom.flush(&cx()).unwrap();
    assert!(map(0x1000, 4).is_ok());
}

#[test]
fn no_table_frame_is_lost() {
    let w = World::new();
    let d = w.device(1);
    let dom = dma(&w, &d, small());
    let before = w.board.frames();
    for _ in 0..3 {
        dom.dma_map(Phys(0x50_0000), 0x8000, Direction::Both).unwrap().unmap(&cx()).unwrap();
        drop(dom.dma_map(Phys(0x50_0000), 0x8000, Direction::Both));
        dom.flush(&cx()).unwrap();
    }
    let used = w.board.frames() - before;
    assert!(used <= 3, "{used} frames: the way to one leaf table at most");
    drop(dom);
    assert!(w.board.frames() < before);
}

#[test]
fn data_changes_hands_where_devices_do_not_snoop() {
    use board::Maintained::{Cleaned, Invalidated};
    let w = World::new();
    let d = {
        let mut spec = w.spec(1);
        spec.caps.coherent_dma = false;
        w.iommu.add_device(&cx(), spec).expect("added")
    };
    let dom = dma(&w, &d, small());
    let (phys, len) = (Phys(0x50_0234), 0x100);
    let steps = |direction| {
        let m = dom.dma_map(phys, len, direction).unwrap();
        let mapped = w.board.take_maintained();
        m.sync_for_cpu();
        let for_cpu = w.board.take_maintained();
        m.sync_for_device();
        let for_device = w.board.take_maintained();
        m.unmap(&cx()).unwrap();
        [mapped, for_cpu, for_device, w.board.take_maintained()]
    };
    let (clean, drop) = (vec![Cleaned(phys, len)], vec![Invalidated(phys, len)]);
    let to = steps(Direction::ToDevice);
    assert_eq!(to, [clean.clone(), vec![], clean.clone(), vec![]]);
    assert_eq!(steps(Direction::FromDevice), [drop.clone(), drop.clone(), drop.clone(), drop.clone()]);
    assert_eq!(steps(Direction::Both), [clean.clone(), drop.clone(), clean, drop]);
    let snoops = w.device(2);
    let coherent = dma(&w, &snoops, small());
    coherent.dma_map(phys, len, Direction::Both).unwrap().unmap(&cx()).unwrap();
    assert_eq!(w.board.take_maintained(), [], "nothing is to be done where devices snoop");
    let refused = w.iommu.attach(&cx(), &coherent, &d, None, Arc::new(())).err();
    let why = Incompatible::NotCoherentDma;
    assert_eq!(
        refused,
        Some(AttachError::Incompatible { device: d.id(), at: At { source: SourceId(1), pasid: None }, why }),
        "nobody cleans"
    );
    let _a = w.iommu.attach(&cx(), &dom, &snoops, None, Arc::new(())).unwrap();
}

#[test]
fn faults_are_observed_and_page_requests_reach_nobody() {
    let w = World::new();
    let d = w.device(1);
    let dom = dma(&w, &d, small());
    let seen = w.iommu.observe(Scope::Domain(dom.id()), 8).unwrap();
    let _a = w.iommu.attach(&cx(), &dom, &d, None, Arc::new(())).unwrap();
    w.sends(&[last(1, 3)]);
    assert_eq!(w.hw.answers(), [sent(1, 3, portcullis::Code::Invalid)]);
    assert!(seen.try_next().is_some(), "the observer was told");
}
