//! Several devices that nobody can keep apart, and devices with several ids: attached, replaced and
//! detached as one.

use crate::common::*;
use portcullis::error::{AddDeviceError, AttachError, NoPasid, NotUp};
use portcullis::{
    At, Code, DeviceId, DeviceState, FaultKind, Gap, GroupId, InstanceId, Membership, MergedBy, RawFault,
    Reason, Replaced, Scope, SourceId, Upstream,
    topology::{Address, Merge},
};

fn at(n: u32) -> At {
    At { source: SourceId(n), pasid: None }
}

fn at_pasid(n: u32, p: u32) -> At {
    At { source: SourceId(n), pasid: pasid(p) }
}

const BRIDGE: MergedBy = MergedBy::BridgeAlias { bridge: Address::new(0, 0, 4, 0) };

fn merge() -> Merge {
    Merge { first: DeviceId(1), second: DeviceId(2), by: BRIDGE }
}

/// A device of group 1.
fn member(w: &World, n: u32) -> Dev {
    member_with(w, n, |_| {})
}

fn member_with(w: &World, n: u32, change: impl FnOnce(&mut portcullis::DeviceSpec)) -> Dev {
    try_member(w, n, change).expect("added")
}

fn try_member(
    w: &World,
    n: u32,
    change: impl FnOnce(&mut portcullis::DeviceSpec),
) -> Result<Dev, AddDeviceError> {
    let mut spec = w.spec(n);
    spec.group = Some(Membership { group: GroupId(1), merges: vec![merge()] });
    change(&mut spec);
    w.iommu.add_device(&cx(), spec)
}

fn seen_by(seen: &portcullis::Subscription<Board>) -> Vec<portcullis::FaultRecord> {
    core::iter::from_fn(|| seen.try_next()).map(|told| told.record).collect()
}

/// Aliases beside the device's own id. Behind a bridge there is no ATS.
fn with_aliases(aliases: &'static [u32]) -> impl FnOnce(&mut portcullis::DeviceSpec) {
    |spec| {
        spec.trusted = false;
        spec.upstreams[0].sources.extend(aliases.iter().map(|n| SourceId(*n)));
    }
}

#[test]
fn a_group_says_its_members_and_what_merged_them() {
    let w = World::new();
    let (two, one, alone) = (member(&w, 2), member(&w, 1), w.device(3));
    for d in [&one, &two] {
        let group = d.group().unwrap();
        assert_eq!((group.id, &group.members[..]), (GroupId(1), &[DeviceId(1), DeviceId(2)][..]));
        assert_eq!(group.merges, [merge()]);
    }
    let group = alone.group().unwrap();
    assert_eq!((group.id, &group.members[..], &group.merges[..]), (GroupId(3), &[DeviceId(3)][..], &[][..]));
}

#[test]
fn an_attachment_covers_all_members_with_all_their_ids() {
    let w = World::new();
    let one = member_with(&w, 1, with_aliases(&[10, 11]));
    let two = member(&w, 2);
    let dom = w.plain(&one);
    let a = w.attach(&dom, &two);
    let all = [1, 10, 11, 2].map(at);
    assert!(a.places().eq(all));
    assert_eq!(a.at(), at(2), "the device that was named");
    assert!(all.iter().all(|at| w.hw.entry(*at).is_some()));
    let occupied = w.iommu.attach(&cx(), &dom, &one, None, data()).err();
    assert_eq!(occupied, Some(AttachError::Occupied(at(1))));
    assert!(w.iommu.remove_device(&cx(), two.clone()).is_err());
    // Whoever unmaps asks every id.
    w.map(&dom, 0x1000);
    let mut gone = dom.unmapping();
    gone.unmap(0x1000, 0x1000).unwrap();
    w.hw.take_log();
    gone.sync(&cx()).unwrap();
    assert!(w.hw.take_log().contains(&Call::Submit { range: Some((0x1000, 0x1fff)), tags: 4, ats: 1 }));
    let other = w.plain(&one);
    let (b, _, how) = w.iommu.replace(&cx(), a, &other, data(), Gap::Refused).map_err(|(_, e)| e).unwrap();
    assert_eq!(how, Replaced::Hitless);
    assert!(dom.is_unused());
    assert!(b.begin_detach(&cx()).is_gone());
    assert!(all.iter().all(|at| w.hw.entry(*at).is_none()));
    assert!(other.is_unused());
}

