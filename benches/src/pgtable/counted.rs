//! Work of which instructions are counted: run so many times, and nothing else.
//!
//! A count is exact where a time is not. Counted twice, once with twice as many repetitions, what a
//! process does besides falls out; `cargo xtask test --only counts` does that with callgrind and holds
//! the result to `benches/instruction-counts.txt`.

use crate::{
    rows::TARGET,
    subject::{Aarch64, Leaves, Multiarch, Ours, Subject, X86Crate},
};
use portcullis_pgtable::{ArmStage2, Phys, Segment, VtdSecondStage};
use std::hint::black_box;

/// Does what `name` says, `SUBJECT/WORK`, so many times; `false` if there is no such thing.
pub(crate) fn run(name: &str, times: u64) -> bool {
    let Some((subject, work)) = name.split_once('/') else {
        return false;
    };
    match subject {
        "vtd-ss" => of::<Ours<VtdSecondStage>>(work, times),
        "arm-s2-4k" => of::<Ours<ArmStage2<12>>>(work, times),
        "x86_64" => of::<X86Crate>(work, times),
        "page_table_multiarch" => of::<Multiarch>(work, times),
        "aarch64-paging" => of::<Aarch64>(work, times),
        _ => false,
    }
}

fn of<S: Subject>(work: &str, times: u64) -> bool {
    let mut s = S::new(Leaves::Both);
    // The tables are there and stay.
    s.map(S::BASE, TARGET);
    s.map_large(S::BASE + S::LARGE, TARGET);
    match work {
        "pair" => {
            for n in 0..times {
                s.map(black_box(S::BASE + S::PAGE), TARGET + n * S::PAGE);
                s.unmap(black_box(S::BASE + S::PAGE));
            }
        }
        "pair-256" => {
            for _ in 0..times {
                s.map_range(black_box(S::BASE + 64 * S::PAGE), TARGET, 256);
                s.unmap_range(black_box(S::BASE + 64 * S::PAGE), 256);
            }
        }
        "pair-large" => {
            for _ in 0..times {
                s.map_large(black_box(S::BASE + 2 * S::LARGE), TARGET);
                s.unmap_large(black_box(S::BASE + 2 * S::LARGE));
            }
        }
        "lookup" => s.translating(|look| (0..times).for_each(|_| _ = black_box(look(black_box(S::BASE))))),
        "list-512" => {
            let list: Vec<Segment> =
                (0..512).map(|n| Segment { phys: Phys(TARGET + n * 2 * S::PAGE), len: S::PAGE }).collect();
            for _ in 0..times {
                s.map_list(black_box(S::BASE + 2 * S::LARGE), &list);
                s.unmap_range(black_box(S::BASE + 2 * S::LARGE), 512);
                s.retire();
            }
        }
        "range-512" => {
            for _ in 0..times {
                s.map_range(black_box(S::BASE + 2 * S::LARGE), TARGET + S::PAGE, 512);
                s.unmap_range(black_box(S::BASE + 2 * S::LARGE), 512);
                s.retire();
            }
        }
        "large-512" => {
            for _ in 0..times {
                s.map_large_range(black_box(S::BASE + 1024 * S::LARGE), TARGET + S::LARGE, 512);
                s.unmap_large_range(black_box(S::BASE + 1024 * S::LARGE), 512);
            }
        }
        "lookup-far" => {
            s.map(S::BASE + 8 * S::LARGE, TARGET);
            s.translating(|look| {
                (0..times).for_each(|n| _ = black_box(look(S::BASE + (n & 1) * 8 * S::LARGE)));
            });
        }
        _ => return false,
    }
    true
}
