//! `portcullis sim`.

use crate::{
    Failure,
    arguments::Simulation,
    files::{self, Outputs},
    print, progress, staged,
    table::plural,
    text::{self, Again},
};
use portcullis_machine::{
    report::Report,
    scenario::copy::{self, CopyConfig, CopyError},
    trace::Trace,
};
use serde::Serialize;
use std::{io::BufWriter, path::Path};

/// What `--json` prints.
#[derive(Serialize)]
struct Whole<'a> {
    /// What was copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a str>,
    /// The command that gives this report again.
    again: &'a str,
    #[serde(flatten)]
    report: &'a Report,
}

/// Copy engines, where nobody says.
const ENGINES: usize = 2;

/// Runs the scenario that was asked for and reports.
///
/// # Errors
/// When an argument or a file is of no use, when the run could not be made, and when data is wrong
/// or an invariant is broken.
pub fn run(arguments: &Simulation) -> Result<(), Failure> {
    match arguments.scenario.as_str() {
        _ if arguments.list => print(&staged::list()),
        "copy" => copy(arguments),
        _ => staged::run(arguments),
    }
}

fn copy(arguments: &Simulation) -> Result<(), Failure> {
    if arguments.size.is_some() {
        return Err(Failure::Argument("--size: a copy is as large as its --input".into()));
    }
    let engines = arguments.devices.unwrap_or(ENGINES);
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
    config.trace = trace(arguments, Some(&path))?;

    let name = shown(&path, arguments);
    if !arguments.json {
        print(&text::headline(&name, &config, frames))?;
    }
    let bar = progress::bar(config.input.len() as u64 * engines as u64);
    config.progress = Some(progress::teller(&bar));
    let ended = copy::run(&config);
    bar.finish_and_clear();
    let outcome = ended.map_err(refused)?;
    let again = Again { input: arguments.input.as_deref(), config: &config }.to_string();
    traced(arguments, config.trace.as_ref())?;
    tell(arguments, Some(&name), &outcome.report, &again)?;
    if let Some(outputs) = outputs {
        outputs.write(&outcome.outputs)?;
    }
    verdict(&outcome.report)
}

/// The trace, where one was asked for.
///
/// # Errors
/// When its file cannot be written, or is the input.
pub fn trace(arguments: &Simulation, input: Option<&Path>) -> Result<Option<Trace>, Failure> {
    let Some(path) = &arguments.trace else { return Ok(None) };
    let file = files::create(path, input)?;
    Ok(Some(Trace::new(Box::new(BufWriter::with_capacity(1 << 16, file)))))
}

/// Ends the trace.
///
/// # Errors
/// When it could not be written.
pub fn traced(arguments: &Simulation, trace: Option<&Trace>) -> Result<(), Failure> {
    let (Some(path), Some(trace)) = (&arguments.trace, trace) else { return Ok(()) };
    trace
        .finish()
        .map_err(|e| Failure::Run(format!("cannot write {}: {}", path.display(), files::reason(&e))))
}

/// Prints the report, after the headline.
pub fn tell(
    arguments: &Simulation,
    input: Option<&str>,
    report: &Report,
    again: &str,
) -> Result<(), Failure> {
    if !arguments.json {
        return print(&text::report(report, again));
    }
    let json = serde_json::to_string(&Whole { input, again, report })
        .map_err(|e| Failure::Run(format!("cannot write the report: {e}")))?;
    print(&(json + "\n"))
}

/// Whether the run was as it should be.
pub fn verdict(report: &Report) -> Result<(), Failure> {
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
