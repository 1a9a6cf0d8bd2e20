//! What is mapped is reached, as it is mapped.

use portcullis_pgtable::{Phys, Prot};

use crate::deviations::{self, Cause};
use crate::rig::{Rig, Who};
use crate::stage::{GIB, LARGE, PAGE, RW, Stage};

const IOVA: u64 = 0x100_0000;

/// Pages scattered over memory and over the table's levels, written and read.
pub fn scattered_pages<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    // A neighbour, another table of each level, and the last page that the table has.
    let last = (1 << s.rig.shape().input_bits()) - PAGE;
    let iovas = [IOVA, IOVA + PAGE, IOVA + LARGE, 1 << 31, s.far(), last];
    let pages = iovas.map(|iova| {
        let page = s.page();
        s.map(&space, iova, page, PAGE, RW);
        page
    });
    let at = s.attach(&device, &space);
    for (iova, page) in iovas.into_iter().zip(pages) {
        s.lands(Who::First, iova, &[(page, PAGE as usize)]);
        s.fetches(&at, iova + 0x123, Phys(page.0 + 0x123), 61);
    }
    // Mapped while the device translates.
    let late = s.page();
    s.map(&space, IOVA + 4 * PAGE, late, PAGE, RW);
    s.fetches(&at, IOVA + 4 * PAGE, late, 64);
    s.detach(at);
}

/// Transfers across pages that are neighbours for the device and not in memory.
pub fn large_transfers<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    let pages = [0, 1, 2, 3].map(|i| {
        let page = s.page();
        s.map(&space, IOVA + i * PAGE, page, PAGE, RW);
        page
    });
    let at = s.attach(&device, &space);
    let whole = PAGE as usize;
    s.lands(Who::First, IOVA, &pages.map(|p| (p, whole)));
    let end = |p: Phys, n: u64| (Phys(p.0 + PAGE - n), n as usize);
    s.lands(Who::First, IOVA + PAGE - 100, &[end(pages[0], 100), (pages[1], 28)]);
    s.lands(Who::First, IOVA + 2 * PAGE - 1, &[end(pages[1], 1), (pages[2], 1)]);
    // Out of the last page that is mapped: what is inside lands, and no more.
    let (last, beyond) = (end(pages[3], 64), IOVA + 4 * PAGE);
    s.lands_partly(Who::First, beyond - 64, 128, &[(0..64, last.0)], beyond);
    s.detach(at);
}

/// A page that may be read and not be written.
pub fn a_read_only_page<R: Rig>(s: &mut Stage<R>) {
    let (device, teller) = (s.add(Who::First), s.add(Who::Teller));
    let space = s.space(&device);
    let (fixed, free) = (s.page(), s.page());
    s.map(&space, IOVA, fixed, PAGE, Prot::READ);
    s.map(&space, IOVA + PAGE, free, PAGE, RW);
    let (at, told) = (s.attach(&device, &space), s.attach(&teller, &space));
    s.write_stopped(Who::First, IOVA, 64, Cause::ReadOnly);
    s.fetches(&at, IOVA, fixed, 64);
    // The translation is cached by now, and its permissions are with it.
    if s.deviates(&deviations::CACHED_PERMISSION) {
        s.write_stopped_silently(Who::First, IOVA, 64);
    } else {
        s.write_stopped(Who::First, IOVA, 64, Cause::ReadOnly);
    }
    s.write_stopped(Who::Teller, IOVA + 8, 64, Cause::ReadOnly);
    s.lands(Who::First, IOVA + PAGE, &[(free, 64)]);
    s.fetches(&at, IOVA, fixed, 64);
    s.detach(told);
    s.detach(at);
}

/// A leaf of 2 MiB: one walk serves all of it, one unmap takes all of it.
pub fn large_pages<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    let (iova, large) = (IOVA + LARGE, s.large());
    s.map(&space, iova, large, LARGE, RW);
    let leaf = space.domain.lookup(iova + 0x12345).expect("it is mapped");
    assert_eq!((leaf.start, leaf.size, leaf.phys), (iova, LARGE, Phys(large.0 + 0x12345)));
    let at = s.attach(&device, &space);
    for offset in [0, LARGE / 2 - 32, LARGE - PAGE, LARGE - 64] {
        s.lands(Who::First, iova + offset, &[(Phys(large.0 + offset), 64)]);
        s.fetches(&at, iova + offset, Phys(large.0 + offset), 64);
    }
    s.write_stopped(Who::First, iova - 64, 64, Cause::NotMapped);
    s.write_stopped(Who::First, iova + LARGE, 64, Cause::NotMapped);
    s.unmap(&space, iova, LARGE);
    for offset in [0, LARGE / 2, LARGE - 64] {
        s.write_stopped(Who::First, iova + offset, 64, Cause::NotMapped);
    }
    s.detach(at);
}

/// A leaf of 1 GiB: one walk serves all of it, one unmap takes all of it, and then small pages can
/// be where it was.
pub fn huge_pages<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    let (large, small) = (s.large(), s.page());
    let attached = s.attach(&device, &space);
    for iova in [5 * GIB, 9 * GIB] {
        let at = s.map_all_by_one_leaf(&space, iova);
        let leaf = space.domain.lookup(at(large) + 0x123).expect("it is mapped");
        assert_eq!((leaf.start, leaf.size, leaf.phys), (iova, GIB, Phys(large.0 + 0x123)));
        let parts = [0, LARGE / 2 - 32, LARGE - PAGE, LARGE - 64].map(|o| Phys(large.0 + o));
        for part in parts.into_iter().chain([small]) {
            s.lands(Who::First, at(part), &[(part, 64)]);
            s.fetches(&attached, at(part), part, 64);
        }
        s.write_stopped(Who::First, iova - 64, 64, Cause::NotMapped);
        s.write_stopped(Who::First, iova + GIB, 64, Cause::NotMapped);
        s.unmap_leaf_of_all(&space, iova);
        for part in parts.into_iter().chain([small]) {
            s.write_stopped(Who::First, at(part), 16, Cause::NotMapped);
        }
        // A small page of the same address leads elsewhere, and nothing else is there.
        s.map(&space, at(large), small, PAGE, RW);
        s.lands(Who::First, at(large), &[(small, 64)]);
        s.write_stopped(Who::First, at(large) + PAGE, 64, Cause::NotMapped);
        s.write_stopped(Who::First, at(small), 64, Cause::NotMapped);
        s.unmap(&space, at(large), PAGE);
    }
    s.detach(attached);
}

/// The identity domain: all of memory, at its own addresses.
pub fn identity<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let (first, second) = (s.page(), s.page());
    let domain = s.identity();
    let at = s.attach(&device, &domain);
    s.lands(Who::First, first.0, &[(first, PAGE as usize)]);
    s.lands(Who::First, second.0 + PAGE - 64, &[(Phys(second.0 + PAGE - 64), 64)]);
    s.detach(at);
    s.write_stopped(Who::First, first.0, 64, Cause::Blocked);
}
