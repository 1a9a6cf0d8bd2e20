//! What page tables cost: ours beside three other libraries and beside what the machine itself needs
//! for the same work, in one run.
//!
//! Every round is a process of its own and measures everything once, so that what moves from one
//! moment to the next moves for all. What is printed are medians over the rounds, with minimums
//! beside. Only ratios mean anything: times are those of the machine and the hour.

mod arena;
mod physical;
mod report;
mod rows;
mod subject;

use clap::Parser;
use portcullis_pgtable::{Format, VtdSecondStage, X86FirstStage};
use serde::{Deserialize, Serialize};
use std::{error::Error, path::PathBuf, process::Command};
use subject::{Aarch64, Multiarch, Ours, Subject, X86Crate};

#[derive(Parser)]
#[command(about = "Measures page tables beside other libraries", long_about = None)]
struct Arguments {
    /// Rounds, each a process of its own.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Also writes the table as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measures once and prints it as JSON, for the process that began the rounds.
    #[arg(long, hide = true)]
    once: bool,
}

/// What one round found.
#[derive(Serialize, Deserialize)]
struct Round {
    yardsticks: Vec<f64>,
    limits: Vec<Option<f64>>,
    /// By name: ours first.
    subjects: Vec<(String, bool, Vec<Option<f64>>)>,
    /// Ours on two threads, apart and side by side.
    threads: Vec<(String, f64, f64)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if arguments.once {
        println!("{}", serde_json::to_string(&round())?);
        return Ok(());
    }
    let this = std::env::current_exe()?;
    let mut rounds = Vec::new();
    for n in 0..arguments.rounds {
        eprint!("\rround {} of {}", n + 1, arguments.rounds);
        let output = Command::new(&this).arg("--once").output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        rounds.push(serde_json::from_slice(&output.stdout)?);
    }
    eprintln!("\r{:20}\r", "");
    let table = report::Table::new(&rounds);
    print!("{table}");
    if let Some(file) = arguments.json {
        std::fs::write(&file, serde_json::to_vec_pretty(&table)?)
            .map_err(|e| format!("{} could not be written: {e}", file.display()))?;
    }
    Ok(())
}

fn round() -> Round {
    let mut out = Round {
        yardsticks: physical::yardsticks().into(),
        limits: physical::limits(),
        subjects: Vec::new(),
        threads: Vec::new(),
    };
    ours::<VtdSecondStage>(&mut out);
    ours::<X86FirstStage>(&mut out);
    subject::<X86Crate>(&mut out, "x86_64", false);
    subject::<Multiarch>(&mut out, "page_table_multiarch", false);
    subject::<Aarch64>(&mut out, "aarch64-paging", false);
    out
}

fn subject<S: Subject>(out: &mut Round, name: &str, ours: bool) {
    let figures = rows::measure::<S>().into_iter().map(|f| Some(f).filter(|f| f.is_finite())).collect();
    out.subjects.push((name.into(), ours, figures));
}

fn ours<F: Format>(out: &mut Round) {
    subject::<Ours<F>>(out, F::ID.0, true);
    out.threads.push((F::ID.to_string(), rows::two_threads::<F>(false), rows::two_threads::<F>(true)));
}
