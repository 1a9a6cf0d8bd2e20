//! The simulation, run through the command line as a user runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Layout, process};

/// What is run.
pub enum Sweep {
    /// No arguments: the input is the executable itself.
    Default,
    /// The hostile adversary over a file of 1 MiB, seeds 0..`seeds`.
    Hostile { seeds: u64 },
    /// One hostile seed twice: the reports are equal but for "timing".
    Repeat { seed: u64 },
}

const INPUT_BYTES: usize = 1 << 20;

/// A run takes seconds at most; one that takes this long hangs.
const LIMIT: Duration = Duration::from_secs(120);

pub fn check(sweep: &Sweep, at: &Layout, log: &Path) -> Result<(), String> {
    let portcullis = build(at, log)?;
    match sweep {
        Sweep::Default => match simulate(&portcullis, &["sim"], log)?.trim() {
            "" => Err("it reported nothing".into()),
            _ => Ok(()),
        },
        Sweep::Hostile { seeds } => {
            let input = input(at)?;
            for seed in 0..*seeds {
                let report = hostile(&portcullis, &input, seed, log)?;
                without_timing(&report).map_err(|why| format!("seed {seed}: {why}"))?;
            }
            Ok(())
        }
        Sweep::Repeat { seed } => {
            let input = input(at)?;
            let first = hostile(&portcullis, &input, *seed, log)?;
            let again = hostile(&portcullis, &input, *seed, log)?;
            if without_timing(&first)? == without_timing(&again)? {
                Ok(())
            } else {
                Err(format!("seed {seed} gave two different reports"))
            }
        }
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

fn hostile(portcullis: &Path, input: &Path, seed: u64, log: &Path) -> Result<String, String> {
    let (input, number) = (input.display().to_string(), seed.to_string());
    let args = ["sim", "--adversary", "hostile", "--json", "--input", &input, "--seed", &number];
    simulate(portcullis, &args, log).map_err(|how| format!("seed {seed}: {how}"))
}

fn simulate(portcullis: &Path, args: &[&str], log: &Path) -> Result<String, String> {
    let ended = process::run(Command::new(portcullis).args(args), log, Some(LIMIT))
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

/// The report with the object under its key "timing" cut out.
fn without_timing(report: &str) -> Result<String, String> {
    let key = "\"timing\":";
    let start = report.find(key).ok_or("the report has no \"timing\"")?;
    let mut depth = 0_u32;
    let mut in_string = false;
    let mut escaped = false;
    for (i, byte) in report.bytes().enumerate().skip(start + key.len()) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' if !in_string => depth += 1,
            b'}' if !in_string && depth == 0 => break,
            b'}' if !in_string => {
                depth -= 1;
                if depth == 0 {
                    return Ok(format!("{}{}", &report[..start], &report[i + 1..]));
                }
            }
            _ => {}
        }
    }
    Err("\"timing\" is not an object".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timing_is_cut_out_whole() {
        let report = r#"{"a":1,"timing":{"b":{"c":"}"},"d":"\"}"},"e":2}"#;
        assert_eq!(without_timing(report).unwrap(), r#"{"a":1,,"e":2}"#);
        assert!(without_timing(r#"{"timing":3}"#).is_err());
        assert!(without_timing(r#"{"a":1}"#).is_err());
    }
}
