//! The MSI window of owners that map: a part of the IOVA space that is theirs to point at, and
//! nobody's to map.

use crate::common::*;
use portcullis::driver::Target;
use portcullis::error::{DomainError, DomainMapError, MsiError};
use portcullis::{
    At, Code, Deferred, Domain, DomainOptions, MsiWindow, PageGroup, RegionKind, Response, Sleep, SourceId,
    UserObject,
};
use portcullis_pgtable::{MapError, Phys, Prot, UnmapError};
use std::sync::{Arc, Mutex};

type Never = fn(&Sleep<'_>, &Arc<Data>, PageGroup<'_, Board>);
type User = Domain<Board, UserObject<Data>>;

const WINDOW: MsiWindow = MsiWindow { base: 0x800_0000, len: 0x3000 };
/// A doorbell register, as GITS_TRANSLATER is one: inside a page of its own.
const DOORBELL: Phys = Phys(0x808_0040);

fn options(window: MsiWindow) -> DomainOptions {
    DomainOptions { msi_window: Some(window), ..DomainOptions::default() }
}

fn external(w: &World, d: &Dev) -> Dom {
    w.iommu.external_domain(&[d], options(WINDOW), None::<Never>).expect("made")
}

fn user(w: &World, d: &Dev) -> User {
    w.iommu.user_object_domain(&[d], options(WINDOW), None::<Never>).expect("made")
}

#[test]
fn a_window_is_reported_and_nobody_maps_or_unmaps_there() {
    let w = World::new();
    let d = w.device(1);
    macro_rules! check {
        ($dom:expr) => {
            let dom = $dom;
            let why: Vec<_> = dom.reserved().iter().map(|r| (r.start, r.last(), r.kind)).collect();
            let hardware = (0xfee0_0000, 0xfeef_ffff, RegionKind::Msi);
            assert_eq!(why, [hardware, (0x800_0000, 0x800_2fff, RegionKind::SoftwareMsi)]);
            let doorbell = dom.map_msi(&cx(), DOORBELL).unwrap();
            for (iova, len) in [(0x800_0000, 0x1000), (0x7ff_f000, 0x2000), (0x800_2000, 0x4000)] {
                let refused = dom.map_range(iova, Phys(0x10_0000), len, RW);
                let (start, end) = (0x800_0000, 0x800_2fff);
                assert_eq!(refused, Err(DomainMapError::ReservedInput { iova, len, start, end }));
                let first = iova.max(start);
                let refused = dom.unmapping().unmap(iova, len);
                assert_eq!(refused, Err(UnmapError::NotMapped { iova: first }));
            }
            assert_eq!(dom.lookup(doorbell).map(|l| l.phys), Some(DOORBELL));
            for (iova, phys) in [(0xfee0_0000, 0), (0xfedf_f000, 0)] {
                let refused = dom.map_range(iova, Phys(phys), 0x2000, RW);
                assert!(matches!(refused, Err(DomainMapError::ReservedInput { .. })), "{refused:?}");
            }
            let refused = dom.map_range(0x1000, Phys(0xfee0_0000), 0x1000, RW);
            assert!(matches!(refused, Err(DomainMapError::ReservedOutput { .. })), "{refused:?}");
            dom.map_range(0x7ff_f000, Phys(0x10_0000), 0x1000, RW).unwrap();
            dom.map_range(0x800_3000, Phys(0x10_0000), 0x1000, RW).unwrap();
        };
    }
    check!(external(&w, &d));
    check!(user(&w, &d));
}

