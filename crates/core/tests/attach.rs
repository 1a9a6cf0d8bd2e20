//! Attaching: what is refused and why, and what stands when it succeeds.

use crate::common::*;
use portcullis::driver::{Incompatible, Stage, StartError, TableRequest};
use portcullis::error::{AddDeviceError, AttachError, DomainError, DomainMapError, NotUp, RegisterError};
use portcullis::{At, Config, DeviceId, DeviceState, DomainOptions, Iommu, PageGroup, Sleep, SourceId};
use portcullis_pgtable::{MapError, Phys, Prot};
use std::sync::Arc;

fn at(n: u32) -> At {
    At { source: SourceId(n), pasid: None }
}

#[test]
fn a_place_takes_one_attachment_and_is_free_after_its_detach() {
    let w = World::new();
    let d = w.device(1);
    let (one, two) = (w.plain(&d), w.plain(&d));
    let a = w.attach(&one, &d);
    assert_eq!(w.iommu.attach(&cx(), &two, &d, None, data()).err(), Some(AttachError::Occupied(at(1))));
    assert!(w.hw.entry(at(1)).is_some());
    let _ = a.begin_detach(&cx());
    assert_eq!(w.hw.entry(at(1)), None);
    let _again = w.attach(&two, &d);
}

#[test]
fn pasids_of_one_device_are_places_of_their_own() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let _rid = w.attach(&dom, &d);
    let five = w.iommu.attach(&cx(), &dom, &d, pasid(5), data()).unwrap();
    let _six = w.iommu.attach(&cx(), &dom, &d, pasid(6), data()).unwrap();
    assert_eq!(five.at(), At { source: SourceId(1), pasid: pasid(5) });
    drop(five.begin_detach(&cx()));
    assert!(w.hw.entry(At { source: SourceId(1), pasid: pasid(6) }).is_some());
    assert!(w.hw.entry(At { source: SourceId(1), pasid: pasid(5) }).is_none());
}

#[test]
fn a_pasid_beyond_the_device_is_refused() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    assert!(w.iommu.attach(&cx(), &dom, &d, pasid(255), data()).is_ok());
    let refused = w.iommu.attach(&cx(), &dom, &d, pasid(256), data()).err();
    assert_eq!(refused, Some(AttachError::Pasid(DeviceId(1), pasid(256).unwrap())));
    let mut spec = w.spec(2);
    spec.caps.pasid_bits = 0;
    let none = w.iommu.add_device(&cx(), spec).unwrap();
    assert!(matches!(w.iommu.attach(&cx(), &dom, &none, pasid(1), data()), Err(AttachError::Pasid(..))));
}

#[test]
fn a_domain_of_another_subsystem_is_foreign() {
    let (w, other) = (World::new(), World::new());
    let (d, e) = (w.device(1), other.device(1));
    let dom = other.plain(&e);
    assert_eq!(w.iommu.attach(&cx(), &dom, &d, None, data()).err(), Some(AttachError::Foreign));
}

#[test]
fn a_domain_for_pasids_only_takes_no_requester_id() {
    let w = World::new();
    let d = w.device(1);
    let options = DomainOptions { pasid_only: true, ..DomainOptions::default() };
    type Never = fn(&Sleep<'_>, &Arc<Data>, PageGroup<'_, Board>);
    let dom: Dom = w.iommu.external_domain(&[&d], options, None::<Never>).unwrap();
    assert_eq!(w.iommu.attach(&cx(), &dom, &d, None, data()).err(), Some(AttachError::PasidOnly(at(1))));
    assert!(w.iommu.attach(&cx(), &dom, &d, pasid(1), data()).is_ok());
    dom.map_range(0xfee0_0000, Phys(0x1000), 0x1000, RW).expect("a PASID translates the interrupt range");
}

#[test]
fn ranges_that_hardware_does_not_translate_are_not_mapped() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let input = dom.map_range(0xfedf_f000, Phys(0x1000), 0x2000, RW);
    assert!(matches!(
        input,
        Err(DomainMapError::ReservedInput { iova: 0xfedf_f000, start: 0xfee0_0000, .. })
    ));
    let output = dom.map_range(0x1000, Phys(0xfeef_f000), 0x1000, RW);
    assert!(matches!(output, Err(DomainMapError::ReservedOutput { end: 0xfeef_ffff, .. })));
    assert!(dom.map_range(0xfedf_f000, Phys(0x1000), 0x1000, RW).is_ok());
    assert!(dom.map_range(0xfef0_0000, Phys(0x2000), 0x1000, RW).is_ok());
    let zero = dom.map_range(0xfee0_0000 - 0x1000, Phys(0), 0, RW);
    assert!(matches!(zero, Err(DomainMapError::Table(MapError::ZeroLength { .. }))));
}

