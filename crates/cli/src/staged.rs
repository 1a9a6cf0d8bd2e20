//! Scenarios other than the copy: by name, with the options that each takes.

use crate::{Failure, arguments::Simulation, print, sim, table};
use portcullis_machine::scenario::{ALL, Amount, Listed, copy::MOST_THREADS, stage::Setting};
use std::fmt::Write;

/// The name of the scenario that is not among those on a stage.
const COPY: &str = "copy";
const ABOUT_COPY: &str = "engines copy a file that is paged in on demand, beside two rogues (the default)";

/// A line for each scenario.
pub fn list() -> String {
    let lines: Vec<(String, &str)> = [(COPY.into(), ABOUT_COPY)]
        .into_iter()
        .chain(ALL.iter().map(|listed| (listed.word(), listed.about)))
        .collect();
    let width = lines.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (word, about) in lines {
        let _ = writeln!(out, "{word:width$}  {about}");
    }
    out
}

/// Runs the scenario that was asked for and reports.
///
/// # Errors
/// When there is none of that name, when it does not take an option that was given, and when
/// something in it was not as it should be.
pub fn run(arguments: &Simulation) -> Result<(), Failure> {
    let listed = find(&arguments.scenario)?;
    let setting = Setting { trace: sim::trace(arguments, None)?, ..setting(&listed, arguments)? };
    if !arguments.json {
        print(&headline(&listed, &setting))?;
    }
    let ending = (listed.run)(&setting);
    sim::traced(arguments, setting.trace.as_ref())?;
    let report = ending.report(&setting);
    sim::tell(arguments, None, &report, &again(&listed, &setting))?;
    sim::verdict(&report)
}

fn find(name: &str) -> Result<Listed, Failure> {
    ALL.into_iter().find(|listed| listed.word() == name || listed.name == name).ok_or_else(|| {
        let words: Vec<String> = ALL.iter().map(Listed::word).collect();
        Failure::Argument(format!("--scenario: there is no `{name}`; there are {COPY}, {}", words.join(", ")))
    })
}

fn setting(listed: &Listed, arguments: &Simulation) -> Result<Setting, Failure> {
    let word = listed.word();
    for (option, given) in [
        ("--input", arguments.input.is_some()),
        ("--output", arguments.output.is_some()),
        ("--frames", arguments.frames.is_some()),
    ] {
        if given {
            return Err(Failure::Argument(format!("{option}: {word} copies no file")));
        }
    }
    if let Some(n) = arguments.threads
        && !(1..=MOST_THREADS).contains(&n)
    {
        return Err(Failure::Argument(format!("--threads: {n} threads: at least 1, at most {MOST_THREADS}")));
    }
    Ok(Setting {
        size: amount("--size", &word, listed.size, arguments.size)?,
        devices: amount("--devices", &word, listed.devices, arguments.devices)?,
        threads: arguments.threads,
        adversary: arguments.adversary.into(),
        ..Setting::new(arguments.seed)
    })
}

fn amount(
    option: &str,
    word: &str,
    takes: Option<Amount>,
    given: Option<usize>,
) -> Result<Option<usize>, Failure> {
    match (takes, given) {
        (_, None) => Ok(None),
        (None, Some(_)) => Err(Failure::Argument(format!("{option}: {word} is always the same"))),
        (Some(takes), Some(n)) if (takes.least..=takes.most).contains(&n) => Ok(Some(n)),
        (Some(Amount { of, least, most, .. }), Some(n)) => {
            Err(Failure::Argument(format!("{option}: {n} {of}: at least {least}, at most {most}")))
        }
    }
}

fn headline(listed: &Listed, setting: &Setting) -> String {
    let amount = |takes: Option<Amount>, given: Option<usize>| {
        takes.map(|a| format!("{} {}, ", given.unwrap_or(a.usual), a.of)).unwrap_or_default()
    };
    let text = format!(
        "{}: {}. {}{}seed {}, adversary {}.",
        table::capital(listed.name),
        listed.about,
        amount(listed.devices, setting.devices),
        amount(listed.size, setting.size),
        setting.seed,
        format!("{:?}", setting.adversary).to_lowercase(),
    );
    let mut out = String::new();
    table::wrapped(&mut out, "", &text);
    out
}

/// The command that repeats a run.
fn again(listed: &Listed, setting: &Setting) -> String {
    let mut out = format!("portcullis sim --scenario {}", listed.word());
    let options = [("devices", setting.devices), ("size", setting.size)];
    for (option, n) in options {
        if let Some(n) = n {
            let _ = write!(out, " --{option} {n}");
        }
    }
    let level = format!("{:?}", setting.adversary).to_lowercase();
    let _ = write!(out, " --seed {} --adversary {level}", setting.seed);
    if let Some(n) = setting.threads {
        let _ = write!(out, " --threads {n}");
    }
    out
}
