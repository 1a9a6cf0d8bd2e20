//! Who has a group: kernel drivers or one owner outside; and what drivers find attached.

use crate::common::*;
use portcullis::driver::{Incompatible, Target};
use portcullis::error::{AttachError, ClaimError, DomainMapError};
use portcullis::{
    At, Config, DecidedBy, DefaultChoice, DefaultKind, DeviceId, DeviceSpec, Direction, GroupId, Membership,
    OwnerId, RegionKind, ReservedRegion, SourceId,
};
use portcullis_pgtable::Phys;
use std::sync::Arc;

const VMM: OwnerId = OwnerId(7);
const OTHER: OwnerId = OwnerId(8);

fn at(n: u32) -> At {
    At { source: SourceId(n), pasid: None }
}

fn with(kind: DefaultKind) -> World {
    World::with(Config { default_domain: kind, ..Config::default() })
}

fn member(w: &World, n: u32, change: impl FnOnce(&mut DeviceSpec)) -> Dev {
    let mut spec = w.spec(n);
    spec.group = Some(Membership { group: GroupId(1), merges: Vec::new() });
    change(&mut spec);
    w.iommu.add_device(&cx(), spec).expect("added")
}

#[test]
fn drivers_share_a_group_and_its_default_domain_and_keep_owners_out() {
    let w = with(DefaultKind::Translating);
    let (one, two) = (member(&w, 1, |_| {}), member(&w, 2, |_| {}));
    let first = one.use_by_driver(&cx()).unwrap();
    let second = two.use_by_driver(&cx()).unwrap();
    assert!(matches!(w.hw.entry(at(1)), Some(Target::Table { .. })));
    assert_eq!(w.hw.entry(at(1)), w.hw.entry(at(2)));
    assert_eq!(one.claim(VMM).err(), Some(ClaimError::Drivers(GroupId(1))));
    let dma = second.dma().expect("it translates");
    drop(dma.dma_map(Phys(0x5000), 0x1000, Direction::Both).unwrap());
    first.end(&cx());
    assert!(w.hw.entry(at(1)).is_some(), "one driver is left");
    assert_eq!(two.claim(VMM).err(), Some(ClaimError::Drivers(GroupId(1))));
    second.end(&cx());
    assert_eq!((w.hw.entry(at(1)), w.hw.entry(at(2))), (None, None));
    let claim = one.claim(VMM).unwrap();
    assert_eq!(two.use_by_driver(&cx()).err(), Some(ClaimError::Owned(GroupId(1), VMM)));
    drop(claim);
    // Dropped without an end, a worker does the rest.
    drop(two.use_by_driver(&cx()).unwrap());
    w.work();
    assert_eq!(w.hw.entry(at(2)), None);
}

#[test]
fn an_owner_has_the_group_alone_and_attaches_through_its_claim() {
    let w = World::new();
    let (one, two) = (member(&w, 1, |_| {}), member(&w, 2, |_| {}));
    let dom = w.plain(&one);
    let a = w.attach(&dom, &one);
    assert_eq!(two.claim(VMM).err(), Some(ClaimError::Attached(at(2))));
    drop(a.begin_detach(&cx()));
    let claim = one.claim(VMM).unwrap();
    assert_eq!(two.claim(OTHER).err(), Some(ClaimError::Owned(GroupId(1), VMM)));
    let again = two.claim(VMM).expect("the same owner");
    for device in [&one, &two] {
        let why = w.iommu.attach(&cx(), &dom, device, None, data()).err();
        assert_eq!(why, Some(AttachError::NotOwner(GroupId(1))));
    }
    let a = w.attach(&dom, again.device());
    assert!(a.places().eq([at(1), at(2)]));
    drop(again);
    assert_eq!(one.use_by_driver(&cx()).err(), Some(ClaimError::Owned(GroupId(1), VMM)));
    let handle = claim.device().clone();
    drop(claim);
    // A handle of a claim that is over is nobody's.
    let why = w.iommu.attach(&cx(), &dom, &handle, pasid(3), data()).err();
    assert_eq!(why, Some(AttachError::NotOwner(GroupId(1))));
    assert!(matches!(one.use_by_driver(&cx()).err(), Some(ClaimError::Attach(AttachError::Occupied(_)))));
    drop(a.begin_detach(&cx()));
    one.use_by_driver(&cx()).unwrap().end(&cx());
}

