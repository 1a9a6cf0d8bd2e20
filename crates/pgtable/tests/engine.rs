//! What maps and unmaps promise, case by case.

use crate::common::{Walked, Wide, config, walk, walk_as};
use portcullis_pgtable::{
    AmdV1, ArmStage1, ArmStage2, ChangeError, Config, DirtyError, Format, Gather, IoTable, MapError, Phys,
    Prot, RockchipV2, Segment, Synced, Table, TableMem, UnmapError, VtdSecondStage, X86FirstStage,
    formats::size::{G1, K4, M2},
    testing::HeapMem,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);

fn table<F: Format>(mem: &HeapMem, config: Config) -> Table<F, HeapMem> {
    Table::new(mem.clone(), config).unwrap()
}

fn second_stage(mem: &HeapMem) -> Table<VtdSecondStage, HeapMem> {
    table(mem, config())
}

fn unmap(table: &dyn IoTable, iova: u64, len: u64) -> Result<Gather, UnmapError> {
    let mut gather = Gather::new();
    table.unmap(iova, len, &mut gather).map(|()| gather)
}

fn retire(table: &dyn IoTable, gather: Gather) {
    table.retire(gather.into_retired(), Synced::after_completed_invalidation());
}

#[test]
fn entries_in_memory_are_the_manuals() {
    let mem = HeapMem::new(8);
    let t = second_stage(&mem);
    t.map(0x8080_8060_4000, Phys(0x1234_5000), K4, RW).unwrap();
    // Every index of the walk differs: 257, 2, 3, 4.
    let pml4e: u64 = mem.load(t.root(), 257);
    let pdpe: u64 = mem.load(Phys(pml4e & !0xfff), 2);
    let pde: u64 = mem.load(Phys(pdpe & !0xfff), 3);
    let pte: u64 = mem.load(Phys(pde & !0xfff), 4);
    assert_eq!([pml4e, pdpe, pde].map(|w| w & 0xfff), [3, 3, 3]);
    assert_eq!(pte, 0x1234_5003);
}

#[test]
fn a_reader_finds_what_is_there_now_and_not_what_it_remembers() {
    let mem = HeapMem::new(16);
    let t = second_stage(&mem);
    let small = |to: u64| t.map(0, Phys(to), M2, RW).unwrap();
    let far = M2 + 5 * K4;
    t.map(far, Phys(0), K4, RW).unwrap();
    small(K4);
    let reader = t.reader();
    assert_eq!(reader.translate(7 * K4 + 1), Some(Phys(8 * K4 + 1)));
    assert_eq!(reader.translate(far), Some(Phys(0)));
    assert_eq!(reader.lookup(8 * K4).map(|l| (l.phys, l.start, l.size)), Some((Phys(9 * K4), 8 * K4, K4)));
    let gather = unmap(&t, 0, M2).unwrap();
    assert_eq!(reader.translate(8 * K4), None, "the table was taken out with its entries as they were");
    retire(&t, gather);
    small(5 * K4);
    assert_eq!(reader.translate(8 * K4), Some(Phys(13 * K4)));
    let gather = unmap(&t, 0, M2).unwrap();
    t.map(0, Phys(6 * M2), M2, RW).unwrap();
    assert_eq!(reader.translate(8 * K4), Some(Phys(6 * M2 + 8 * K4)), "a large leaf in its place");
    drop(reader);
    retire(&t, gather);
}

#[test]
fn desc_cuts_the_config_to_the_format() {
    let mem = HeapMem::new(2);
    let d = table::<X86FirstStage>(&mem, config()).desc();
    assert_eq!((d.levels, d.input_bits, d.output_bits), (4, 47, 52));
    assert_eq!(d.page_sizes, K4 | M2 | G1);
    let small = Config { input_bits: 39, output_bits: 40, page_sizes: 0, ..config() };
    let d = table::<VtdSecondStage>(&mem, small).desc();
    assert_eq!((d.input_bits, d.output_bits, d.page_sizes), (39, 40, K4));
    // Sixteen entries can be one leaf only where each of them could be one.
    let wide = Config { page_sizes: 1 << 16, ..config() };
    assert_eq!(table::<Wide>(&mem, wide).desc().page_sizes, 1 << 12 | 1 << 16);
}

