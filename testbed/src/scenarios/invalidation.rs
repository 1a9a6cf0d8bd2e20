//! What was cached goes when it must, and no table is freed before.

use portcullis::{FaultKind, Platform, Reason};
use portcullis_pgtable::{Phys, TableMem};
use portcullis_spec::vtd::regs::{Fsts, Iqa, offset};

use crate::deviations::Cause;
use crate::platform::VTD;
use crate::rig::{Rig, Who};
use crate::stage::{LARGE, PAGE, RW, Stage};

const IOVA: u64 = 0x100_0000;

/// A translation in use outlives its entry until the unmap is synced, and not longer. That it does
/// is what makes every other scenario here worth something: hardware that caches nothing would pass
/// without an invalidation.
pub fn stale_until_synced<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    let (old, new, cold) = (s.page(), s.page(), s.page());
    s.map(&space, IOVA, old, PAGE, RW);
    s.map(&space, IOVA + PAGE, cold, PAGE, RW);
    let at = s.attach(&device, &space);
    s.lands(Who::First, IOVA, &[(old, 64)]);
    s.fetches(&at, IOVA, old, 64);

    let mut unmapping = space.domain.unmapping();
    unmapping.unmap(IOVA, 2 * PAGE).expect("both are mapped");
    assert_eq!(space.domain.lookup(IOVA), None);
    s.lands(Who::First, IOVA, &[(old, 64)]);
    s.fetches(&at, IOVA, old, 64);
    s.write_stopped(Who::First, IOVA + PAGE, 64, Cause::NotMapped);
    unmapping.sync(&s.cx).expect("the hardware answers");
    s.unmapped(&space, IOVA, 2 * PAGE);
    s.write_stopped(Who::First, IOVA, 64, Cause::NotMapped);
    s.read_stopped(&at, IOVA, 64, Cause::NotMapped);

    // The IOVA is free: something else can be there.
    s.map(&space, IOVA, new, PAGE, RW);
    s.lands(Who::First, IOVA, &[(new, 64)]);

    // An unmap that is dropped is made good by a flush.
    let mut unmapping = space.domain.unmapping();
    unmapping.unmap(IOVA, PAGE).expect("it is mapped");
    drop(unmapping);
    s.lands(Who::First, IOVA, &[(new, 64)]);
    space.domain.flush(&s.cx).expect("the hardware answers");
    s.unmapped(&space, IOVA, PAGE);
    s.write_stopped(Who::First, IOVA, 64, Cause::NotMapped);
    s.detach(at);
}

/// More invalidations than the queue has room for, one after the other: it wraps, at any page of it,
/// and the last ones are carried out like the first.
pub fn the_queue_wraps<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    let page = s.page();
    let at = s.attach(&device, &space);
    // An invalidation and a wait each, in a queue of 512 descriptors at most.
    for n in 0..600 {
        s.map(&space, IOVA, page, PAGE, RW);
        let looked_at = n % 50 == 0 || n > 590;
        if looked_at {
            s.lands(Who::First, IOVA, &[(page, 64)]);
        }
        s.unmap(&space, IOVA, PAGE);
        if looked_at {
            s.write_stopped(Who::First, IOVA, 64, Cause::NotMapped);
        }
    }
    s.detach(at);
}

/// The queue stands at a descriptor of no type, as if memory had been overwritten: it is told, and what is
/// submitted then is carried out. For rigs whose hardware acts when a register is written.
pub fn a_refused_descriptor<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    let page = s.page();
    s.map(&space, IOVA, page, PAGE, RW);
    let at = s.attach(&device, &space);
    s.lands(Who::First, IOVA, &[(page, 64)]);

    let p = s.rig.platform();
    let iqa = Iqa::from_bits(p.read64(VTD, offset::IQA));
    let bytes = iqa.width().bytes() as u64;
    let tail = p.read64(VTD, offset::IQT);
    for word in (tail..tail + bytes).step_by(8) {
        let in_memory = iqa.iqa() + word;
        let frame = in_memory & !(PAGE - 1);
        p.store::<u64>(Phys(frame), (in_memory - frame) as usize / 8, 0);
    }
    p.write64(VTD, offset::IQT, (tail + bytes) % iqa.size());
    let fsts = || Fsts::from_bits(p.read32(VTD, offset::FSTS));
    assert!(fsts().iqe(), "type 0 is reserved");
    assert_eq!(p.read64(VTD, offset::IQH), tail, "it stands where it is");
    p.write64(VTD, offset::IQT, tail);

    let told = s.all_faults();
    let [fault] = &told[..] else { panic!("one error should be told: {told:?}") };
    assert_eq!((fault.kind, fault.reason), (FaultKind::Configuration, Reason::BadEntry));
    assert!(!Fsts::from_bits(s.rig.platform().read32(VTD, offset::FSTS)).iqe(), "it goes on");
    s.unmap(&space, IOVA, PAGE);
    s.write_stopped(Who::First, IOVA, 64, Cause::NotMapped);
    s.map(&space, IOVA, page, PAGE, RW);
    s.lands(Who::First, IOVA, &[(page, 64)]);
    s.detach(at);
}

