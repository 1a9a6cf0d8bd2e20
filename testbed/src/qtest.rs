//! A client of QEMU's qtest protocol: lines of text over a socket, one answer a command.
//!
//! We listen, QEMU connects. No guest code runs under the qtest accelerator, so memory, registers,
//! I/O ports and the virtual clock move only when a command moves them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// QEMU answers within microseconds; a reply that takes this long does not come.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// The longest answer we accept: the bytes of one [`Qtest::read`] in hexadecimal, and some words.
const LONGEST_REPLY: usize = 2 * LARGEST_TRANSFER + 64;

/// The most bytes of one [`Qtest::read`] or [`Qtest::write`] command; longer ones are split.
const LARGEST_TRANSFER: usize = 64 * 1024;

/// Why a command had no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QtestError {
    /// The socket failed.
    #[error("the qtest socket failed")]
    Io(#[from] io::Error),
    /// QEMU did not connect, or did not answer, within the limit.
    #[error("QEMU did not {0} in time")]
    TimedOut(&'static str),
    /// QEMU closed the socket: it has exited.
    #[error("QEMU closed the qtest socket")]
    Closed,
    /// QEMU refused the command.
    #[error("QEMU answered `{command}` with `{reply}`")]
    Refused {
        /// The command as it was sent, without its data.
        command: String,
        /// QEMU's answer.
        reply: String,
    },
    /// The answer is not what the protocol has for this command.
    #[error("QEMU's answer to `{command}` makes no sense: `{reply}`")]
    Malformed {
        /// The command as it was sent, without its data.
        command: String,
        /// QEMU's answer.
        reply: String,
    },
}

/// A connection to one QEMU. Methods may be called from any thread; commands do not interleave.
#[derive(Debug)]
pub struct Qtest {
    wire: Mutex<BufReader<UnixStream>>,
}

impl Qtest {
    /// Waits at most `limit` for QEMU to connect to `listener`. `alive` is asked meanwhile: once it
    /// says no, waiting has no point.
    ///
    /// # Errors
    /// [`QtestError::TimedOut`]; [`QtestError::Closed`] if `alive` said no; [`QtestError::Io`].
    pub fn accept(
        listener: &UnixListener,
        limit: Duration,
        mut alive: impl FnMut() -> bool,
    ) -> Result<Self, QtestError> {
        listener.set_nonblocking(true)?;
        let start = Instant::now();
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if !alive() {
                return Err(QtestError::Closed);
            }
            if start.elapsed() > limit {
                return Err(QtestError::TimedOut("connect"));
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        Self::over(stream)
    }

    fn over(stream: UnixStream) -> Result<Self, QtestError> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        stream.set_write_timeout(Some(REPLY_LIMIT))?;
        Ok(Self { wire: Mutex::new(BufReader::new(stream)) })
    }

    /// Reads a byte at a physical address, as the CPU would.
    ///
    /// # Errors
    /// Any [`QtestError`]; so for every method below.
    pub fn read8(&self, address: u64) -> Result<u8, QtestError> {
        self.load("readb", address)
    }

    /// Reads 4 bytes at a physical address.
    ///
    /// # Errors
    /// As [`Qtest::read8`].
    pub fn read32(&self, address: u64) -> Result<u32, QtestError> {
        self.load("readl", address)
    }

    /// Reads 8 bytes at a physical address, by one access.
    ///
    /// # Errors
    /// As [`Qtest::read8`].
    pub fn read64(&self, address: u64) -> Result<u64, QtestError> {
        self.load("readq", address)
    }

    /// Writes 4 bytes at a physical address.
    ///
    /// # Errors
    /// As [`Qtest::read8`].
    pub fn write32(&self, address: u64, value: u32) -> Result<(), QtestError> {
        self.order(&format!("writel {address:#x} {value:#x}"))
    }

    /// Writes 8 bytes at a physical address, by one access.
    ///
    /// # Errors
    /// As [`Qtest::read8`].
    pub fn write64(&self, address: u64, value: u64) -> Result<(), QtestError> {
        self.order(&format!("writeq {address:#x} {value:#x}"))
    }

    /// Reads 4 bytes at an I/O port.
    ///
    /// # Errors
    /// As [`Qtest::read8`].
    pub fn in32(&self, port: u16) -> Result<u32, QtestError> {
        self.load("inl", port.into())
    }

    /// Writes 4 bytes at an I/O port.
    ///
    /// # Errors
    /// As [`Qtest::read8`].
    pub fn out32(&self, port: u16, value: u32) -> Result<(), QtestError> {
        self.order(&format!("outl {port:#x} {value:#x}"))
    }

    /// Fills `bytes` from physical memory.
    ///
    /// # Errors
    /// As [`Qtest::read8`].
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), QtestError> {
        let mut at = address;
        for part in bytes.chunks_mut(LARGEST_TRANSFER) {
            let command = format!("read {at:#x} {:#x}", part.len());
            let reply = self.ask(&command, "")?;
            decode_hex(&reply, part).ok_or_else(|| malformed(&command, &reply))?;
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    /// Copies `bytes` into physical memory.
    ///
    /// # Errors
    /// As [`Qtest::read8`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), QtestError> {
        let mut at = address;
        for part in bytes.chunks(LARGEST_TRANSFER) {
            let command = format!("write {at:#x} {:#x}", part.len());
            self.ask(&command, &encode_hex(part))?;
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    /// Moves the virtual clock on; timers of devices that come due run before the answer.
    ///
    /// # Errors
    /// As [`Qtest::read8`].
    pub fn clock_step(&self, by: Duration) -> Result<(), QtestError> {
        self.order(&format!("clock_step {}", by.as_nanos()))
    }

    fn load<T: TryFrom<u64>>(&self, verb: &str, address: u64) -> Result<T, QtestError> {
        let command = format!("{verb} {address:#x}");
        let reply = self.ask(&command, "")?;
        reply
            .strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .and_then(|value| T::try_from(value).ok())
            .ok_or_else(|| malformed(&command, &reply))
    }

    fn order(&self, command: &str) -> Result<(), QtestError> {
        self.ask(command, "").map(drop)
    }

    /// Sends a command and its data, and returns what follows the OK of the answer.
    fn ask(&self, command: &str, data: &str) -> Result<String, QtestError> {
        let mut wire = self.wire.lock();
        let line = if data.is_empty() { format!("{command}\n") } else { format!("{command} {data}\n") };
        wire.get_mut().write_all(line.as_bytes()).map_err(broken_wire)?;
        loop {
            let reply = next_line(&mut wire)?;
            if let Some(rest) = reply.strip_prefix("OK") {
                return Ok(rest.trim().to_string());
            }
            // An intercepted interrupt line moved; it may come before any answer.
            if reply.starts_with("IRQ ") {
                continue;
            }
            let (command, reply) = (command.to_string(), reply.trim().to_string());
            return Err(QtestError::Refused { command, reply });
        }
    }
}

fn next_line(wire: &mut BufReader<UnixStream>) -> Result<String, QtestError> {
    let mut line = Vec::new();
    let limit = LONGEST_REPLY as u64;
    wire.take(limit).read_until(b'\n', &mut line).map_err(broken_wire)?;
    match line.last() {
        None => Err(QtestError::Closed),
        Some(b'\n') => Ok(String::from_utf8_lossy(&line).into_owned()),
        Some(_) if line.len() < LONGEST_REPLY => Err(QtestError::Closed),
        Some(_) => Err(malformed("", "a line without end")),
    }
}

fn broken_wire(error: io::Error) -> QtestError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => QtestError::TimedOut("answer"),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QtestError::Closed,
        _ => error.into(),
    }
}

fn malformed(command: &str, reply: &str) -> QtestError {
    QtestError::Malformed { command: command.into(), reply: reply.into() }
}

fn encode_hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('0');
    let mut text = String::from("0x");
    for byte in bytes {
        text.extend([digit(byte >> 4), digit(byte & 0xf)]);
    }
    text
}

