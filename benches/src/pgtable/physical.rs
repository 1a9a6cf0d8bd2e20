//! What the machine itself costs: the work that no page table can do without, and two yardsticks.

use crate::{
    rows::{GIB_PAGES, timed},
    subject::PAGE,
};
use parking_lot::Mutex;
use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
};

/// The yardsticks.
pub(crate) const YARDSTICKS: [&str; 2] = ["one locked add", "a lock, taken and released"];

pub(crate) fn yardsticks() -> [f64; 2] {
    const N: u64 = 200_000;
    let (counter, lock) = (AtomicU64::new(0), Mutex::new(0u64));
    let add = timed(N, || (0..N).for_each(|_| _ = black_box(&counter).fetch_add(1, Ordering::AcqRel)));
    let pair = timed(N, || (0..N).for_each(|_| *black_box(&lock).lock() += 1));
    [add, pair]
}

/// The limit of each row of [`ROWS`](crate::rows::ROWS) that has one which can be measured; where a
/// row is one call for one page, the call with its checks is all there is, and none is given.
pub(crate) fn limits() -> Vec<Option<f64>> {
    let entries = GIB_PAGES as usize;
    let mut table = vec![0u64; entries];
    let list: Vec<u64> = (0..GIB_PAGES).map(|n| n * PAGE).collect();
    let fill = best(|| {
        timed(GIB_PAGES, || table.iter_mut().enumerate().for_each(|(i, e)| *e = (i as u64 * PAGE) | 3));
        timed(GIB_PAGES, || {
            let t = black_box(&mut table);
            t.iter_mut().enumerate().for_each(|(i, e)| *e = (i as u64 * PAGE) | 3);
        })
    });
    let copy = best(|| {
        timed(GIB_PAGES, || {
            let (t, l) = (black_box(&mut table), black_box(&list));
            t.iter_mut().zip(l).for_each(|(e, p)| *e = p | 3);
        })
    });
    let check = best(|| {
        table.fill(3);
        timed(GIB_PAGES, || {
            let t = black_box(&mut table);
            let present = t.iter().fold(3, |all, e| all & e);
            t.fill(0);
            assert_eq!(black_box(present), 3);
        })
    });
    let few = |clear: bool| {
        let mut run = vec![3u64; 256];
        best(|| {
            const N: u64 = 2_000;
            timed(N, || {
                for k in 0..N {
                    let t = black_box(&mut run);
                    match clear {
                        true => t.fill(0),
                        false => t.iter_mut().enumerate().for_each(|(i, e)| *e = ((i as u64 + k) * PAGE) | 3),
                    }
                }
            })
        })
    };
    let (random, dependent) = walks();
    vec![
        None,
        None,
        None,
        None,
        Some(fill),
        Some(copy),
        Some(few(false)),
        Some(few(true)),
        Some(check),
        None,
        None,
        None,
        None,
        Some(random),
        Some(dependent),
        None,
    ]
}

fn best(mut f: impl FnMut() -> f64) -> f64 {
    (0..6).map(|_| f()).fold(f64::INFINITY, f64::min)
}

/// Four loads, each from where the one before it leads, through tables of the size of those that
/// map 1 GiB: at random, and each walk from the last.
fn walks() -> (f64, f64) {
    const WALKS: u64 = 1 << 15;
    let upper: Vec<u64> = (0..512).collect();
    let leaves: Vec<u64> = (0..GIB_PAGES).collect();
    let walk = |at: u64| {
        let top = upper[(at >> 27 & 511) as usize] & 511;
        let third = upper[(top + (at >> 18)) as usize & 511] & 511;
        let second = upper[(third + (at >> 9)) as usize & 511];
        leaves[((second << 9 | at & 511) & (GIB_PAGES - 1)) as usize]
    };
    let mut rng = fastrand::Rng::with_seed(7);
    let anywhere: Vec<u64> = (0..WALKS).map(|_| rng.u64(..GIB_PAGES)).collect();
    let random = best(|| timed(WALKS, || anywhere.iter().for_each(|at| _ = black_box(walk(black_box(*at))))));
    let dependent = best(|| {
        timed(WALKS, || {
            let mut at = 1;
            for _ in 0..WALKS {
                at = (walk(at) * 0x9_5a1d + 0x3_1337) & (GIB_PAGES - 1);
            }
            black_box(at);
        })
    });
    (random, dependent)
}
