//! Memory that a device may reach.

use alloc::alloc::{alloc, dealloc, handle_alloc_error};
use core::alloc::Layout;
use core::ptr::NonNull;

/// A page that a device may write: reached by volatile access only. Virtual and physical address
/// are the same.
pub struct Page(NonNull<u8>);

impl Page {
    /// Bytes of a page.
    pub const BYTES: usize = 4096;

    const LAYOUT: Layout = match Layout::from_size_align(Self::BYTES, Self::BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("4096 is a power of two"),
    };

    /// A page filled with bytes that `salt` tells from another's.
    pub fn new(salt: u8) -> Self {
        // SAFETY: the layout has a size.
        let bytes = unsafe { alloc(Self::LAYOUT) };
        let Some(bytes) = NonNull::new(bytes) else { handle_alloc_error(Self::LAYOUT) };
        let mut page = Self(bytes);
        page.fill(salt);
        page
    }

    /// Fills the page again.
    pub fn fill(&mut self, salt: u8) {
        for i in 0..Self::BYTES {
            // SAFETY: within the page; volatile, as a device reads it.
            unsafe { self.0.add(i).write_volatile(pattern(salt, i)) };
        }
    }

    /// Whether the page holds what [`fill`](Page::fill) with `salt` wrote.
    pub fn holds(&self, salt: u8) -> bool {
        (0..Self::BYTES).all(|i| {
            // SAFETY: within the page, which lives as long as `self`; volatile, as a device writes
            // it.
            let byte = unsafe { self.0.add(i).read_volatile() };
            byte == pattern(salt, i)
        })
    }

    /// Its physical address.
    pub fn address(&self) -> u64 {
        self.0.expose_provenance().get() as u64
    }
}

fn pattern(salt: u8, i: usize) -> u8 {
    (i as u8).wrapping_mul(7) ^ (i >> 8) as u8 ^ salt
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` by the same layout.
        unsafe { dealloc(self.0.as_ptr(), Self::LAYOUT) }
    }
}