#[test]
fn a_resolver_needs_a_device_that_may_request_pages() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    for (what, change) in [
        ("trusted", (|s| s.trusted = false) as fn(&mut portcullis::DeviceSpec)),
        ("page-request interface", |s| s.caps.page_requests = None),
        ("ATS", |s| s.caps.ats = false),
        ("stop markers", |s| s.caps.stop_markers = true),
    ] {
        let n = 10 + what.len() as u32;
        let mut spec = w.spec(n);
        change(&mut spec);
        let bad = w.iommu.add_device(&cx(), spec).unwrap();
        match w.iommu.attach(&cx(), &dom, &bad, None, data()) {
            Err(AttachError::NoPageRequests(id, why)) => {
                assert_eq!(id, DeviceId(u64::from(n)));
                assert!(why.contains(what), "{why} should name {what}");
            }
            other => panic!("{what}: {:?}", other.err()),
        }
        assert!(
            w.iommu.attach(&cx(), &w.plain(&d), &bad, None, data()).is_ok(),
            "without a resolver it fits"
        );
    }
}

#[test]
fn ats_and_pasid_are_switched_on_in_order_and_ats_only_for_the_trusted() {
    let w = World::new();
    w.device(1);
    let on = [Call::Pasid(SourceId(1), true), Call::Ats(SourceId(1), true)];
    assert_eq!(w.hw.take_log()[1..], on);
    let mut spec = w.spec(2);
    spec.trusted = false;
    let rogue = w.iommu.add_device(&cx(), spec).unwrap();
    assert!(!rogue.features().ats);
    assert!(!w.hw.take_log().contains(&Call::Ats(SourceId(2), true)));
}

#[test]
fn page_requests_go_on_with_the_first_user_and_off_with_the_last() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    w.hw.take_log();
    let one = w.iommu.attach(&cx(), &dom, &d, pasid(1), data()).unwrap();
    let log = w.hw.take_log();
    let features = log.iter().position(|c| *c == Call::Features(SourceId(1), true)).expect("instance first");
    let device = log.iter().position(|c| *c == Call::Pri(SourceId(1), Some(8))).expect("then the device");
    assert!(features < device);
    let two = w.iommu.attach(&cx(), &dom, &d, pasid(2), data()).unwrap();
    drop(one.begin_detach(&cx()));
    assert!(!w.hw.take_log().contains(&Call::Pri(SourceId(1), None)), "another attachment needs them");
    drop(two.begin_detach(&cx()));
    let log = w.hw.take_log();
    let device = log.iter().position(|c| *c == Call::Pri(SourceId(1), None)).expect("device first");
    let features =
        log.iter().position(|c| *c == Call::Features(SourceId(1), false)).expect("then the instance");
    assert!(device < features);
}

#[test]
fn shares_run_out_with_a_typed_refusal_and_come_back_at_detach() {
    // 17 entries, 1 in reserve: two devices of 8.
    let w = World::made(Config { credit_reserve: 1, ..Config::default() }, 17);
    let devices = [1, 2, 3].map(|n| w.device(n));
    let dom = w.served(&devices[0]);
    let a = w.attach(&dom, &devices[0]);
    let _b = w.attach(&dom, &devices[1]);
    let none = w.iommu.attach(&cx(), &dom, &devices[2], None, data()).err();
    assert_eq!(none, Some(AttachError::NoCredits(DeviceId(3))));
    assert_eq!(w.hw.entry(at(3)), None);
    drop(a.begin_detach(&cx()));
    let _again = w.attach(&dom, &devices[2]);
}

#[test]
fn domain_tags_run_out_with_a_typed_refusal_and_are_shared_and_reused() {
    let w = World::new();
    let d = w.device(1);
    let domains: Vec<Dom> = (0..9).map(|_| w.plain(&d)).collect();
    let mut held: Vec<Att> = (0..8)
        .map(|i| w.iommu.attach(&cx(), &domains[i], &d, pasid(i as u32 + 1), data()).unwrap())
        .collect();
    let none = w.iommu.attach(&cx(), &domains[8], &d, pasid(9), data()).err();
    assert_eq!(none, Some(AttachError::NoTag(IOMMU)));
    held.push(w.iommu.attach(&cx(), &domains[0], &d, pasid(9), data()).expect("shares its domain's tag"));
    drop(held.remove(3).begin_detach(&cx()));
    let _again = w.iommu.attach(&cx(), &domains[8], &d, pasid(10), data()).expect("a tag is free again");
}