#[test]
fn doorbells_are_mapped_once_for_writes_until_the_window_is_full() {
    let w = World::new();
    let d = w.device(1);
    let dom = external(&w, &d);
    let a = w.attach(&dom, &d);
    assert_eq!(dom.map_msi(&cx(), DOORBELL), Ok(0x800_0040));
    assert_eq!(dom.map_msi(&cx(), Phys(0x808_0044)), Ok(0x800_0044), "the same page");
    assert_eq!(dom.map_msi(&cx(), Phys(0x909_0040)), Ok(0x800_1040));
    assert_eq!(dom.map_msi(&cx(), DOORBELL), Ok(0x800_0040));
    let Some(Target::Table { root, .. }) = w.hw.entry(At { source: SourceId(1), pasid: None }) else {
        panic!("it translates")
    };
    assert_eq!(w.board.walk(root, 0x800_0040), Some((DOORBELL, Prot::WRITE)), "nobody reads a doorbell");
    let interrupt = dom.map_msi(&cx(), Phys(0xfee0_1000));
    let refused = matches!(interrupt, Err(MsiError::Map(DomainMapError::ReservedOutput { .. })));
    assert!(refused, "an interrupt is no doorbell: {interrupt:?}");
    assert_eq!(dom.map_msi(&cx(), Phys(0xb0b_0000)), Ok(0x800_2000), "a refused one takes no page");
    assert_eq!(dom.map_msi(&cx(), Phys(0xa0a_0000)), Err(MsiError::Full(Phys(0xa0a_0000))));
    assert_eq!(w.plain(&d).map_msi(&cx(), DOORBELL), Err(MsiError::NoWindow));
    drop(a);
}

#[test]
fn a_doorbell_without_table_memory_is_refused_and_nothing_leads_to_it() {
    let w = World::new();
    let d = w.device(1);
    let dom = external(&w, &d);
    w.board.mem().allow(Some(0));
    let refused = dom.map_msi(&cx(), DOORBELL);
    let no_memory = MsiError::Map(DomainMapError::Table(MapError::NoMem { iova: 0x800_0000 }));
    assert_eq!(refused, Err(no_memory));
    w.board.mem().allow(None);
    assert_eq!(dom.lookup(0x800_0000), None);
    assert_eq!(dom.map_msi(&cx(), DOORBELL), Ok(0x800_0040), "the page is free again");
}

#[test]
fn a_window_that_cannot_be_is_refused() {
    let w = World::new();
    let d = w.device(1);
    for (base, len, says) in [
        (0x1000, 0, "it is empty or wraps"),
        (u64::MAX - 0xfff, 0x2000, "it is empty or wraps"),
        (0x1800, 0x1000, "it does not consist of whole pages"),
        (0x1000, 0x1800, "it does not consist of whole pages"),
        (1 << 48, 0x1000, "it ends beyond the table's input width"),
        (0x1000, 0x101_000, "it has more pages than doorbells are kept track of"),
        (0xfedf_f000, 0x2000, "it touches a range that requester ids cannot translate"),
    ] {
        let made: Result<Dom, _> =
            w.iommu.external_domain(&[&d], options(MsiWindow { base, len }), None::<Never>);
        assert_eq!(made.err(), Some(DomainError::MsiWindow { base, len, why: says }));
    }
}

#[test]
fn a_user_object_has_a_window_and_a_decider_that_lives_elsewhere() {
    let w = World::new();
    let d = w.device(1);
    let queue: Arc<Mutex<Vec<Deferred<Board>>>> = Arc::default();
    let to = queue.clone();
    let forward = move |_: &Arc<Data>, group: PageGroup<'_, Board>| to.lock().unwrap().push(group.defer());
    let dom: User = w.iommu.user_object_domain_immediate(&[&d], options(WINDOW), forward).unwrap();
    let a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    assert_eq!(dom.map_msi(&cx(), DOORBELL), Ok(0x800_0040));
    w.sends(&[last(1, 4)]);
    assert_eq!(w.hw.answers(), [], "the process has not decided");
    let group = queue.lock().unwrap().pop().expect("it was told");
    dom.map_range(group.request(0).unwrap().address, Phys(0x10_0000), 0x1000, RW).unwrap();
    group.respond(Response::Success).unwrap();
    assert_eq!(w.hw.answers(), [sent(1, 4, Code::Success)]);
    w.sends(&[last(1, 5)]);
    assert!(a.begin_detach(&cx()).is_gone());
    assert_eq!(w.hw.answers()[1..], [sent(1, 5, Code::Invalid)], "a detach answers what waits");
    let late = queue.lock().unwrap().pop().expect("it was told");
    assert!(late.respond(Response::Success).is_err());
}
