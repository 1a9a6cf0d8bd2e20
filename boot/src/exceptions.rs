//! Says what went wrong before the machine would reset: every CPU exception is reported and ends
//! the image.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use crate::port::{Verdict, exit, say};

/// Exceptions that the architecture defines or reserves.
const VECTORS: usize = 32;

/// Bytes from one stub to the next.
const STUB_BYTES: usize = 16;

// One stub a vector: they leave the vector and an error code, 0 where the CPU pushes none, on the
// stack. Vectors 8, 10 to 14, 17, 21, 29 and 30 have one.
global_asm!(
    r#"
    .balign 16
exception_stubs:
    .set vector, 0
    .rept {vectors}
    .balign {stub_bytes}
    .if ((1 << vector) & 0x60227d00) == 0
    pushq $0
    .endif
    pushq $vector
    jmp exception_common
    .set vector, vector + 1
    .endr
exception_common:
    cld
    movq %rsp, %rdi
    andq $-16, %rsp
    call {report}
    ud2
    "#,
    vectors = const VECTORS,
    stub_bytes = const STUB_BYTES,
    report = sym report,
    options(att_syntax)
);

unsafe extern "C" {
    static exception_stubs: u8;
}

/// What a stub leaves on the stack, and what the CPU pushed before.
#[repr(C)]
struct Frame {
    vector: u64,
    error: u64,
    instruction: u64,
}

extern "C" fn report(frame: &Frame) -> ! {
    let address: u64;
    // SAFETY: CR2 may be read at any time.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    let Frame { vector, error, instruction } = frame;
    say!("portcullis: exception {vector}, error code {error:#x}, at {instruction:#x}, CR2 {address:#x}");
    exit(Verdict::Panicked)
}

/// The interrupt descriptor table: two words a gate.
struct Table(UnsafeCell<[[u64; 2]; VECTORS]>);

// SAFETY: written once, by `set_up`, before the CPU reads it; no other CPU runs.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; VECTORS]));

/// Sends every exception to [`report`].
pub fn set_up() {
    /// Code segment 0x08; present, interrupt gate.
    const GATE: u64 = 0x08 << 16 | 0x8e << 40;
    let stubs = (&raw const exception_stubs).addr();
    let gates = core::array::from_fn(|vector| {
        let stub = (stubs + vector * STUB_BYTES) as u64;
        let low = stub & 0xffff | (stub & 0xffff_0000) << 32;
        [GATE | low, stub >> 32]
    });
    // SAFETY: nothing else reads or writes the table yet.
    unsafe { TABLE.0.get().write(gates) };

    #[repr(C, packed)]
    struct Register {
        limit: u16,
        base: u64,
    }
    let register = Register { limit: (size_of_val(&gates) - 1) as u16, base: TABLE.0.get().addr() as u64 };
    // SAFETY: the table is static, and its gates lead to stubs that do not return.
    unsafe { asm!("lidt [{}]", in(reg) &raw const register, options(nostack, preserves_flags)) };
}
