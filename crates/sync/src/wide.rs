//! Sixteen bytes read or written at once.
//!
//! Context and PASID-table entries have to change under a hardware walker in one 16-byte store
//! (\[V\] 6.2.2.1, 6.2.3.1). The standard library has no stable atomic of that width;
//! portable-atomic has one, which on some targets is a lock instead: a lock means nothing to a
//! walker. A platform calls [`check`] when it is made and refuses to start where it fails.
//!
//! The 16 bytes must be read whole as well: a 16-byte access that races with an 8-byte access to
//! the same place is undefined. Neither loom nor shuttle sees these accesses.
#![allow(unsafe_code, reason = "an atomic at the address of a table entry")]

use core::{fmt, sync::atomic::Ordering};

#[cfg(feature = "hook")]
use crate::hook::{Op, point};

#[cfg(not(feature = "hook"))]
enum Op {
    Access,
    Update,
}

#[cfg(not(feature = "hook"))]
#[inline]
fn point(_: Op) {}

/// Two neighbouring 64-bit words as one atomic, 16-byte aligned.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct AtomicU128(portable_atomic::AtomicU128);

/// This build has no 16-byte atomic access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAtomic;

impl fmt::Display for NotAtomic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "16-byte stores are not atomic in this build (on x86-64, build with the target feature \
             cmpxchg16b)",
        )
    }
}

impl core::error::Error for NotAtomic {}

/// Whether a 16-byte access is one access of the processor here, not a lock.
pub fn is_lock_free() -> bool {
    portable_atomic::AtomicU128::is_lock_free()
}

/// [`is_lock_free`] in the form a platform's constructor wants.
///
/// # Errors
/// [`NotAtomic`] where the access would take a lock.
pub fn check() -> Result<(), NotAtomic> {
    is_lock_free().then_some(()).ok_or(NotAtomic)
}

impl AtomicU128 {
    /// An atomic that holds `v`.
    pub const fn new(v: u128) -> AtomicU128 {
        AtomicU128(portable_atomic::AtomicU128::new(v))
    }

    /// The atomic at an address.
    ///
    /// # Safety
    /// `ptr` is 16-byte aligned and valid for reads and writes for `'a` (a load may write, with
    /// the value it found), and meanwhile every access that may race is a 16-byte atomic one of
    /// the same address.
    #[inline]
    pub unsafe fn from_ptr<'a>(ptr: *mut u128) -> &'a AtomicU128 {
        // SAFETY: the type is a transparent wrapper of portable-atomic's, which has size and
        // alignment 16 and the layout of the integer; the rest is the caller's promise.
        unsafe { &*ptr.cast::<AtomicU128>() }
    }

    /// Reads all 16 bytes at once (acquire).
    #[inline]
    pub fn load(&self) -> u128 {
        point(Op::Access);
        self.0.load(Ordering::Acquire)
    }

    /// Writes all 16 bytes at once (release).
    #[inline]
    pub fn store(&self, v: u128) {
        point(Op::Access);
        self.0.store(v, Ordering::Release);
    }

    /// Replaces the value if it is `old`.
    ///
    /// # Errors
    /// The value found, when it was not `old`.
    #[inline]
    pub fn compare_exchange(&self, old: u128, new: u128) -> Result<u128, u128> {
        point(Op::Update);
        self.0.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_reader_never_sees_half_a_store() {
        extern crate std;
        check().unwrap();
        let word = AtomicU128::new(0);
        std::thread::scope(|s| {
            s.spawn(|| (0..20_000u128).for_each(|n| word.store(n << 64 | n)));
            for _ in 0..20_000 {
                let w = word.load();
                assert_eq!(w >> 64, w & u128::from(u64::MAX));
            }
        });
    }

    #[test]
    fn the_atomic_lies_where_the_bytes_are() {
        let mut bytes = 7u128;
        // SAFETY: the address of an aligned u128 that nothing else uses while the atomic lives.
        let word = unsafe { AtomicU128::from_ptr(&mut bytes) };
        assert_eq!(word.compare_exchange(7, 9), Ok(7));
        assert_eq!(word.compare_exchange(7, 8), Err(9));
        assert_eq!(bytes, 9);
    }
}