#[test]
fn identity_and_blocked_domains() {
    let w = World::new();
    let (d, e) = (w.device(1), w.device(2));
    let identity = w.iommu.identity_domain().unwrap();
    let blocked = w.iommu.blocked_domain().unwrap();
    let _i = w.iommu.attach(&cx(), &identity, &d, None, Arc::new(())).unwrap();
    assert!(matches!(w.hw.entry(at(1)), Some(portcullis::driver::Target::Identity { .. })));
    assert!(blocked.is_unused());
    let b = w.iommu.attach(&cx(), &blocked, &e, None, Arc::new(())).unwrap();
    assert_eq!(w.hw.entry(at(2)), None);
    assert!(!blocked.is_unused());
    let taken = w.iommu.attach(&cx(), &identity, &e, None, Arc::new(())).err();
    assert_eq!(taken, Some(AttachError::Occupied(at(2))), "blocked is an attachment too");
    drop(b.begin_detach(&cx()));
    assert!(blocked.is_unused());
}

#[test]
fn attachments_of_a_device_and_of_all_devices_are_bounded() {
    let w = World::with(Config { attachments_per_device: 2, attachments: 3, ..Config::default() });
    let (d, e) = (w.device(1), w.device(2));
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    let _b = w.iommu.attach(&cx(), &dom, &d, pasid(1), data()).unwrap();
    let more = w.iommu.attach(&cx(), &dom, &d, pasid(2), data()).err();
    assert_eq!(more, Some(AttachError::TooMany(DeviceId(1))));
    let c = w.attach(&dom, &e);
    let more = w.iommu.attach(&cx(), &dom, &e, pasid(2), data()).err();
    assert_eq!(more, Some(AttachError::TooMany(DeviceId(2))));
    drop(c.begin_detach(&cx()));
    let _again = w.attach(&dom, &e);
}

#[test]
fn devices_are_added_once_and_fit_their_instance() {
    let w = World::with(Config { devices: 2, ..Config::default() });
    let _one = w.device(1);
    let add = |spec| w.iommu.add_device(&cx(), spec).err();
    assert_eq!(add(w.spec(1)), Some(AddDeviceError::Duplicate(DeviceId(1))));
    let mut same_id = w.spec(2);
    same_id.id = DeviceId(1);
    assert_eq!(add(same_id), Some(AddDeviceError::Duplicate(DeviceId(1))));
    let mut nowhere = w.spec(2);
    nowhere.upstreams[0].sources.clear();
    assert_eq!(add(nowhere), Some(AddDeviceError::NoSource(DeviceId(2))));
    let mut twice = w.spec(2);
    twice.upstreams.push(twice.upstreams[0].clone());
    assert_eq!(add(twice), Some(AddDeviceError::SeveralInstances(DeviceId(2))));
    let _three = w.device(3);
    assert_eq!(add(w.spec(4)), Some(AddDeviceError::TooMany(IOMMU)));
}

#[test]
fn a_removed_device_is_cut_off_and_its_handles_are_dead() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    let (d, why) = w.iommu.remove_device(&cx(), d).expect_err("something is attached");
    assert_eq!(why, AttachError::Occupied(at(1)));
    drop(a.begin_detach(&cx()));
    w.hw.take_log();
    let handle = d.clone();
    w.iommu.remove_device(&cx(), d).map_err(|(_, e)| e).unwrap();
    let log = w.hw.take_log();
    let expected = [
        Call::Pri(SourceId(1), None),
        Call::Ats(SourceId(1), false),
        Call::Pasid(SourceId(1), false),
        Call::CutOff(SourceId(1)),
        Call::RemoveDevice(SourceId(1)),
    ];
    assert_eq!(log, expected);
    let removed = AttachError::NotUp(NotUp::Removed(DeviceId(1)));
    assert_eq!(w.iommu.attach(&cx(), &dom, &handle, None, data()).err(), Some(removed));
    assert_eq!(handle.state(), DeviceState::Removed);
    w.device(1);
}

