//! `portcullis sim`.

use crate::{
    Failure,
    arguments::Simulation,
    files::{self, Outputs},
    print, progress,
    table::plural,
    text::{self, Again},
};
use portcullis_machine::{
    report::Report,
    scenario::copy::{self, CopyConfig, CopyError},
};
use serde::Serialize;
use std::path::Path;

/// What `--json` prints.
#[derive(Serialize)]
struct Whole<'a> {
    /// What was copied.
    input: String,
    /// The command that gives this report again.
    again: String,
    #[serde(flatten)]
    report: &'a Report,
}

/// Runs the copy scenario and reports.
///
/// # Errors
/// When an argument or a file is of no use, when the run could not be made, and when a copy differs
/// or an invariant is broken.
pub fn run(arguments: &Simulation) -> Result<(), Failure> {
    let engines = arguments.devices;
    let most = copy::most_input(engines).map_err(refused)?;
    let path = match &arguments.input {
        Some(path) => path.clone(),
        None => std::env::current_exe().map_err(|e| {
            Failure::Argument(format!("cannot find this executable: {e}; name a file by --input"))
        })?,
    };
    let mut config = CopyConfig::new(files::read(&path, most, engines)?);
    config.engines = engines;
    config.frames = arguments.frames;
    config.seed = arguments.seed;
    config.threads = arguments.threads;
    config.adversary = arguments.adversary.into();
    let frames = config.budget().map_err(refused)?;
    let outputs = arguments.output.as_deref().map(|base| Outputs::open(base, engines, &path)).transpose()?;

    let name = shown(&path, arguments);
    if !arguments.json {
        print(&text::headline(&name, &config, frames))?;
    }
    let bar = progress::bar(config.input.len() as u64 * engines as u64);
    config.progress = Some(progress::teller(&bar));
    let ended = copy::run(&config);
    bar.finish_and_clear();
    let outcome = ended.map_err(refused)?;
    let report = &outcome.report;
    let again = Again { input: arguments.input.as_deref(), config: &config }.to_string();
    if arguments.json {
        let whole = Whole { input: name, again, report };
        let json = serde_json::to_string(&whole)
            .map_err(|e| Failure::Run(format!("cannot write the report: {e}")))?;
        print(&(json + "\n"))?;
    } else {
        print(&text::report(report, &again))?;
    }
    if let Some(outputs) = outputs {
        outputs.write(&outcome.outputs)?;
    }
    if report.ok { Ok(()) } else { Err(Failure::Run(broken(report))) }
}

fn broken(report: &Report) -> String {
    let v = &report.invariants;
    let violations = [&v.isolation, &v.settled_once, &v.quiescence].map(|check| check.violations);
    let differ = report.devices.iter().filter(|d| d.identical == Some(false)).count() as u64;
    format!(
        "the run with seed {} failed: {}, {} that differ, {}",
        report.seed,
        plural(violations.iter().sum(), "violation"),
        plural(differ, "copy"),
        plural(report.problems.len() as u64, "other problem"),
    )
}

/// The input's name in the report. Where an executable lies says nothing about the run.
fn shown(path: &Path, arguments: &Simulation) -> String {
    match arguments.input {
        Some(_) => path.display().to_string(),
        None => "this executable".into(),
    }
}

fn refused(e: CopyError) -> Failure {
    match e {
        CopyError::FewFrames { .. } | CopyError::ManyFrames { .. } => {
            Failure::Argument(format!("--frames: {e}"))
        }
        CopyError::Threads(_) => Failure::Argument(format!("--threads: {e}")),
        CopyError::Engines(_) => Failure::Argument(format!("--devices: {e}")),
        CopyError::BigInput { .. } => Failure::Argument(format!("--input: {e}")),
        CopyError::Machine(_) => Failure::Run(e.to_string()),
    }
}
