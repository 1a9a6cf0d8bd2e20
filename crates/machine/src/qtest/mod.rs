//! The VT-d model as a machine that speaks QEMU's qtest protocol, so that a driver's tests in any
//! language drive it as they drive QEMU: lines of text over a socket, one answer a command.
//!
//! Like QEMU, it connects to a socket on which the test listens. Nothing moves by itself: memory,
//! registers, ports and the virtual clock move only when a command moves them, and when the answer
//! to a command comes, everything it set going has come to rest.

mod command;
mod devices;
mod machine;
mod text;

pub use command::{Command, Refused, Width};
pub use machine::{BARS, Bdf, FUNCTIONS, Pc, PcError, VTD_REGISTERS};

use command::parse;
use portcullis_models::vtd;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
};

/// What kind of VT-d the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Scalable mode with both stages, PASIDs, device TLBs and page requests.
    Full,
    /// The same without a first stage.
    SecondStage,
    /// The same without a second stage.
    FirstStage,
    /// Legacy mode only.
    Legacy,
}

impl Unit {
    /// Its choices.
    pub fn config(self) -> vtd::Config {
        match self {
            Unit::Full => vtd::Config::default(),
            Unit::SecondStage => vtd::Config { first_stage: false, ..vtd::Config::default() },
            Unit::FirstStage => vtd::Config { second_stage: false, ..vtd::Config::default() },
            Unit::Legacy => vtd::Config::legacy(),
        }
    }
}

/// The most bytes that one command reads, writes or carries as data.
pub const LARGEST_TRANSFER: usize = 1 << 20;

/// The longest line: the largest transfer in hexadecimal, and the words before it.
const LONGEST_LINE: usize = 2 * LARGEST_TRANSFER + 256;

/// Answers commands until the other side closes the socket.
///
/// # Errors
/// What the socket says; [`io::ErrorKind::InvalidData`] for a line that does not end.
pub fn serve(stream: UnixStream, pc: &mut Pc) -> io::Result<()> {
    let mut wire = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut wire).take(LONGEST_LINE as u64).read_until(b'\n', &mut line)?;
        match line.last() {
            None => return Ok(()),
            Some(b'\n') => {}
            Some(_) if line.len() == LONGEST_LINE => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a command longer than any there is"));
            }
            // The other side has gone in the middle of a line.
            Some(_) => return Ok(()),
        }
        let answer = answer(&line, pc);
        wire.get_mut().write_all(answer.as_bytes())?;
    }
}

/// The answer to one line, with its line break.
fn answer(line: &[u8], pc: &mut Pc) -> String {
    match parse(line).and_then(|command| pc.obey(command)) {
        Ok(reply) if reply.is_empty() => "OK\n".into(),
        Ok(reply) => format!("OK {reply}\n"),
        Err(why) => format!("FAIL {why}\n"),
    }
}

#[cfg(test)]
mod tests;
