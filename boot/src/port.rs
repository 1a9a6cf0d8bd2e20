//! I/O ports, and the two devices behind them that need no driver: the serial line, and the one
//! that ends QEMU.

use core::arch::asm;
use core::fmt;

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: an I/O port is not memory; which ports are written is this image's choice, and none
    // of them makes a device write memory that Rust owns.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// Reads a byte from a port.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Writes 4 bytes to a port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as in `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// Reads 4 bytes from a port.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// The first serial line, polled.
pub struct Serial;

impl Serial {
    const DATA: u16 = 0x3f8;
    const INTERRUPT_ENABLE: u16 = Self::DATA + 1;
    const FIFO_CONTROL: u16 = Self::DATA + 2;
    const LINE_CONTROL: u16 = Self::DATA + 3;
    const LINE_STATUS: u16 = Self::DATA + 5;

    /// Line status: the transmitter takes a byte.
    const READY: u8 = 1 << 5;

    /// A byte takes 87 us at 115,200 baud. A line that is never ready is no line: we go on.
    const PATIENCE: u32 = 100_000;

    /// 115,200 baud, 8 bits, no parity, 1 stop bit.
    pub fn set_up() {
        out8(Self::INTERRUPT_ENABLE, 0);
        out8(Self::LINE_CONTROL, 0x80); // The next two registers are the divisor.
        out8(Self::DATA, 1);
        out8(Self::INTERRUPT_ENABLE, 0);
        out8(Self::LINE_CONTROL, 0x03);
        out8(Self::FIFO_CONTROL, 0x07);
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            (0..Self::PATIENCE).find(|_| in8(Self::LINE_STATUS) & Self::READY != 0);
            out8(Self::DATA, byte);
        }
        Ok(())
    }
}

/// A line on the serial console.
macro_rules! say {
    ($($args:tt)*) => {{
        use core::fmt::Write as _;
        // Serial's write_str has no failure.
        let _ = writeln!(crate::port::Serial, $($args)*);
    }};
}
pub(crate) use say;

/// What the image reports.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Verdict {
    /// Everything was compared and is right.
    Passed = 0x10,
    /// A check failed.
    Failed = 0x11,
    /// The image itself is at fault.
    Panicked = 0x12,
    /// The device did not copy the bytes: what a build without the mapping must find.
    BytesDiffer = 0x13,
}

/// Ends QEMU with exit code 2n + 1, by its isa-debug-exit device; elsewhere, stops.
pub fn exit(verdict: Verdict) -> ! {
    out8(0xf4, verdict as u8);
    loop {
        // SAFETY: with interrupts off the CPU rests here for good.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
