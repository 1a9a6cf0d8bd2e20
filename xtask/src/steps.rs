//! The runner: takes a table of steps, prints a line for each, and closes with the sum.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::{Layout, boot, counts, fuzz, process, qemu, sim};

/// One row of a table: what is run, and what it is called.
pub struct Step {
    /// The group that `--only` selects.
    pub group: &'static str,
    /// What the step checks, in a few words.
    pub title: String,
    pub action: Action,
}

/// What a step does, and how its result is counted.
pub enum Action {
    /// A cargo command; one check.
    Cargo { args: &'static [&'static str], env: Vec<(&'static str, String)> },
    /// A cargo command, and then the program that it built, in the target folder; one check.
    Built { args: &'static [&'static str], program: &'static str },
    /// A cargo command that runs libtest binaries, whose own counts are added up.
    Tests {
        args: &'static [&'static str],
        env: Vec<(&'static str, String)>,
        /// Hand QEMU over in `PORTCULLIS_QEMU`.
        qemu: bool,
    },
    /// The freestanding image, with or without its mapping, on one kind of unit; one check.
    Boot(boot::Image, boot::Unit),
    /// A fuzzer, for so many seconds; one check.
    Fuzz { target: &'static str, seconds: u64 },
    /// Instruction counts; one check for each that is kept.
    Counts,
    /// The simulation through the command line; one check.
    Sim(sim::Sweep),
}

/// How many checks passed, failed and were skipped, with a line for each skip.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
    /// Why, and what else is worth telling, one line each.
    pub reasons: Vec<String>,
}

impl Tally {
    pub fn pass() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    pub fn fail(reason: impl Into<String>) -> Self {
        Self { failed: 1, reasons: vec![reason.into()], ..Self::default() }
    }

    pub fn skip(reason: impl Into<String>) -> Self {
        Self { skipped: 1, reasons: vec![reason.into()], ..Self::default() }
    }
}

impl From<Result<(), String>> for Tally {
    fn from(result: Result<(), String>) -> Self {
        match result {
            Ok(()) => Self::pass(),
            Err(reason) => Self::fail(reason),
        }
    }
}

/// A test that cannot run prints a line that starts with this word and returns. libtest has no
/// skip of its own and counts it as passed; we move it to where it belongs.
const SKIP: &str = "PORTCULLIS-SKIP";

/// Lines of a failed step's output that are shown; the rest is in its log.
const SHOWN: usize = 400;

/// Runs the steps in order; true if none failed.
pub fn run(table: &[Step], at: &Layout) -> Result<bool, String> {
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let mut sum = Tally::default();
    for (number, step) in table.iter().enumerate() {
        let log = at.log(&format!("{:02}-{}", number + 1, step.group));
        if let Err(error) = fs::remove_file(&log)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(format!("{}: {error}", log.display()));
        }

        print!("{:<12} {} ... ", step.group, step.title);
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let mut tally = perform(&step.action, at, &log);
        if in_ci && tally.skipped > 0 {
            tally.failed += std::mem::take(&mut tally.skipped);
            tally.reasons.push("with CI=true a skip is a failure".into());
        }

        let verdict = match (&tally.failed, &tally.skipped) {
            (0, 0) => format!("ok, {}", tally.passed),
            (0, skipped) => format!("ok, {}; {skipped} skipped", tally.passed),
            (failed, _) => format!("FAILED, {failed}"),
        };
        println!("{verdict} ({:.1} s)", start.elapsed().as_secs_f32());
        for reason in &tally.reasons {
            println!("{:<12} {reason}", "");
        }
        if tally.failed > 0 {
            show(&log);
        }
        sum.passed += tally.passed;
        sum.failed += tally.failed;
        sum.skipped += tally.skipped;
    }
    println!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.skipped);
    Ok(sum.failed == 0)
}

