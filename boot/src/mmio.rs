//! A page of device registers.

use core::ptr;
use core::sync::atomic::{Ordering, compiler_fence};

/// Registers in the uncached part of the identity map.
pub struct Registers {
    base: usize,
    bytes: u32,
}

impl Registers {
    /// A page without registers.
    pub const NONE: Self = Self { base: 0, bytes: 0 };

    /// # Safety
    /// The range is mapped, uncached, and holds registers that may be read and written by their
    /// offset; a write makes nothing access memory of Rust's that is not lent to it.
    pub const unsafe fn new(base: usize, bytes: u32) -> Self {
        Self { base, bytes }
    }

    /// Reads a register; `None` where there is none.
    pub fn read<T: Copy>(&self, offset: u32) -> Option<T> {
        let register = self.at::<T>(offset)?;
        // SAFETY: in the range that `new` was promised, and aligned.
        let value = unsafe { register.read_volatile() };
        compiler_fence(Ordering::SeqCst); // What it tells of is read after it.
        Some(value)
    }

    /// Writes a register, if there is one. Stores before this are visible before it: x86 keeps the
    /// order, so it is the compiler that must be told.
    pub fn write<T: Copy>(&self, offset: u32, value: T) {
        compiler_fence(Ordering::SeqCst);
        if let Some(register) = self.at::<T>(offset) {
            // SAFETY: as in `read`.
            unsafe { register.write_volatile(value) };
        }
    }

    fn at<T>(&self, offset: u32) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>() as u32)?;
        let register = ptr::with_exposed_provenance_mut::<T>(self.base + offset as usize);
        (end <= self.bytes && register.is_aligned()).then_some(register)
    }
}
