//! Devices that join a group while something is attached to it: put where the group is, or refused with
//! the reason, and then nothing has changed.

use crate::common::*;
use portcullis::driver::{Incompatible, Stall};
use portcullis::error::{AddDeviceError, AttachError, ClaimError, StallError};
use portcullis::{
    Access, At, Bus, Code, Config, DefaultKind, DeviceId, DeviceSpec, DomainOptions, FaultKind, Gap, GroupId,
    Membership, OwnerId, PageGroup, Reason, RegionKind, Replaced, ReservedRegion, Scope, Sleep, SourceId,
    StallDecider, StallId, Verdict,
};
use portcullis_pgtable::Phys;
use std::sync::Arc;

type Never = fn(&Sleep<'_>, &Arc<Data>, PageGroup<'_, Board>);

fn at(n: u32) -> At {
    At { source: SourceId(n), pasid: None }
}

fn at_pasid(n: u32, p: u32) -> At {
    At { source: SourceId(n), pasid: pasid(p) }
}

/// A device of group 1.
fn comes(w: &World, n: u32, change: impl FnOnce(&mut DeviceSpec)) -> Result<Dev, AddDeviceError> {
    let mut spec = w.spec(n);
    spec.group = Some(Membership { group: GroupId(1), merges: Vec::new() });
    change(&mut spec);
    w.iommu.add_device(&cx(), spec)
}

fn member(w: &World, n: u32) -> Dev {
    comes(w, n, |_| {}).expect("added")
}

fn with_direct(start: u64) -> impl Fn(&mut DeviceSpec) {
    move |spec| spec.regions = vec![ReservedRegion::direct(start, 0x1000, RW)]
}

/// Who is asked when a page of a domain is unmapped: ids, and those with a TLB of their own.
fn asked(w: &World, dom: &Dom) -> (usize, usize) {
    w.map(dom, 0x4000);
    let mut gone = dom.unmapping();
    gone.unmap(0x4000, 0x1000).unwrap();
    w.hw.take_log();
    gone.sync(&cx()).unwrap();
    let submitted = w.hw.take_log().into_iter().find_map(|call| match call {
        Call::Submit { tags, ats, .. } => Some((tags, ats)),
        _ => None,
    });
    submitted.unwrap_or_default()
}

/// What an attempt to join must leave as it is; an empty table may be left for the next.
fn state(w: &World) -> impl PartialEq + core::fmt::Debug + use<> {
    let usage = (w.iommu.usage(), w.iommu.instance_usage(IOMMU));
    let entries: Vec<_> = w.hw.state().entries.keys().copied().collect();
    let stalling: Vec<_> = w.hw.state().stalling.iter().copied().collect();
    (usage, entries, stalling, w.hw.devices(), w.hw.state().images.len())
}

