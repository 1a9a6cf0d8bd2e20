//! A freestanding image: QEMU's edu device copies a page, and the bytes are compared.
//!
//! `cargo xtask boot` builds it and boots it in QEMU. The verdict goes out last, as QEMU's exit
//! code: see [`port::Verdict`].
#![no_std]
#![no_main]

extern crate alloc;

mod clock;
mod exceptions;
mod heap;
mod pci;
mod port;
mod start;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::panic::PanicInfo;
use core::ptr::NonNull;

use clock::Clock;
use pci::Edu;
use port::{Serial, Verdict, exit, say};
// Linked here, they have shown that they need no std.
use portcullis as _;
use portcullis_drivers as _;
use portcullis_pgtable as _;
use portcullis_spec as _;
use portcullis_sync as _;

/// Called by [`start`], once.
extern "C" fn main() -> ! {
    Serial::set_up();
    exceptions::set_up();
    say!("portcullis: freestanding image");
    match check() {
        Ok(()) => {
            say!("portcullis: passed");
            exit(Verdict::Passed)
        }
        Err(why) => {
            say!("portcullis: failed: {why}");
            exit(Verdict::Failed)
        }
    }
}

fn check() -> Result<(), &'static str> {
    check_heap()?;
    let clock = Clock::start().ok_or("there is no HPET")?;
    let edu = Edu::find(clock).ok_or("there is no edu device")?;
    say!("edu at {}", edu.function());

    let (source, destination) = (Page::new(0x11), Page::new(0x22));
    if cfg!(feature = "mapping") {
        edu.let_master_the_bus();
    }
    edu.copy(source.address(), destination.address(), Page::BYTES)
        .map_err(|pci::Unfinished| "the device's transfer does not end")?;
    if (0..Page::BYTES).all(|i| destination.read(i) == source.read(i)) {
        say!("{} bytes are identical", Page::BYTES);
        Ok(())
    } else {
        Err("the device did not copy the page")
    }
}

fn check_heap() -> Result<(), &'static str> {
    let squares: BTreeMap<u64, Vec<u64>> = (0..64).map(|i| (i, (0..i).collect())).collect();
    let sum: u64 = squares.values().flatten().sum();
    // Sum over i < 64 of i (i - 1) / 2: 64 over 3.
    if sum == 41_664 { Ok(()) } else { Err("the heap lost something") }
}

/// A page that a device may write: reached by volatile access only. Virtual and physical address
/// are the same.
struct Page(NonNull<u8>);

impl Page {
    const BYTES: usize = 4096;
    const LAYOUT: Layout = match Layout::from_size_align(Self::BYTES, Self::BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("4096 is a power of two"),
    };

    /// A page filled with bytes that `salt` tells from another's.
    fn new(salt: u8) -> Self {
        // SAFETY: the layout has a size.
        let bytes = unsafe { alloc::alloc::alloc(Self::LAYOUT) };
        let Some(bytes) = NonNull::new(bytes) else { alloc::alloc::handle_alloc_error(Self::LAYOUT) };
        for i in 0..Self::BYTES {
            let value = (i as u8).wrapping_mul(7) ^ (i >> 8) as u8 ^ salt;
            // SAFETY: within the page just allocated.
            unsafe { bytes.add(i).write_volatile(value) };
        }
        Self(bytes)
    }

    fn address(&self) -> u64 {
        self.0.expose_provenance().get() as u64
    }

    fn read(&self, i: usize) -> u8 {
        assert!(i < Self::BYTES);
        // SAFETY: within the page, which lives as long as `self`; volatile, as a device writes it.
        unsafe { self.0.add(i).read_volatile() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` by the same layout.
        unsafe { alloc::alloc::dealloc(self.0.as_ptr(), Self::LAYOUT) }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("portcullis: {info}");
    exit(Verdict::Panicked)
}
