//! A freestanding image: VT-d and QEMU's edu device under the library, on bare metal.
//!
//! `cargo xtask boot` builds it and boots it in QEMU. The verdict goes out last, as QEMU's exit
//! code: see [`port::Verdict`]. `platform.rs` is the porting guide.
#![no_std]
#![no_main]

extern crate alloc;

mod check;
mod clock;
mod cpu;
mod edu;
mod exceptions;
mod firmware;
mod heap;
mod lock;
mod mmio;
mod page;
mod pci;
mod platform;
mod port;
mod start;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::panic::PanicInfo;

use port::{Serial, Verdict, exit, say};
// The others are used. Linked here, all have shown that they need no std.
use portcullis_spec as _;

/// Called by [`start`], once, with what the loader left.
extern "C" fn main(information: u64) -> ! {
    Serial::set_up();
    exceptions::set_up();
    say!("portcullis: freestanding image");
    assert!(heap_works(), "the heap lost something");
    match check::run(information) {
        Ok(()) => {
            say!("portcullis: passed");
            exit(Verdict::Passed)
        }
        Err(why) => {
            say!("portcullis: failed: {why}");
            exit(why.verdict())
        }
    }
}

fn heap_works() -> bool {
    let numbers: BTreeMap<u64, Vec<u64>> = (0..64).map(|i| (i, (0..i).collect())).collect();
    let sum: u64 = numbers.values().flatten().sum();
    // Sum over i < 64 of i (i - 1) / 2: 64 over 3.
    sum == 41_664
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("portcullis: {info}");
    exit(Verdict::Panicked)
}