#[test]
fn the_default_domain_is_policy_and_the_strictest_member_has_its_way() {
    let choice = |w: &World, n: u32| {
        let d = w.iommu.add_device(&cx(), w.spec(n)).unwrap();
        let used = d.use_by_driver(&cx()).unwrap();
        assert_eq!(used.default_domain(), d.default_domain());
        let found = (used.default_domain(), w.hw.entry(at(n)));
        used.end(&cx());
        found
    };
    let config = |kind| DefaultChoice { kind, by: DecidedBy::Config };
    let (identity, entry) = choice(&with(DefaultKind::Identity), 1);
    assert_eq!(identity, config(DefaultKind::Identity));
    assert!(matches!(entry, Some(Target::Identity { .. })));
    let (translating, entry) = choice(&with(DefaultKind::Translating), 1);
    assert_eq!(translating, config(DefaultKind::Translating));
    assert!(matches!(entry, Some(Target::Table { .. })));
    assert_eq!(choice(&with(DefaultKind::Blocked), 1), (config(DefaultKind::Blocked), None));

    let w = with(DefaultKind::Identity);
    let trusting = member(&w, 1, |_| {});
    let untrusted = member(&w, 2, |spec| {
        spec.trusted = false;
        spec.default_domain = Some(DefaultKind::Identity);
    });
    let by = DecidedBy::Untrusted(DeviceId(2));
    assert_eq!(trusting.default_domain(), DefaultChoice { kind: DefaultKind::Translating, by });
    let strict = member(&w, 3, |spec| spec.default_domain = Some(DefaultKind::Blocked));
    let by = DecidedBy::Device(DeviceId(3));
    assert_eq!(untrusted.default_domain(), DefaultChoice { kind: DefaultKind::Blocked, by });
    let used = trusting.use_by_driver(&cx()).unwrap();
    assert!(used.dma().is_none() && w.hw.entry(at(1)).is_none());
    drop((used, strict));
}

#[test]
fn an_owner_outside_drops_what_is_relaxable() {
    let w = World::new();
    let d = member(&w, 1, |spec| {
        let relaxable = RegionKind::DirectRelaxable;
        spec.regions = vec![
            ReservedRegion::direct(0x8000, 0x1000, RW),
            ReservedRegion { kind: relaxable, ..ReservedRegion::direct(0xc000, 0x1000, RW) },
            ReservedRegion::closed(0x2_0000, 0x1000, RegionKind::Reserved),
            ReservedRegion::closed(0x3_0000, 0x1000, RegionKind::SoftwareMsi),
        ];
    });
    use RegionKind::*;
    let kinds: Vec<_> = d.reserved_regions().unwrap().iter().map(|r| r.kind).collect();
    assert_eq!(kinds, [Direct, DirectRelaxable, Reserved, SoftwareMsi, Msi]);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    assert!(dom.lookup(0x8000).is_some() && dom.lookup(0xc000).is_some());
    drop(a.begin_detach(&cx()));
    let claim = d.claim(VMM).unwrap();
    let a = w.attach(&dom, claim.device());
    assert!(dom.lookup(0x8000).is_some() && dom.lookup(0xc000).is_none());
    drop(a.begin_detach(&cx()));
    assert!(dom.lookup(0x8000).is_none());
}

#[test]
fn what_a_device_does_not_take_for_memory_is_closed_in_every_domain_it_is_attached_to() {
    let w = World::new();
    let closed = ReservedRegion::closed(0x2_0000, 0x2000, RegionKind::Reserved);
    // Another member of the group has the region: it is attached with this one.
    let d = member(&w, 1, |_| {});
    let _other = member(&w, 2, |spec| spec.regions = vec![closed]);
    let dom = w.plain(&d);
    assert!(dom.reserved().contains(&closed));
    let refused = dom.map_range(0x2_1000, Phys(0x9000), 0x1000, RW);
    assert!(matches!(refused, Err(DomainMapError::ReservedInput { start: 0x2_0000, end: 0x2_1fff, .. })));
    dom.map_range(0x2_2000, Phys(0x9000), 0x1000, RW).unwrap();
    drop(w.attach(&dom, &d).begin_detach(&cx()));
    // A domain that was made for somebody else may have a mapping there.
    let somebody = w.device(3);
    let open = w.plain(&somebody);
    open.map_range(0x2_0000, Phys(0x9000), 0x1000, RW).unwrap();
    let refused = w.iommu.attach(&cx(), &open, &d, None, Arc::default()).err();
    let why = Incompatible::Open(closed);
    assert_eq!(refused, Some(AttachError::Incompatible { device: DeviceId(2), at: at(2), why }));
    assert_eq!(w.hw.entry(at(1)), None, "nobody of the group is attached");
    // One that names both keeps the region for both.
    let both = w.plain_for(&[&d, &somebody]);
    let _a = w.attach(&both, &somebody);
    let _b = w.attach(&both, &d);
    let dma = w.iommu.kernel_dma_domain(&[&somebody], Default::default()).unwrap();
    assert!(w.iommu.attach(&cx(), &dma, &d, None, Arc::new(())).is_err());
}

#[test]
fn a_default_domain_that_cannot_be_had_leaves_nobody_with_the_group() {
    let w = with(DefaultKind::Translating);
    let d = w.device(1);
    for n in 0..2 {
        w.hw.state().fail_after = Some(n);
        assert!(d.use_by_driver(&cx()).is_err(), "{n}");
    }
    w.hw.state().fail_after = None;
    assert_eq!(w.hw.entry(at(1)), None);
    drop(d.claim(VMM).expect("nobody has it"));
    d.use_by_driver(&cx()).unwrap().end(&cx());
}