#[test]
fn leaves_are_as_large_as_alignment_and_capability_allow() {
    let mem = HeapMem::new(2048);
    let sizes = |page_sizes, iova, phys, len| {
        let c = Config { page_sizes, ..config() };
        let t = table::<VtdSecondStage>(&mem, c);
        t.map(iova, Phys(phys), len, RW).unwrap();
        let mut sizes: Vec<(u64, usize)> = Vec::new();
        for l in walk::<VtdSecondStage>(&mem, &t) {
            match sizes.last_mut() {
                Some((size, n)) if *size == l.size => *n += 1,
                _ => sizes.push((l.size, 1)),
            }
        }
        sizes
    };
    assert_eq!(sizes(M2, M2, 4 * M2, M2), [(M2, 1)]);
    assert_eq!(sizes(0, M2, 4 * M2, M2), [(K4, 512)]);
    assert_eq!(sizes(M2, M2, K4, M2), [(K4, 512)], "incongruent");
    assert_eq!(sizes(M2, M2 - K4, 4 * M2 - K4, 2 * M2 + 2 * K4), [(K4, 1), (M2, 2), (K4, 1)]);
    assert_eq!(sizes(M2, 0, 0, G1), [(M2, 512)], "1 GiB was not asked for");
    assert_eq!(sizes(M2 | G1, 0, 0, G1), [(G1, 1)]);
    assert_eq!(
        sizes(M2 | G1, G1 - M2 - K4, G1 - M2 - K4, 2 * G1),
        [(K4, 1), (M2, 1), (G1, 1), (M2, 510), (K4, 511)]
    );
    assert_eq!(sizes(G1, 0, 0, G1 + M2), [(G1, 1), (K4, 512)]);
    assert_eq!(mem.in_use(), 0);
}

#[test]
fn a_large_leaf_does_not_replace_an_empty_table() {
    let mem = HeapMem::new(8);
    let t = second_stage(&mem);
    t.map(0, Phys(0), K4, RW).unwrap();
    assert!(!unmap(&t, 0, K4).unwrap().non_leaf());
    t.map(0, Phys(0), M2, RW).unwrap();
    assert_eq!(t.lookup(M2 - 1).unwrap().size, K4);
}

#[test]
fn boundary_values() {
    let mem = HeapMem::new(16);
    let t = second_stage(&mem);
    let end = 1 << 48;
    t.map(0, Phys(0), K4, RW).unwrap();
    assert_eq!(t.lookup(0xfff).unwrap().phys, Phys(0xfff));
    t.map(end - K4, Phys((1 << 52) - K4), K4, RW).unwrap();
    assert_eq!(t.lookup(end - 1).unwrap().phys, Phys((1 << 52) - 1));
    assert_eq!(t.lookup(end), None);
    assert_eq!(t.lookup(u64::MAX), None);
    retire(&t, unmap(&t, end - K4, K4).unwrap());

    let bits = 48;
    let last_page = u64::MAX - 0xfff;
    for (iova, len) in [(end, K4), (end - K4, 2 * K4), (last_page, K4), (K4, last_page)] {
        let e = MapError::InputRange { iova, len, bits };
        assert_eq!(t.map(iova, Phys(0), len, RW), Err(e));
        let e = UnmapError::InputRange { iova, len, bits };
        assert_eq!(unmap(&t, iova, len).unwrap_err(), e);
        assert_eq!(t.accessed(iova, len, true), Ok(false));
    }
    let bits = 52;
    for (phys, len) in [(1 << 52, K4), ((1 << 52) - K4, 2 * K4), (last_page, 2 * K4)] {
        let phys = Phys(phys);
        let e = MapError::OutputRange { phys, len, bits };
        assert_eq!(t.map(M2, phys, len, RW), Err(e));
    }
    assert_eq!(t.map(M2, Phys(0), 0, RW), Err(MapError::ZeroLength { iova: M2 }));
    let e = UnmapError::ZeroLength { iova: M2 };
    assert_eq!(unmap(&t, M2, 0).unwrap_err(), e);
    for (iova, phys, len) in [(1, 0, K4), (0, 1, K4), (0, 0, 1), (u64::MAX, 0, u64::MAX)] {
        let (phys, granule) = (Phys(phys), K4);
        let e = MapError::Unaligned { iova, phys, len, granule };
        assert_eq!(t.map(iova, phys, len, RW), Err(e));
    }
    let e = MapError::Permissions { iova: M2, prot: Prot::EXEC };
    assert_eq!(t.map(M2, Phys(0), K4, Prot::EXEC), Err(e));
    assert_eq!(walk::<VtdSecondStage>(&mem, &t).len(), 1);
}

