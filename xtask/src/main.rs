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
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
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
        other => return Err(format!("no command `{other}`")),
    };
    while let Some((option, more)) = rest.split_first() {
        let value = more.first().ok_or(format!("`{option}` needs a value"));
        rest = more.get(1..).unwrap_or_default();
        match (&mut command, option.as_str()) {
            (Command::Test { list, .. }, "--list") => {
                *list = true;
                rest = more;
            }
            (Command::Test { only, .. }, "--only") => {
                let group = value?;
                if !tables::groups().contains(&group.as_str()) {
                    return Err(format!(
                        "no group `{group}`, the groups are {}",
                        tables::groups().join(", ")
                    ));
                }
                *only = Some(group.clone());
            }
            (Command::Fuzz { seconds }, "--seconds") => {
                let number = value?;
                *seconds = number.parse().map_err(|_| format!("`{number}` is not a number of seconds"))?;
            }
            (Command::Soak { seeds }, "--seeds") => {
                let number = value?;
                *seeds = number.parse().map_err(|_| format!("`{number}` is not a number of seeds"))?;
            }
            _ => return Err(format!("unknown argument `{option}`")),
        }
    }
    Ok(command)
}

/// Runs `command`; true if nothing failed.
fn run(command: Command, at: &Layout) -> Result<bool, String> {
    match command {
        Command::Help => {
            println!("{USAGE}");
            Ok(true)
        }
        Command::Test { list: true, .. } => {
            for step in tables::test() {
                println!("{:<12} {}", step.group, step.title);
            }
            Ok(true)
        }
        Command::Test { only, .. } => {
            let mut table = tables::test();
            table.retain(|step| only.as_deref().is_none_or(|group| group == step.group));
            steps::run(&table, at)
        }
        Command::Qemu => {
            println!("{}", qemu::obtain(at)?.display());
            Ok(true)
        }
        Command::Boot => steps::run(&tables::boot(), at),
        Command::Bench { binary, arguments } => {
            let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
            let mut bench = std::process::Command::new(cargo);
            bench.args(["run", "--release", "-p", "portcullis-benches", "--bin", binary, "--"]);
            let status = bench.args(arguments).current_dir(&at.root).status();
            Ok(status.map_err(|e| format!("cargo could not be run: {e}"))?.success())
        }
        Command::Fuzz { seconds } => steps::run(&tables::fuzz(seconds), at),
        Command::Soak { seeds } => steps::run(&tables::soak(seeds), at),
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
        for (line, names) in [
            ("tset", "tset"),
            ("test --only", "--only"),
            ("test --only nothing", "nothing"),
            ("qemu --seeds 3", "--seeds"),
            ("soak --seeds many", "many"),
            ("fuzz --seconds few", "few"),
            ("bench", "pgtable"),
            ("bench tables", "tables"),
        ] {
            let wrong = parsed(line).unwrap_err();
            assert!(wrong.contains(names), "{line}: {wrong}");
        }
    }
}
