//! Leaves that change while they are in use: cut, and given other permissions.

use crate::common::{Found, Walked, config, walk, walk_as};
use portcullis_pgtable::{
    AmdV1, ArmStage2, ChangeError, Config, Gather, Hitless, IoTable, Phys, Prot, RiscvSecondStage, Table,
    TableMem, VtdSecondStage,
    formats::size::{G1, K4, M2},
    testing::{HeapMem, Moment},
};
use std::sync::Arc;

const READ: Prot = Prot::READ;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const K64: u64 = 1 << 16;

fn table<F: Walked>(mem: &HeapMem, config: Config) -> Arc<Table<F, HeapMem>> {
    Arc::new(Table::new(mem.clone(), config).unwrap())
}

fn split(t: &dyn IoTable, iova: u64, len: u64) -> Result<Gather, ChangeError> {
    let mut gather = Gather::new();
    t.split(iova, len, &mut gather).map(|()| gather)
}

fn protect(t: &dyn IoTable, iova: u64, len: u64, prot: Prot) -> Result<Gather, ChangeError> {
    let mut gather = Gather::new();
    t.protect(iova, len, prot, &mut gather).map(|()| gather)
}

/// Sizes of leaves in a row, and how many.
fn sizes(leaves: &[Found]) -> Vec<(u64, usize)> {
    let mut sizes: Vec<(u64, usize)> = Vec::new();
    for l in leaves {
        match sizes.last_mut() {
            Some((size, n)) if *size == l.size => *n += 1,
            _ => sizes.push((l.size, 1)),
        }
    }
    sizes
}

#[test]
fn a_cut_leaf_translates_to_the_same() {
    let mem = HeapMem::new(64);
    let t = table::<VtdSecondStage>(&mem, config());
    t.map(0, Phys(8 * G1), 2 * G1, RW).unwrap();
    let gather = split(&*t, M2 + K4, G1).unwrap();
    assert!(gather.non_leaf());
    assert_eq!(gather.range(), Some((0, 2 * G1 - 1)));
    let leaves = walk::<VtdSecondStage>(&mem, &*t);
    assert_eq!(sizes(&leaves), [(M2, 1), (K4, 512), (M2, 511), (K4, 512), (M2, 510)]);
    assert!(leaves.iter().all(|l| l.phys == l.start + 8 * G1 && l.prot == RW));
    // What is cut already is not cut again, and nothing is where nothing is mapped.
    assert!(split(&*t, M2 + K4, G1).unwrap().is_empty());
    assert!(split(&*t, 4 * G1 + K4, K4).unwrap().is_empty());
    // Now the range goes exactly.
    let mut gather = Gather::new();
    t.unmap(M2 + K4, G1, &mut gather).unwrap();
    assert_eq!(t.lookup(M2).map(|l| l.phys), Some(Phys(8 * G1 + M2)));
    drop(gather);
}

#[test]
fn a_cut_leaves_no_moment_without_a_translation() {
    let mem = HeapMem::new(64);
    let t = table::<VtdSecondStage>(&mem, config());
    t.map(0, Phys(8 * G1), G1, RW).unwrap();
    for moment in [Moment::Before, Moment::After] {
        let other = t.clone();
        mem.around_next_cas(moment, move || {
            for at in [0, K4, M2, G1 - 1] {
                assert_eq!(other.lookup(at).map(|l| (l.phys, l.prot)), Some((Phys(8 * G1 + at), RW)));
            }
        });
        drop(split(&*t, K4, K4).unwrap());
    }
}