#[test]
fn the_whole_input_space_at_once() {
    let mem = HeapMem::new(1024);
    let c = Config { input_bits: 39, ..config() };
    let t = table::<X86FirstStage>(&mem, c);
    t.map(0, Phys(0), 1 << 39, RW).unwrap();
    assert_eq!(t.lookup((1 << 39) - 1).unwrap().size, G1);
    retire(&t, unmap(&t, 0, 1 << 39).unwrap());
    // The page-directory-pointer table was covered and went; the root stays.
    assert_eq!(mem.in_use(), 1);
}

#[test]
fn a_failed_map_writes_no_leaf_and_keeps_no_frame() {
    let mem = HeapMem::new(64);
    let t = second_stage(&mem);
    // Incongruent over four borders of 2 MiB: five leaf tables, two page directories.
    let (iova, phys, len) = (G1 - M2 - K4, Phys(K4), 3 * M2);
    let before = mem.in_use();
    let mut failures = 0;
    while {
        mem.allow(Some(failures));
        t.map(iova, phys, len, RW) == Err(MapError::NoMem { iova })
    } {
        failures += 1;
        assert_eq!(walk::<VtdSecondStage>(&mem, &t), []);
        assert_eq!(mem.in_use(), before);
    }
    assert_eq!(failures, 1 + 2 + 4);
    mem.allow(None);
    assert_eq!(walk::<VtdSecondStage>(&mem, &t).len(), 3 * 512);
    drop(t);
    assert_eq!(mem.in_use(), 0);
}

#[test]
fn overlap_is_found_before_anything_is_written() {
    let mem = HeapMem::new(64);
    let t = second_stage(&mem);
    t.map(4 * M2, Phys(0), M2, RW).unwrap();
    t.map(M2 + 7 * K4, Phys(0x9000), K4, RW).unwrap();
    let before = walk::<VtdSecondStage>(&mem, &t);
    let frames = mem.in_use();
    let err = |iova, len| t.map(iova, Phys(0x1000), len, RW).unwrap_err();
    let taken = |iova, phys| MapError::AlreadyMapped { iova, phys: Phys(phys) };
    assert_eq!(err(0, 8 * M2), taken(M2 + 7 * K4, 0x9000));
    assert_eq!(err(3 * M2, 2 * M2), taken(4 * M2, 0));
    assert_eq!(err(4 * M2 + 5 * K4, K4), taken(4 * M2 + 5 * K4, 5 * K4));
    assert_eq!(walk::<VtdSecondStage>(&mem, &t), before);
    assert_eq!(mem.in_use(), frames);
}

#[test]
fn unmap_removes_whole_leaves_or_nothing() {
    let mem = HeapMem::new(64);
    let t = second_stage(&mem);
    t.map(M2, Phys(0), 2 * M2, RW).unwrap();
    let (start, size) = (M2, M2);
    let partial = |iova, start| UnmapError::PartialLeaf { iova, start, size };
    let err = |iova, len| unmap(&t, iova, len).unwrap_err();
    assert_eq!(err(M2 + K4, K4), partial(M2 + K4, start));
    assert_eq!(err(M2 + K4, M2 - K4), partial(M2 + K4, start));
    assert_eq!(err(M2, K4), partial(M2 + K4, start));
    assert_eq!(err(M2, M2 + K4), partial(2 * M2 + K4, 2 * M2));
    assert_eq!(err(M2, 3 * M2), UnmapError::NotMapped { iova: 3 * M2 });
    assert_eq!(err(0, 2 * M2), UnmapError::NotMapped { iova: 0 });
    assert_eq!(walk::<VtdSecondStage>(&mem, &t).len(), 2);
    // Two maps, one unmap; one map, two unmaps.
    t.map(3 * M2, Phys(0), M2, RW).unwrap();
    retire(&t, unmap(&t, M2, M2).unwrap());
    retire(&t, unmap(&t, 2 * M2, 2 * M2).unwrap());
    assert_eq!(walk::<VtdSecondStage>(&mem, &t), []);
}

