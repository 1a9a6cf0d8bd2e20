//! How many instructions a piece of work takes, held to what is kept in
//! `benches/instruction-counts.txt`.
//!
//! Callgrind counts a process that does the work n times, and one that does it 2n times: the
//! difference is the work's, exact and the same on every machine. What moves it is the compiler, so
//! the compiler is kept with the counts, and processor and features are fixed.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::steps::Tally;
use crate::{Layout, fetch, process};

const KEPT: &str = "benches/instruction-counts.txt";

/// More than this much above what is kept is a failure.
const TOLERATED: f64 = 1.05;

/// One run of a piece of work.
const LIMIT: Option<Duration> = Some(Duration::from_secs(300));

const COMMAND: &str = "valgrind";

/// Runs the fetched valgrind by its own loader and libraries; the tools themselves need none.
const WRAPPER: &str = r#"#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/usr
export VALGRIND_LIB="$root/libexec/valgrind"
exec "$root/lib64/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$root/lib/x86_64-linux-gnu" \
    "$root/bin/valgrind.bin" "$@"
"#;

/// One line of the file.
#[derive(Debug, PartialEq)]
struct Kept<'a> {
    binary: &'a str,
    work: &'a str,
    times: u64,
    instructions: f64,
}

/// Counts everything that is kept. With `UPDATE_COUNTS=1` in the environment the file is written
/// anew instead of compared.
pub fn check(at: &Layout, log: &Path) -> Tally {
    let file = at.root.join(KEPT);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) => return Tally::fail(format!("{KEPT}: {error}")),
    };
    let (kept_by, kept) = match parse(&text) {
        Ok(found) => found,
        Err(wrong) => return Tally::fail(format!("{KEPT}: {wrong}")),
    };
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Tally::skip("instructions are counted on x86-64 Linux only");
    }
    let update = std::env::var_os("UPDATE_COUNTS").is_some();
    let compiler = match compiler(log) {
        Ok(compiler) if update || compiler == kept_by => compiler,
        Ok(other) => return Tally::skip(format!("the counts are those of {kept_by}, and this is {other}")),
        Err(why) => return Tally::fail(why),
    };
    let valgrind = match obtain(at) {
        Ok(path) => path,
        Err(reason) => return Tally::skip(reason),
    };
    let folder = match build(at, &kept, log) {
        Ok(folder) => folder,
        Err(reason) => return Tally::fail(reason),
    };
    let mut tally = Tally::default();
    let mut lines = String::new();
    for entry in &kept {
        match count(&valgrind, &folder, entry, log) {
            Ok(now) if update => {
                let Kept { binary, work, times, .. } = entry;
                let _ = writeln!(lines, "{binary} {work} {times} {now:.1}");
                tally.passed += 1;
            }
            Ok(now) => judge(entry, now, &mut tally),
            Err(reason) => {
                tally.failed += 1;
                tally.reasons.push(format!("{}: {reason}", entry.work));
            }
        }
    }
    if update && tally.failed == 0 {
        let head = text.lines().filter(|line| line.starts_with('#') && !line.starts_with(BY));
        let head: String = head.map(|line| format!("{line}\n")).collect();
        if let Err(error) = fs::write(&file, format!("{head}{BY}{compiler}\n{lines}")) {
            return Tally::fail(format!("{KEPT}: {error}"));
        }
    }
    tally
}

fn judge(kept: &Kept<'_>, now: f64, tally: &mut Tally) {
    let (work, before) = (kept.work, kept.instructions);
    if now > before * TOLERATED {
        tally.failed += 1;
        tally.reasons.push(format!("{work}: {now:.1} instructions, and {before:.1} are kept in {KEPT}"));
    } else {
        tally.passed += 1;
        if now * TOLERATED < before {
            tally.reasons.push(format!(
                "{work}: only {now:.1} instructions, {before:.1} are kept: keep the new count"
            ));
        }
    }
}

/// Before the compiler's name.
const BY: &str = "# counted with ";

/// The compiler and the lines.
fn parse(text: &str) -> Result<(&str, Vec<Kept<'_>>), String> {
    let by = text.lines().find_map(|line| line.strip_prefix(BY)).ok_or("it does not name the compiler")?;
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let kept = lines.map(|line| {
        let wrong = || format!("`{line}` is not: program, work, repetitions, instructions");
        let [binary, work, times, instructions] =
            line.split_whitespace().collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
        let times = times.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?;
        let instructions = instructions.parse().ok().filter(|n| *n > 0.0).ok_or_else(wrong)?;
        Ok(Kept { binary, work, times, instructions })
    });
    Ok((by, kept.collect::<Result<_, String>>()?))
}

