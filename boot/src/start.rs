//! From the loader to Rust: a PVH loader enters in 32-bit protected mode without paging; the
//! compiler's code wants 64-bit mode, a stack, and SSE.

use core::arch::global_asm;

// PVH's contract: flat segments, paging off, interrupts off, .bss zeroed, and in EBX the address of
// its start information, which becomes the argument of `main`. The note tells the loader the entry
// point: type 18 (XEN_ELFNOTE_PHYS32_ENTRY), name "Xen".
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad start32

    .section .text.start32, "ax"
    .code32
    .global start32
start32:
    cli
    cld
    movl $stack_end, %esp

    # Identity map of 4 GiB by pages of 2 MiB: present, writable, large.
    movl $page_directory_pointers, %eax
    orl $0x3, %eax
    movl %eax, page_map
    movl $page_directories, %eax
    orl $0x3, %eax
    xorl %ecx, %ecx
1:  movl %eax, page_directory_pointers(, %ecx, 8)
    addl $0x1000, %eax
    incl %ecx
    cmpl $4, %ecx
    jne 1b
    xorl %ecx, %ecx
2:  movl %ecx, %eax
    shll $21, %eax
    orl $0x83, %eax
    cmpl $1536, %ecx
    jb 3f
    orl $0x18, %eax             # The upper GiB has device registers: uncached.
3:  movl %eax, page_directories(, %ecx, 8)
    incl %ecx
    cmpl $2048, %ecx
    jne 2b

    movl $page_map, %eax
    movl %eax, %cr3
    movl $0x620, %eax           # CR4: PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl $0x80010023, %eax      # CR0: PG, WP, NE, MP, PE; EM and TS off, for SSE
    movl %eax, %cr0
    lgdt segments_register
    ljmpl $0x08, $start64

    .code64
start64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %ebp, %ebp
    movl %ebx, %edi
    call {main}
    ud2

    .section .rodata.segments, "a"
    .balign 8
segments:
    .quad 0
    .quad 0x00af9a000000ffff    # 0x08: code, 64 bits
    .quad 0x00cf92000000ffff    # 0x10: data
segments_end:
segments_register:
    .word segments_end - segments - 1
    .quad segments

    .section .bss.start, "aw", @nobits
    .balign 4096
page_map:
    .skip 4096
page_directory_pointers:
    .skip 4096
page_directories:
    .skip 4 * 4096
    .skip 256 * 1024
stack_end:
    "#,
    main = sym crate::main,
    options(att_syntax)
);

/// What a compiler takes from a C library.
mod c {
    use core::arch::asm;

    /// # Safety
    /// As memcpy in C.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
        // SAFETY: the caller gives `count` readable bytes and as many writable ones, apart from
        // each other; the direction flag is clear, by the ABI.
        unsafe {
            asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _,
                inout("rsi") from => _, options(nostack, preserves_flags));
        }
        to
    }

    /// # Safety
    /// As memmove in C.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
        if to.addr().wrapping_sub(from.addr()) >= count {
            // SAFETY: copying upwards, `to` is not ahead of `from` within `count`, so no byte is
            // overwritten before it is read.
            return unsafe { memcpy(to, from, count) };
        }
        // SAFETY: the caller gives `count` readable and writable bytes, so the last ones exist
        // (`count` is not 0 here); copying downwards, as `to` is ahead. The flag is put back.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rcx") count => _,
                inout("rdi") to.add(count - 1) => _, inout("rsi") from.add(count - 1) => _,
                options(nostack));
        }
        to
    }

    /// # Safety
    /// As memset in C.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
        // SAFETY: the caller gives `count` writable bytes; the direction flag is clear.
        unsafe {
            asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _,
                in("al") value as u8, options(nostack, preserves_flags));
        }
        to
    }

    /// # Safety
    /// As memcmp in C.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
        for i in 0..count {
            // SAFETY: the caller gives `count` readable bytes of each; volatile, so that this loop
            // is not turned into a call of memcmp.
            let (a, b) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
        }
        0
    }

    /// # Safety
    /// As bcmp in C.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
        // SAFETY: the same contract.
        unsafe { memcmp(a, b, count) }
    }
}
