//! What things cost, through the public calls, checks on.
//!
//! Absolute figures move with the machine and its load. All rows are measured in turns within one
//! run, and the first row, one locked instruction, is the yardstick for the others.

mod faults;
mod inline;
mod io;
mod live;
mod machine;
mod tables;

use std::time::Instant;

const ROUNDS: usize = 21;

/// One line of the table.
struct Row {
    name: String,
    /// Pages, or accesses, that one call of `run` handles.
    pages: u64,
    run: Box<dyn FnMut()>,
}

impl Row {
    fn new(name: impl Into<String>, pages: u64, run: impl FnMut() + 'static) -> Row {
        Row { name: name.into(), pages, run: Box::new(run) }
    }

    /// Nanoseconds per page of `calls` calls.
    fn measure(&mut self, calls: u64) -> f64 {
        let start = Instant::now();
        for _ in 0..calls {
            (self.run)();
        }
        start.elapsed().as_nanos() as f64 / (calls * self.pages) as f64
    }

    /// How many calls take about two milliseconds.
    fn calibrate(&mut self) -> u64 {
        let mut calls = 1;
        loop {
            let ns = self.measure(calls) * (calls * self.pages) as f64;
            if ns > 500_000.0 {
                return (calls as f64 * 2_000_000.0 / ns).ceil() as u64;
            }
            calls *= 4;
        }
    }
}

fn main() {
    let mut rows = tables::rows();
    rows.extend(faults::rows());
    let machine = machine::Bench::new();
    rows.extend(machine.rows());
    rows.extend(io::rows());
    let calls: Vec<u64> = rows.iter_mut().map(Row::calibrate).collect();
    let mut times = vec![Vec::with_capacity(ROUNDS); rows.len()];
    for _ in 0..ROUNDS {
        for (n, row) in rows.iter_mut().enumerate() {
            times[n].push(row.measure(calls[n]));
        }
    }
    println!("{:<44} {:>10} {:>10}", "ns per page or access", "median", "min");
    for (row, times) in rows.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        println!("{:<44} {:>10.2} {:>10.2}", row.name, times[ROUNDS / 2], times[0]);
    }
    print!("\n{}", io::counts());
    print!("\n{}{}", live::faults(), live::detaches());
    machine.stop();
}
