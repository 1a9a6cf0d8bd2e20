//! The rows of the table: what each measures, for any subject.

use crate::subject::{Leaves, Ours, Subject};
use portcullis_pgtable::{Format, Gather, Phys, Prot, Segment, Synced};
use std::{
    hint::black_box,
    sync::Barrier,
    time::{Duration, Instant},
};

/// Physical addresses that mappings lead to; the memory is never touched.
pub(crate) const TARGET: u64 = 0x4_0000_0000;
/// Pages in 1 GiB; where pages are larger, as many of them.
pub(crate) const GIB_PAGES: u64 = 1 << 18;

/// One row.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What the figure is for: one page, one call.
    pub(crate) per: &'static str,
    /// Parity with physics is all there is to win.
    pub(crate) parity: bool,
}

const fn row(name: &'static str, per: &'static str) -> Row {
    Row { name, per, parity: false }
}

/// In the order of measuring. `measure` gives the figures in the same order.
pub(crate) const ROWS: [Row; 16] = [
    row("map 4K, one call a page, no tables yet", "page"),
    row("map 4K, one call a page, tables there", "page"),
    row("unmap 4K, one call a page", "page"),
    row("map + unmap 4K", "pair"),
    row("map 1 GiB of 4K, one call, no tables yet", "page"),
    row("map 1 GiB of scattered 4K, one list", "page"),
    row("map 256 x 4K, one call, tables there", "call"),
    row("unmap 256 x 4K, one call", "call"),
    row("unmap 1 GiB of 4K, one call, every entry checked", "page"),
    Row { name: "the same, whole tables detached unseen", per: "page", parity: true },
    row("map 2M, one call each", "leaf"),
    row("unmap 2M, one call each", "leaf"),
    row("map + unmap 1 GiB of 2M, one call each way", "leaf"),
    row("translate, random in 1 GiB", "lookup"),
    Row { name: "translate, each from the last", per: "lookup", parity: true },
    Row { name: "translate, within 2 MiB", per: "lookup", parity: true },
];

/// Nanoseconds that `f` takes, for each of `n`.
pub(crate) fn timed(n: u64, f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    nanos(start.elapsed()) / n as f64
}

pub(crate) fn nanos(d: Duration) -> f64 {
    d.as_nanos() as f64
}

/// Every row for one subject; not a number where it does not do what the row is about.
pub(crate) fn measure<S: Subject>() -> Vec<f64> {
    let mut out = Vec::with_capacity(ROWS.len());
    single_pages::<S>(&mut out);
    whole_gib::<S>(&mut out);
    runs::<S>(&mut out);
    checked_unmap::<S>(&mut out);
    large::<S>(&mut out);
    translations::<S>(&mut out);
    out
}

/// The mean of the better half: what a row costs when nothing else ran, without being the luckiest.
fn typical(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let half = times.len().div_ceil(2);
    times[..half].iter().sum::<f64>() / half as f64
}

fn single_pages<S: Subject>(out: &mut Vec<f64>) {
    const PAGES: u64 = 16 << 10;
    let (mut cold, mut warm, mut unmap, mut pair) = (vec![], vec![], vec![], vec![]);
    for _ in 0..6 {
        let mut s = S::new(Leaves::Small);
        cold.push(timed(PAGES, || {
            (0..PAGES).for_each(|n| s.map(S::BASE + n * S::PAGE, TARGET + n * S::PAGE))
        }));
        for _ in 0..2 {
            unmap.push(timed(PAGES, || (0..PAGES).for_each(|n| s.unmap(S::BASE + n * S::PAGE))));
            s.retire();
            warm.push(timed(PAGES, || {
                (0..PAGES).for_each(|n| s.map(S::BASE + n * S::PAGE, TARGET + n * S::PAGE))
            }));
        }
        let next = S::BASE + PAGES * S::PAGE;
        s.map(next + S::PAGE, TARGET);
        pair.push(timed(PAGES, || {
            for n in 0..PAGES {
                s.map(black_box(next), TARGET + n * S::PAGE);
                s.unmap(black_box(next));
            }
        }));
        s.retire();
    }
    out.extend([typical(cold), typical(warm), typical(unmap), typical(pair)]);
}

fn whole_gib<S: Subject>(out: &mut Vec<f64>) {
    let list: Vec<Segment> =
        scattered::<S>().into_iter().map(|phys| Segment { phys: Phys(phys), len: S::PAGE }).collect();
    let (mut range, mut sg) = (vec![], vec![]);
    for _ in 0..4 {
        let mut s = S::new(Leaves::Small);
        range.push(timed(GIB_PAGES, || s.map_range(S::BASE, TARGET, GIB_PAGES)));
        check(&s, |n| TARGET + n * S::PAGE);
        drop(s);
        let mut s = S::new(Leaves::Small);
        sg.push(timed(GIB_PAGES, || s.map_list(S::BASE, &list)));
        check(&s, |n| list[n as usize].phys.0);
    }
    out.extend([typical(range), typical(sg)]);
}

/// Looks at every 777th page.
fn check<S: Subject>(s: &S, expected: impl Fn(u64) -> u64) {
    for n in (0..GIB_PAGES).step_by(777) {
        assert_eq!(s.translate(S::BASE + n * S::PAGE), expected(n), "page {n}");
    }
}

/// The pages of 1 GiB in no order, none beside its neighbour.
fn scattered<S: Subject>() -> Vec<u64> {
    (0..GIB_PAGES).map(|n| TARGET + ((n * 0x9_5a1d) & (GIB_PAGES - 1)) * 2 * S::PAGE).collect()
}