/// Release and date of the compiler that cargo uses.
fn compiler(log: &Path) -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let asked = process::run(Command::new(rustc).arg("--version"), log, LIMIT)
        .map_err(|error| format!("cannot start rustc: {error}"))?;
    asked.success()?;
    Ok(asked.output.trim().to_string())
}

/// Builds the programs for the least processor of the architecture.
fn build(at: &Layout, kept: &[Kept<'_>], log: &Path) -> Result<PathBuf, String> {
    let folder = at.target.join("counts");
    let mut command = process::cargo(&at.root);
    command
        .args(["build", "--release", "-p", "portcullis-benches", "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", "-C target-cpu=x86-64 -C target-feature=+cmpxchg16b")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let mut binaries: Vec<&str> = kept.iter().map(|entry| entry.binary).collect();
    binaries.dedup();
    for binary in binaries {
        command.args(["--bin", binary]);
    }
    process::run(&mut command, log, None)
        .map_err(|error| format!("cannot start cargo: {error}"))?
        .success()
        .map_err(|how| format!("the build failed: {how}"))?;
    Ok(folder.join("release"))
}

/// Instructions for one repetition.
fn count(valgrind: &Path, folder: &Path, kept: &Kept<'_>, log: &Path) -> Result<f64, String> {
    let all = |times: u64| -> Result<u64, String> {
        let mut command = Command::new(valgrind);
        command
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(folder.join(kept.binary))
            .args(["--count", kept.work, "--iterations", &times.to_string()]);
        let ended = process::run(&mut command, log, LIMIT)
            .map_err(|error| format!("cannot start valgrind: {error}"))?;
        ended.success()?;
        collected(&ended.output).ok_or_else(|| "valgrind tells no count".into())
    };
    let (once, twice) = (all(kept.times)?, all(kept.times * 2)?);
    Ok(twice.saturating_sub(once) as f64 / kept.times as f64)
}

/// The number in `==1== Collected : 123`.
fn collected(output: &str) -> Option<u64> {
    let (_, number) = output.lines().rfind(|line| line.contains("Collected :"))?.split_once("Collected :")?;
    number.trim().parse().ok()
}

/// The path of valgrind, or one line why there is none: the one fetched before, the one in PATH, or
/// one fetched now.
fn obtain(at: &Layout) -> Result<PathBuf, String> {
    let log = at.log("valgrind");
    let probe = |command: &Path| {
        let asked = process::run(
            Command::new(command).args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "/bin/true"]),
            &log,
            Some(Duration::from_secs(60)),
        );
        asked.map_err(|error| format!("it does not start: {error}"))?.success()
    };
    let fetched = at.target.join("valgrind").join(COMMAND);
    if fetched.exists() && probe(&fetched).is_ok() {
        return Ok(fetched);
    }
    if probe(Path::new(COMMAND)).is_ok() {
        return Ok(COMMAND.into());
    }
    let package = fetch::Package { name: "valgrind", command: COMMAND, wrapper: WRAPPER };
    package
        .fetch(at, "valgrind", &probe, &log)
        .map_err(|why| format!("no valgrind: not in PATH, and fetching it failed: {why}"))?;
    Ok(fetched)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: Kept<'_> = Kept { binary: "pgtable", work: "vtd-ss/pair", times: 1000, instructions: 100.0 };

    #[test]
    fn the_file_is_read() {
        let text = "# Words.\n# counted with rustc 1\npgtable vtd-ss/pair 1000 100.0\n";
        assert_eq!(parse(text), Ok(("rustc 1", vec![ENTRY])));
        for wrong in ["pgtable vtd-ss/pair 1000", "a b 0 1", "a b 1 many", "a b 1 0"] {
            assert!(parse(&format!("# counted with rustc 1\n{wrong}\n")).unwrap_err().contains(wrong));
        }
        assert!(parse("a b 1 1\n").is_err());
    }

    #[test]
    fn the_kept_file_can_be_read() {
        let (_, kept) = parse(include_str!("../../benches/instruction-counts.txt")).unwrap();
        assert!(kept.len() >= 6);
    }

    #[test]
    fn growth_is_a_failure_and_shrinking_is_told() {
        let judged = |now| {
            let mut tally = Tally::default();
            judge(&ENTRY, now, &mut tally);
            (tally.passed, tally.failed, tally.reasons.len())
        };
        assert_eq!(judged(104.9), (1, 0, 0));
        assert_eq!(judged(105.1), (0, 1, 1));
        assert_eq!(judged(90.0), (1, 0, 1));
    }

    #[test]
    fn counts_are_found() {
        let said = "==7== Events    : Ir\n==7== Collected : 28115\n==7== \n";
        assert_eq!(collected(said), Some(28115));
        assert_eq!(collected("==7== Events"), None);
    }
}
