//! A guest as owner: its table on top of a parent domain, its invalidations passed on, its faults
//! answered late.

use crate::common::*;
use portcullis::driver::{Incompatible, Target};
use portcullis::error::{AttachError, DomainError};
use portcullis::{
    At, Code, Deferred, Domain, Gap, Nested, PageGroup, Replaced, Response, Sleep, SourceId, TableSource,
};
use portcullis_pgtable::{FormatDesc, IoTable, Phys, Prot, TableMem};
use std::sync::{Arc, Mutex};

type Guest = Domain<Board, Nested<Data>>;
type Never = fn(&Sleep<'_>, &Arc<Data>, PageGroup<'_, Board>);

const AT: At = At { source: SourceId(1), pasid: None };
/// What a guest has is 16 MiB higher in the host.
const HOST: u64 = 0x100_0000;

/// A table as a guest writes it: of the right format, its addresses the guest's.
struct GuestTable {
    desc: FormatDesc,
    root: Phys,
}

impl TableSource for GuestTable {
    fn desc(&self) -> FormatDesc {
        self.desc
    }
    fn root(&self) -> Phys {
        self.root
    }
}

fn desc(w: &World) -> FormatDesc {
    foreign(&w.board, true).desc()
}

fn table(w: &World) -> Arc<dyn TableSource> {
    Arc::new(GuestTable { desc: desc(w), root: Phys(0x5000) })
}

fn nested(w: &World, parent: &Dom, d: &Dev) -> Guest {
    w.iommu.nested_domain(parent, &[d], table(w), None::<Never>).expect("made")
}

fn nesting() -> World {
    let w = World::new();
    w.hw.state().nests = true;
    w
}

#[test]
fn an_instance_without_nesting_refuses_with_the_reason() {
    let w = World::new();
    let d = w.device(1);
    let parent = w.plain(&d);
    let why = Incompatible::NoNesting;
    let made: Result<Guest, _> = w.iommu.nested_domain(&parent, &[&d], table(&w), None::<Never>);
    assert_eq!(made.err(), Some(DomainError::Incompatible { device: d.id(), why }));
    let made: Result<Guest, _> = w.iommu.nested_domain(&parent, &[], table(&w), None::<Never>);
    assert_eq!(made.err(), Some(DomainError::NoDevice));
    let other = nesting();
    let e = other.device(1);
    let made: Result<Guest, _> = other.iommu.nested_domain(&parent, &[&e], table(&w), None::<Never>);
    assert_eq!(made.err(), Some(DomainError::Foreign));
    // A domain that one instance nests is refused where another does not.
    w.hw.state().nests = true;
    let guest = nested(&w, &parent, &d);
    w.hw.state().nests = false;
    let refused = w.iommu.attach(&cx(), &guest, &d, None, data());
    assert_eq!(refused.err(), Some(AttachError::Incompatible { device: d.id(), at: AT, why }));
}

/// What hardware finds that walks the guest's table through the parent's ([V] 3.8): every address of
/// the guest's, of a table or of a page, goes through the parent.
fn walk(w: &World, at: At, address: u64) -> Option<(Phys, Prot)> {
    let Some(Target::Nested { root, parent, .. }) = w.hw.entry(at) else { panic!("it is nested") };
    let host = |guest: u64| w.board.walk(parent.root, guest).map(|(phys, _)| phys);
    let mut table = root.0;
    for shift in [39, 30, 21, 12] {
        let entry: u64 = w.board.load(host(table)?, (address >> shift & 0x1ff) as usize);
        table = entry & 0x000f_ffff_ffff_f000;
        let prot = Prot::from_bits_truncate(entry as u32 & 3);
        if prot.is_empty() {
            return None;
        }
        if shift == 12 {
            let (phys, below) = w.board.walk(parent.root, table | address & 0xfff)?;
            return Some((phys, prot & below));
        }
    }
    None
}

#[test]
fn a_guest_s_table_is_walked_through_its_parent() {
    let w = nesting();
    let d = w.device(1);
    let parent = w.plain(&d);
    // The guest's memory: four frames for its tables, and a page.
    let frames: Vec<Phys> = (0..4).map(|_| w.board.frame().expect("memory").publish()).collect();
    for (i, frame) in frames.iter().enumerate() {
        parent.map_range(0x5000 + 0x1000 * i as u64, *frame, 0x1000, RW).unwrap();
    }
    parent.map_range(0x9000, Phys(HOST + 0x9000), 0x1000, Prot::READ).unwrap();
    // It maps its address 0x4000_3000 to 0x9000.
    let address = 0x4000_3000u64;
    for (i, shift) in [39, 30, 21, 12].into_iter().enumerate() {
        let next = 0x6000 + 0x1000 * i as u64;
        w.board.store(frames[i], (address >> shift & 0x1ff) as usize, next | 3);
    }
    let guest = nested(&w, &parent, &d);
    let a = w.iommu.attach(&cx(), &guest, &d, None, data()).unwrap();
    assert_eq!(walk(&w, AT, address + 8), Some((Phys(HOST + 0x9008), Prot::READ)));
    assert_eq!(walk(&w, AT, address + 0x1000), None);
    let mut gone = parent.unmapping();
    gone.unmap(0x9000, 0x1000).unwrap();
    gone.sync(&cx()).unwrap();
    assert_eq!(walk(&w, AT, address), None, "the parent has the last word");
    assert!(a.begin_detach(&cx()).is_gone());
    frames.into_iter().for_each(|f| w.board.reclaim(f));
}

