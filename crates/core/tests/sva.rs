//! Address spaces of the CPU as owners: bonds, faults, invalidations from the CPU's side, the exit,
//! and the PASIDs that stand for them.

use crate::common::*;
use portcullis::driver::{Start, Target};
use portcullis::error::{AttachError, BindError, DomainError, NoPasid, SyncError};
use portcullis::{
    At, Code, DeviceId, Domain, GroupId, InstanceId, Membership, OwnerId, PageGroup, Pasid, Response, Sleep,
    SourceId, Sva, TableSource,
};
use std::sync::Arc;

type Space = Domain<Board, Sva<Mm>>;

fn mm(w: &World) -> Arc<Mm> {
    Mm::new(&w.board, 0..0x8000)
}

fn share(w: &World, mm: &Arc<Mm>) -> Space {
    w.iommu.address_space_domain(mm.clone()).expect("made")
}

fn at(n: u32, space: &Space) -> At {
    At { source: SourceId(n), pasid: Some(space.pasid()) }
}

/// A request under the PASID of a space, alone in its group.
fn asks(n: u32, index: u16, space: &Space) -> portcullis::driver::PageRequest {
    portcullis::driver::PageRequest { pasid: Some(space.pasid()), ..last(n, index) }
}

fn answered(n: u32, index: u16, pasid: Pasid, code: Code) -> Sent {
    Sent { pasid: Some(pasid), ..sent(n, index, code) }
}

#[test]
fn a_device_is_attached_with_its_first_bond_and_detached_with_its_last() {
    let w = World::new();
    let (d, e) = (w.device(1), w.device(2));
    let mm = mm(&w);
    let space = share(&w, &mm);
    assert_eq!(space.pasid(), Pasid::new(1).unwrap(), "the lowest is free");
    let one = space.bind(&cx(), &d).unwrap();
    let Some(Target::Table { desc, root, .. }) = w.hw.entry(at(1, &space)) else { panic!("it translates") };
    assert_eq!(root, mm.root(), "the table is the CPU's");
    assert!(desc.coherent, "a CPU cleans nothing for a walker");
    w.hw.take_log();
    let two = space.bind(&cx(), &d).unwrap();
    assert_eq!(w.hw.take_log(), [], "it is bound already");
    let other = space.bind(&cx(), &e).unwrap();
    assert_eq!((one.pasid(), other.pasid()), (space.pasid(), space.pasid()));
    assert!(one.unbind(&cx()).is_none(), "the device has another bond");
    assert!(w.hw.entry(at(1, &space)).is_some());
    assert!(two.unbind(&cx()).expect("the last").is_gone());
    assert!(w.hw.entry(at(1, &space)).is_none() && w.hw.entry(at(2, &space)).is_some());
    drop(other);
    w.work();
    assert!(w.hw.entry(at(2, &space)).is_none(), "a dropped bond is given back by a worker");
    assert!(space.is_unused());
    let again = space.bind(&cx(), &d).unwrap();
    assert!(w.hw.entry(at(1, &space)).is_some());
    drop(again);
    w.work();
}

#[test]
fn members_of_a_group_share_one_attachment_and_the_last_bond_of_all_ends_it() {
    let w = World::new();
    let member = |n: u32, bits| {
        let mut spec = w.spec(n);
        spec.group = Some(Membership { group: GroupId(1), merges: Vec::new() });
        spec.caps.pasid_bits = bits;
        w.iommu.add_device(&cx(), spec).expect("added")
    };
    let (one, two, without) = (member(1, 8), member(2, 8), member(3, 0));
    let space = share(&w, &mm(&w));
    let first = space.bind(&cx(), &one).unwrap();
    assert!(w.hw.entry(at(2, &space)).is_some(), "nobody can tell them apart");
    let second = space.bind(&cx(), &two).expect("it is bound already");
    let why = space.bind(&cx(), &without).err();
    assert_eq!(why, Some(BindError::PasidTooBig(DeviceId(3), space.pasid())));
    // One that comes later is bound with the others, and may have bonds of its own.
    let four = member(4, 8);
    assert!(w.hw.entry(at(4, &space)).is_some());
    let third = space.bind(&cx(), &four).unwrap();
    assert!(first.unbind(&cx()).is_none());
    w.sends(&[asks(1, 3, &space), asks(4, 3, &space)]);
    w.work();
    let answer = |n| answered(n, 3, space.pasid(), Code::Success);
    assert_eq!(w.hw.answers(), [answer(1), answer(4)]);
    drop(third);
    assert!(w.hw.entry(at(1, &space)).is_some());
    assert!(second.unbind(&cx()).expect("the last of all").is_gone());
    assert!(w.hw.state().entries.is_empty() && space.is_unused());
    // Bonds go by the claim too.
    let claim = one.claim(OwnerId(5)).unwrap();
    let owners = space.bind(&cx(), claim.device()).unwrap();
    let why = space.bind(&cx(), &two).err();
    assert_eq!(why, Some(BindError::Attach(AttachError::NotOwner(GroupId(1)))));
    drop(owners);
    w.work();
}