fn perform(action: &Action, at: &Layout, log: &Path) -> Tally {
    let cargo = |args: &[&str], env: &[(&str, String)]| {
        let mut command = process::cargo(&at.root);
        command.args(args);
        for (name, value) in env {
            // Relative folders are relative to where everything built lives.
            match *name {
                "CARGO_TARGET_DIR" => command.env(name, at.target.join(value)),
                _ => command.env(name, value),
            };
        }
        command
    };
    match action {
        Action::Cargo { args, env } => {
            if let Some(tool @ ("fmt" | "clippy")) = args.first().copied() {
                let asked = process::run(&mut cargo(&[tool, "--version"], &[]), log, None);
                if !asked.is_ok_and(|ended| ended.code == Some(0)) {
                    return Tally::skip(format!("this toolchain has no `cargo {tool}`"));
                }
            }
            succeeds(&mut cargo(args, env), log).into()
        }
        Action::Built { args, program } => {
            let mut program = Command::new(at.target.join(program));
            let built = succeeds(&mut cargo(args, &[]), log);
            built.and_then(|()| succeeds(program.current_dir(&at.root), log)).into()
        }
        Action::Tests { args, env, qemu: with_qemu } => {
            let mut command = cargo(args, env);
            let mut missing = None;
            if *with_qemu {
                match qemu::obtain(at) {
                    Ok(path) => _ = command.env("PORTCULLIS_QEMU", path),
                    Err(reason) => {
                        command.env_remove("PORTCULLIS_QEMU");
                        missing = Some(reason);
                    }
                }
            }
            let mut tally = match process::run(&mut command, log, None) {
                Ok(ended) => count(&ended.output, ended.success()),
                Err(error) => Tally::fail(format!("cannot start cargo: {error}")),
            };
            tally.reasons.extend(missing);
            tally
        }
        Action::Boot(image, unit) => match qemu::obtain(at) {
            Ok(path) => boot::check(*image, *unit, &path, at, log).into(),
            Err(reason) => Tally::skip(reason),
        },
        Action::Fuzz { target, seconds } => fuzz::check(target, *seconds, at, log),
        Action::Counts => counts::check(at, log),
        Action::Sim(sweep) => match sim::check(sweep, at, log) {
            Ok(found) => Tally { reasons: found.into_iter().collect(), ..Tally::pass() },
            Err(reason) => Tally::fail(reason),
        },
    }
}

fn succeeds(command: &mut Command, log: &Path) -> Result<(), String> {
    let ended = process::run(command, log, None);
    ended.map_err(|e| format!("cannot start {}: {e}", command.get_program().display()))?.success()
}

/// Adds up the summaries that libtest wrote.
fn count(output: &str, ended: Result<(), String>) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines() {
        if let Some(reason) = line.strip_prefix(SKIP) {
            tally.skipped += 1;
            let reason = reason.trim_start_matches([':', ' ']).to_string();
            if !tally.reasons.contains(&reason) {
                tally.reasons.push(reason);
            }
        } else if let Some(summary) = line.strip_prefix("test result: ") {
            for part in summary.split([';', '.']) {
                let mut words = part.split_whitespace();
                let number = words.next().and_then(|word| word.parse::<usize>().ok());
                match (number, words.next()) {
                    (Some(n), Some("passed")) => tally.passed += n,
                    (Some(n), Some("failed")) => tally.failed += n,
                    (Some(n), Some("ignored")) => tally.skipped += n,
                    _ => {}
                }
            }
        }
    }
    let said_so = output.lines().filter(|line| line.starts_with(SKIP)).count();
    tally.passed = tally.passed.saturating_sub(said_so);

    if let Err(how) = ended {
        if tally.failed == 0 {
            tally.failed = 1; // It did not build, or a test binary died before its summary.
        }
        tally.reasons.push(how);
    } else if tally.passed + tally.failed + tally.skipped == 0 {
        tally.failed = 1;
        tally.reasons.push("no test ran".into());
    }
    tally
}

fn show(log: &Path) {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let hidden = lines.len().saturating_sub(SHOWN);
    println!("---- {}", log.display());
    if hidden > 0 {
        println!("({hidden} lines before this one are left out)");
    }
    for line in &lines[hidden..] {
        println!("{line}");
    }
    println!("----");
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_BINARIES: &str = "\
running 3 tests
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
PORTCULLIS-SKIP: no QEMU
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.23s
";

    #[test]
    fn summaries_are_added_and_skips_are_not_passes() {
        assert_eq!(
            count(TWO_BINARIES, Ok(())),
            Tally { passed: 4, failed: 0, skipped: 2, reasons: vec!["no QEMU".into()] }
        );
    }

    #[test]
    fn a_binary_that_dies_is_a_failure_though_no_summary_says_so() {
        let tally = count(TWO_BINARIES, Err("exit code 101".into()));
        assert_eq!(tally.failed, 1);
    }

    #[test]
    fn a_failed_summary_counts_its_own_failures() {
        let failed = "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured\n";
        let tally = count(failed, Err("exit code 101".into()));
        assert_eq!((tally.passed, tally.failed), (5, 2));
    }

    #[test]
    fn a_step_that_ran_no_test_has_failed() {
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured\n";
        assert_eq!(count(none, Ok(())).failed, 1);
    }
}
