//! The repository's own commands; `cargo xtask help` lists them.
//!
//! They need cargo, a C linker and a base system, the fuzzers a C++ compiler besides, and use
//! nothing but std.

mod apt;
mod boot;
mod counts;
mod fetch;
mod fuzz;
mod json;
mod process;
mod qemu;
mod sim;
mod steps;
mod tables;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [--only GROUP] [--list]   run every check, or one group of them, or list the groups
  qemu                           find or fetch QEMU, and print the path of its command
  boot                           build the freestanding image and boot it in QEMU
  bench pgtable|core|iotlb [ARGUMENTS] what page tables, core and machine, or the software IOTLB cost; pgtable and
                                 iotlb take --rounds N and --json FILE, pgtable --only NAME too
  fuzz [--seconds N]             run each fuzzer for N seconds (default 60)
  soak [--seeds N]               longer sweeps: hostile simulation seeds 0..N (default 200), loom, shuttle, fuzzers
  help                           print this

Output of the steps is kept in target/xtask/logs.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let command = match parse(&args) {
        Ok(command) => command,
        Err(wrong) => {
            eprintln!("xtask: {wrong}; `cargo xtask help` shows the usage");
            return ExitCode::from(2);
        }
    };
    match run(command, &Layout::of_this_repository()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Test { only: Option<String>, list: bool },
    Qemu,
    Boot,
    Bench { binary: &'static str, arguments: Vec<String> },
    Fuzz { seconds: u64 },
    Soak { seeds: u64 },
}

/// Where things are.
struct Layout {
    root: PathBuf,
    target: PathBuf,
}

impl Layout {
    fn of_this_repository() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => std::path::absolute(&dir).unwrap_or(dir.into()),
            None => root.join("target"),
        };
        Self { root, target }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.target.join("xtask/logs").join(name).with_extension("log")
    }
}

fn parse(args: &[String]) -> Result<Command, String> {
    let Some((command, mut rest)) = args.split_first() else {
        return Ok(Command::Help);
    };
    let mut command = match command.as_str() {
        "help" | "--help" | "-h" => Command::Help,
        "test" => Command::Test { only: None, list: false },
        "qemu" => Command::Qemu,
        "boot" => Command::Boot,
        "bench" => {
            let (what, arguments) = rest.split_first().ok_or("`bench` needs one of pgtable, core, iotlb")?;
            let binary = match what.as_str() {
                "pgtable" => "pgtable",
                "core" => "portcullis-benches",
                "iotlb" => "iotlb",
                other => return Err(format!("no bench `{other}`, there are pgtable, core, iotlb")),
            };
            return Ok(Command::Bench { binary, arguments: arguments.to_vec() });
        }
        "fuzz" => Command::Fuzz { seconds: 60 },
        "soak" => Command::Soak { seeds: 200 },
        other => {
            return Err(format!("no command `{other}`, there are test, qemu, boot, bench, fuzz, soak, help"));
        }
    };
    while let Some((option, more)) = rest.split_first() {
        let value = more.first().map(String::as_str);
        rest = more.get(1..).unwrap_or_default();
        match (&mut command, option.as_str()) {
            (Command::Test { list, .. }, "--list") => {
                *list = true;
                rest = more;
            }
            (Command::Test { only, .. }, option @ "--only") => {
                let groups = tables::groups();
                let group = value.filter(|group| groups.contains(group));
                *only = Some(group.ok_or_else(|| wrong(option, value, &groups.join(", ")))?.to_owned());
            }
            (Command::Fuzz { seconds }, "--seconds") => *seconds = count("--seconds", value)?,
            (Command::Soak { seeds }, "--seeds") => *seeds = count("--seeds", value)?,
            (command, option) => {
                let takes = match command {
                    Command::Test { .. } => "--only GROUP and --list",
                    Command::Fuzz { .. } => "--seconds N",
                    Command::Soak { .. } => "--seeds N",
                    Command::Help | Command::Qemu | Command::Boot | Command::Bench { .. } => "nothing",
                };
                return Err(format!("unknown argument `{option}`, the command takes {takes}"));
            }
        }
    }
    Ok(command)
}

/// Not 0, which would be a check that checks nothing, or a run without an end.
fn count(option: &str, value: Option<&str>) -> Result<u64, String> {
    let number = value.and_then(|v| v.parse::<NonZeroU32>().ok());
    let number = number.ok_or_else(|| wrong(option, value, &format!("1 to {}", u32::MAX)))?;
    Ok(number.get().into())
}

fn wrong(option: &str, value: Option<&str>, possible: &str) -> String {
    match value {
        Some(value) => format!("`{option} {value}` is wrong: it takes {possible}"),
        None => format!("`{option}` needs a value: {possible}"),
    }
}

/// Runs `command`; its code is 0 if nothing failed.
fn run(command: Command, at: &Layout) -> Result<ExitCode, String> {
    let steps = |table: &[steps::Step]| {
        steps::run(table, at).map(|passed| if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    };
    match command {
        Command::Help => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        Command::Test { list: true, .. } => {
            for step in tables::test() {
                println!("{:<12} {}", step.group, step.title);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Test { only, .. } => {
            let mut table = tables::test();
            table.retain(|step| only.as_deref().is_none_or(|group| group == step.group));
            steps(&table)
        }
        Command::Qemu => {
            println!("{}", qemu::obtain(at)?.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Boot => steps(&tables::boot()),
        Command::Bench { binary, arguments } => {
            let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
            let mut bench = std::process::Command::new(cargo);
            bench.args(["run", "--release", "-p", "portcullis-benches", "--bin", binary, "--"]);
            let status = bench.args(arguments).current_dir(&at.root).status();
            let code = status.map_err(|e| format!("cargo could not be run: {e}"))?.code();
            // A bench reads its own arguments, and says itself what is wrong with them.
            Ok(code.and_then(|c| u8::try_from(c).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
        }
        Command::Fuzz { seconds } => steps(&tables::fuzz(seconds)),
        Command::Soak { seeds } => steps(&tables::soak(seeds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        parse(&args)
    }

    #[test]
    fn arguments() {
        assert_eq!(parsed(""), Ok(Command::Help));
        assert_eq!(parsed("soak --seeds 7"), Ok(Command::Soak { seeds: 7 }));
        assert_eq!(
            parsed("test --only boot --list"),
            Ok(Command::Test { only: Some("boot".into()), list: true })
        );
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (line, names, possible) in [
            ("tset", "`tset`", "soak"),
            ("test --only", "`--only`", "sim"),
            ("test --only nothing", "nothing", "sim"),
            ("test unit", "`unit`", "--only"),
            ("qemu --seeds 3", "`--seeds`", "nothing"),
            ("soak --seeds many", "many", "1 to"),
            ("soak --seeds 0", " 0`", "1 to"),
            ("soak --seeds", "`--seeds`", "1 to"),
            ("soak 5", "`5`", "--seeds"),
            ("fuzz --seconds 99999999999", "99999999999", "1 to"),
            ("fuzz vtd", "`vtd`", "--seconds"),
            ("bench", "`bench`", "pgtable"),
            ("bench tables", "`tables`", "pgtable"),
        ] {
            let wrong = parsed(line).unwrap_err();
            assert!(wrong.contains(names) && wrong.contains(possible), "{line}: {wrong}");
        }
    }
}
