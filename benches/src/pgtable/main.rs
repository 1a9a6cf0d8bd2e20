//! What page tables cost: ours beside three other libraries and beside what the machine itself needs
//! for the same work, in one run.
//!
//! Every round is a process of its own and measures everything once, so that what moves from one
//! moment to the next moves for all. What is printed are medians over the rounds, with minimums
//! beside. Only ratios mean anything: times are those of the machine and the hour.

mod arena;
mod counted;
mod physical;
mod report;
mod rows;
mod subject;

use clap::Parser;
use portcullis_pgtable::{
    AmdV1, AmdV2, ArmStage1, ArmStage2, Format, RiscvFirstStage, RockchipV2, VtdSecondStage, X86FirstStage,
};
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
    /// Measures no others than the format or library of this name; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Does one piece of work so many times, for instructions to be counted, and measures nothing.
    #[arg(long, value_name = "SUBJECT/WORK", requires = "iterations")]
    count: Option<String>,
    /// How often.
    #[arg(long, value_name = "N", requires = "count")]
    iterations: Option<u64>,
    /// Measures once and prints it as JSON, for the process that began the rounds.
    #[arg(long, hide = true)]
    once: bool,
}

/// What a subject is measured for.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// A format of ours that has targets of its own.
    Target,
    /// Another format of ours, which must not fall behind.
    Other,
    /// Somebody else's library.
    Peer,
}

/// What one round found.
#[derive(Serialize, Deserialize)]
struct Round {
    yardsticks: Vec<f64>,
    limits: Vec<Option<f64>>,
    subjects: Vec<(String, Kind, Vec<Option<f64>>)>,
    /// Ours on two threads, apart and side by side.
    threads: Vec<(String, f64, f64)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|o| o == name);
    if let (Some(name), Some(times)) = (&arguments.count, arguments.iterations) {
        return counted::run(name, times).then_some(()).ok_or_else(|| format!("no work {name}").into());
    }
    if arguments.once {
        println!("{}", serde_json::to_string(&round(&wanted))?);
        return Ok(());
    }
    let this = std::env::current_exe()?;
    let mut rounds = Vec::new();
    for n in 0..arguments.rounds {
        eprint!("\rround {} of {}", n + 1, arguments.rounds);
        let only = arguments.only.iter().flat_map(|name| ["--only", name]);
        let output = Command::new(&this).arg("--once").args(only).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        rounds.push(serde_json::from_slice::<Round>(&output.stdout)?);
    }
    eprintln!("\r{:20}\r", "");
    if rounds[0].subjects.is_empty() {
        return Err("nothing of that name is measured".into());
    }
    let table = report::Table::new(&rounds);
    print!("{table}");
    if let Some(file) = arguments.json {
        std::fs::write(&file, serde_json::to_vec_pretty(&table)?)
            .map_err(|e| format!("{} could not be written: {e}", file.display()))?;
    }
    Ok(())
}

fn round(wanted: &dyn Fn(&str) -> bool) -> Round {
    let mut out = Round {
        yardsticks: physical::yardsticks().into(),
        limits: physical::limits(),
        subjects: Vec::new(),
        threads: Vec::new(),
    };
    ours::<VtdSecondStage>(&mut out, wanted, Kind::Target);
    ours::<ArmStage2<12>>(&mut out, wanted, Kind::Target);
    subject::<X86Crate>(&mut out, wanted, "x86_64", Kind::Peer);
    subject::<Multiarch>(&mut out, wanted, "page_table_multiarch", Kind::Peer);
    subject::<Aarch64>(&mut out, wanted, "aarch64-paging", Kind::Peer);
    ours::<X86FirstStage>(&mut out, wanted, Kind::Other);
    ours::<AmdV1>(&mut out, wanted, Kind::Other);
    ours::<AmdV2>(&mut out, wanted, Kind::Other);
    ours::<ArmStage1<12>>(&mut out, wanted, Kind::Other);
    ours::<ArmStage1<14>>(&mut out, wanted, Kind::Other);
    ours::<ArmStage1<16>>(&mut out, wanted, Kind::Other);
    ours::<RiscvFirstStage>(&mut out, wanted, Kind::Other);
    ours::<RockchipV2>(&mut out, wanted, Kind::Other);
    out
}

fn subject<S: Subject>(out: &mut Round, wanted: &dyn Fn(&str) -> bool, name: &str, kind: Kind) {
    if wanted(name) {
        let figures = rows::measure::<S>().into_iter().map(|f| Some(f).filter(|f| f.is_finite())).collect();
        out.subjects.push((name.into(), kind, figures));
    }
}

fn ours<F: Format>(out: &mut Round, wanted: &dyn Fn(&str) -> bool, kind: Kind) {
    subject::<Ours<F>>(out, wanted, F::ID.0, kind);
    if wanted(F::ID.0) {
        out.threads.push((F::ID.to_string(), rows::two_threads::<F>(false), rows::two_threads::<F>(true)));
    }
}
