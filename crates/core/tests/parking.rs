//! Resets: what is parked, what goes on meanwhile, and what is there afterwards; and direct regions,
//! which nothing interrupts.

use crate::common::{hardware::DEVICE_TIMEOUT, *};
use portcullis::error::AttachError;
use portcullis::{At, Code, Config, DeviceId, DuringReset, GroupId, Membership, Platform, SourceId};
use portcullis_pgtable::Phys;
use std::task::Poll;

fn at(n: u32) -> At {
    At { source: SourceId(n), pasid: None }
}

const DIRECT: u64 = 0x8000;

fn refusing() -> World {
    World::with(Config { during_reset: DuringReset::Refuse, ..Config::default() })
}

/// Devices 1 and 2, which have id 10 in common.
fn siblings(w: &World) -> [Dev; 2] {
    [1, 2].map(|n| {
        let mut spec = w.spec(n);
        spec.trusted = false;
        spec.upstreams[0].sources.push(SourceId(10));
        spec.group = Some(Membership { group: GroupId(1), merges: Vec::new() });
        w.iommu.add_device(&cx(), spec).expect("added")
    })
}

#[test]
fn parking_nests_and_the_device_has_what_is_attached_at_the_end() {
    let w = World::new();
    let d = w.device(1);
    let (dom, p5) = (w.plain(&d), w.plain(&d));
    let a = w.attach(&dom, &d);
    let b = w.iommu.attach(&cx(), &p5, &d, pasid(5), data()).unwrap();
    let outer = d.park(&cx()).unwrap();
    assert!(w.hw.is_cut_off(SourceId(1)));
    let inner = d.park(&cx()).unwrap();
    // A detach goes on; what is left comes back.
    assert!(a.begin_detach(&cx()).is_gone());
    inner.end(&cx()).unwrap();
    assert!(w.hw.is_cut_off(SourceId(1)), "the outer one still has it");
    outer.end(&cx()).unwrap();
    assert!(!w.hw.is_cut_off(SourceId(1)));
    assert_eq!(w.hw.entry(at(1)), None);
    assert!(w.hw.entry(b.at()).is_some());
    let _again = w.attach(&dom, &d);
}

/// What a device has translated itself passes the IOMMU's caches by. Only its own answer says that this
/// has arrived, and after the reset it answers for nothing that it sent before.
#[test]
fn a_device_with_a_tlb_of_its_own_is_asked_for_it_before_it_is_cut_off() {
    let w = World::new();
    let d = w.device(1);
    let (dom, p5) = (w.plain(&d), w.plain(&d));
    let _a = w.attach(&dom, &d);
    let b = w.iommu.attach(&cx(), &p5, &d, pasid(5), data()).unwrap();
    let to_the_hardware = || {
        let mut log = w.hw.take_log();
        log.retain(|c| matches!(c, Call::Block(_) | Call::CutOff(_) | Call::Reset(_)));
        log
    };
    to_the_hardware();
    d.reset(&cx()).unwrap();
    let id = SourceId(1);
    let asked = [Call::Block(at(1)), Call::Block(b.at()), Call::CutOff(id), Call::Reset(id)];
    assert_eq!(to_the_hardware(), asked);
    // One that has none is not asked for it.
    let mut spec = w.spec(2);
    spec.caps.ats = false;
    let plain = w.iommu.add_device(&cx(), spec).unwrap();
    let _c = w.attach(&dom, &plain);
    to_the_hardware();
    plain.reset(&cx()).unwrap();
    assert_eq!(to_the_hardware(), [Call::CutOff(SourceId(2)), Call::Reset(SourceId(2))]);
}