#[test]
fn invalidations_of_the_guest_and_of_its_parent_reach_the_same_caches() {
    let w = nesting();
    let (d, e) = (w.device(1), w.device(2));
    let parent = w.plain(&d);
    let guest = nested(&w, &parent, &d);
    let a = w.iommu.attach(&cx(), &guest, &d, None, data()).unwrap();
    let b = w.attach(&parent, &e);
    let Some(Target::Nested { tag, .. }) = w.hw.entry(AT) else { panic!("it is nested") };
    let Some(Target::Table { tag: below, .. }) = w.hw.entry(At { source: SourceId(2), pasid: None }) else {
        panic!("it translates")
    };
    assert_ne!(tag, below, "two tables of a guest would meet under one tag");
    w.hw.state().batches.clear();
    guest.invalidate(&cx(), Some((0x1000, 0x2fff)), true).unwrap();
    guest.invalidate(&cx(), None, false).unwrap();
    let tags = |nested| [portcullis::driver::CacheTag { tag, at: AT, ats: true, nested }].to_vec();
    let done = core::mem::take(&mut w.hw.state().batches);
    assert_eq!(done, [(tags(false), Some((0x1000, 0x2fff)), false), (tags(false), None, true)]);
    w.map(&parent, 0x7000);
    let mut gone = parent.unmapping();
    gone.unmap(0x7000, 0x1000).unwrap();
    gone.sync(&cx()).unwrap();
    let done = core::mem::take(&mut w.hw.state().batches);
    let [(users, range, _)] = done.as_slice() else { panic!("one batch") };
    assert_eq!(*range, Some((0x7000, 0x7fff)));
    assert_eq!(users.len(), 2);
    assert!(users.contains(&tags(true)[0]), "what is cached of the guest comes from the parent too");
    assert!(a.begin_detach(&cx()).is_gone());
    w.map(&parent, 0x7000);
    let mut gone = parent.unmapping();
    gone.unmap(0x7000, 0x1000).unwrap();
    gone.sync(&cx()).unwrap();
    assert_eq!(w.hw.state().batches[0].0.len(), 1, "a detach takes its tags along");
    assert!(b.begin_detach(&cx()).is_gone());
}

#[test]
fn the_parent_lives_as_long_as_what_stands_on_it() {
    let w = nesting();
    let d = w.device(1);
    let parent = w.plain(&d);
    w.map(&parent, 0x7000);
    let frames = w.board.frames();
    let guest = nested(&w, &parent, &d);
    let a = w.iommu.attach(&cx(), &guest, &d, None, data()).unwrap();
    drop((parent, guest));
    assert!(w.board.frames() >= frames, "its tables are walked");
    assert!(a.begin_detach(&cx()).is_gone());
    w.work();
    assert!(w.board.frames() < frames);
}

#[test]
fn a_place_moves_between_a_parent_and_what_stands_on_it() {
    let w = nesting();
    let d = w.device(1);
    let parent = w.plain(&d);
    let guest = nested(&w, &parent, &d);
    let a = w.attach(&parent, &d);
    let (a, gone, how) = w.iommu.replace(&cx(), a, &guest, data(), Gap::Refused).map_err(|e| e.1).unwrap();
    assert!(gone.is_gone() && how == Replaced::Hitless);
    w.hw.state().batches.clear();
    parent.flush(&cx()).unwrap();
    let tags = core::mem::take(&mut w.hw.state().batches)[0].0.clone();
    assert!(matches!(tags.as_slice(), [t] if t.nested), "the nested one, and it alone: {tags:?}");
    let (a, gone, _) = w.iommu.replace(&cx(), a, &parent, data(), Gap::Refused).map_err(|e| e.1).unwrap();
    assert!(gone.is_gone());
    parent.flush(&cx()).unwrap();
    let tags = core::mem::take(&mut w.hw.state().batches)[0].0.clone();
    assert!(matches!(tags.as_slice(), [t] if !t.nested), "{tags:?}");
    assert!(a.begin_detach(&cx()).is_gone());
}

#[test]
fn faults_are_the_guest_s_to_answer_and_it_may_be_late() {
    let w = nesting();
    let d = w.device(1);
    let parent = w.plain(&d);
    let queue: Arc<Mutex<Vec<Deferred<Board>>>> = Arc::default();
    let to = queue.clone();
    let inject = move |_: &Sleep<'_>, data: &Arc<Data>, group: PageGroup<'_, Board>| {
        data.lock().unwrap().push("injected".to_owned());
        to.lock().unwrap().push(group.defer());
    };
    let guest: Guest = w.iommu.nested_domain(&parent, &[&d], table(&w), Some(inject)).unwrap();
    let told = data();
    let a = w.iommu.attach(&cx(), &guest, &d, None, told.clone()).unwrap();
    w.sends(&[last(1, 3), last(1, 4)]);
    w.work();
    assert_eq!((w.hw.answers().len(), told.lock().unwrap().len()), (0, 2));
    queue.lock().unwrap().remove(0).respond(Response::Success).unwrap();
    assert_eq!(w.hw.answers(), [sent(1, 3, Code::Success)]);
    assert!(a.begin_detach(&cx()).is_gone());
    assert_eq!(w.hw.answers()[1..], [sent(1, 4, Code::Invalid)]);
    let late = queue.lock().unwrap().remove(0);
    assert!(late.respond(Response::Success).is_err(), "a guest that is too late hurts nobody");
}

#[test]
fn a_device_with_direct_regions_is_not_given_to_a_guest_s_table() {
    let w = nesting();
    let d = w.device_with_direct(1, 0x8000);
    let parent = w.plain(&d);
    let guest = nested(&w, &parent, &d);
    let refused = w.iommu.attach(&cx(), &guest, &d, None, data());
    let why = Incompatible::Other("nobody can map the device's direct regions there");
    assert_eq!(refused.err(), Some(AttachError::Incompatible { device: d.id(), at: AT, why }));
}