#[test]
fn covered_tables_are_detached_and_freed_by_retire_only() {
    let mem = HeapMem::new(2048);
    let c = Config { page_sizes: K4, ..config() };
    let t = table::<VtdSecondStage>(&mem, c);
    t.map(G1 - M2, Phys(0), G1 + 2 * M2, RW).unwrap();
    // Root, one PDP table, three page directories, 514 page tables.
    assert_eq!(mem.in_use(), 1 + 1 + 3 + 514);
    let gather = unmap(&t, G1 - M2, G1 + 2 * M2).unwrap();
    assert!(gather.non_leaf());
    assert_eq!(gather.range(), Some((G1 - M2, 2 * G1 + M2 - 1)));
    assert_eq!(mem.in_use(), 1 + 1 + 3 + 514);
    let retired = gather.into_retired();
    assert_eq!(retired.len(), 514 + 1);
    t.retire(retired, Synced::after_completed_invalidation());
    assert_eq!(mem.in_use(), 1 + 1 + 2);
    // What is covered in part stays, and is used again.
    t.map(G1 - M2, Phys(0), M2, RW).unwrap();
    assert_eq!(mem.in_use(), 1 + 1 + 2 + 1);
    assert!(!unmap(&t, G1 - M2, M2 - K4).unwrap().non_leaf());
    drop(t);
    assert_eq!(mem.in_use(), 0);
}

#[test]
fn tables_that_are_parked_stay_until_they_are_retired_or_the_table_goes() {
    let mem = HeapMem::new(64);
    let c = Config { page_sizes: K4, ..config() };
    let t = table::<VtdSecondStage>(&mem, c);
    t.map(0, Phys(0), 4 * M2, RW).unwrap();
    let before = mem.in_use();
    for n in 0..3 {
        t.park(unmap(&t, n * M2, M2).unwrap().into_retired());
    }
    assert_eq!(mem.in_use(), before);
    let parked = t.parked();
    assert!(!parked.is_empty() && t.parked().is_empty(), "all of them, once");
    // Whoever could not invalidate parks them again.
    t.park(parked);
    t.park(unmap(&t, 3 * M2, M2).unwrap().into_retired());
    t.map(0, Phys(0), M2, RW).unwrap();
    assert_eq!(mem.in_use(), before + 1, "none is used again meanwhile");
    t.retire(t.parked(), Synced::after_completed_invalidation());
    let directories = before - 4;
    assert!(mem.in_use() <= directories + 1, "{} of {before} are left", mem.in_use());
    t.park(unmap(&t, 0, M2).unwrap().into_retired());
    drop(t);
    assert_eq!(mem.in_use(), 0);
}

#[test]
fn a_neighbours_page_keeps_its_table() {
    let mem = HeapMem::new(16);
    let t = second_stage(&mem);
    t.map(M2 - 2 * K4, Phys(0), 4 * K4, RW).unwrap();
    let gather = unmap(&t, M2 - K4, 2 * K4).unwrap();
    assert!(!gather.non_leaf());
    retire(&t, gather);
    let left = [t.lookup(M2 - 2 * K4), t.lookup(M2 + K4)].map(|l| l.unwrap().phys.0);
    assert_eq!(left, [0, 3 * K4]);
}

#[test]
fn a_gather_without_memory_leaves_empty_tables_linked() {
    let c = Config { page_sizes: K4, ..config() };
    // Two page directories with 512 page tables each, and the first pages of a third.
    let len = 2 * G1 + 3 * K4;
    for room in [0, 1, 511, 512, 513, 1025, 1026] {
        let mem = HeapMem::new(2048);
        let t = table::<VtdSecondStage>(&mem, c);
        t.map(0, Phys(0), len, RW).unwrap();
        let before = mem.in_use();
        let mut gather = Gather::with_room_for(room);
        t.unmap(0, len, &mut gather).unwrap();
        assert_eq!(gather.range(), Some((0, len - 1)));
        assert_eq!(walk::<VtdSecondStage>(&mem, &t), []);
        let retired = gather.into_retired();
        let taken = retired.len();
        assert_eq!(taken, room);
        t.retire(retired, Synced::after_completed_invalidation());
        assert_eq!(mem.in_use(), before - taken);
        // What stayed is used again.
        mem.allow(Some(taken));
        t.map(0, Phys(0), len, RW).unwrap();
        assert_eq!(mem.in_use(), before);
        drop(t);
        assert_eq!(mem.in_use(), 0);
    }
}