#[test]
fn an_id_that_two_members_share_is_one_place_and_its_faults_name_the_group() {
    let w = World::new();
    let one = member_with(&w, 1, with_aliases(&[10]));
    let two = member_with(&w, 2, with_aliases(&[10]));
    let seen = w.iommu.observe(Scope::All, 4).unwrap();
    let a = w.attach(&w.plain(&one), &one);
    assert!(a.places().eq([1, 10, 2].map(at)));
    let fault =
        |n| RawFault { source: Some(SourceId(n)), ..RawFault::new(FaultKind::Dma, Reason::NotMapped) };
    w.hw.faults(fault(10));
    w.hw.faults(fault(2));
    w.iommu.service(IOMMU);
    let records = seen_by(&seen);
    assert_eq!((records[0].device, records[0].group), (None, Some(GroupId(1))));
    assert_eq!((records[1].device, records[1].group), (Some(DeviceId(2)), Some(GroupId(1))));
    drop(a.begin_detach(&cx()));
    // The shared id stays while one of them is there.
    w.hw.take_log();
    w.iommu.remove_device(&cx(), one).map_err(|(_, e)| e).unwrap();
    let log = w.hw.take_log();
    assert!(log.contains(&Call::RemoveDevice(SourceId(1))) && !log.contains(&Call::CutOff(SourceId(10))));
    w.hw.faults(fault(10));
    w.iommu.service(IOMMU);
    assert_eq!(seen_by(&seen)[0].device, Some(DeviceId(2)), "now it is clear who it was");
    w.iommu.remove_device(&cx(), two).map_err(|(_, e)| e).unwrap();
    assert!(w.hw.take_log().contains(&Call::RemoveDevice(SourceId(10))));
}

#[test]
fn a_member_that_does_not_fit_is_named_and_nobody_is_attached() {
    let w = World::new();
    let one = member(&w, 1);
    let two = member_with(&w, 2, |spec| spec.caps.page_requests = None);
    let dom = w.served(&one);
    w.hw.take_log();
    let why = w.iommu.attach(&cx(), &dom, &one, None, data()).err();
    assert!(matches!(why, Some(AttachError::NoPageRequests(DeviceId(2), _))), "{why:?}");
    assert!(dom.is_unused() && !one.features().pri);
    assert!(w.hw.entry(at(1)).is_none() && w.hw.entry(at(2)).is_none());
    let plain = w.plain(&one);
    let beyond = w.iommu.attach(&cx(), &plain, &one, pasid(300), data()).err();
    assert_eq!(beyond, Some(AttachError::Pasid(DeviceId(1), pasid(300).unwrap())));
    drop(two);
}

#[test]
fn the_last_of_several_that_cannot_be_prepared_leaves_the_first_as_they_were() {
    let w = World::new();
    let (one, _two) = (member(&w, 1), member(&w, 2));
    let (dom, other) = (w.plain(&one), w.plain(&one));
    for n in 0..2 {
        w.hw.state().fail_after = Some(n);
        let why = w.iommu.attach(&cx(), &dom, &one, None, data()).err();
        assert!(matches!(why, Some(AttachError::Prepare(_))), "{n}: {why:?}");
        assert!(w.hw.state().images.is_empty() && dom.is_unused());
        assert_eq!((w.hw.entry(at(1)), w.hw.entry(at(2))), (None, None));
    }
    let mut a = w.attach(&dom, &one);
    let before = [at(1), at(2)].map(|at| w.hw.entry(at));
    for n in 0..2 {
        w.hw.state().fail_after = Some(n);
        let (back, why) = w.iommu.replace(&cx(), a, &other, data(), Gap::Allowed).err().unwrap();
        assert!(matches!(why, AttachError::Prepare(_)), "{n}: {why:?}");
        assert_eq!([at(1), at(2)].map(|at| w.hw.entry(at)), before);
        a = back.expect("it stands");
    }
}

#[test]
fn a_pasid_is_attached_to_those_that_have_pasids() {
    let w = World::new();
    let one = member(&w, 1);
    let none = member_with(&w, 2, |spec| spec.caps.pasid_bits = 0);
    let three = member_with(&w, 3, |spec| spec.caps.pasid_bits = 4);
    let dom = w.plain(&one);
    let a = w.iommu.attach(&cx(), &dom, &one, pasid(5), data()).unwrap();
    assert!(a.places().eq([at_pasid(1, 5), at_pasid(3, 5)]));
    // Beyond what one of them can say, and for one that has none at all.
    let narrow = w.iommu.attach(&cx(), &dom, &one, pasid(20), data()).err();
    assert_eq!(narrow, Some(AttachError::Pasid(DeviceId(3), pasid(20).unwrap())));
    let without = w.iommu.attach(&cx(), &dom, &none, pasid(6), data()).err();
    assert_eq!(without, Some(AttachError::Pasid(DeviceId(2), pasid(6).unwrap())));
    assert!(a.begin_detach(&cx()).is_gone());
    drop(three);
}

