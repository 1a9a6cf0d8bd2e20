//! What the platform takes from the CPU by its own instructions.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, _mm_clflush};
use core::ops::Range;
use core::ptr;

/// Flags register: interrupts are on.
const INTERRUPTS_ON: u64 = 1 << 9;

/// CPUID leaf 1, register C: RDRAND exists.
const RDRAND: u32 = 1 << 30;

/// Runs `f` with interrupts off. They are as before afterwards.
pub fn without_interrupts<R>(f: impl FnOnce() -> R) -> R {
    let flags: u64;
    // SAFETY: the flags are read over the stack. No interrupt comes until they are put back, which
    // no memory access is made unsound by; the block is a barrier for the compiler.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    let result = f();
    if flags & INTERRUPTS_ON != 0 {
        // SAFETY: they were on before.
        unsafe { asm!("sti") };
    }
    result
}

/// Whether [`random`] has a source.
pub fn has_random() -> bool {
    __cpuid(1).ecx & RDRAND != 0
}

/// A random number. The source can have run dry for a moment: ten tries are what its manual calls
/// enough.
pub fn random() -> Option<u64> {
    if !has_random() {
        return None;
    }
    (0..10).find_map(|_| {
        let (value, valid): (u64, u8);
        // SAFETY: the CPU has the instruction.
        unsafe { asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) valid, options(nomem, nostack)) };
        (valid != 0).then_some(value)
    })
}

/// Bytes that one flush writes back.
pub fn cache_line() -> usize {
    ((__cpuid(1).ebx >> 8 & 0xff) as usize * 8).max(16)
}

/// Writes back the cache lines of addresses that the caller may access. Not ordered with what
/// follows.
pub fn flush(addresses: Range<usize>, line: usize) {
    let first = addresses.start & !(line - 1);
    for address in (first..addresses.end).step_by(line) {
        // SAFETY: every x86-64 CPU has CLFLUSH; it changes no memory, and on an address without
        // memory it would fault, which ends the image.
        unsafe { _mm_clflush(ptr::with_exposed_provenance(address)) };
    }
}