#[test]
fn a_mark_that_comes_between_is_not_lost() {
    let mem = HeapMem::new(64);
    let t = table::<VtdSecondStage>(&mem, config());
    t.map(0, Phys(0), M2, RW).unwrap();
    let leaf = walk::<VtdSecondStage>(&mem, &*t)[0];
    let written = move |mem: &HeapMem| {
        let w: u64 = mem.load(leaf.table, leaf.index);
        mem.store(leaf.table, leaf.index, w | 0x300);
    };
    // Between the look at the leaf and the swap a device writes.
    let walker = mem.clone();
    mem.around_next_cas(Moment::Before, move || written(&walker));
    drop(protect(&*t, 0, M2, READ).unwrap());
    let leaves = walk::<VtdSecondStage>(&mem, &*t);
    assert_eq!((leaves[0].dirty, leaves[0].prot), (true, READ));
    drop(protect(&*t, 0, M2, RW).unwrap());
    let w: u64 = mem.load(leaf.table, leaf.index);
    mem.store(leaf.table, leaf.index, w & !0x300);
    let walker = mem.clone();
    mem.around_next_cas(Moment::Before, move || written(&walker));
    drop(split(&*t, K4, K4).unwrap());
    let leaves = walk::<VtdSecondStage>(&mem, &*t);
    assert_eq!((leaves.len(), leaves.iter().all(|l| l.dirty)), (512, true));
}

#[test]
fn no_leaf_is_cut_while_dirty_bits_are_read() {
    let mem = HeapMem::new(64);
    let t = table::<VtdSecondStage>(&mem, config());
    t.map(0, Phys(0), M2, RW).unwrap();
    t.set_dirty_tracking(true, &mut Gather::new()).unwrap();
    assert_eq!(split(&*t, K4, K4).unwrap_err(), ChangeError::Tracking);
    assert!(split(&*t, 0, M2).unwrap().is_empty(), "nothing to cut");
    t.set_dirty_tracking(false, &mut Gather::new()).unwrap();
    assert!(split(&*t, K4, K4).is_ok());
}

#[test]
fn what_hardware_does_not_stand_is_refused() {
    let arm = Config { input_bits: 48, output_bits: 48, ..Config::default() };
    let mem = HeapMem::new(64);
    let t = table::<ArmStage2<12>>(&mem, arm);
    t.map(0, Phys(0), K64, RW).unwrap();
    t.map(M2, Phys(M2), M2, RW).unwrap();
    let before = walk_as::<ArmStage2<12>>(&arm, &mem, &*t);
    let needs_break = |iova, size| ChangeError::NeedsBreak { iova, size };
    assert_eq!(split(&*t, M2 + K4, K4).unwrap_err(), needs_break(M2, M2));
    assert_eq!(split(&*t, K4, K4).unwrap_err(), needs_break(0, K64));
    assert_eq!(protect(&*t, 0, K64, READ).unwrap_err(), needs_break(0, K64));
    assert_eq!(protect(&*t, M2, M2, RW | Prot::MMIO).unwrap_err(), needs_break(M2, M2));
    assert_eq!(walk_as::<ArmStage2<12>>(&arm, &mem, &*t), before);
    // A single entry's permissions may change.
    assert_eq!(protect(&*t, M2, M2, READ).unwrap().range(), Some((M2, 2 * M2 - 1)));
    assert_eq!(t.lookup(M2).map(|l| l.prot), Some(READ));

    // From level 1 on the Contiguous bit may change, from level 2 on everything.
    let bbm = Config { hitless: Hitless::Entries, ..arm };
    let t = table::<ArmStage2<12>>(&mem, bbm);
    t.map(0, Phys(0), K64, RW).unwrap();
    t.map(M2, Phys(M2), 16 * M2, RW).unwrap();
    t.map(64 * M2, Phys(64 * M2), 16 * M2, RW).unwrap();
    drop(protect(&*t, 0, K64, READ).unwrap());
    drop(split(&*t, K4, K4).unwrap());
    drop(split(&*t, 65 * M2, M2).unwrap());
    assert_eq!(split(&*t, 70 * M2 + K4, K4).unwrap_err(), needs_break(70 * M2, M2));
    let leaves = walk_as::<ArmStage2<12>>(&bbm, &mem, &*t);
    assert_eq!(sizes(&leaves), [(K4, 16), (M2, 32)]);

    let bbm = Config { hitless: Hitless::Tables, ..arm };
    let t = table::<ArmStage2<12>>(&mem, bbm);
    t.map(0, Phys(0), K64, RW).unwrap();
    t.map(M2, Phys(M2), M2, RW).unwrap();
    drop(protect(&*t, 0, K64, READ).unwrap());
    drop(split(&*t, K4, K4).unwrap());
    drop(split(&*t, M2 + K64, M2).unwrap());
    let leaves = walk_as::<ArmStage2<12>>(&bbm, &mem, &*t);
    assert_eq!(sizes(&leaves), [(K4, 16 + 512)]);

    // RISC-V's page sizes may change, and nothing else.
    let t = table::<RiscvSecondStage>(&mem, Config { levels: 3, ..config() });
    t.map(0, Phys(0), K64, RW).unwrap();
    drop(split(&*t, K4, K4).unwrap());
    assert_eq!(protect(&*t, K4, K4, READ).unwrap_err(), needs_break(K4, K4));
    drop(protect(&*t, K4, K4, RW).unwrap());
    let leaves = walk_as::<RiscvSecondStage>(&config(), &mem, &*t);
    assert!(leaves.len() == 16 && leaves.iter().all(|l| l.size == K4 && l.prot == RW));

    let mem = HeapMem::new(64);
    let t = table::<AmdV1>(&mem, Config::default());
    t.map(0, Phys(0), K64, RW).unwrap();
    assert_eq!(split(&*t, K4, K4).unwrap_err(), needs_break(0, K64));
    drop(protect(&*t, 0, K64, READ).unwrap());
    assert_eq!(walk_as::<AmdV1>(&Config::default(), &mem, &*t)[0].prot, READ);
}