#[test]
fn page_requests_of_every_member_reach_the_resolver() {
    let w = World::new();
    let (one, two) = (member(&w, 1), member(&w, 2));
    let dom = w.served(&one);
    let held = data();
    let a = w.iommu.attach(&cx(), &dom, &one, None, held.clone()).unwrap();
    assert!(one.features().pri && two.features().pri);
    w.sends(&[last(1, 1), last(2, 7)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Success), sent(2, 7, Code::Success)]);
    assert_eq!(*held.lock().unwrap(), ["1000", "7000"]);
    // What waits when the group is detached is answered, whoever of them asked.
    w.sends(&[last(1, 2), last(2, 8)]);
    w.hw.take_log();
    drop(a.begin_detach(&cx()));
    let mut answers = w.hw.answers();
    answers.sort_by_key(|a| a.source);
    assert_eq!(answers, [sent(1, 2, Code::Invalid), sent(2, 8, Code::Invalid)]);
    assert!(!one.features().pri && !two.features().pri);
}

#[test]
fn a_page_request_of_an_id_that_several_share_is_nobodys_and_answered_invalid() {
    let w = World::new();
    let one = member_with(&w, 1, with_aliases(&[10]));
    let two = member_with(&w, 2, with_aliases(&[10]));
    // Such devices have no page requests, so that nothing that needs them is attached to the group.
    let why = w.iommu.attach(&cx(), &w.served(&one), &one, None, data()).err();
    assert!(matches!(why, Some(AttachError::NoPageRequests(DeviceId(1), _))), "{why:?}");
    let a = w.attach(&w.plain(&one), &one);
    let seen = w.iommu.observe(Scope::All, 4).unwrap();
    // The alias, and the own id of one: forged, whoever sent them.
    w.sends(&[last(10, 1), last(2, 2)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(10, 1, Code::Invalid), sent(2, 2, Code::Invalid)]);
    let records = seen_by(&seen);
    let said = records.iter().map(|r| (r.kind, r.reason, r.device, r.group));
    let nobody = (FaultKind::PageRequest, Reason::RequestType, None, Some(GroupId(1)));
    assert!(said.eq([nobody, (nobody.0, nobody.1, Some(DeviceId(2)), nobody.3)]));
    assert_eq!((one.counters().unauthorised, two.counters().unauthorised), (0, 1));
    drop(a);
}

#[test]
fn hardware_lost_between_two_members_quarantines_the_group() {
    let w = World::new();
    let (one, two) = (member(&w, 1), member(&w, 2));
    let dom = w.plain(&one);
    let hw = w.hw.clone();
    // Nothing completes any more once the second member's turn comes.
    w.board.on_wait(Some(Box::new(move || hw.state().lost = hw.entry(at(1)).is_some())));
    w.hw.state().hold = true;
    let why = w.iommu.attach(&cx(), &dom, &one, None, data()).err();
    assert!(matches!(why, Some(AttachError::Lost(_))), "{why:?}");
    assert!(one.is_quarantined() && two.is_quarantined());
    w.work();
    drop(dom);
    assert!(w.board.frames() > 0, "what lost hardware may walk is kept");
}

#[test]
fn a_group_behind_two_instances_is_refused() {
    let w = World::new();
    let _one = member(&w, 1);
    let why = try_member(&w, 2, |spec| spec.upstreams[0].instance = InstanceId(8)).err();
    assert_eq!(why, Some(AddDeviceError::GroupSpans { device: DeviceId(2), other: DeviceId(1) }));
    let why = try_member(&w, 2, |spec| spec.upstreams.clear()).err();
    assert_eq!(why, Some(AddDeviceError::GroupSpans { device: DeviceId(2), other: DeviceId(1) }));
    let two = Upstream { instance: InstanceId(8), sources: vec![SourceId(2)] };
    let why = try_member(&w, 2, |spec| spec.upstreams.push(two)).err();
    assert_eq!(why, Some(AddDeviceError::SeveralInstances(DeviceId(2))));
}