/// The reason for which a device cannot join.
#[track_caller]
fn refused(w: &World, n: u32, change: impl FnOnce(&mut DeviceSpec)) -> AttachError {
    let before = state(w);
    let came = comes(w, n, change).err();
    assert_eq!(state(w), before);
    match came {
        Some(AddDeviceError::Join { device, group, why }) => {
            assert_eq!((device, group), (DeviceId(n.into()), GroupId(1)));
            why
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_is_put_where_its_group_is_attached() {
    let w = World::new();
    let one = member(&w, 1);
    let (dom, by_pasid) = (w.plain(&one), w.plain(&one));
    let a = w.attach(&dom, &one);
    let b = w.iommu.attach(&cx(), &by_pasid, &one, pasid(5), data()).unwrap();
    let two = comes(&w, 2, |spec| {
        spec.trusted = false;
        spec.upstreams[0].sources.push(SourceId(20));
    })
    .unwrap();
    assert!(a.places().eq([1, 2, 20].map(at)), "appended");
    assert!(b.places().eq([1, 2, 20].map(|n| at_pasid(n, 5))));
    assert_eq!(one.group().unwrap().members, [DeviceId(1), DeviceId(2)]);
    for n in [2, 20] {
        assert_eq!(w.hw.entry(at(n)), w.hw.entry(at(1)));
        assert_eq!(w.hw.entry(at_pasid(n, 5)), w.hw.entry(at_pasid(1, 5)));
    }
    assert!(two.features().pasid_bits > 0 && !two.features().ats);
    assert_eq!((asked(&w, &dom), asked(&w, &by_pasid)), ((3, 1), (3, 1)), "an unmap asks every id");
    // Without PASIDs, it takes no part in what has one.
    let three = comes(&w, 3, |spec| spec.caps.pasid_bits = 0).unwrap();
    assert!(a.places().eq([1, 2, 20, 3].map(at)) && b.places().count() == 3);
    assert_eq!(w.hw.entry(at_pasid(3, 5)), None);
    // It goes with the others, and while it is there it cannot go alone.
    let other = w.plain(&one);
    let (a, old, how) = w.iommu.replace(&cx(), a, &other, data(), Gap::Refused).map_err(|(_, e)| e).unwrap();
    assert!(how == Replaced::Hitless && old.is_gone() && dom.is_unused());
    assert_eq!(w.hw.entry(at(20)), w.hw.entry(at(1)));
    let (two, why) = w.iommu.remove_device(&cx(), two).err().unwrap();
    assert_eq!(why, AttachError::Occupied(at(2)));
    assert!(a.begin_detach(&cx()).is_gone() && b.begin_detach(&cx()).is_gone());
    assert!(w.hw.state().entries.is_empty() && by_pasid.is_unused());
    assert_eq!(asked(&w, &by_pasid), (0, 0));
    w.iommu.remove_device(&cx(), two).map_err(|(_, e)| e).unwrap();
    drop(three);
}

#[test]
fn page_requests_of_one_that_joined_reach_the_resolver_and_end_with_the_attachment() {
    let w = World::new();
    let one = member(&w, 1);
    let dom = w.served(&one);
    let held = data();
    let a = w.iommu.attach(&cx(), &dom, &one, None, held.clone()).unwrap();
    let two = member(&w, 2);
    assert!(two.features().pri);
    let log = w.hw.take_log();
    let when = |call| log.iter().position(|c| *c == call);
    let ats = when(Call::Ats(SourceId(2), true)).expect("it was told");
    assert!(log.iter().skip(ats).any(|c| matches!(c, Call::Pri(SourceId(2), Some(_)))), "ATS first");
    w.sends(&[last(2, 7), last(1, 1)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(2, 7, Code::Success), sent(1, 1, Code::Success)]);
    assert_eq!(*held.lock().unwrap(), ["7000", "1000"]);
    w.sends(&[first(2, 9, 0x9000), last(2, 8)]);
    w.hw.take_log();
    drop(a.begin_detach(&cx()));
    assert_eq!(w.hw.answers(), [sent(2, 8, Code::Invalid)]);
    assert!(!two.features().pri);
    w.iommu.remove_device(&cx(), two).map_err(|(_, e)| e).unwrap();
}

#[test]
fn there_is_room_for_what_one_that_joined_may_ask_for() {
    let share = 4;
    let w = World::with(Config { credits_per_device: share, ..Config::default() });
    let one = member(&w, 1);
    let a = w.iommu.attach(&cx(), &w.served(&one), &one, None, data()).unwrap();
    let two = member(&w, 2);
    for round in 0..3 {
        // No worker comes before all of both wait.
        let index = |n: u32| (10 * round + n) as u16;
        let all: Vec<_> = (0..share).flat_map(|n| [last(1, index(n)), last(2, index(n))]).collect();
        w.sends(&all);
        w.work();
        let answers = w.hw.answers();
        assert_eq!(answers.len(), all.len());
        assert!(answers.iter().all(|sent| sent.code == Code::Success), "{answers:?}");
        w.hw.take_log();
    }
    assert!(a.begin_detach(&cx()).is_gone());
    drop(two);
}

#[test]
fn one_that_does_not_fit_is_refused_with_the_reason_and_nothing_changes() {
    let w = World::new();
    let one = member(&w, 1);
    let dom = w.served(&one);
    let a = w.attach(&dom, &one);
    let no_pages = |spec: &mut DeviceSpec| spec.caps.page_requests = None;
    let why = refused(&w, 2, no_pages);
    assert!(matches!(why, AttachError::NoPageRequests(DeviceId(2), _)), "{why}");
    let closed = ReservedRegion::closed(0x7000, 0x1000, RegionKind::Reserved);
    let why = refused(&w, 2, |spec| spec.regions = vec![closed]);
    let open =
        |n| AttachError::Incompatible { device: DeviceId(n), at: at(2), why: Incompatible::Open(closed) };
    assert_eq!(why, open(2));
    dom.map_range(0x8000, Phys(0x3000), 0x1000, RW).unwrap();
    let why = refused(&w, 2, with_direct(0x8000));
    assert!(matches!(why, AttachError::Direct { start: 0x8000, .. }), "{why}");
    for n in 0..2 {
        w.hw.state().fail_after = Some(n);
        let came = comes(&w, 2, with_direct(0x9000)).err();
        assert!(
            matches!(came, Some(AddDeviceError::Prepare(_) | AddDeviceError::Join { .. })),
            "{n}: {came:?}"
        );
        assert_eq!(dom.lookup(0x9000), None);
    }
    w.hw.state().fail_after = None;
    assert!(a.places().eq([at(1)]));
    // What was attached goes on, and who fits comes.
    w.sends(&[last(1, 1)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Success)]);
    let two = comes(&w, 2, with_direct(0x9000)).unwrap();
    assert!(dom.lookup(0x9000).is_some());
    assert!(a.begin_detach(&cx()).is_gone());
    assert_eq!(dom.lookup(0x9000), None);
    assert!(w.hw.entry(at(2)).is_some(), "it rests in its direct region");
    drop(two);
}

#[test]
fn of_several_attachments_one_that_refuses_undoes_the_others() {
    let w = World::new();
    let one = member(&w, 1);
    let (dom, asks) = (w.plain(&one), w.served(&one));
    let a = w.attach(&dom, &one);
    let b = w.iommu.attach(&cx(), &asks, &one, pasid(300 - 100), data()).unwrap();
    let no_pages = |spec: &mut DeviceSpec| {
        with_direct(0x9000)(spec);
        spec.caps.page_requests = None;
    };
    let why = refused(&w, 2, no_pages);
    assert!(matches!(why, AttachError::NoPageRequests(DeviceId(2), _)), "{why}");
    let narrow = refused(&w, 2, |spec| spec.caps.pasid_bits = 4);
    assert_eq!(narrow, AttachError::Pasid(DeviceId(2), pasid(200).unwrap()));
    assert!(a.places().eq([at(1)]) && b.places().eq([at_pasid(1, 200)]));
    assert_eq!((asked(&w, &dom), dom.lookup(0x9000)), ((1, 1), None));
    assert!(a.begin_detach(&cx()).is_gone() && b.begin_detach(&cx()).is_gone());
}

#[test]
fn page_requests_of_one_that_is_refused_after_all_are_off_again() {
    let w = World::new();
    let one = member(&w, 1);
    let a = w.attach(&w.served(&one), &one);
    let b = w.iommu.attach(&cx(), &w.plain(&one), &one, pasid(200), data()).unwrap();
    w.hw.take_log();
    let narrow = refused(&w, 2, |spec| spec.caps.pasid_bits = 4);
    assert_eq!(narrow, AttachError::Pasid(DeviceId(2), pasid(200).unwrap()));
    let log = w.hw.take_log();
    let pri = |c: &Call| if let Call::Pri(SourceId(2), share) = c { Some(share.is_some()) } else { None };
    let told: Vec<_> = log.iter().filter_map(pri).collect();
    assert!(told.contains(&true) && told.last() == Some(&false), "{told:?}");
    let unit = log.iter().filter(|c| matches!(c, Call::Features(SourceId(2), _)));
    assert!(unit.eq(&[Call::Features(SourceId(2), true), Call::Features(SourceId(2), false)]));
    drop((a, b));
}

#[test]
fn direct_regions_stay_in_reach_while_a_device_joins() {
    let w = World::new();
    let one = member(&w, 1);
    let dom = w.plain(&one);
    let a = w.attach(&dom, &one);
    w.hw.state().gaps = true;
    let why = refused(&w, 2, with_direct(0x9000));
    assert_eq!(why, AttachError::NotHitless(at(2)));
    assert_eq!(dom.lookup(0x9000), None);
    w.hw.state().gaps = false;
    w.hw.take_log();
    let two = comes(&w, 2, with_direct(0x9000)).unwrap();
    let log = w.hw.take_log();
    assert!(!log.contains(&Call::Block(at(2))) && log.iter().any(|c| matches!(c, Call::Commit(..))));
    assert!(w.iommu.blocked_domain().is_ok());
    drop(a.begin_detach(&cx()));
    // Where nothing passes, they could not be.
    w.iommu.remove_device(&cx(), two).map_err(|(_, e)| e).unwrap();
    let blocked = w.iommu.blocked_domain().unwrap();
    let a = w.iommu.attach(&cx(), &blocked, &one, None, Arc::new(())).unwrap();
    assert_eq!(refused(&w, 2, with_direct(0x9000)), AttachError::NotHitless(at(2)));
    let two = member(&w, 2);
    assert!(a.places().eq([at(1), at(2)]) && w.hw.entry(at(2)).is_none());
    drop((a, two));
}

#[test]
fn an_id_that_another_member_has_too_stays_attached() {
    let w = World::new();
    let alias = |spec: &mut DeviceSpec| {
        spec.trusted = false;
        spec.upstreams[0].sources.push(SourceId(10));
    };
    let one = comes(&w, 1, alias).unwrap();
    let dom = w.plain(&one);
    let a = w.attach(&dom, &one);
    let before = w.hw.entry(at(10));
    w.hw.take_log();
    let two = comes(&w, 2, |spec| {
        alias(spec);
        with_direct(0x9000)(spec);
    })
    .unwrap();
    let touched =
        |call: &Call| matches!(call, Call::Commit(at, _) | Call::Block(at) if at.source == SourceId(10));
    assert!(!w.hw.take_log().iter().any(touched) && w.hw.entry(at(10)) == before);
    assert!(a.places().eq([1, 10, 2].map(at)) && dom.lookup(0x9000).is_some());
    drop(a.begin_detach(&cx()));
    assert!(w.hw.entry(at(10)).is_some() && w.hw.entry(at(1)).is_none(), "it rests in the direct region");
    drop(two);
}

#[test]
fn a_default_domain_that_is_too_lax_for_a_device_keeps_it_out() {
    let w = World::with(Config { default_domain: DefaultKind::Identity, ..Config::default() });
    let one = member(&w, 1);
    let used = one.use_by_driver(&cx()).unwrap();
    let before = state(&w);
    let untrusted = |spec: &mut DeviceSpec| spec.trusted = false;
    let lax = AddDeviceError::LaxDefault {
        device: DeviceId(2),
        group: GroupId(1),
        has: DefaultKind::Identity,
        wants: DefaultKind::Translating,
    };
    assert_eq!(comes(&w, 2, untrusted).err(), Some(lax));
    assert_eq!(state(&w), before);
    let two = member(&w, 2);
    assert_eq!(w.hw.entry(at(2)), w.hw.entry(at(1)));
    used.end(&cx());
    assert!(w.hw.state().entries.is_empty());
    let three = comes(&w, 3, untrusted).expect("nobody uses the group");
    let used = three.use_by_driver(&cx()).unwrap();
    assert_eq!(used.default_domain().kind, DefaultKind::Translating);
    drop((used, two));
}

#[test]
fn one_that_joins_a_claimed_group_is_its_owners() {
    let w = World::new();
    let one = member(&w, 1);
    let claim = one.claim(OwnerId(7)).unwrap();
    let dom = w.plain(&one);
    let a = w.attach(&dom, claim.device());
    // An owner outside the kernel drops what may be dropped.
    let relaxable =
        ReservedRegion { kind: RegionKind::DirectRelaxable, ..ReservedRegion::direct(0x9000, 0x1000, RW) };
    let two = comes(&w, 2, |spec| spec.regions = vec![relaxable]).unwrap();
    assert_eq!((w.hw.entry(at(2)), dom.lookup(0x9000)), (w.hw.entry(at(1)), None));
    assert_eq!(two.use_by_driver(&cx()).err(), Some(ClaimError::Owned(GroupId(1), OwnerId(7))));
    let again = two.claim(OwnerId(7)).unwrap();
    drop(a.begin_detach(&cx()));
    assert!(a_is_attached_to_both(&w, &dom, &again));
}

fn a_is_attached_to_both(w: &World, dom: &Dom, claim: &portcullis::Claim<Board>) -> bool {
    w.attach(dom, claim.device()).places().eq([at(1), at(2)])
}

#[test]
fn hardware_that_is_lost_while_a_device_joins_quarantines_it() {
    let w = World::new();
    let one = member(&w, 1);
    let dom = w.plain(&one);
    let a = w.attach(&dom, &one);
    let seen = w.iommu.observe(Scope::All, 8).unwrap();
    let hw = w.hw.clone();
    w.board.on_wait(Some(Box::new(move || hw.state().lost = hw.entry(at(2)).is_some())));
    w.hw.state().hold = true;
    let lost = comes(&w, 2, |_| {}).err();
    assert!(matches!(lost, Some(AddDeviceError::Lost(_))), "{lost:?}");
    assert!(a.places().eq([at(1), at(2)]), "what may use it still is not forgotten");
    let records = core::iter::from_fn(|| seen.try_next()).map(|told| told.record);
    let cut = records.filter(|r| r.kind == FaultKind::Quarantine).map(|r| r.source);
    assert!(cut.eq([Some(SourceId(2))]), "the others translate as before");
    assert!(a.begin_detach(&cx()).lost());
    drop((dom, one));
    w.work();
    assert!(w.board.frames() > 0, "what lost hardware may walk is kept");
}

#[test]
fn an_attachment_on_its_way_out_goes_without_the_device() {
    let w = World::new();
    let one = member(&w, 1);
    let (dom, by_pasid) = (w.plain(&one), w.plain(&one));
    let a = w.attach(&dom, &one);
    let b = w.iommu.attach(&cx(), &by_pasid, &one, pasid(5), data()).unwrap();
    drop(a);
    let two = member(&w, 2);
    assert_eq!((w.hw.entry(at(2)), w.hw.entry(at_pasid(2, 5))), (None, w.hw.entry(at_pasid(1, 5))));
    w.work();
    assert!(dom.is_unused() && w.hw.entry(at(1)).is_none());
    assert!(w.attach(&dom, &two).places().eq([at(1), at(2)]));
    drop(b);
}

#[test]
fn a_device_joins_a_domain_that_stalls_if_it_bears_that() {
    let w = World::new();
    let soc = |spec: &mut DeviceSpec| {
        (spec.bus, spec.trusted, spec.caps.page_requests) = (Bus::Platform { may_stall: true }, false, None);
    };
    let one = comes(&w, 1, soc).unwrap();
    let dom = w.iommu.user_object_domain(&[&one], DomainOptions::default(), None::<Never>).unwrap();
    let a = w.iommu.attach(&cx(), &dom, &one, None, data()).unwrap();
    let asks = w.iommu.user_object_domain(&[&one], DomainOptions::default(), None::<Never>).unwrap();
    let b = w.iommu.attach(&cx(), &asks, &one, pasid(5), data()).unwrap();
    let decider =
        StallDecider::sleeping(|_: &Sleep<'_>, _: &Arc<Data>, _: &portcullis::StalledAccess| Verdict::Retry);
    let stalling = w.iommu.enable_stall(&cx(), &dom, decider).unwrap();
    let why = refused(&w, 2, |spec| spec.trusted = false);
    w.hw.take_log();
    assert!(matches!(why, AttachError::Stall(StallError::Pci(DeviceId(2)))), "{why}");
    // It does stall where it is let, and the last of all refuses.
    let narrow = refused(&w, 2, |spec| {
        soc(spec);
        spec.caps.pasid_bits = 2;
    });
    assert_eq!(narrow, AttachError::Pasid(DeviceId(2), pasid(5).unwrap()));
    let switches = w.hw.take_log().into_iter().filter(|c| matches!(c, Call::Stall(..)));
    assert!(switches.eq([Call::Stall(at(2), true), Call::Stall(at(2), false)]));
    assert!(w.hw.state().stalling.iter().copied().eq([at(1)]));
    let two = comes(&w, 2, soc).unwrap();
    assert!(w.hw.state().stalling.iter().copied().eq([at(1), at(2)]));
    let stall = Stall {
        id: StallId(3),
        source: SourceId(2),
        pasid: None,
        address: 0x3000,
        access: Access::Write,
        privileged: false,
        stage: None,
        reason: Reason::NotMapped,
        code: 0x10,
        raw: [3, 0, 0, 0],
    };
    assert!(w.hw.stalls(stall));
    w.iommu.service(IOMMU);
    w.work();
    assert_eq!(w.hw.resumed(), [(StallId(3), Verdict::Retry)]);
    drop(stalling);
    drop(a.begin_detach(&cx()));
    assert!(w.hw.state().stalling.is_empty());
    drop((b, two));
}
