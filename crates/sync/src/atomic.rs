//! Atomics: the real ones, loom's, shuttle's, or real ones with a preemption point, by one switch.
//!
//! `new` is not `const` under loom, and `from_ptr` exists only where an atomic has the layout of
//! its integer, that is not under loom and shuttle: memory shared with hardware cannot be modelled
//! there, and tests under them bring a table memory of their own.

pub use core::sync::atomic::Ordering;

#[cfg(all(not(portcullis_loom), not(portcullis_shuttle), not(feature = "hook")))]
pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};

#[cfg(portcullis_loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};

#[cfg(all(portcullis_shuttle, not(portcullis_loom)))]
pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};

#[cfg(all(not(portcullis_loom), not(portcullis_shuttle), feature = "hook"))]
pub use hooked::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};

#[cfg(all(not(portcullis_loom), not(portcullis_shuttle), feature = "hook"))]
#[allow(unsafe_code, reason = "from_ptr passes core's contract on to its caller")]
mod hooked {
    use crate::hook::{Op, point};
    use core::sync::atomic::{self as real, Ordering};

    /// As [`core::sync::atomic::fence`].
    #[inline]
    pub fn fence(order: Ordering) {
        point(Op::Fence);
        real::fence(order);
    }

    macro_rules! hooked {
        ($name:ident, $int:ty) => {
            /// The atomic of core with the same name; every operation is a preemption point first.
            #[derive(Debug, Default)]
            #[repr(transparent)]
            pub struct $name(real::$name);

            impl $name {
                /// An atomic that holds `v`.
                pub const fn new(v: $int) -> Self {
                    Self(real::$name::new(v))
                }
                /// The atomic at an address.
                ///
                /// # Safety
                /// As for the function of the same name of core's atomic: `ptr` is aligned, valid
                /// for reads and writes for `'a`, and accessed only atomically meanwhile (or
                /// non-atomically where no access races).
                #[inline]
                pub const unsafe fn from_ptr<'a>(ptr: *mut $int) -> &'a Self {
                    // SAFETY: the type is a transparent wrapper of core's atomic, which has the
                    // size of the integer; the rest is the caller's promise.
                    unsafe { &*ptr.cast::<Self>() }
                }
                /// The value, by consuming the atomic.
                pub fn into_inner(self) -> $int {
                    self.0.into_inner()
                }
                /// As core's.
                #[inline]
                pub fn load(&self, order: Ordering) -> $int {
                    point(Op::Access);
                    self.0.load(order)
                }
                /// As core's.
                #[inline]
                pub fn store(&self, v: $int, order: Ordering) {
                    point(Op::Access);
                    self.0.store(v, order);
                }
                /// As core's.
                #[inline]
                pub fn swap(&self, v: $int, order: Ordering) -> $int {
                    point(Op::Update);
                    self.0.swap(v, order)
                }
                /// As core's.
                ///
                /// # Errors
                /// The value found, when it was not `old`.
                #[inline]
                pub fn compare_exchange(
                    &self,
                    old: $int,
                    new: $int,
                    ok: Ordering,
                    err: Ordering,
                ) -> Result<$int, $int> {
                    point(Op::Update);
                    self.0.compare_exchange(old, new, ok, err)
                }
                /// As core's.
                ///
                /// # Errors
                /// The value found; it may be `old`.
                #[inline]
                pub fn compare_exchange_weak(
                    &self,
                    old: $int,
                    new: $int,
                    ok: Ordering,
                    err: Ordering,
                ) -> Result<$int, $int> {
                    point(Op::Update);
                    self.0.compare_exchange_weak(old, new, ok, err)
                }
                /// As core's.
                #[inline]
                pub fn fetch_or(&self, v: $int, order: Ordering) -> $int {
                    point(Op::Update);
                    self.0.fetch_or(v, order)
                }
                /// As core's.
                #[inline]
                pub fn fetch_and(&self, v: $int, order: Ordering) -> $int {
                    point(Op::Update);
                    self.0.fetch_and(v, order)
                }
            }
        };
    }
    hooked!(AtomicBool, bool);
    hooked!(AtomicU32, u32);
    hooked!(AtomicU64, u64);
    hooked!(AtomicUsize, usize);

    macro_rules! arithmetic {
        ($name:ident, $int:ty) => {
            impl $name {
                /// As core's.
                #[inline]
                pub fn fetch_add(&self, v: $int, order: Ordering) -> $int {
                    point(Op::Update);
                    self.0.fetch_add(v, order)
                }
                /// As core's.
                #[inline]
                pub fn fetch_sub(&self, v: $int, order: Ordering) -> $int {
                    point(Op::Update);
                    self.0.fetch_sub(v, order)
                }
                /// As core's.
                #[inline]
                pub fn fetch_max(&self, v: $int, order: Ordering) -> $int {
                    point(Op::Update);
                    self.0.fetch_max(v, order)
                }
                /// As core's.
                #[inline]
                pub fn fetch_min(&self, v: $int, order: Ordering) -> $int {
                    point(Op::Update);
                    self.0.fetch_min(v, order)
                }
            }
        };
    }
    arithmetic!(AtomicU32, u32);
    arithmetic!(AtomicU64, u64);
    arithmetic!(AtomicUsize, usize);
}