#[test]
fn a_device_that_joins_after_the_exit_is_silenced_like_the_others() {
    let w = World::new();
    let member = |n: u32| {
        let mut spec = w.spec(n);
        spec.group = Some(Membership { group: GroupId(1), merges: Vec::new() });
        w.iommu.add_device(&cx(), spec).expect("added")
    };
    let one = member(1);
    let space = share(&w, &mm(&w));
    let bond = space.bind(&cx(), &one).unwrap();
    space.exit(&cx()).unwrap();
    w.hw.take_log();
    let two = member(2);
    assert!(w.hw.take_log().contains(&Call::Silence(at(2, &space))));
    assert_eq!(w.hw.entry(at(2, &space)), None);
    assert!(bond.unbind(&cx()).expect("the last").is_gone());
    drop(two);
}

#[test]
fn devices_of_several_instances_share_an_address_space() {
    let w = World::new();
    let other = Hardware::new(&w.board, 64);
    w.iommu.register(&cx(), InstanceId(8), other.driver(), Start::Fresh).expect("it starts");
    let (d, e) = (w.device(1), w.device(2));
    let mut spec = spec(3, other.control(SourceId(3)));
    spec.upstreams[0].instance = InstanceId(8);
    let f = w.iommu.add_device(&cx(), spec).expect("added");
    let mm = mm(&w);
    let space = share(&w, &mm);
    let bonds = [&d, &e, &f].map(|d| space.bind(&cx(), d).unwrap());
    assert!(bonds.iter().all(|b| b.pasid() == space.pasid()));
    assert_eq!(w.hw.entry(at(1, &space)), w.hw.entry(at(2, &space)), "one tag on an instance");
    let Some(Target::Table { root, .. }) = other.entry(at(3, &space)) else { panic!("it translates") };
    assert_eq!(root, mm.root());
    // What goes from the address space goes from both.
    let asked = |hw: &Hardware| {
        let submits = hw.take_log().into_iter();
        submits
            .filter_map(|c| if let Call::Submit { tags, .. } = c { Some(tags) } else { None })
            .collect::<Vec<_>>()
    };
    w.hw.take_log();
    other.take_log();
    space.invalidate(&cx(), 0x1000..0x2000).unwrap();
    assert_eq!((asked(&w.hw), asked(&other)), (vec![2], vec![1]));
    space.exit(&cx()).unwrap();
    assert!(w.hw.take_log().contains(&Call::Silence(at(1, &space))));
    assert!(other.take_log().contains(&Call::Silence(at(3, &space))));
    drop(bonds);
    w.work();
    assert!(space.is_unused());
}

#[test]
fn a_bind_waits_for_the_detach_of_the_life_before() {
    let w = World::new();
    let d = w.device(1);
    let space = share(&w, &mm(&w));
    drop(space.bind(&cx(), &d).unwrap());
    let iommu = w.iommu.clone();
    w.board.on_wait(Some(Box::new(move || while iommu.run_one(&cx()) {})));
    let again = space.bind(&cx(), &d).expect("the reaper was faster in the end");
    assert!(w.hw.entry(at(1, &space)).is_some());
    drop(again);
    w.work();
}

#[test]
fn faults_go_to_the_address_space_and_its_word_is_the_answer() {
    let w = World::new();
    let d = w.device(1);
    let mm = mm(&w);
    let space = share(&w, &mm);
    let bond = space.bind(&cx(), &d).unwrap();
    let p = space.pasid();
    w.sends(&[asks(1, 3, &space), asks(1, 9, &space)]);
    w.work();
    assert_eq!(
        w.hw.answers(),
        [answered(1, 3, p, Code::Success), answered(1, 9, p, Code::Invalid)],
        "0x3000 is there, 0x9000 is not"
    );
    assert_eq!(*mm.faults.lock().unwrap(), [0x3000, 0x9000]);
    w.hw.take_log();
    let mut first = first(1, 5, 0xf000);
    first.pasid = Some(p);
    w.sends(&[first, asks(1, 5, &space)]);
    w.work();
    assert_eq!(w.hw.answers(), [answered(1, 5, p, Code::Invalid)], "a group needs all of its pages");
    drop(bond);
    w.work();
}