#[test]
fn a_device_that_does_not_answer_is_reset_all_the_same() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    let _b = w.iommu.attach(&cx(), &dom, &d, pasid(5), data()).unwrap();
    w.hw.state().dead.insert(SourceId(1));
    let before = w.board.now();
    let parked = d.park(&cx()).unwrap();
    let took = w.board.now().since(before);
    assert!(took >= DEVICE_TIMEOUT && took < DEVICE_TIMEOUT * 2, "waited for once: {took:?}");
    assert!(w.hw.is_cut_off(SourceId(1)));
    w.hw.state().dead.clear();
    parked.end(&cx()).unwrap();
    assert!(!d.is_quarantined() && w.hw.entry(at(1)).is_some());
}

#[test]
fn an_attach_waits_for_the_end_of_a_reset_or_is_refused() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let parked = d.park(&cx()).unwrap();
    let mut op = w.iommu.start_attach(&dom, &d, None, data());
    assert!((0..20).all(|_| op.step().is_pending()));
    assert_eq!(w.hw.entry(at(1)), None);
    parked.end(&cx()).unwrap();
    let Poll::Ready(Ok(a)) = op.step() else { panic!("it goes on") };
    assert!(w.hw.entry(at(1)).is_some());
    drop((op, a));

    let w = refusing();
    let d = w.device(1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    let parked = d.park(&cx()).unwrap();
    let why = w.iommu.attach(&cx(), &dom, &d, pasid(5), data()).err();
    assert_eq!(why, Some(AttachError::Parked(DeviceId(1))));
    let (back, why) = w.iommu.replace(&cx(), a, &dom, data(), portcullis::Gap::Allowed).err().unwrap();
    assert_eq!(why, AttachError::Parked(DeviceId(1)));
    parked.end(&cx()).unwrap();
    assert!(back.unwrap().begin_detach(&cx()).is_gone());
}

#[test]
fn a_guard_that_is_dropped_leaves_the_device_parked_until_it_is_reset() {
    let w = refusing();
    let d = w.device(1);
    let dom = w.plain(&d);
    drop(d.park(&cx()).unwrap());
    assert!(w.hw.is_cut_off(SourceId(1)));
    assert_eq!(w.iommu.attach(&cx(), &dom, &d, None, data()).err(), Some(AttachError::Parked(DeviceId(1))));
    d.reset(&cx()).unwrap();
    let _a = w.attach(&dom, &d);
}

#[test]
fn an_id_that_devices_share_is_dark_until_the_last_of_them_goes_on() {
    let w = refusing();
    let [one, two] = siblings(&w);
    let a = w.attach(&w.plain(&one), &one);
    let (first, second) = (one.park(&cx()).unwrap(), two.park(&cx()).unwrap());
    let dark = |n| w.hw.is_cut_off(SourceId(n));
    assert!(dark(1) && dark(2) && dark(10));
    first.end(&cx()).unwrap();
    assert!(!dark(1) && dark(2) && dark(10));
    second.end(&cx()).unwrap();
    assert!(!dark(1) && !dark(2) && !dark(10));
    assert!(a.places().all(|at| w.hw.entry(at).is_some()));
    // A reset of one takes the shared id along, and leaves the sibling's own alone.
    w.hw.take_log();
    one.reset(&cx()).unwrap();
    let log = w.hw.take_log();
    assert!(log.contains(&Call::CutOff(SourceId(10))) && !log.contains(&Call::CutOff(SourceId(2))));
}

#[test]
fn what_was_outstanding_is_void_and_what_comes_later_is_not() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    let _a = w.attach(&dom, &d);
    w.sends(&[last(1, 1)]);
    let parked = d.park(&cx()).unwrap();
    w.sends(&[last(1, 2)]);
    w.work();
    parked.end(&cx()).unwrap();
    assert_eq!((w.hw.answers(), d.counters().void), (vec![], 2));
    w.sends(&[last(1, 3)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 3, Code::Success)]);
}

