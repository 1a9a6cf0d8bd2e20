//! The `portcullis` command.
#![forbid(unsafe_code)]

mod arguments;
mod files;
mod model;
mod pgtable;
mod progress;
mod sim;
mod staged;
mod table;
mod text;

use arguments::{Command, Model, Pgtable, Portcullis};
use clap::{CommandFactory, Parser, error::ErrorKind};
use std::{
    io::{self, Write},
    process::ExitCode,
};

/// Why a command did not do what it was asked to. Each is told in one line.
pub enum Failure {
    /// An argument, or a file that one names, is of no use.
    Argument(String),
    /// Something else went wrong after the arguments were found good.
    Run(String),
}

/// Exit code for an argument or an input that is of no use.
const UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let arguments = match Portcullis::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return ended(print(&error.to_string()));
        }
        Err(error) => return refuse(&explanation(&error)),
    };
    ended(match arguments.command {
        None => print(&Portcullis::command().render_help().to_string()),
        Some(Command::Sim(arguments)) => sim::run(&arguments),
        Some(Command::Model(Model::Vtd(arguments))) => model::vtd(&arguments),
        Some(Command::Pgtable(Pgtable::Dump(arguments))) => pgtable::dump(&arguments),
        Some(Command::Pgtable(Pgtable::Check(arguments))) => pgtable::check(&arguments),
    })
}

fn ended(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Argument(why)) => refuse(&why),
        Err(Failure::Run(why)) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

fn refuse(why: &str) -> ExitCode {
    complain(why);
    ExitCode::from(UNUSABLE)
}

/// One line on stderr. A file's name may hold anything, a line break included.
fn complain(why: &str) {
    let line: String =
        why.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    let _ = writeln!(io::stderr(), "portcullis: {line}");
}

/// What clap has to say, without the usage that it appends: its first paragraph, in one line.
fn explanation(error: &clap::Error) -> String {
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let lines: Vec<&str> = paragraph.lines().map(str::trim).collect();
    let line = lines.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).into()
}

/// Writes to stdout. A reader that went away has seen enough.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Run(format!("cannot write the report: {}", files::reason(&e))))
        }
        _ => Ok(()),
    }
}