fn runs<S: Subject>(out: &mut Vec<f64>) {
    const CALLS: u64 = 400;
    let (mut map, mut unmap) = (vec![], vec![]);
    let mut s = S::new(Leaves::Small);
    s.map(S::BASE, TARGET);
    // What reading the clock twice takes, at its least: most of it falls into what is measured.
    let clock = |_| timed(CALLS, || (0..CALLS).for_each(|_| _ = black_box(timed(1, || ()))));
    let clock = (0..8).map(clock).fold(f64::INFINITY, f64::min);
    for _ in 0..8 {
        let (mut a, mut b) = (0.0, 0.0);
        for _ in 0..CALLS {
            a += timed(1, || s.map_range(black_box(S::BASE + 64 * S::PAGE), TARGET, 256));
            b += timed(1, || s.unmap_range(black_box(S::BASE + 64 * S::PAGE), 256));
        }
        s.retire();
        map.push(a / CALLS as f64 - clock / 2.0);
        unmap.push(b / CALLS as f64 - clock / 2.0);
    }
    out.extend([typical(map), typical(unmap)]);
}

fn checked_unmap<S: Subject>(out: &mut Vec<f64>) {
    let mut times = vec![];
    for _ in 0..4 {
        let mut s = S::new(Leaves::Small);
        s.map_range(S::BASE, TARGET, GIB_PAGES);
        times.push(timed(GIB_PAGES, || s.unmap_range(S::BASE, GIB_PAGES)));
        s.retire();
    }
    let time = typical(times);
    out.extend(if S::CHECKS { [time, f64::NAN] } else { [f64::NAN, time] });
}

fn large<S: Subject>(out: &mut Vec<f64>) {
    if S::LARGE == 0 {
        return out.extend([f64::NAN; 3]);
    }
    const LEAVES: u64 = 8 << 9;
    let (mut map, mut unmap, mut gib) = (vec![], vec![], vec![]);
    let mut s = S::new(Leaves::Both);
    for _ in 0..6 {
        map.push(timed(LEAVES, || {
            (0..LEAVES).for_each(|n| s.map_large(S::BASE + n * S::LARGE, TARGET + n * S::LARGE))
        }));
        unmap.push(timed(LEAVES, || (0..LEAVES).for_each(|n| s.unmap_large(S::BASE + n * S::LARGE))));
        s.retire();
        gib.push(timed(64 * 512, || {
            for _ in 0..64 {
                // Off by a leaf, so that none takes a leaf of 1 GiB.
                s.map_large_range(black_box(S::BASE), TARGET + S::LARGE, 512);
                s.unmap_large_range(black_box(S::BASE), 512);
            }
        }));
        s.retire();
    }
    out.extend([typical(map), typical(unmap), typical(gib)]);
}

fn translations<S: Subject>(out: &mut Vec<f64>) {
    const LOOKUPS: usize = 1 << 15;
    let mut s = S::new(Leaves::Small);
    s.map_range(S::BASE, TARGET, GIB_PAGES);
    let mut rng = fastrand::Rng::with_seed(7);
    let anywhere: Vec<u64> = (0..LOOKUPS).map(|_| S::BASE + rng.u64(..GIB_PAGES) * S::PAGE).collect();
    let near: Vec<u64> = (0..LOOKUPS).map(|_| S::BASE + rng.u64(..512) * S::PAGE).collect();
    let (mut random, mut dependent, mut hot) = (vec![], vec![], vec![]);
    // As many as a batch has: one announcement for each.
    let all = |list: &[u64]| {
        list.chunks(64).for_each(|batch| {
            s.translating(|look| batch.iter().for_each(|iova| _ = black_box(look(*iova))));
        });
    };
    for _ in 0..6 {
        random.push(timed(LOOKUPS as u64, || all(&anywhere)));
        dependent.push(timed(LOOKUPS as u64, || {
            let mut at = S::BASE;
            for _ in 0..LOOKUPS / 64 {
                s.translating(|look| {
                    for _ in 0..64 {
                        let n = (look(at) - TARGET) / S::PAGE;
                        at = S::BASE + ((n * 0x9_5a1d + 0x3_1337) & (GIB_PAGES - 1)) * S::PAGE;
                    }
                });
            }
            black_box(at);
        }));
        hot.push(timed(LOOKUPS as u64, || all(&near)));
    }
    out.extend([typical(random), typical(dependent), typical(hot)]);
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Two threads that map and unmap single pages of one table: nanoseconds for a pair and thread.
/// With `near`, their pages take turns in one cache line.
pub(crate) fn two_threads<F: Format>(near: bool) -> f64 {
    const PAIRS: u64 = 100_000;
    let (base, page_size) = (Ours::<F>::BASE, Ours::<F>::PAGE);
    let ours = Ours::<F>::new(Leaves::Small);
    let table = ours.table();
    let pages: Vec<u64> = match near {
        true => vec![base, base + page_size],
        false => vec![base, base + (GIB_PAGES / 2) * page_size],
    };
    // The tables are there and stay.
    pages.iter().for_each(|p| table.map(p + 8 * page_size, Phys(TARGET), page_size, RW).expect("empty"));
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let threads: Vec<_> = pages
            .iter()
            .map(|page| {
                scope.spawn(|| {
                    let page = *page;
                    start.wait();
                    timed(PAIRS, || {
                        for n in 0..PAIRS {
                            // Side by side: the even, or the odd pages of a line's eight.
                            let at = if near { page + (n % 4) * 2 * page_size } else { page };
                            let mut gather = Gather::new();
                            table.map(at, Phys(TARGET), page_size, RW).expect("an empty page");
                            table.unmap(at, page_size, &mut gather).expect("a mapped page");
                            table.retire(gather.into_retired(), Synced::after_completed_invalidation());
                        }
                    })
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).sum::<f64>() / 2.0
    })
}