fn accessed_bits<F: Walked<Word = u64>>(bit: u64) {
    let mem = HeapMem::new(16);
    let t = table::<F>(&mem, config());
    t.map(0, Phys(0), M2 + 3 * K4, RW).unwrap();
    assert_eq!(t.accessed(0, 2 * M2, true), Ok(false));
    let upper: u64 = mem.load(t.root(), 0);
    let directory: u64 = mem.load(Phys(upper & !0xfff), 0);
    let directory = Phys(directory & !0xfff);
    let pages: u64 = mem.load(directory, 1);
    let pages = Phys(pages & !0xfff);
    let mark = |table, i| {
        let w: u64 = mem.load(table, i);
        mem.store(table, i, w | bit);
    };
    mark(pages, 1);
    assert_eq!(t.accessed(0, M2 + K4, false), Ok(false));
    assert_eq!(t.accessed(M2 + 2 * K4, K4, false), Ok(false));
    assert_eq!(t.accessed(M2, 3 * K4, false), Ok(true));
    assert_eq!(t.accessed(M2 + K4, 1, true), Ok(true));
    assert_eq!(t.accessed(0, u64::MAX, true), Ok(false));
    mark(directory, 0);
    assert_eq!(t.accessed(M2 - 1, 1, true), Ok(true));
    assert_eq!(t.accessed(0, u64::MAX, false), Ok(false));
    assert_eq!(t.accessed(0, 0, false), Ok(false));
    let leaf: u64 = mem.load(directory, 0);
    assert_eq!(leaf & bit, 0);
}

#[test]
fn accessed_bits_are_read_and_cleared() {
    accessed_bits::<VtdSecondStage>(1 << 8);
    accessed_bits::<X86FirstStage>(1 << 5);
}

#[test]
fn any_entry_of_a_leaf_of_several_counts_as_accessed() {
    let mem = HeapMem::new(8);
    let t = table::<Wide>(&mem, config());
    t.map(0x1_0000, Phys(0x1_0000), 0x2_0000, RW).unwrap();
    let upper: u32 = mem.load(t.root(), 0);
    let pages = Phys(u64::from(upper & !0xfff));
    let w: u32 = mem.load(pages, 31);
    mem.store(pages, 31, w | 16);
    assert_eq!(t.accessed(0x2_0000, 0x1000, false), Ok(false));
    assert_eq!(t.accessed(0x1_0000, 0x1000, false), Ok(true));
    assert_eq!(t.accessed(0x1_8000, 0x1000, true), Ok(true));
    assert_eq!(t.accessed(0, 1 << 32, true), Ok(false));
}

fn dirty_bits<F: Walked<Word = u64>>(bit: u64) {
    let mem = HeapMem::new(16);
    let t = table::<F>(&mem, config());
    t.map(0, Phys(0), M2 + 3 * K4, RW).unwrap();
    let upper: u64 = mem.load(t.root(), 0);
    let directory: u64 = mem.load(Phys(upper & !0xfff), 0);
    let directory = Phys(directory & !0xfff);
    let pages: u64 = mem.load(directory, 1);
    let pages = Phys(pages & !0xfff);
    let mark = |table, i| {
        let w: u64 = mem.load(table, i);
        mem.store(table, i, w | bit);
    };
    let read = |iova, len, clear| {
        let (mut seen, mut gather) = (Vec::new(), Gather::new());
        t.read_dirty(iova, len, clear, &mut gather, &mut |at, size| seen.push((at, size)))
            .map(|()| (seen, gather.range()))
    };
    mark(pages, 0);
    mark(pages, 2);
    assert_eq!(read(0, u64::MAX, false), Err(DirtyError::Off));
    let mut gather = Gather::new();
    t.set_dirty_tracking(true, &mut gather).unwrap();
    assert_eq!(gather.range(), Some((M2, M2 + 3 * K4 - 1)), "what was written before");
    assert_eq!(read(0, u64::MAX, false), Ok((vec![], None)));
    mark(pages, 1);
    mark(directory, 0);
    assert_eq!(read(M2, K4, true), Ok((vec![], None)));
    let both = vec![(0, M2), (M2 + K4, K4)];
    assert_eq!(read(0, u64::MAX, false), Ok((both.clone(), None)));
    assert_eq!(read(M2 - 1, 2 * K4, true), Ok((both, Some((0, M2 + 2 * K4 - 1)))));
    assert_eq!(read(0, u64::MAX, true), Ok((vec![], None)));
    assert_eq!(read(0, 0, true), Ok((vec![], None)));
    assert_eq!(t.lookup(M2 + K4).map(|l| l.prot), Some(RW));
    t.set_dirty_tracking(false, &mut Gather::new()).unwrap();
    assert_eq!(read(0, K4, true), Err(DirtyError::Off));
}

