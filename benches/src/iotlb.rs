//! What a hit in the software IOTLB costs: ours beside vm-memory's, and beside a bare look into as
//! much memory, in turns within one run.
//!
//! Pages of one address space, each somewhere else, are looked up at random, one after the other, and
//! nothing waits for the one before: what an access costs on a device's thread. Only ratios mean
//! anything: times are those of the machine and the hour.

use clap::Parser;
use portcullis_models::iotlb::{Iotlb, Space, Translation};
use serde::Serialize;
use std::{
    error::Error,
    hint::black_box,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};
use vm_memory::{GuestAddress, Permissions, iommu};

/// Pages that are in use.
const PAGES: [u64; 3] = [64, 4 << 10, 256 << 10];
/// What a hit should cost at most, in nanoseconds, with so many pages.
const TARGETS: [f64; 3] = [4.0, 8.5, 17.0];
const PAGE: u64 = 4096;
/// Where the pages begin for the device.
const IOVA: u64 = 1 << 32;
const SPACE: Space = Space(1);
/// Lookups of one measurement.
const LOOKUPS: u64 = 200_000;
/// Lookups between two that another thread invalidates and fills in.
const PAUSE: u32 = 64;

#[derive(Parser)]
#[command(about = "Measures hits in the software IOTLB", long_about = None)]
struct Arguments {
    /// Rounds, in each of which everything is measured once.
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Also writes the table as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One line of the table. Nanoseconds a lookup: median, and least.
#[derive(Serialize)]
struct Row {
    pages: u64,
    what: &'static str,
    median: f64,
    least: f64,
    /// The median as a multiple of the physical limit's.
    of_limit: f64,
    target: Option<f64>,
}

/// A way to look a page up; the sum of what was found is used.
type Lookup = Box<dyn FnMut(&mut Random) -> u64>;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let mut table = Vec::new();
    for (pages, target) in PAGES.into_iter().zip(TARGETS) {
        table.extend(measure(pages, target, arguments.rounds));
    }
    println!(
        "{:>8}  {:<46} {:>8} {:>8} {:>9}  target",
        "pages", "ns a lookup", "median", "least", "of limit"
    );
    for r in &table {
        let target = r
            .target
            .map_or(String::new(), |t| format!("{t} {}", if r.median <= t { "met" } else { "missed" }));
        println!(
            "{:>8}  {:<46} {:>8.2} {:>8.2} {:>8.2}x  {target}",
            r.pages, r.what, r.median, r.least, r.of_limit
        );
    }
    if let Some(file) = arguments.json {
        std::fs::write(&file, serde_json::to_vec_pretty(&table)?)
            .map_err(|e| format!("{} could not be written: {e}", file.display()))?;
    }
    Ok(())
}

