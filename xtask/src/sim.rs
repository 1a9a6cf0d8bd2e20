//! The simulation, run through the command line as a user runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Layout, json, process};

/// What is run.
pub enum Sweep {
    /// No arguments: the input is the executable itself.
    Default,
    /// The hostile adversary, seeds 0..`seeds`.
    Hostile { scenario: Scenario, seeds: u64 },
    /// The same on real threads, four of them workers.
    Threads { scenario: Scenario, runs: u64 },
    /// One hostile seed twice: the reports are equal but for "timing".
    Repeat { seed: u64 },
}

/// Which scenario.
#[derive(Clone, Copy)]
pub enum Scenario {
    /// A file of 1 MiB is copied.
    Copy,
    /// Everything changes while data flows.
    Churn,
}

const INPUT_BYTES: usize = 1 << 20;

/// A run takes seconds at most; one that takes this long hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// What the run without arguments may take.
const DEFAULT_LIMIT: Duration = Duration::from_secs(5);

/// Runs a sweep. What it found, if that is worth a line.
pub fn check(sweep: &Sweep, at: &Layout, log: &Path) -> Result<Option<String>, String> {
    let portcullis = build(at, log)?;
    match sweep {
        Sweep::Default => {
            let report = simulate(&portcullis, &["sim"], log, DEFAULT_LIMIT)?;
            match report.contains("The life of one page request") {
                true => Ok(None),
                false => Err("its report does not come to its end".into()),
            }
        }
        Sweep::Hostile { scenario, seeds } => {
            let mut met = Met::default();
            for seed in 0..*seeds {
                let report = hostile(&portcullis, *scenario, &input(at)?, seed, &[], log)?;
                met.add(&report).map_err(|why| format!("seed {seed}: {why}"))?;
            }
            met.verdict(*seeds, *scenario).map(Some)
        }
        Sweep::Threads { scenario, runs } => {
            let (mut at_once, mut served) = (0, 0);
            for seed in 0..*runs {
                let threads = ["--threads", "4"];
                let report = hostile(&portcullis, *scenario, &input(at)?, seed, &threads, log)?;
                at_once = at_once.max(number(&report, "resolvers_at_once")?);
                served += number(json::member(&report, "threads")?, "served")?;
            }
            if at_once < 2 {
                return Err("no two resolvers ran at the same time".into());
            }
            Ok(Some(format!("{served} page faults served, {at_once} resolvers at once at most")))
        }
        Sweep::Repeat { seed } => {
            let input = input(at)?;
            let first = hostile(&portcullis, Scenario::Copy, &input, *seed, &[], log)?;
            let again = hostile(&portcullis, Scenario::Copy, &input, *seed, &[], log)?;
            if without_timing(&first)? == without_timing(&again)? {
                Ok(None)
            } else {
                Err(format!("seed {seed} gave two different reports"))
            }
        }
    }
}

/// What the runs of a sweep met, all together.
#[derive(Default)]
struct Met {
    schedules: BTreeSet<String>,
    actions: BTreeMap<String, u64>,
}

impl Met {
    fn add(&mut self, report: &str) -> Result<(), String> {
        if json::member(report, "ok")? != "true" {
            return Err("the report is not ok, though the exit code says so".into());
        }
        self.schedules.insert(json::member(report, "schedule_hash")?.into());
        let actions = json::member(report, "adversary_actions")?;
        for (kind, n) in json::members(actions).ok_or("the actions are no object")? {
            let n: u64 = n.parse().map_err(|_| format!("`{n}` is not a number of actions"))?;
            *self.actions.entry(kind.into()).or_default() += n;
        }
        Ok(())
    }