/// Runs `what`, during which the device's id must go from one translation to the next at once.
fn never_out_of_reach(w: &World, what: impl FnOnce()) {
    w.hw.take_log();
    what();
    let log = w.hw.take_log();
    let dark = |c: &&Call| {
        matches!(c, Call::CutOff(SourceId(1)) | Call::Block(At { source: SourceId(1), pasid: None }))
    };
    assert_eq!(log.iter().find(dark), None);
    assert!(log.iter().any(|c| matches!(c, Call::Commit(to, _) if *to == at(1))), "it did move: {log:?}");
}

#[test]
fn a_reset_does_not_take_the_direct_regions_out_of_reach() {
    let w = World::new();
    let d = w.device_with_direct(1, DIRECT);
    never_out_of_reach(&w, || d.reset(&cx()).unwrap());
    let (dom, p5) = (w.plain(&d), w.plain(&d));
    let a = w.attach(&dom, &d);
    let b = w.iommu.attach(&cx(), &p5, &d, pasid(5), data()).unwrap();
    let attached = w.hw.entry(at(1));
    never_out_of_reach(&w, || {
        let parked = d.park(&cx()).unwrap();
        assert_ne!(w.hw.entry(at(1)), attached, "nothing but the regions");
        assert_eq!(w.hw.entry(b.at()), None);
        assert!(!d.features().ats);
        parked.end(&cx()).unwrap();
    });
    assert_eq!(w.hw.entry(at(1)), attached);
    assert!(w.hw.entry(b.at()).is_some() && d.features().ats);
    never_out_of_reach(&w, || drop(a.begin_detach(&cx())));
    drop(b.begin_detach(&cx()));
}

#[test]
fn direct_regions_in_a_shared_domain_are_closed_to_its_owner_and_go_with_the_last_that_needs_them() {
    let w = World::new();
    let spec = |n| {
        let mut spec = w.spec(n);
        spec.regions = vec![portcullis::ReservedRegion::direct(DIRECT, 0x2000, RW)];
        w.iommu.add_device(&cx(), spec).expect("added")
    };
    let (one, two, plain) = (spec(1), spec(2), w.device(3));
    let dom = w.plain(&plain);
    // What the owner has there itself, it keeps.
    dom.map_range(DIRECT, Phys(DIRECT), 0x1000, RW).unwrap();
    let _other = w.attach(&dom, &plain);
    let (a, b) = (w.attach(&dom, &one), w.attach(&dom, &two));
    let unmap = |iova, len| {
        let mut gone = dom.unmapping();
        let done = gone.unmap(iova, len);
        gone.sync(&cx()).unwrap();
        done
    };
    assert!(unmap(DIRECT, 0x1000).is_err() && unmap(DIRECT + 0x1000, 0x1000).is_err());
    assert!(dom.map_range(DIRECT + 0x1000, Phys(0), 0x1000, RW).is_err());
    drop(a.begin_detach(&cx()));
    assert!(unmap(DIRECT + 0x1000, 0x1000).is_err() && dom.lookup(DIRECT + 0x1000).is_some());
    w.hw.take_log();
    drop(b.begin_detach(&cx()));
    assert_eq!(dom.lookup(DIRECT + 0x1000), None);
    let range = Some((DIRECT + 0x1000, DIRECT + 0x1fff));
    assert!(w.hw.take_log().contains(&Call::Submit { range, tags: 1, ats: 1 }), "the others are asked");
    assert!(unmap(DIRECT, 0x1000).is_ok(), "and this was the owner's");
}

#[test]
fn a_refused_attach_takes_its_direct_regions_along() {
    let w = World::new();
    let d = w.device_with_direct(1, DIRECT);
    let dom = w.plain(&d);
    w.hw.state().fail_after = Some(0);
    assert!(w.iommu.attach(&cx(), &dom, &d, None, data()).is_err());
    assert_eq!(dom.lookup(DIRECT), None);
    dom.map_range(DIRECT, Phys(0), 0x1000, RW).unwrap();
    let mut gone = dom.unmapping();
    gone.unmap(DIRECT, 0x1000).unwrap();
    gone.sync(&cx()).unwrap();
}