#[test]
fn dirty_bits_are_read_and_cleared() {
    dirty_bits::<VtdSecondStage>(1 << 9);
    dirty_bits::<X86FirstStage>(1 << 6);
}

#[test]
fn a_leaf_of_several_entries_is_dirty_once() {
    let mem = HeapMem::new(8);
    let t = table::<Wide>(&mem, config());
    t.set_dirty_tracking(true, &mut Gather::new()).unwrap();
    t.map(0x1_0000, Phys(0x1_0000), 0x2_0000, RW).unwrap();
    let upper: u32 = mem.load(t.root(), 0);
    let pages = Phys(u64::from(upper & !0xfff));
    for i in [17, 30, 31] {
        let w: u32 = mem.load(pages, i);
        mem.store(pages, i, w | 128);
    }
    let mut gather = Gather::new();
    let mut seen = Vec::new();
    t.read_dirty(0x1_5000, 0x1000, true, &mut gather, &mut |at, size| seen.push((at, size))).unwrap();
    assert_eq!((seen, gather.range()), (vec![(0x1_0000, 0x1_0000)], Some((0x1_0000, 0x1_ffff))));
    t.read_dirty(0, 1 << 32, false, &mut Gather::new(), &mut |at, _| panic!("{at:#x}")).unwrap();
}

#[test]
fn a_dirty_page_beside_a_large_leaf_is_seen() {
    fn seen<F: Walked<Word = u64>>(config: Config) {
        let mem = HeapMem::new(16);
        let t = table::<F>(&mem, config);
        t.map(0, Phys(0), M2 + K4, RW).unwrap();
        t.set_dirty_tracking(true, &mut Gather::new()).unwrap();
        let page = walk_as::<F>(&config, &mem, &t).pop().unwrap();
        assert_eq!((page.start, page.size), (M2, K4));
        mem.store(page.table, page.index, F::written(mem.load(page.table, page.index)));
        let (mut seen, mut gather) = (Vec::new(), Gather::new());
        t.read_dirty(0, u64::MAX, true, &mut gather, &mut |at, size| seen.push((at, size))).unwrap();
        assert_eq!((seen, gather.range()), (vec![(M2, K4)], Some((M2, M2 + K4 - 1))));
    }
    let dirty = Config { dirty: true, ..config() };
    // Formats that have leaves of several entries above level 1.
    seen::<ArmStage2<12>>(Config { input_bits: 40, output_bits: 40, ..dirty });
    seen::<AmdV1>(dirty);
}

#[test]
fn dirty_bits_that_say_nothing_are_refused() {
    let mem = HeapMem::new(8);
    let off = Config { accessed: false, ..config() };
    let preset = Config { coherent: false, ..config() };
    let error = |t: &dyn IoTable| t.set_dirty_tracking(true, &mut Gather::new()).unwrap_err();
    let id = VtdSecondStage::ID;
    assert_eq!(error(&table::<VtdSecondStage>(&mem, off)), DirtyError::NotKept(id));
    assert_eq!(error(&table::<VtdSecondStage>(&mem, preset)), DirtyError::NotKept(id));
    assert_eq!(error(&table::<X86FirstStage>(&mem, preset)), DirtyError::NotKept(X86FirstStage::ID));
    let t = table::<VtdSecondStage>(&mem, off);
    let read = t.read_dirty(0, K4, true, &mut Gather::new(), &mut |_, _| ());
    assert_eq!(read, Err(DirtyError::NotKept(id)));
}