#[test]
fn a_device_without_page_requests_can_be_bound() {
    let w = World::new();
    let mut spec = w.spec(1);
    spec.caps.page_requests = None;
    let d = w.iommu.add_device(&cx(), spec).unwrap();
    let space = share(&w, &mm(&w));
    let bond = space.bind(&cx(), &d).unwrap();
    assert!(w.hw.entry(at(1, &space)).is_some() && !d.features().pri);
    assert!(bond.unbind(&cx()).unwrap().is_gone());
}

#[test]
fn what_does_not_fit_is_said() {
    let w = World::new();
    let d = w.device(1);
    let (mm, other) = (mm(&w), self::mm(&w));
    let space = share(&w, &mm);
    let second: Result<Space, _> = w.iommu.address_space_domain(mm.clone());
    assert_eq!(second.err(), Some(DomainError::SharedAlready));
    let mut spec = w.spec(2);
    spec.caps.pasid_bits = 0;
    let small = w.iommu.add_device(&cx(), spec).unwrap();
    let refused = space.bind(&cx(), &small).err();
    assert_eq!(refused, Some(BindError::PasidTooBig(small.id(), space.pasid())));
    // Somebody else uses the number on this device.
    let dom = w.plain(&d);
    let a = w.iommu.attach(&cx(), &dom, &d, Some(space.pasid()), data()).unwrap();
    assert_eq!(space.bind(&cx(), &d).err(), Some(BindError::OtherSpace(at(1, &space))));
    assert!(a.begin_detach(&cx()).is_gone());
    let bond = space.bind(&cx(), &d).expect("a bind that failed leaves nothing");
    let second = share(&w, &other);
    assert_ne!(second.pasid(), space.pasid());
    let mut spec = w.spec(3);
    spec.trusted = false;
    let untrusted = w.iommu.add_device(&cx(), spec).unwrap();
    let refused = space.bind(&cx(), &untrusted);
    assert!(matches!(refused, Err(BindError::Attach(AttachError::NoPageRequests(..)))), "not trusted");
    drop((bond, space));
    w.work();
    drop(mm);
}

#[test]
fn a_pasid_is_given_out_again_when_its_domain_and_everything_bound_is_gone() {
    let w = World::new();
    let d = w.device(1);
    let space = share(&w, &mm(&w));
    let p = space.pasid();
    let bond = space.bind(&cx(), &d).unwrap();
    drop(space);
    let next = share(&w, &mm(&w));
    assert_ne!(next.pasid(), p, "a device is bound under it");
    drop(bond);
    let next = share(&w, &mm(&w));
    assert_ne!(next.pasid(), p, "nobody has drained it");
    w.work();
    assert_eq!(share(&w, &mm(&w)).pasid(), p);
}

#[test]
fn a_pasid_whose_drain_the_hardware_did_not_live_to_see_stays_away() {
    let w = World::new();
    let d = w.device(1);
    let space = share(&w, &mm(&w));
    let p = space.pasid();
    let bond = space.bind(&cx(), &d).unwrap();
    w.hw.state().lost = true;
    assert!(bond.unbind(&cx()).unwrap().lost());
    drop(space);
    w.work();
    assert_ne!(share(&w, &mm(&w)).pasid(), p);
}

#[test]
fn ranges_are_invalidated_with_their_ends_inclusive_and_huge_ones_as_a_whole() {
    let w = World::new();
    let d = w.device(1);
    let space = share(&w, &mm(&w));
    let ranges = || core::mem::take(&mut w.hw.state().batches);
    space.invalidate(&cx(), 0x1000..0x2000).unwrap();
    assert_eq!(ranges(), [], "nobody is bound");
    let bond = space.bind(&cx(), &d).unwrap();
    let one = |range| {
        space.invalidate(&cx(), range).unwrap();
        let done = ranges();
        assert!(done.iter().all(|(tags, _, non_leaf)| tags.len() == 1 && *non_leaf), "tables may go too");
        done.iter().map(|(_, range, _)| *range).collect::<Vec<_>>()
    };
    assert_eq!(one(0x1000..0x2000), [Some((0x1000, 0x1fff))]);
    assert_eq!(one(0x1234..0x2001), [Some((0x1000, 0x2fff))], "whole pages");
    assert_eq!(one(0x1000..0x1000), []);
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let backwards = one(0x2000..0x1000);
    assert_eq!(backwards, []);
    assert_eq!(one(0..0x1f_f000), [Some((0, 0x1f_efff))]);
    assert_eq!(one(0..0x20_0000), [None], "from 512 pages on all of it, in one command");
    assert_eq!(one(0..u64::MAX), [None]);
    drop(bond);
    w.work();
}

