//! Input spaces and roots: tables that grow, upper halves, holes, concatenated roots.

use crate::common::{config, walk_as};
use portcullis_pgtable::{
    AmdV1, ArmStage1, ArmStage2, Config, Format, Gather, IoTable, MapError, Phys, Prot, RiscvSecondStage,
    Space, Synced, Table, TableMem, UnmapError, X86FirstStage,
    formats::size::{G1, K4, M2},
    testing::HeapMem,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);

fn table<F: Format>(mem: &HeapMem, config: Config) -> Table<F, HeapMem> {
    Table::new(mem.clone(), config).unwrap()
}

fn unmap(table: &dyn IoTable, iova: u64, len: u64) -> Result<Gather, UnmapError> {
    let mut gather = Gather::new();
    table.unmap(iova, len, &mut gather).map(|()| gather)
}

fn retire(table: &dyn IoTable, gather: Gather) {
    table.retire(gather.into_retired(), Synced::after_completed_invalidation());
}

#[test]
fn a_table_that_grows_keeps_what_it_had() {
    let mem = HeapMem::new(64);
    let c = Config::default();
    let t = table::<AmdV1>(&mem, c);
    assert_eq!((t.top().levels, t.desc().levels, t.desc().input_bits), (1, 1, 64));
    t.map(0, Phys(7 * K4), K4, RW).unwrap();
    let first = t.root();
    assert_eq!(t.lookup(M2), None);
    assert_eq!(unmap(&t, 0, M2 + K4).unwrap_err(), UnmapError::NotMapped { iova: K4 });
    assert_eq!(unmap(&t, M2, K4).unwrap_err(), UnmapError::NotMapped { iova: M2 });
    for (iova, levels) in [(M2, 2), (G1, 3), (1 << 39, 4), (1 << 48, 5), (1 << 57, 6), (u64::MAX - 0xfff, 6)]
    {
        t.map(iova, Phys(0), K4, RW).unwrap();
        assert_eq!(t.top().levels, levels);
        assert_eq!(t.lookup(0).unwrap().phys, Phys(7 * K4));
        assert_eq!(t.lookup(iova | 5).unwrap().phys, Phys(5));
    }
    assert_eq!(walk_as::<AmdV1>(&c, &mem, &t).len(), 7);
    // Hardware that was not told of a new root still begins at an old one: no gather frees it.
    t.map(K4, Phys(0), M2 - K4, RW).unwrap();
    let gather = unmap(&t, 0, M2).unwrap();
    assert!(!gather.non_leaf());
    retire(&t, gather);
    let zero: u64 = mem.load(first, 0);
    assert_eq!(zero, 0);
    let before = mem.in_use();
    t.map(4 * G1, Phys(K4), M2, RW).unwrap();
    retire(&t, unmap(&t, 4 * G1, M2).unwrap());
    assert_eq!(mem.in_use(), before + 1, "of the two new tables the leaf table went");
    drop(t);
    assert_eq!(mem.in_use(), 0);
}

#[test]
fn addresses_outside_of_the_space_are_refused() {
    let mem = HeapMem::new(64);
    let upper = Config { space: Space::Upper, input_bits: 39, output_bits: 48, ..Config::default() };
    let t = table::<ArmStage1<12>>(&mem, upper);
    let base = !((1u64 << 39) - 1);
    assert_eq!((t.desc().space, t.desc().levels), (Space::Upper, 3));
    let len = K4;
    for iova in [0, base - K4, 1 << 39] {
        assert_eq!(t.map(iova, Phys(0), K4, RW), Err(MapError::InputRange { iova, len, bits: 39 }));
        assert_eq!(t.lookup(iova), None);
    }
    for iova in [base, u64::MAX - 0xfff] {
        t.map(iova, Phys(K4), K4, RW).unwrap();
        assert_eq!(t.lookup(iova + 7).map(|l| (l.phys, l.start)), Some((Phys(K4 + 7), iova)));
    }
    let taken = MapError::AlreadyMapped { iova: base, phys: Phys(K4) };
    assert_eq!(t.map(base, Phys(0), M2, RW), Err(taken));

    let t = table::<X86FirstStage>(&mem, Config { space: Space::Signed, ..config() });
    let hole = 1u64 << 47;
    for (iova, len) in [
        (hole, K4),
        (hole - K4, 2 * K4),
        (!(hole - 1) - K4, K4),
        (hole - K4, 0u64.wrapping_sub(2 * (hole - K4))),
    ] {
        assert_eq!(t.map(iova, Phys(0), len, RW), Err(MapError::InputRange { iova, len, bits: 48 }));
    }
    for iova in [0, hole - K4, !(hole - 1), u64::MAX - 0xfff] {
        t.map(iova, Phys(K4), K4, RW).unwrap();
        assert_eq!(t.lookup(iova).map(|l| l.start), Some(iova));
    }
    let mut seen = Vec::new();
    t.leaves(hole, u64::MAX, &mut |l| seen.push(l.start));
    assert_eq!(seen, [!(hole - 1), u64::MAX - 0xfff]);
}

#[test]
fn roots_are_as_large_as_the_walker_expects() {
    let mem = HeapMem::new(4096);
    fn boxed<F: Format>(mem: &HeapMem, c: Config) -> Box<dyn IoTable> {
        Box::new(table::<F>(mem, c))
    }
    let bits = |input_bits| Config { input_bits, output_bits: 48, ..Config::default() };
    // A frame that is in the way of alignment.
    let hold = mem.frame().unwrap();
    let seen = |t: Box<dyn IoTable>| {
        let frames = mem.in_use() - 1;
        assert_eq!(t.root().0 % (frames as u64 * K4), 0);
        (frames, t.desc().levels)
    };
    assert_eq!(seen(boxed::<ArmStage2<12>>(&mem, bits(39))), (1, 3));
    assert_eq!(seen(boxed::<ArmStage2<12>>(&mem, bits(40))), (2, 3));
    assert_eq!(seen(boxed::<ArmStage2<12>>(&mem, bits(43))), (16, 3));
    assert_eq!(seen(boxed::<ArmStage2<12>>(&mem, bits(44))), (1, 4));
    assert_eq!(seen(boxed::<ArmStage2<14>>(&mem, bits(40))), (64, 2));
    assert_eq!(seen(boxed::<ArmStage2<16>>(&mem, bits(46))), (256, 2));
    assert_eq!(seen(boxed::<ArmStage1<16>>(&mem, bits(42))), (16, 2));
    assert_eq!(seen(boxed::<RiscvSecondStage>(&mem, bits(41))), (4, 3));
    assert_eq!(seen(boxed::<RiscvSecondStage>(&mem, bits(42))), (4, 4));
    mem.release(hold);
}