/// Fills `bytes` from exactly as many pairs of digits.
fn decode_hex(text: &str, bytes: &mut [u8]) -> Option<()> {
    let digits = text.strip_prefix("0x")?.as_bytes();
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    let value = |digit: u8| char::from(digit).to_digit(16);
    for (pair, byte) in digits.chunks_exact(2).zip(bytes) {
        *byte = u8::try_from(value(pair[0])? << 4 | value(pair[1])?).ok()?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays QEMU: for each line that comes, sends the next of `replies`.
    fn scripted(replies: &'static [&'static str]) -> (Qtest, std::thread::JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = std::thread::spawn(move || {
            let mut lines = BufReader::new(theirs);
            let mut heard = Vec::new();
            for reply in replies {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                heard.push(line.trim_end().to_string());
                lines.get_mut().write_all(reply.as_bytes()).unwrap();
            }
            heard
        });
        (Qtest::over(ours).unwrap(), qemu)
    }

    #[test]
    fn commands_and_answers() {
        let (qtest, qemu) = scripted(&["OK 0x00000000cafe0001\n", "OK\n", "OK 0x0a0b\n", "OK\n"]);
        assert_eq!(qtest.read32(0xfed9_0000).unwrap(), 0xcafe_0001);
        qtest.write64(0x1000, 7).unwrap();
        let mut bytes = [0; 2];
        qtest.read(0x2000, &mut bytes).unwrap();
        assert_eq!(bytes, [0x0a, 0x0b]);
        qtest.write(0x2000, &[0x1f, 0]).unwrap();
        let heard = qemu.join().unwrap();
        assert_eq!(
            heard,
            ["readl 0xfed90000", "writeq 0x1000 0x7", "read 0x2000 0x2", "write 0x2000 0x2 0x1f00"]
        );
    }

    #[test]
    fn interrupt_lines_are_passed_over() {
        let (qtest, _) = scripted(&["IRQ raise 3\nIRQ lower 3\nOK 0x5\n"]);
        assert_eq!(qtest.read8(0).unwrap(), 5);
    }

    #[test]
    fn refusals_and_nonsense_are_errors() {
        let (qtest, _) = scripted(&["FAIL Unknown command\n", "OK what\n", "OK 0x100\n", "OK 0x0\n"]);
        assert!(matches!(qtest.read8(0), Err(QtestError::Refused { .. })));
        assert!(matches!(qtest.read8(0), Err(QtestError::Malformed { .. })));
        assert!(matches!(qtest.read8(0), Err(QtestError::Malformed { .. })));
        let short = qtest.read(0, &mut [0; 4]);
        assert!(matches!(short, Err(QtestError::Malformed { .. })));
    }

    #[test]
    fn an_exit_is_noticed() {
        let (qtest, qemu) = scripted(&["OK 0x"]);
        assert!(matches!(qtest.read8(0), Err(QtestError::Closed)));
        qemu.join().unwrap();
        assert!(matches!(qtest.read8(0), Err(QtestError::Closed)));
    }

    #[test]
    fn nobody_connects() {
        let path = std::env::temp_dir().join(format!("portcullis-nobody-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let _ = std::fs::remove_file(&path);
        let late = Qtest::accept(&listener, Duration::from_millis(5), || true);
        assert!(matches!(late, Err(QtestError::TimedOut("connect"))));
        let dead = Qtest::accept(&listener, Duration::from_secs(60), || false);
        assert!(matches!(dead, Err(QtestError::Closed)));
    }
}