#[test]
fn a_failed_registration_registers_nothing() {
    let w = World::new();
    let again = w.iommu.register(&cx(), IOMMU, w.hw.driver(), portcullis::driver::Start::Fresh);
    assert_eq!(again.err(), Some(RegisterError::Duplicate(IOMMU)));
    let id = portcullis::InstanceId(8);
    let adopt = w.iommu.register(&cx(), id, w.hw.driver(), portcullis::driver::Start::Adopt(&[]));
    assert_eq!(adopt.err(), Some(RegisterError::Start(id, StartError::Unsupported("adopting tables"))));
    assert!(w.iommu.register(&cx(), id, w.hw.driver(), portcullis::driver::Start::Fresh).is_ok());
}

#[test]
fn a_domain_is_made_for_somebody() {
    let w = World::new();
    type Never = fn(&Sleep<'_>, &Arc<Data>, PageGroup<'_, Board>);
    let nobody: Result<Dom, _> = w.iommu.external_domain(&[], DomainOptions::default(), None::<Never>);
    assert_eq!(nobody.err(), Some(DomainError::NoDevice));
    let d = w.device(1);
    let options = DomainOptions {
        table: TableRequest { stage: Stage::Second, page_sizes: 1 << 12, ..TableRequest::default() },
        ..DomainOptions::default()
    };
    let dom: Dom = w.iommu.external_domain(&[&d], options, None::<Never>).unwrap();
    assert_eq!(dom.format().unwrap().page_sizes, 1 << 12);
    let e: DomainError = DomainError::Incompatible { device: DeviceId(1), why: Incompatible::NoCommonFormat };
    assert_eq!(e.to_string(), "device 0x1 cannot use it: no common table format");
}

#[test]
fn direct_regions_are_mapped_before_the_device_sees_a_domain_and_never_blocked() {
    let w = World::new();
    let d = w.device_with_direct(1, 0x8000);
    let home = w.hw.entry(at(1)).expect("maps its direct regions from the start");
    let dom = w.plain(&d);
    assert_eq!(dom.lookup(0x8000), None);
    let a = w.attach(&dom, &d);
    assert_eq!(dom.lookup(0x9000).map(|l| (l.phys, l.prot & RW)), Some((Phys(0x9000), RW)));
    drop(a.begin_detach(&cx()));
    assert_eq!(w.hw.entry(at(1)), Some(home));
    assert!(!w.hw.take_log().contains(&Call::Block(at(1))));
    let blocked = w.iommu.blocked_domain().unwrap();
    let refused = w.iommu.attach(&cx(), &blocked, &d, None, Arc::new(())).err();
    assert_eq!(refused, Some(AttachError::NotHitless(at(1))));
    w.hw.state().gaps = true;
    let gap = w.iommu.attach(&cx(), &dom, &d, None, data()).err();
    assert_eq!(gap, Some(AttachError::NotHitless(at(1))));
    assert_eq!(w.hw.entry(at(1)), Some(home));
    assert!(w.hw.state().images.is_empty(), "what was prepared is abandoned");
}

#[test]
fn a_direct_region_that_cannot_be_mapped_refuses_the_attach() {
    let w = World::new();
    let d = w.device_with_direct(1, 0x8000);
    let elsewhere = w.plain(&d);
    elsewhere.map_range(0x9000, Phys(0x5000), 0x1000, RW).unwrap();
    let refused = w.iommu.attach(&cx(), &elsewhere, &d, None, data()).err();
    assert!(matches!(
        refused,
        Some(AttachError::Direct { start: 0x8000, why: MapError::AlreadyMapped { .. } })
    ));
    let read_only = w.plain(&d);
    read_only.map_range(0x8000, Phys(0x8000), 0x2000, Prot::READ).unwrap();
    let refused = w.iommu.attach(&cx(), &read_only, &d, None, data()).err();
    assert!(matches!(refused, Some(AttachError::Direct { .. })), "the device could not write there");
    let already = w.plain(&d);
    already.map_range(0x8000, Phys(0x8000), 0x2000, RW).unwrap();
    let _again = w.attach(&already, &d);
}

#[test]
fn an_iommu_without_memory_for_its_records_is_not_made() {
    let board = Board::new(1);
    let huge = Config { attachments: usize::MAX / 64, ..Config::default() };
    assert!(Iommu::new(board, huge).is_err());
}