fn measure(pages: u64, target: f64, rounds: u32) -> Vec<Row> {
    let shared = Arc::new(ours(pages));
    let mut subjects: Vec<(&'static str, bool, Lookup)> = vec![
        ("a line of as much memory (limit)", false, bare(pages)),
        ("ours", false, of_ours(Arc::new(ours(pages)), pages)),
        ("ours, another thread invalidates and fills in", true, of_ours(shared.clone(), pages)),
        ("vm-memory's Iotlb", false, peer(pages)),
    ];
    let mut times = vec![Vec::new(); subjects.len()];
    let mut random = Random(pages);
    for _ in 0..rounds {
        for ((_, beside, lookup), times) in subjects.iter_mut().zip(&mut times) {
            let other = beside.then(|| Other::start(shared.clone(), pages));
            times.push(timed(lookup, &mut random));
            drop(other);
        }
    }
    let summed = times.iter_mut().map(|t| {
        t.sort_by(f64::total_cmp);
        (t[t.len() / 2], t[0])
    });
    let summed: Vec<_> = summed.collect();
    let limit = summed[0].0;
    let row = |((what, ..), (median, least)): (&(&'static str, bool, Lookup), &(f64, f64))| Row {
        pages,
        what,
        median: *median,
        least: *least,
        of_limit: median / limit,
        target: (*what == "ours").then_some(target),
    };
    subjects.iter().zip(&summed).map(row).collect()
}

/// Nanoseconds a lookup.
fn timed(lookup: &mut Lookup, random: &mut Random) -> f64 {
    // Warm.
    black_box(lookup(random));
    let start = Instant::now();
    black_box(lookup(random));
    start.elapsed().as_nanos() as f64 / LOOKUPS as f64
}

/// Where a page is: neighbours for the device are not in memory, so that nothing can be merged.
fn frame(n: u64, pages: u64) -> u64 {
    (n.wrapping_mul(0x9e37_79b1) & (pages - 1)) * PAGE
}

fn ours(pages: u64) -> Iotlb {
    let tlb = Iotlb::new(pages as usize, 2);
    (0..pages).for_each(|n| fill(&tlb, n, pages));
    tlb
}

fn fill(tlb: &Iotlb, n: u64, pages: u64) {
    if let Some(fill) = tlb.begin(SPACE) {
        tlb.insert(fill, IOVA + n * PAGE, Translation { phys: frame(n, pages), bits: 12, flags: 3 });
    }
}

fn of_ours(tlb: Arc<Iotlb>, pages: u64) -> Lookup {
    Box::new(move |random| {
        let reader = black_box(&*tlb).reader(SPACE).expect("a space");
        let look = |_| reader.lookup(IOVA + random.below(pages) * PAGE + 0x40);
        (0..LOOKUPS).filter_map(look).map(|t| t.phys ^ u64::from(t.flags)).fold(0, u64::wrapping_add)
    })
}

fn peer(pages: u64) -> Lookup {
    let mut tlb = iommu::Iotlb::new();
    for n in 0..pages {
        let (from, to) = (GuestAddress(IOVA + n * PAGE), GuestAddress(frame(n, pages)));
        tlb.set_mapping(from, to, PAGE as usize, Permissions::ReadWrite).expect("it is kept");
    }
    Box::new(move |random| {
        let tlb = black_box(&tlb);
        let look = |_| {
            let at = GuestAddress(IOVA + random.below(pages) * PAGE + 0x40);
            iommu::Iotlb::lookup(tlb, at, 8, Permissions::Read).ok()?.next()
        };
        (0..LOOKUPS).filter_map(look).map(|m| m.base.0).fold(0, u64::wrapping_add)
    })
}

/// As many tags and words of data, four each in a line, of which one each is read at a known place.
fn bare(pages: u64) -> Lookup {
    #[repr(align(64))]
    struct Line([AtomicU64; 8]);
    let line = |n: u64| Line(std::array::from_fn(|i| AtomicU64::new(n * 4 + i as u64 % 4)));
    let lines: Vec<Line> = (0..pages / 4).map(line).collect();
    Box::new(move |random| {
        let lines = black_box(&lines[..]);
        let look = |_| {
            let n = random.below(pages);
            let line = &lines[(n / 4) as usize % lines.len()].0;
            let way = n as usize % 4;
            let tag = line[way].load(Ordering::Acquire);
            (tag == n).then(|| line[4 + way].load(Ordering::Acquire))
        };
        (0..LOOKUPS).filter_map(look).fold(0, u64::wrapping_add)
    })
}

/// Another thread that invalidates pages, one by one, and fills them in again.
struct Other {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Other {
    fn start(tlb: Arc<Iotlb>, pages: u64) -> Other {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut random = Random(99);
            while !stopped.load(Ordering::Relaxed) {
                let n = random.below(pages);
                tlb.invalidate(SPACE, IOVA + n * PAGE, IOVA + n * PAGE + PAGE - 1);
                fill(&tlb, n, pages);
                (0..PAUSE).for_each(|_| std::hint::spin_loop());
            }
        });
        Other { stop, thread: Some(thread) }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it does not panic");
        }
    }
}

/// Cheap beside a lookup.
struct Random(u64);

impl Random {
    #[inline(always)]
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 32) * n) >> 32
    }
}