#[test]
fn kernel_walks_are_invalidated_for_every_space_that_is_bound() {
    let w = World::new();
    let (d, e) = (w.device(1), w.device(2));
    let (one, two, _idle) = (share(&w, &mm(&w)), share(&w, &mm(&w)), share(&w, &mm(&w)));
    let bonds = (one.bind(&cx(), &d).unwrap(), two.bind(&cx(), &e).unwrap());
    w.hw.state().batches.clear();
    w.iommu.invalidate_kernel_walks(&cx()).unwrap();
    let done = core::mem::take(&mut w.hw.state().batches);
    let of: Vec<_> = done.iter().map(|(tags, range, non_leaf)| (tags[0].at, *range, *non_leaf)).collect();
    assert_eq!(of, [(at(1, &one), None, true), (at(2, &two), None, true)]);
    drop(bonds);
    w.work();
}

#[test]
fn an_exit_stops_what_devices_do_silently_and_they_stay_bound() {
    let w = World::new();
    let (d, e) = (w.device(1), w.device(2));
    let mm = mm(&w);
    let space = share(&w, &mm);
    let (one, two) = (space.bind(&cx(), &d).unwrap(), space.bind(&cx(), &e).unwrap());
    w.sends(&[asks(1, 3, &space)]);
    w.hw.take_log();
    space.exit(&cx()).unwrap();
    let silenced = [Call::Silence(at(1, &space)), Call::Silence(at(2, &space))];
    assert_eq!(w.hw.take_log(), silenced, "an exit drains nothing: handlers may be what it waits for");
    w.work();
    assert_eq!(w.hw.answers(), [answered(1, 3, space.pasid(), Code::Invalid)], "what waited");
    w.sends(&[asks(2, 4, &space)]);
    w.work();
    assert_eq!(w.hw.answers()[1..], [answered(2, 4, space.pasid(), Code::Invalid)], "what came later");
    assert_eq!(*mm.faults.lock().unwrap(), [0_u64; 0], "the address space is asked no more");
    assert_eq!(space.bind(&cx(), &d).err(), Some(BindError::Exited));
    d.reset(&cx()).unwrap();
    assert_eq!(w.hw.entry(at(1, &space)), None, "a reset brings nothing back");
    w.hw.take_log();
    space.exit(&cx()).unwrap();
    assert!(one.unbind(&cx()).unwrap().is_gone() && two.unbind(&cx()).unwrap().is_gone());
    assert!(w.hw.take_log().contains(&Call::Drain(at(1, &space))), "freed at the unbind, with a drain");
}

#[test]
fn an_exit_that_the_hardware_did_not_live_to_see_says_so() {
    let w = World::new();
    let d = w.device(1);
    let space = share(&w, &mm(&w));
    let _bond = space.bind(&cx(), &d).unwrap();
    w.hw.state().lost = true;
    assert!(matches!(space.exit(&cx()), Err(SyncError::Lost(_))));
}

#[test]
fn an_exit_meets_a_bind_that_is_under_way() {
    let w = World::new();
    let d = w.device(1);
    let space = share(&w, &mm(&w));
    // Page requests are being switched on: that takes the hardware.
    w.hw.state().hold = true;
    let mut bind = space.start_bind(&d);
    assert!(bind.step().is_pending());
    let mut exit = space.start_exit();
    assert!(exit.step().is_pending(), "the device may be about to use the table");
    w.hw.state().hold = false;
    let bound = loop {
        if let std::task::Poll::Ready(r) = bind.step() {
            break r;
        }
    };
    assert_eq!(bound.err(), Some(BindError::Exited));
    assert!(space.is_unused() && w.hw.entry(at(1, &space)).is_none(), "nothing is left to a worker");
    while exit.step().is_pending() {
        w.work();
    }
}

#[test]
fn an_exit_waits_for_an_unbind_that_is_under_way() {
    let w = World::new();
    let d = w.device(1);
    let space = share(&w, &mm(&w));
    let bond = space.bind(&cx(), &d).unwrap();
    w.hw.state().hold = true;
    let mut unbind = bond.start_unbind().expect("the last");
    assert!(unbind.step().is_pending());
    let mut exit = space.start_exit();
    assert!(exit.step().is_pending(), "the device may still use the table");
    w.hw.state().hold = false;
    while unbind.step().is_pending() {}
    while exit.step().is_pending() {}
    assert_eq!(w.hw.entry(at(1, &space)), None);
}

