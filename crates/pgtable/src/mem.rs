//! Table memory: frames that a hardware walker reads while we write them.
//!
//! A table is never a `&mut [u64]`: every access is an atomic of the entry's own width, made by
//! index through [`TableMem`]. The embedder implements the trait over its own memory; the engine,
//! the drivers' root and context structures, and their queues all go through it.

use core::{
    fmt,
    ops::{BitAnd, BitOr, Range},
};
use portcullis_sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Size in bytes of one frame handed out by [`TableMem::frame`].
pub const FRAME_SIZE: usize = 4096;

/// A physical address as the IOMMU sees it. Address 0 is an ordinary address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Phys(pub u64);

impl fmt::Debug for Phys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Phys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// No frame was left in the embedder's table memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of table memory")]
pub struct NoMem;

/// Frames, one or a run of them, that no walker can see yet. They are zeroed, unless they come
/// from [`TableMem::frames_to_fill`].
///
/// The value is linear: it is given to [`Fresh::publish`] when its address is about to be stored
/// where hardware finds it, or back to [`TableMem::release`].
#[derive(Debug)]
#[must_use = "fresh frames are published or released, else they leak"]
pub struct Fresh {
    first: Phys,
    order: u32,
}

impl Fresh {
    /// Wraps 2^`order` frames for a [`TableMem`] implementation to hand out.
    ///
    /// # Safety
    /// `first` is the address of 2^`order` frames of [`FRAME_SIZE`] bytes in a row, aligned to the
    /// size of the run and initialised (to zero for [`TableMem::frames`]), to which nothing else holds a reference, and which no other `Fresh`
    /// names until this one is published or released.
    #[expect(unsafe_code, reason = "the exclusive ownership is the caller's to promise")]
    pub unsafe fn from_raw(first: Phys, order: u32) -> Fresh {
        Fresh { first, order }
    }

    /// The address of the first frame, for the parent entry that is being composed.
    pub fn phys(&self) -> Phys {
        self.first
    }

    /// The run has 2^`order` frames.
    pub fn order(&self) -> u32 {
        self.order
    }

    /// Gives up exclusive access: from here on only atomic access by address is possible.
    pub fn publish(self) -> Phys {
        self.first
    }
}

/// Calls `visit` with each entry and its index, of which the first is `first`: what an
/// implementation of [`TableMem::run`] ends in. Unrolled, which compilers do not do to atomics.
#[inline]
pub fn visit<A>(first: usize, entries: &[A], mut visit: impl FnMut(usize, &A)) {
    let (eights, rest) = entries.as_chunks::<8>();
    let mut i = first;
    for [a, b, c, d, e, f, g, h] in eights {
        visit(i, a);
        visit(i + 1, b);
        visit(i + 2, c);
        visit(i + 3, d);
        visit(i + 4, e);
        visit(i + 5, f);
        visit(i + 6, g);
        visit(i + 7, h);
        i += 8;
    }
    for a in rest {
        visit(i, a);
        i += 1;
    }
}

mod sealed {
    pub trait Sealed {}
}

/// The width of a table entry and the atomic that holds it.
///
/// Sealed: implementations of [`TableMem`] may rely on an atomic of exactly this width.
pub trait Word:
    sealed::Sealed
    + Copy
    + Eq
    + Default
    + Send
    + Sync
    + fmt::Debug
    + fmt::LowerHex
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + Into<u64>
    + 'static
{
    /// The atomic of this width.
    type Atomic: Send + Sync + 'static;
    /// Bytes of one entry.
    const BYTES: usize;
    /// The low bits of `bits`, as many as the width.
    fn from_bits(bits: u64) -> Self;
    /// The sum, modulo the width.
    fn plus(self, n: Self) -> Self;
    /// The difference, modulo the width.
    fn minus(self, n: Self) -> Self;
    /// Load with acquire ordering.
    fn load(a: &Self::Atomic) -> Self;
    /// Store with release ordering.
    fn store(a: &Self::Atomic, w: Self);
    /// Compare and swap (acquire-release); the error carries what was found.
    ///
    /// # Errors
    /// The word that was there, when it was not `old`.
    fn cas(a: &Self::Atomic, old: Self, new: Self) -> Result<(), Self>;
}