/// Unmaps of every length and alignment take what they name, and leave what stands beside it.
pub fn unmap_leaves_neighbours<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space_of_small_pages(&device);
    const PAGES: u64 = 40;
    // One run of memory: the yard's large page in small pieces.
    let memory = s.large();
    let phys = |i: u64| Phys(memory.0 + i * PAGE);
    s.map(&space, IOVA, memory, PAGES * PAGE, RW);
    let at = s.attach(&device, &space);
    for (first, count) in [(0, 1), (7, 1), (3, 2), (12, 4), (17, 7), (30, 10)] {
        for i in [first, first + count - 1] {
            s.lands(Who::First, IOVA + i * PAGE, &[(phys(i), 16)]);
        }
        s.unmap(&space, IOVA + first * PAGE, count * PAGE);
        for i in [first, first + count - 1] {
            s.write_stopped(Who::First, IOVA + i * PAGE, 16, Cause::NotMapped);
        }
        for i in [first.checked_sub(1), Some(first + count)].into_iter().flatten().filter(|i| *i < PAGES) {
            s.lands(Who::First, IOVA + i * PAGE, &[(phys(i), 16)]);
        }
    }
    s.detach(at);
}

/// A large page is taken out and small ones are put in its place: a walker must not mix them.
pub fn large_page_becomes_small_ones<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    let (iova, large, small) = (IOVA + LARGE, s.large(), s.page());
    for _ in 0..2 {
        s.map(&space, iova, large, LARGE, RW);
        let at = s.attach(&device, &space);
        s.lands(Who::First, iova + 3 * PAGE, &[(Phys(large.0 + 3 * PAGE), 64)]);
        s.unmap(&space, iova, LARGE);
        s.map(&space, iova + 3 * PAGE, small, PAGE, RW);
        s.lands(Who::First, iova + 3 * PAGE, &[(small, 64)]);
        s.write_stopped(Who::First, iova, 64, Cause::NotMapped);
        s.write_stopped(Who::First, iova + 4 * PAGE, 64, Cause::NotMapped);
        s.unmap(&space, iova + 3 * PAGE, PAGE);
        s.write_stopped(Who::First, iova + 3 * PAGE, 64, Cause::NotMapped);
        s.detach(at);
    }
}

/// A table that an unmap empties stays a table until the sync, and is free memory after it.
pub fn tables_are_freed_after_the_sync<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space_of_small_pages(&device);
    let at = s.attach(&device, &space);
    let memory = s.large();
    // Tables of all levels below the root, for this range alone.
    let iova = s.far();
    let tables = |s: &Stage<R>| s.rig.ram().count().tables;
    let before = tables(s);
    s.map(&space, iova, memory, LARGE, RW);
    let full = tables(s);
    assert!(full > before, "a table of small pages at least");
    s.lands(Who::First, iova, &[(memory, 64)]);

    let mut unmapping = space.domain.unmapping();
    unmapping.unmap(iova, LARGE).expect("it is mapped");
    assert_eq!(tables(s), full, "a walker may still be in them");
    s.lands(Who::First, iova, &[(memory, 64)]);
    assert_eq!(tables(s), full);
    unmapping.sync(&s.cx).expect("the hardware answers");
    s.unmapped(&space, iova, LARGE);
    assert!(tables(s) < full, "nothing was freed");
    s.write_stopped(Who::First, iova, 64, Cause::NotMapped);

    // What was freed is used again for something else, and no walk goes there.
    let page = s.page();
    s.map(&space, IOVA + LARGE, page, PAGE, RW);
    s.write_stopped(Who::First, iova, 64, Cause::NotMapped);
    s.lands(Who::First, IOVA + LARGE, &[(page, 64)]);
    s.detach(at);
}