#[test]
fn an_operation_given_up_half_way_leaves_the_turn_to_the_next() {
    let w = World::new();
    let d = w.device(1);
    let space = share(&w, &mm(&w));
    w.hw.state().hold = true;
    let mut bind = space.start_bind(&d);
    assert!(bind.step().is_pending());
    let mut waits = space.start_bind(&d);
    assert!(waits.step().is_pending());
    drop(bind);
    w.hw.state().hold = false;
    let bond = loop {
        w.work();
        if let std::task::Poll::Ready(r) = waits.step() {
            break r.unwrap();
        }
    };
    assert!(w.hw.entry(at(1, &space)).is_some());
    assert!(bond.unbind(&cx()).unwrap().is_gone());
}

#[test]
fn pasids_of_one_device_are_in_quarantine_until_the_detach_is_over() {
    let w = World::new();
    let d = w.device(1);
    let seen = |name: &'static str| {
        w.resolved_by(&d, move |_: &Sleep<'_>, data: &Arc<Data>, group: PageGroup<'_, Board>| {
            data.lock().unwrap().push(name.to_owned());
            group.respond(Response::Success).expect("not answered yet");
        })
    };
    let (old, new) = (seen("old"), seen("new"));
    let p = d.take_pasid().unwrap();
    assert_eq!(d.take_pasid().unwrap().get(), Pasid::new(2).unwrap(), "one is taken");
    let number = p.get();
    let (before, after) = (data(), data());
    let a = w.iommu.attach(&cx(), &old, &d, Some(number), before.clone()).unwrap();
    drop(p);
    assert_ne!(d.take_pasid().unwrap().get(), number, "something is attached under it");
    // A request of the old life is in the fabric when the detach begins, and arrives with the drain.
    let late = portcullis::driver::PageRequest { pasid: Some(number), ..last(1, 6) };
    w.hw.state().in_fabric.push(late);
    w.hw.state().hold = true;
    let mut detach = a.start_detach();
    assert!(detach.step().is_pending());
    assert_ne!(d.take_pasid().unwrap().get(), number, "it is not drained");
    w.hw.state().hold = false;
    while detach.step().is_pending() {}
    drop(detach);
    assert_eq!(w.hw.answers(), [answered(1, 6, number, Code::Invalid)], "it is nobody's");
    let again = d.take_pasid().unwrap();
    assert_eq!(again.get(), number);
    let b = w.iommu.attach(&cx(), &new, &d, Some(number), after.clone()).unwrap();
    w.work();
    assert!(before.lock().unwrap().is_empty() && after.lock().unwrap().is_empty());
    assert!(b.begin_detach(&cx()).is_gone());
}

#[test]
fn pasids_run_out_with_a_typed_refusal() {
    let w = World::new();
    let mut spec = w.spec(1);
    spec.caps.pasid_bits = 2;
    let d = w.iommu.add_device(&cx(), spec).unwrap();
    let all: Vec<_> = (0..3).map(|_| d.take_pasid().unwrap()).collect();
    assert_eq!(all.iter().map(|p| p.get().get()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(d.take_pasid().err(), Some(NoPasid::NoneLeft));
    drop(all);
    assert!(d.take_pasid().is_ok());
    let mut spec = w.spec(2);
    spec.caps.pasid_bits = 0;
    let none = w.iommu.add_device(&cx(), spec).unwrap();
    assert_eq!(none.take_pasid().err(), Some(NoPasid::NoneLeft));
}

#[test]
fn nobody_is_given_a_pasid_that_the_driver_had_no_memory_for() {
    let w = World::new();
    w.hw.state().pasid_room = 2;
    let d = w.device(1);
    assert_eq!(d.features().pasid_bits, 2);
    let all: Vec<_> = (0..3).map(|_| d.take_pasid().unwrap()).collect();
    assert_eq!(d.take_pasid().err(), Some(NoPasid::NoneLeft));
    drop(all);
    let dom = w.plain(&d);
    let beyond = Pasid::new(4);
    let refused = w.iommu.attach(&cx(), &dom, &d, beyond, data()).err();
    assert_eq!(refused, beyond.map(|pasid| AttachError::Pasid(d.id(), pasid)));
    let spaces: Vec<_> = (0..4).map(|_| share(&w, &mm(&w))).collect();
    assert_eq!(Some(spaces[3].pasid()), beyond);
    let refused = spaces[3].bind(&cx(), &d).err();
    assert_eq!(refused, Some(BindError::PasidTooBig(d.id(), spaces[3].pasid())));
    assert!(spaces[2].bind(&cx(), &d).is_ok());
}