#[test]
fn accessed_bits_that_say_nothing_are_refused() {
    let mem = HeapMem::new(8);
    let off = Config { accessed: false, ..config() };
    let preset = Config { coherent: false, ..config() };
    assert!(table::<VtdSecondStage>(&mem, off).accessed(0, 1, false).is_err());
    assert!(table::<X86FirstStage>(&mem, off).accessed(0, 1, false).is_ok());
    assert!(table::<VtdSecondStage>(&mem, preset).accessed(0, 1, false).is_err());
    assert!(table::<X86FirstStage>(&mem, preset).accessed(0, 1, false).is_err());
}

#[test]
fn nothing_leaks_when_a_table_is_dropped_full() {
    let mem = HeapMem::new(64);
    let t = second_stage(&mem);
    for (iova, len) in [(0, M2), (M2, K4), (G1, 5 * K4), (1 << 40, M2 + K4)] {
        t.map(iova, Phys(0), len, RW).unwrap();
    }
    assert!(mem.in_use() > 8);
    drop(t);
    assert_eq!(mem.in_use(), 0);
}

/// What lets every frame fail, one after the other: what it leaves, until it succeeds.
fn every_frame_fails<F: Walked>(
    config: Config,
    prepare: &dyn Fn(&dyn IoTable),
    act: &dyn Fn(&dyn IoTable) -> bool,
) {
    for n in 0.. {
        let mem = HeapMem::new(256);
        let t: Table<F, HeapMem> = table(&mem, config);
        prepare(&t);
        let (before, frames) = (walk_as::<F>(&config, &mem, &t), mem.in_use());
        mem.allow(Some(n));
        let done = act(&t);
        mem.allow(None);
        if !done {
            assert_eq!(walk_as::<F>(&config, &mem, &t), before);
            assert_eq!(mem.in_use(), frames, "frame {n}");
            // It succeeds when there is memory again.
            assert!(act(&t));
        }
        drop(t);
        assert_eq!(mem.in_use(), 0);
        if done {
            assert!(n > 0, "nothing was allocated");
            return;
        }
    }
}

#[test]
fn every_frame_of_every_operation_fails() {
    let nothing: &dyn Fn(&dyn IoTable) = &|_| ();
    let map =
        |iova, len| move |t: &dyn IoTable| t.map(iova, Phys(K4), len, RW) != Err(MapError::NoMem { iova });
    let c = config();
    every_frame_fails::<VtdSecondStage>(c, nothing, &map(G1 - K4, M2 + 3 * K4));
    every_frame_fails::<VtdSecondStage>(c, &|t| t.map(0, Phys(0), K4, RW).unwrap(), &map(M2 - K4, 2 * K4));
    every_frame_fails::<ArmStage2<16>>(Config::default(), nothing, &|t| {
        t.map(0, Phys(0x1_0000), 1 << 30, RW).is_ok()
    });
    every_frame_fails::<ArmStage1<14>>(Config::default(), nothing, &|t| {
        t.map(0, Phys(0x4000), 1 << 26, RW).is_ok()
    });
    every_frame_fails::<RockchipV2>(Config::default(), nothing, &map(0x3f_f000, 2 * K4));
    // A table that grows, from one level to five.
    let growing = Config { accessed: false, ..Config::default() };
    let low: &dyn Fn(&dyn IoTable) = &|t| t.map(0, Phys(0), K4, RW).unwrap();
    every_frame_fails::<AmdV1>(growing, low, &map(1 << 50, 2 * M2));
    let list = |pages: u64| -> Vec<Segment> {
        (0..pages).map(|n| Segment { phys: Phys(3 * n * K4), len: K4 }).collect()
    };
    let (few, many) = (list(3), list(1030));
    every_frame_fails::<VtdSecondStage>(c, nothing, &|t| t.map_sg(G1 - K4, &few, RW).is_ok());
    every_frame_fails::<X86FirstStage>(c, nothing, &|t| t.map_sg(G1 - K4, &many, RW).is_ok());
    // A split that needs one table, or two of them.
    let large: &dyn Fn(&dyn IoTable) = &|t| t.map(0, Phys(0), 2 * G1, RW).unwrap();
    let split = |t: &dyn IoTable| t.split(M2, G1 - M2, &mut Gather::new()).is_ok();
    every_frame_fails::<VtdSecondStage>(c, large, &split);
    // The first table may stay when the second one fails: what is translated is the same.
    let mem = HeapMem::new(64);
    let t = second_stage(&mem);
    large(&t);
    mem.allow(Some(1));
    let e = t.split(K4, M2, &mut Gather::new());
    assert_eq!(e, Err(ChangeError::NoMem { iova: 0 }));
    assert_eq!(t.lookup(5 * K4).map(|l| (l.phys, l.size)), Some((Phys(5 * K4), M2)));
}

