//! One line of the protocol, taken apart.

use super::{LARGEST_TRANSFER, text};
use std::fmt;

/// Bytes of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// `b`
    Byte = 1,
    /// `w`
    Word = 2,
    /// `l`
    Long = 4,
    /// `q`
    Quad = 8,
}

/// What a line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `clock_step [NS]`: moves the clock on, by default to the next timer.
    ClockStep(Option<u64>),
    /// `clock_set NS`
    ClockSet(u64),
    /// `inb`, `inw`, `inl PORT`
    In(Width, u16),
    /// `outb`, `outw`, `outl PORT VALUE`
    Out(Width, u16, u32),
    /// `readb` to `readq ADDRESS`: one access, as the CPU would make it.
    Load(Width, u64),
    /// `writeb` to `writeq ADDRESS VALUE`
    Store(Width, u64, u64),
    /// `read ADDRESS SIZE`: answered in hexadecimal.
    Read(u64, usize),
    /// `b64read ADDRESS SIZE`: answered in base64.
    ReadBase64(u64, usize),
    /// `write ADDRESS SIZE DATA`, `b64write ADDRESS SIZE DATA`
    Write(u64, Vec<u8>),
    /// `memset ADDRESS SIZE VALUE`
    Memset(u64, u64, u8),
    /// `endianness`
    Endianness,
}

/// Why a command was not obeyed, in the words that follow FAIL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub(super) String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn refused<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(why.into()))
}

/// How much of something that was sent is repeated in an answer.
const QUOTED: usize = 40;

/// Takes a line apart.
pub(super) fn parse(line: &[u8]) -> Result<Command, Refused> {
    let Ok(line) = std::str::from_utf8(line) else { return refused("the command is not text") };
    let mut words = line.split_ascii_whitespace();
    let verb = words.next().unwrap_or_default();
    let mut words = Words { verb, rest: words };
    let command = match verb {
        "clock_step" => Command::ClockStep(words.optional_number()?),
        "clock_set" => Command::ClockSet(words.number("a time")?),
        "inb" => Command::In(Width::Byte, words.port()?),
        "inw" => Command::In(Width::Word, words.port()?),
        "inl" => Command::In(Width::Long, words.port()?),
        "outb" => Command::Out(Width::Byte, words.port()?, words.value()?),
        "outw" => Command::Out(Width::Word, words.port()?, words.value()?),
        "outl" => Command::Out(Width::Long, words.port()?, words.value()?),
        "readb" => Command::Load(Width::Byte, words.address()?),
        "readw" => Command::Load(Width::Word, words.address()?),
        "readl" => Command::Load(Width::Long, words.address()?),
        "readq" => Command::Load(Width::Quad, words.address()?),
        "writeb" => Command::Store(Width::Byte, words.address()?, words.number("a value")?),
        "writew" => Command::Store(Width::Word, words.address()?, words.number("a value")?),
        "writel" => Command::Store(Width::Long, words.address()?, words.number("a value")?),
        "writeq" => Command::Store(Width::Quad, words.address()?, words.number("a value")?),
        "read" => Command::Read(words.address()?, words.size()?),
        "b64read" => Command::ReadBase64(words.address()?, words.size()?),
        "write" => words.data(text::from_hex)?,
        "b64write" => words.data(text::from_base64)?,
        "memset" => {
            let (address, size) = (words.address()?, words.number("a size")?);
            Command::Memset(address, size, words.number("a value")? as u8)
        }
        "endianness" => Command::Endianness,
        "irq_intercept_in" | "irq_intercept_out" | "set_irq_in" => {
            return refused(format!(
                "{verb}: this machine has no interrupt lines; its messages are written to memory, where there is some"
            ));
        }
        _ => return refused(format!("Unknown command '{}'", quoted(verb))),
    };
    match words.rest.next() {
        None => Ok(command),
        Some(more) => refused(format!("{verb}: '{}' is one word too many", quoted(more))),
    }
}

/// The words after the verb.
struct Words<'a> {
    verb: &'a str,
    rest: std::str::SplitAsciiWhitespace<'a>,
}

impl<'a> Words<'a> {
    fn next(&mut self, what: &str) -> Result<&'a str, Refused> {
        match self.rest.next() {
            Some(word) => Ok(word),
            None => refused(format!("{}: {what} is missing", self.verb)),
        }
    }

    fn number(&mut self, what: &str) -> Result<u64, Refused> {
        let word = self.next(what)?;
        match number(word) {
            Some(n) => Ok(n),
            None => refused(format!("{}: '{}' is not {what}", self.verb, quoted(word))),
        }
    }

    fn optional_number(&mut self) -> Result<Option<u64>, Refused> {
        match self.rest.clone().next() {
            None => Ok(None),
            Some(_) => self.number("a time").map(Some),
        }
    }

    fn address(&mut self) -> Result<u64, Refused> {
        self.number("an address")
    }

    /// Values are cut to the access's width, as hardware's are.
    fn value(&mut self) -> Result<u32, Refused> {
        Ok(self.number("a value")? as u32)
    }

    fn port(&mut self) -> Result<u16, Refused> {
        let n = self.number("a port")?;
        match u16::try_from(n) {
            Ok(port) => Ok(port),
            Err(_) => refused(format!("{}: {n:#x} is not a port", self.verb)),
        }
    }

    fn size(&mut self) -> Result<usize, Refused> {
        let n = self.number("a size")?;
        match usize::try_from(n) {
            Ok(size) if (1..=LARGEST_TRANSFER).contains(&size) => Ok(size),
            _ => {
                refused(format!("{}: a size of {n:#x}: at least 1, at most {LARGEST_TRANSFER:#x}", self.verb))
            }
        }
    }

    fn data(&mut self, decode: fn(&str) -> Option<Vec<u8>>) -> Result<Command, Refused> {
        let (address, size) = (self.address()?, self.size()?);
        match decode(self.next("data")?) {
            Some(data) if data.len() == size => Ok(Command::Write(address, data)),
            Some(data) => refused(format!("{}: {size:#x} bytes said, {:#x} sent", self.verb, data.len())),
            None => refused(format!("{}: the data is not in the form it should be", self.verb)),
        }
    }
}

/// A number as C's strtoull with base 0 reads it, but with nothing after it.
fn number(word: &str) -> Option<u64> {
    let digits = |s: &str, radix| match s.as_bytes().first() {
        Some(b'+') | None => None,
        Some(_) => u64::from_str_radix(s, radix).ok(),
    };
    match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(hex) => digits(hex, 16),
        None if word.len() > 1 && word.starts_with('0') => digits(&word[1..], 8),
        None => digits(word, 10),
    }
}

fn quoted(word: &str) -> String {
    word.chars().take(QUOTED).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