    /// Nearly every seed must be a schedule of its own, and, of copies, every kind of action have
    /// occurred.
    fn verdict(&self, seeds: u64, scenario: Scenario) -> Result<String, String> {
        let distinct = self.schedules.len() as u64;
        if distinct * 20 < seeds * 19 {
            return Err(format!("{seeds} seeds gave only {distinct} different schedules"));
        }
        let never: Vec<_> = self.actions.iter().filter(|(_, n)| **n == 0).map(|(kind, _)| kind).collect();
        let every = matches!(scenario, Scenario::Copy);
        if every && !never.is_empty() || self.actions.is_empty() {
            return Err(format!("the adversary never did: {never:?}"));
        }
        let actions: Vec<_> = self.actions.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        Ok(format!("{distinct} different schedules; {}", actions.join(", ")))
    }
}

fn build(at: &Layout, log: &Path) -> Result<PathBuf, String> {
    let mut command = process::cargo(&at.root);
    command.args(["build", "--release", "-p", "portcullis-cli"]);
    process::run(&mut command, log, None)
        .map_err(|error| format!("cannot start cargo: {error}"))?
        .success()
        .map_err(|how| format!("the build failed: {how}"))?;
    Ok(at.target.join("release/portcullis"))
}

fn hostile(
    portcullis: &Path,
    scenario: Scenario,
    input: &Path,
    seed: u64,
    more: &[&str],
    log: &Path,
) -> Result<String, String> {
    let (input, number) = (input.display().to_string(), seed.to_string());
    let mut args = vec!["sim", "--adversary", "hostile", "--json", "--seed", &number];
    args.extend(match scenario {
        Scenario::Copy => ["--input", &input],
        Scenario::Churn => ["--scenario", "churn"],
    });
    args.extend(more);
    simulate(portcullis, &args, log, LIMIT).map_err(|how| format!("seed {seed}: {how}"))
}

fn number(report: &str, member: &str) -> Result<u64, String> {
    let n = json::member(report, member)?;
    n.parse().map_err(|_| format!("`{n}` of {member} is no number"))
}

fn simulate(portcullis: &Path, args: &[&str], log: &Path, limit: Duration) -> Result<String, String> {
    let ended = process::run(Command::new(portcullis).args(args), log, Some(limit))
        .map_err(|error| format!("cannot start {}: {error}", portcullis.display()))?;
    ended.success()?;
    Ok(ended.output)
}

/// A file whose pages all differ, the same on every machine.
fn input(at: &Layout) -> Result<PathBuf, String> {
    let path = at.target.join("xtask/input");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(INPUT_BYTES);
    while bytes.len() < INPUT_BYTES {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

/// The report's members but "timing", which it must have.
fn without_timing(report: &str) -> Result<Vec<(&str, &str)>, String> {
    json::member(report, "timing")?;
    let mut members = json::members(report).unwrap_or_default();
    members.retain(|(key, _)| *key != "timing");
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_compared_without_their_timing() {
        let report = |seconds: &str| format!(r#"{{"a":1,"timing":{{"seconds":{seconds}}},"e":2}}"#);
        let (one, two) = (report("0.5"), report("0.7"));
        assert_eq!(without_timing(&one), without_timing(&two));
        assert_eq!(without_timing(&one).unwrap(), [("a", "1"), ("e", "2")]);
        assert!(without_timing(r#"{"a":1}"#).is_err());
    }

    #[test]
    fn a_sweep_needs_different_schedules_and_every_kind_of_action() {
        let report = |hash: u64, evict: u64| {
            format!(
                r#"{{"ok":true,"schedule_hash":"{hash}","adversary_actions":{{"delay":1,"evict":{evict}}}}}"#
            )
        };
        let sweep = |reports: &[String]| {
            let mut met = Met::default();
            reports.iter().for_each(|r| met.add(r).unwrap());
            met.verdict(reports.len() as u64, Scenario::Copy)
        };
        assert!(sweep(&[report(1, 0), report(2, 3)]).is_ok());
        assert!(sweep(&[report(1, 1), report(1, 3)]).unwrap_err().contains("only 1"));
        assert!(sweep(&[report(1, 0), report(2, 0)]).unwrap_err().contains("evict"));
        assert!(Met::default().add(r#"{"ok":false}"#).is_err());
    }
}
