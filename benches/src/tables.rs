//! Page tables, through the object that a domain holds.

use crate::Row;
use portcullis_pgtable::{
    Config, Format, Gather, IoTable, Phys, Prot, Synced, Table, VtdSecondStage, X86FirstStage,
    testing::HeapMem,
};
use std::hint::black_box;

const PAGE: u64 = 4096;
const BASE: u64 = 0x12_3456_0000_0000 >> 8 & !0x1f_ffff;
const RW: Prot = Prot::READ.union(Prot::WRITE);

pub(crate) fn rows() -> Vec<Row> {
    [of_format::<VtdSecondStage>(), of_format::<X86FirstStage>()].into_iter().flatten().collect()
}

/// A table in which the page before `BASE` is mapped, so that the upper tables stay.
fn table<F: Format>() -> Box<dyn IoTable> {
    let config = Config {
        input_bits: 47,
        output_bits: 46,
        levels: 4,
        page_sizes: 1 << 12 | 1 << 21,
        ..Config::default()
    };
    let table = Table::<F, _>::new(HeapMem::new(64), config).expect("frames for one table");
    table.map(BASE - PAGE, Phys(0), PAGE, RW).expect("an empty table");
    table.map(BASE, Phys(0), PAGE, RW).expect("an empty table");
    Box::new(table)
}

fn unmap(table: &dyn IoTable, iova: u64, len: u64) {
    let mut gather = Gather::new();
    table.unmap(iova, len, &mut gather).expect("what was mapped");
    table.retire(gather.into_retired(), Synced::after_completed_invalidation());
}

/// Maps and unmaps `len` bytes, over and over.
fn ping_pong<F: Format>(what: &str, iova: u64, phys: u64, len: u64, pages: u64) -> Row {
    let table = table::<F>();
    Row::new(format!("{}: map + unmap {what}", F::ID), pages, move || {
        table.map(black_box(iova), Phys(phys), len, RW).expect("an empty range");
        unmap(&*table, iova, len);
    })
}

fn of_format<F: Format>() -> Vec<Row> {
    let lookups = table::<F>();
    let large = 512 * PAGE;
    lookups.map(BASE + PAGE, Phys(7 * PAGE), 256 * PAGE, RW).expect("an empty range");
    let mut at = 0u64;
    vec![
        ping_pong::<F>("4K", BASE + PAGE, 3 * PAGE, PAGE, 1),
        ping_pong::<F>("256 x 4K, one call", BASE + PAGE, 3 * PAGE, 256 * PAGE, 256),
        ping_pong::<F>("512 x 4K, a new table", BASE + large, PAGE, large, 512),
        ping_pong::<F>("2M leaf", BASE + large, large, large, 1),
        Row::new(format!("{}: lookup", F::ID), 1, move || {
            at = (at + 37) % 256;
            black_box(lookups.lookup(BASE + (1 + at) * PAGE)).expect("a mapped page");
        }),
    ]
}
