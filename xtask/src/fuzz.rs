//! The fuzzers in `fuzz/`: built with coverage by the stable compiler, run by libFuzzer.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::steps::Tally;
use crate::{Layout, process};

/// Its bins, and folders in `fuzz/corpus`.
pub const TARGETS: [&str; 4] = ["dmar", "vtd", "intake", "pgtable"];

/// LLVM's coverage for libFuzzer, which needs no unstable flag. `RUSTFLAGS` replaces the flags of
/// `.cargo/config.toml`, so they stand here again.
const COVERAGE: &[&str] = &[
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    #[cfg(target_arch = "x86_64")]
    "-Ctarget-feature=+cmpxchg16b",
];

/// Less coverage than this, in edges, is no coverage: the instrumentation is not there.
const LEAST_COVERAGE: u64 = 200;

/// What a run may take beyond its time: one input may take 10 s.
const GRACE: Duration = Duration::from_secs(60);

/// Builds the fuzzers, and runs one for some seconds from what is kept of its inputs. New inputs
/// stay in the target folder, and the next run begins with them too.
pub fn check(target: &str, seconds: u64, at: &Layout, log: &Path) -> Tally {
    if !has_cxx(log) {
        return Tally::skip("no C++ compiler, which libFuzzer is built with (c++, or CXX)");
    }
    match build(at, log).and_then(|folder| run(&folder.join(target), target, seconds, at, log)) {
        Ok(found) => Tally { reasons: vec![found], ..Tally::pass() },
        Err(reason) => Tally::fail(reason),
    }
}

fn has_cxx(log: &Path) -> bool {
    let compiler = std::env::var_os("CXX").unwrap_or("c++".into());
    process::run(Command::new(compiler).arg("--version"), log, None).is_ok_and(|ended| ended.code == Some(0))
}

fn build(at: &Layout, log: &Path) -> Result<PathBuf, String> {
    // A target that is named keeps the flags away from build scripts.
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let folder = at.target.join("fuzz");
    let mut command = process::cargo(&at.root);
    command
        .args(["build", "--manifest-path", "fuzz/Cargo.toml", "--release", "--features", "libfuzzer"])
        .args(["--bins", "--target", &triple, "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", COVERAGE.join(" "))
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::run(&mut command, log, None)
        .map_err(|error| format!("cannot start cargo: {error}"))?
        .success()
        .map_err(|how| format!("the build failed: {how}"))?;
    Ok(folder.join(triple).join("release"))
}

fn run(fuzzer: &Path, target: &str, seconds: u64, at: &Layout, log: &Path) -> Result<String, String> {
    let found = at.target.join("fuzz/corpus").join(target);
    let crashes = at.target.join("fuzz/crashes");
    for folder in [&found, &crashes] {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let mut command = Command::new(fuzzer);
    command
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=10", "-rss_limit_mb=1024", "-max_len=4096", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/{target}-", crashes.display()))
        .arg(&found)
        .arg(at.root.join("fuzz/corpus").join(target));
    let ended = process::run(&mut command, log, Some(Duration::from_secs(seconds) + GRACE))
        .map_err(|error| format!("cannot start {}: {error}", fuzzer.display()))?;
    ended.success().map_err(|how| match artifact(&ended.output) {
        Some(input) => format!("{target}: {how}; the input is {input}"),
        None => format!("{target}: {how}"),
    })?;
    verdict(target, &ended.output)
}

/// Where libFuzzer has put the input that failed.
fn artifact(output: &str) -> Option<&str> {
    output.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path)
}

/// What was run, if it was run with coverage.
fn verdict(target: &str, output: &str) -> Result<String, String> {
    let done =
        output.lines().rfind(|line| line.contains("DONE")).ok_or("libFuzzer does not say it is done")?;
    let mut words = done.split_whitespace();
    let runs = words.next().unwrap_or_default().trim_start_matches('#');
    let edges = words.skip_while(|word| *word != "cov:").nth(1).and_then(|n| n.parse::<u64>().ok());
    match edges {
        Some(edges) if edges >= LEAST_COVERAGE => Ok(format!("{target}: {runs} runs, {edges} edges")),
        _ => Err(format!("{target} ran without coverage: `{done}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_edges_are_told() {
        let output = "#2\tINITED cov: 664 ft: 665 corp: 1/1b\n\
            #83889\tDONE   cov: 864 ft: 2313 corp: 358/20Kb lim: 122 exec/s: 3994 rss: 29Mb\n";
        assert_eq!(verdict("vtd", output), Ok("vtd: 83889 runs, 864 edges".into()));
    }

    #[test]
    fn a_fuzzer_without_coverage_has_failed() {
        assert!(verdict("vtd", "#9\tDONE   corp: 1/1b lim: 4 exec/s: 0 rss: 29Mb\n").is_err());
        assert!(verdict("vtd", "#9\tDONE   cov: 3 ft: 3 corp: 1/1b\n").is_err());
        assert!(verdict("vtd", "").is_err());
    }

    #[test]
    fn the_input_that_failed_is_named() {
        let output = "artifact_prefix='x/'; Test unit written to x/vtd-crash-12\nBase64: RlVaIQM=\n";
        assert_eq!(artifact(output), Some("x/vtd-crash-12"));
    }
}