#[test]
fn a_list_is_mapped_as_its_pieces_are() {
    let mem = HeapMem::new(64);
    let t = second_stage(&mem);
    let piece = |phys, len| Segment { phys: Phys(phys), len };
    // Three that are contiguous make a large leaf; address 0 is ordinary.
    let list = [piece(G1, K4), piece(G1 + K4, M2 - 2 * K4), piece(G1 + M2 - K4, K4), piece(0, K4)];
    t.map_sg(0, &list, RW).unwrap();
    let leaves = walk::<VtdSecondStage>(&mem, &t);
    let seen: Vec<_> = leaves.iter().map(|l| (l.start, l.size, l.phys)).collect();
    assert_eq!(seen, [(0, M2, G1), (M2, K4, 0)]);

    let err = |iova, list: &[Segment]| t.map_sg(iova, list, RW).unwrap_err();
    assert_eq!(err(G1, &[]), MapError::ZeroLength { iova: G1 });
    assert_eq!(err(G1, &[piece(0, K4), piece(0, 0)]), MapError::ZeroLength { iova: G1 + K4 });
    let (phys, len, granule) = (Phys(8), K4, K4);
    assert_eq!(
        err(G1, &[piece(0, K4), piece(8, K4)]),
        MapError::Unaligned { iova: G1 + K4, phys, len, granule }
    );
    let (phys, bits) = (Phys(1 << 52), 52);
    assert_eq!(err(G1, &[piece(0, K4), piece(1 << 52, K4)]), MapError::OutputRange { phys, len, bits });
    let (iova, len, bits) = ((1 << 48) - K4, 2 * K4, 48);
    assert_eq!(err(iova, &[piece(0, K4), piece(0, K4)]), MapError::InputRange { iova, len, bits });
    let huge = [piece(0, 1 << 52), piece(0, 1 << 52)];
    assert_eq!(
        err(0, &[huge; 2048].concat()),
        MapError::InputRange { iova: u64::MAX - (1 << 52) + 1, len: 1 << 52, bits }
    );
    let taken = MapError::AlreadyMapped { iova: M2, phys: Phys(0) };
    assert_eq!(err(M2 - 0x1000 * 512, &[piece(0, K4)]), MapError::AlreadyMapped { iova: 0, phys: Phys(G1) });
    assert_eq!(err(M2, &[piece(G1, K4)]), taken);
    let permissions = MapError::Permissions { iova: G1, prot: Prot::empty() };
    assert_eq!(t.map_sg(G1, &[piece(0, K4)], Prot::empty()), Err(permissions));
    assert_eq!(walk::<VtdSecondStage>(&mem, &t), leaves);
}

#[test]
fn what_is_left_of_a_dirty_leaf_of_several_entries_is_dirty() {
    let mem = HeapMem::new(8);
    let t = table::<Wide>(&mem, config());
    t.map(0x1_0000, Phys(0x1_0000), 0x1_0000, RW).unwrap();
    let upper: u32 = mem.load(t.root(), 0);
    let pages = Phys(u64::from(upper & !0xfff));
    let w: u32 = mem.load(pages, 30);
    mem.store(pages, 30, w | 128);
    t.split(0x1_0000, K4, &mut Gather::new()).unwrap();
    let parts = walk::<Wide>(&mem, &t);
    assert_eq!((parts.len(), parts.iter().all(|l| l.dirty)), (16, true));
}