#[test]
fn an_id_with_ats_is_nobody_elses() {
    let w = World::new();
    let one = member(&w, 1);
    let why = try_member(&w, 2, |spec| spec.upstreams[0].sources = vec![SourceId(2), SourceId(1)]).err();
    assert_eq!(why, Some(AddDeviceError::SharedId { device: DeviceId(2), source_id: SourceId(1) }));
    assert!(!w.hw.knows(SourceId(2)), "its own id was taken back");
    // An id of a device outside the group is taken.
    let mut other = w.spec(3);
    other.upstreams[0].sources = vec![SourceId(1)];
    assert_eq!(w.iommu.add_device(&cx(), other).err(), Some(AddDeviceError::Duplicate(DeviceId(3))));
    drop(one);
}

#[test]
fn a_device_has_no_more_pasids_than_any_of_its_ids() {
    let w = World::new();
    let shares = |bits| {
        move |spec: &mut portcullis::DeviceSpec| {
            with_aliases(&[10])(spec);
            spec.caps.pasid_bits = bits;
        }
    };
    let one = member_with(&w, 1, shares(2));
    let two = member_with(&w, 2, shares(8));
    assert_eq!(two.features().pasid_bits, 8, "its own id");
    let all: Vec<_> = (0..3).map(|_| two.take_pasid().unwrap()).collect();
    assert_eq!(two.take_pasid().err(), Some(NoPasid::NoneLeft), "the id they share was there before");
    drop((one, all));
}

#[test]
fn direct_regions_of_all_members_are_mapped_for_the_group_and_shared_ids_rest_there() {
    let w = World::new();
    let direct = |start| portcullis::ReservedRegion::direct(start, 0x1000, RW);
    let one = member_with(&w, 1, |spec| {
        with_aliases(&[10])(spec);
        spec.regions = vec![direct(0x8000)];
    });
    let two = member_with(&w, 2, |spec| {
        with_aliases(&[10])(spec);
        spec.regions = vec![direct(0x9000), direct(0xc000)];
    });
    let three = member(&w, 3);
    let rests = |n| w.hw.entry(at(n)).is_some();
    assert!(rests(1) && rests(2) && rests(10) && !rests(3));
    let dom = w.plain(&three);
    let a = w.attach(&dom, &three);
    assert!([0x8000, 0x9000, 0xc000].iter().all(|iova| dom.lookup(*iova).is_some()));
    assert_eq!(one.group_regions().unwrap()[0].last(), 0x9fff, "merged and sorted");
    drop(a.begin_detach(&cx()));
    assert!([0x8000, 0x9000, 0xc000].iter().all(|iova| dom.lookup(*iova).is_none()));
    assert!(rests(1) && rests(2) && rests(10) && !rests(3));
    // The id they share goes to rest elsewhere with the last that needs a region under it.
    w.iommu.remove_device(&cx(), one).map_err(|(_, e)| e).unwrap();
    assert!(rests(10) && w.hw.entry(at(1)).is_none());
    w.iommu.remove_device(&cx(), two).map_err(|(_, e)| e).unwrap();
    assert!(!rests(10));
    w.iommu.remove_device(&cx(), three).map_err(|(_, e)| e).unwrap();
}

#[test]
fn a_member_that_is_not_up_blocks_its_group_and_is_named() {
    let w = World::new();
    let one = member(&w, 1);
    w.board.mem().allow(Some(0));
    w.hw.state().fail_after = Some(0);
    assert!(matches!(try_member(&w, 2, |_| {}), Err(AddDeviceError::Prepare(_))));
    w.board.mem().allow(None);
    w.hw.state().fail_after = None;
    assert_eq!(one.group().unwrap().members, [DeviceId(1)], "one that was never added blocks nobody");
    assert_eq!(one.state(), DeviceState::Ready { instance: IOMMU });
    let other: Dev = {
        let mut spec = w.spec(4);
        spec.upstreams.clear();
        w.iommu.add_device(&cx(), spec).unwrap()
    };
    let dom = w.plain(&one);
    let why = w.iommu.attach(&cx(), &dom, &other, None, data()).err();
    assert_eq!(why, Some(AttachError::NotUp(NotUp::NoIommu(DeviceId(4)))));
    assert_eq!(other.state(), DeviceState::NoIommu);
    assert!(!other.has_iommu() && other.sources().is_empty());
}
