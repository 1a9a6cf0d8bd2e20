//! What things cost, through the public calls, checks on.
//!
//! Absolute figures move with the machine and its load. All rows are measured in turns within one
//! run, and the first two, one locked instruction and a lock taken and given back, are the yardsticks
//! for the others: each row's least time stands there as a multiple of them too.

#[cfg(test)]
mod allocations;
mod faults;
mod handoff;
mod inline;
mod io;
mod live;
mod machine;
mod tables;
mod yardstick;

use clap::Parser;
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

/// What the core, the page tables beneath it and the machine cost.
#[derive(Parser)]
struct Arguments {
    /// Measures only the rows whose names contain this; the yardsticks come with every run.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Runs one row of the fault core and measures nothing: for those who count instructions.
    #[arg(long, value_name = "ROW", requires = "iterations", value_parser = faults::NAMES)]
    count: Option<String>,
    /// Turns of the row that is counted.
    #[arg(long, value_name = "N", requires = "count")]
    iterations: Option<u64>,
}

fn main() {
    let arguments = Arguments::parse();
    if let (Some(name), Some(turns)) = (&arguments.count, arguments.iterations) {
        println!("{}", faults::count(name, turns));
        return;
    }
    let wanted = |text: &str| arguments.only.as_ref().is_none_or(|only| text.contains(only.as_str()));
    let machine = machine::Bench::new();
    let mut rows = tables::rows();
    rows.extend(faults::rows());
    rows.extend(handoff::rows());
    rows.extend(machine.rows());
    rows.extend(io::rows());
    rows.retain(|row| wanted(&row.name));
    let mut all = yardstick::rows();
    all.append(&mut rows);
    measure(all);
    if arguments.only.is_none() {
        print!("\n{}", io::counts());
        print!("\n{}{}", live::faults(), live::detaches());
    }
    machine.stop();
}

/// Measures the rows in turns, so that what else the machine does meets all of them alike.
fn measure(mut rows: Vec<Row>) {
    let calls: Vec<u64> = rows.iter_mut().map(Row::calibrate).collect();
    let mut times = vec![Vec::with_capacity(ROUNDS); rows.len()];
    for _ in 0..ROUNDS {
        for (n, row) in rows.iter_mut().enumerate() {
            times[n].push(row.measure(calls[n]));
        }
    }
    times.iter_mut().for_each(|t| t.sort_by(f64::total_cmp));
    // The yardstick is the least that anything was: a disturbed one would flatter the others.
    let [add, pair] = [times[0][0], times[1][0]];
    let least = "min";
    println!(
        "{:<64} {:>10} {least:>10} {:>8} {:>8}",
        "ns per page, access or fault", "median", "adds", "pairs"
    );
    for (row, times) in rows.iter().zip(&times) {
        let (median, least) = (times[ROUNDS / 2], times[0]);
        let (adds, pairs) = (least / add, least / pair);
        println!("{:<64} {median:>10.2} {least:>10.2} {adds:>8.1} {pairs:>8.1}", row.name);
    }
}