#[test]
fn a_leaf_whose_parts_the_table_may_not_have_is_not_cut() {
    let mem = HeapMem::new(64);
    let t = table::<VtdSecondStage>(&mem, Config { page_sizes: K4 | G1, ..config() });
    t.map(0, Phys(0), G1, RW).unwrap();
    let e = ChangeError::NeedsBreak { iova: 0, size: G1 };
    assert_eq!(split(&*t, M2, M2).unwrap_err(), e);
    assert_eq!(walk::<VtdSecondStage>(&mem, &*t).len(), 1);
}

#[test]
fn permissions_of_whole_leaves_or_none() {
    let mem = HeapMem::new(64);
    let t = table::<VtdSecondStage>(&mem, config());
    t.map(0, Phys(0), M2 + 3 * K4, RW).unwrap();
    let before = walk::<VtdSecondStage>(&mem, &*t);
    let err = |iova, len, prot| protect(&*t, iova, len, prot).unwrap_err();
    let (start, size, granule) = (0, M2, K4);
    assert_eq!(err(0, M2 + K4 * 4, READ), ChangeError::NotMapped { iova: M2 + 3 * K4 });
    assert_eq!(err(K4, M2, READ), ChangeError::PartialLeaf { iova: K4, start, size });
    assert_eq!(err(0, K4, READ), ChangeError::PartialLeaf { iova: K4, start, size });
    assert_eq!(err(0, 0, READ), ChangeError::ZeroLength { iova: 0 });
    assert_eq!(err(8, K4, READ), ChangeError::Unaligned { iova: 8, len: K4, granule });
    assert_eq!(err(1 << 48, K4, READ), ChangeError::InputRange { iova: 1 << 48, len: K4, bits: 48 });
    let prot = Prot::EXEC;
    assert_eq!(err(0, M2, prot), ChangeError::Permissions { iova: 0, prot });
    assert_eq!(walk::<VtdSecondStage>(&mem, &*t), before);
    drop(protect(&*t, 0, M2 + K4, READ).unwrap());
    let prots: Vec<Prot> = walk::<VtdSecondStage>(&mem, &*t).iter().map(|l| l.prot).collect();
    assert_eq!(prots, [READ, READ, RW, RW]);
}