macro_rules! word {
    ($w:ty, $a:ty) => {
        impl sealed::Sealed for $w {}
        impl Word for $w {
            type Atomic = $a;
            const BYTES: usize = size_of::<$w>();
            #[inline]
            fn from_bits(bits: u64) -> $w {
                bits as $w
            }
            #[inline]
            fn plus(self, n: $w) -> $w {
                self.wrapping_add(n)
            }
            #[inline]
            fn minus(self, n: $w) -> $w {
                self.wrapping_sub(n)
            }
            #[inline]
            fn load(a: &$a) -> $w {
                a.load(Ordering::Acquire)
            }
            #[inline]
            fn store(a: &$a, w: $w) {
                a.store(w, Ordering::Release)
            }
            #[inline]
            fn cas(a: &$a, old: $w, new: $w) -> Result<(), $w> {
                a.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
            }
        }
    };
}
word!(u32, AtomicU32);
word!(u64, AtomicU64);

/// The embedder's table memory.
///
/// Addresses passed in are those of frames that [`TableMem::frames`] of the same memory handed
/// out, each frame of a run by its own, and indexes lie inside the frame: an implementation may
/// panic on others, since they are bugs of this library and never input. Methods are callable from
/// any context; [`TableMem::frames`] only from one that may allocate.
pub trait TableMem: Send + Sync + 'static {
    /// 2^`order` zeroed frames of [`FRAME_SIZE`] bytes in a row, aligned to the size of the run:
    /// for structures that hardware wants contiguous, such as queues, PASID directories, tables of
    /// larger granules and concatenated roots.
    ///
    /// # Errors
    /// [`NoMem`] when there is no such run.
    fn frames(&self, order: u32) -> Result<Fresh, NoMem>;
    /// A zeroed frame.
    ///
    /// # Errors
    /// [`NoMem`] when none is left.
    fn frame(&self) -> Result<Fresh, NoMem> {
        self.frames(0)
    }
    /// As [`TableMem::frames`], but what the frames hold is arbitrary: for tables of which every
    /// entry is written before they are published. Worth having where zeroing costs.
    ///
    /// # Errors
    /// [`NoMem`] when there is no such run.
    fn frames_to_fill(&self, order: u32) -> Result<Fresh, NoMem> {
        self.frames(order)
    }
    /// Takes frames back. Their contents no longer matter.
    fn release(&self, frames: Fresh);
    /// Takes back the 2^`order` frames from `first` on, a run that was published, as a whole, once
    /// no walker can reach it any more.
    fn reclaim_frames(&self, first: Phys, order: u32);
    /// Takes back a single frame that was published, once no walker can reach it any more.
    fn reclaim(&self, table: Phys) {
        self.reclaim_frames(table, 0);
    }
    /// Reads entry `i` of width `W` (acquire).
    fn load<W: Word>(&self, table: Phys, i: usize) -> W;
    /// Writes entry `i` (release).
    fn store<W: Word>(&self, table: Phys, i: usize, w: W);
    /// Replaces entry `i` if it is `old`.
    ///
    /// # Errors
    /// The entry found, when it was not `old`.
    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W>;
    /// Reads the 16 bytes at index `i` (of 16-byte units), single-copy atomic.
    fn load128(&self, table: Phys, i: usize) -> u128;
    /// Writes the 16 bytes at index `i` (of 16-byte units), single-copy atomic
    /// (`[V]` 6.2.2.1, 6.2.3.1).
    fn store128(&self, table: Phys, i: usize, w: u128);
    /// Fills entries of frames that no walker can see yet; the range counts through the whole run.
    fn fill_private<W: Word>(&self, frames: &mut Fresh, range: Range<usize>, entry: impl FnMut(usize) -> W);
    /// Visits entries of a live table behind one check of the range.
    fn run<W: Word>(&self, table: Phys, range: Range<usize>, visit: impl FnMut(usize, &W::Atomic));
    /// Orders earlier stores to table memory before later ones and before a doorbell, as seen by
    /// the device side.
    fn barrier(&self);
    /// Makes bytes of a table visible to a walker that does not snoop the CPU's caches. Called
    /// only for walkers that are not coherent.
    fn clean(&self, table: Phys, bytes: Range<usize>);
}
