//! The table memory of everything that is measured, ours and the peers': frames out of one run of
//! memory, last given back, first taken, zeroed when they are taken, so that what is compared is
//! not the allocator.
#![expect(unsafe_code, reason = "table memory of a process, shared by page tables of several libraries")]

use parking_lot::Mutex;
use portcullis_pgtable::{FRAME_SIZE, Fresh, NoMem, Phys, TableMem, Word};
use portcullis_sync::wide::AtomicU128;
use std::{
    alloc::{Layout, alloc_zeroed, handle_alloc_error},
    ops::Range,
    ptr::NonNull,
    sync::{
        OnceLock,
        atomic::{Ordering, fence},
    },
};

/// Frames of the arena: 96 MiB.
const FRAMES: usize = 24 << 10;
/// The arena begins here as hardware would see it. Not 0, which some peers take for "none".
const START: u64 = 0x20_0000;
/// Runs have at most 2^this frames.
const MOST_ORDER: usize = 5;

pub(crate) struct Arena {
    base: NonNull<u8>,
    free: Mutex<Free>,
}

struct Free {
    /// First frames of free runs, by order.
    runs: [Vec<u32>; MOST_ORDER + 1],
    /// Frames from here on were never taken.
    fresh: usize,
}

// SAFETY: the memory is never given back, belongs to the arena alone, and is reached by frames that
// have one owner each, or through atomics.
unsafe impl Sync for Arena {}
// SAFETY: as above.
unsafe impl Send for Arena {}

/// The process's arena.
pub(crate) fn arena() -> &'static Arena {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    ARENA.get_or_init(|| {
        let layout = Layout::from_size_align(FRAMES * FRAME_SIZE, 2 << 20).expect("a size and an alignment");
        // SAFETY: the size is not zero.
        let base =
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        // Touched once, so that no row pays for the kernel's zeroing.
        for page in 0..FRAMES {
            // SAFETY: inside the allocation.
            unsafe { base.as_ptr().add(page * FRAME_SIZE).write_volatile(0) };
        }
        Arena { base, free: Mutex::new(Free { runs: Default::default(), fresh: 0 }) }
    })
}

impl Arena {
    /// Takes 2^`order` frames; zeroed if `zeroed`.
    pub(crate) fn take(&self, order: u32, zeroed: bool) -> Option<u64> {
        let n = 1usize << order;
        let first = {
            let mut free = self.free.lock();
            match free.runs.get_mut(order as usize)?.pop() {
                Some(first) => first as usize,
                None => {
                    let first = free.fresh.next_multiple_of(n);
                    if first + n > FRAMES {
                        return None;
                    }
                    free.fresh = first + n;
                    first
                }
            }
        };
        if zeroed {
            // SAFETY: the frames lie in the arena and nobody else has them.
            unsafe { self.base.as_ptr().add(first * FRAME_SIZE).write_bytes(0, n * FRAME_SIZE) };
        }
        Some(START + (first * FRAME_SIZE) as u64)
    }

    pub(crate) fn give(&self, phys: u64, order: u32) {
        let first = (phys - START) / FRAME_SIZE as u64;
        self.free.lock().runs[order as usize].push(first as u32);
    }

    /// Where a physical address of the arena lies in this process.
    pub(crate) fn pointer(&self, phys: u64) -> *mut u8 {
        let offset = (phys - START) as usize;
        assert!(offset < FRAMES * FRAME_SIZE);
        // SAFETY: the offset was checked.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// What to add to a physical address of the arena to reach it.
    pub(crate) fn offset(&self) -> u64 {
        (self.base.as_ptr() as u64).wrapping_sub(START)
    }

    fn wide(&self, table: Phys, i: usize) -> &AtomicU128 {
        let at = table.0.wrapping_sub(START) as usize;
        assert!(at <= (FRAMES - 1) * FRAME_SIZE && i < FRAME_SIZE / 16);
        // SAFETY: inside a frame of the arena, which is aligned and lives for ever.
        unsafe { AtomicU128::from_ptr(self.base.as_ptr().add(at).cast::<u128>().add(i)) }
    }
}

/// A handle to the arena, as our tables take it.
#[derive(Clone, Copy)]
pub(crate) struct Frames {
    arena: &'static Arena,
    /// What lies at physical address 0, if it does: at hand, as a kernel's direct map is.
    origin: *mut u8,
}

// SAFETY: the memory lives for ever and is the arena's, which is shared.
unsafe impl Sync for Frames {}
// SAFETY: as above.
unsafe impl Send for Frames {}

impl Frames {
    pub(crate) fn new() -> Frames {
        let arena = arena();
        Frames { arena, origin: arena.base.as_ptr().wrapping_sub(START as usize) }
    }

    #[inline]
    fn words<W: Word>(&self, table: Phys, range: Range<usize>) -> &'static [W::Atomic] {
        let at = table.0.wrapping_sub(START) as usize;
        assert!(
            at <= (FRAMES - 1) * FRAME_SIZE && range.end <= FRAME_SIZE / W::BYTES && range.start <= range.end
        );
        // SAFETY: the range lies in a frame of the arena, which is aligned for any atomic and lives
        // for ever; a frame that is not private is only reached as atomics.
        unsafe {
            let start = self.origin.wrapping_add(table.0 as usize).cast::<W::Atomic>();
            std::slice::from_raw_parts(start.add(range.start), range.len())
        }
    }

    fn fresh(self, order: u32, zeroed: bool) -> Result<Fresh, NoMem> {
        let phys = self.arena.take(order, zeroed).ok_or(NoMem)?;
        // SAFETY: nobody else has the frames; who asked for zeroed ones gets zeroed ones.
        unsafe { Ok(Fresh::from_raw(Phys(phys), order)) }
    }
}

impl TableMem for Frames {
    fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        self.fresh(order, true)
    }

    fn frames_to_fill(&self, order: u32) -> Result<Fresh, NoMem> {
        self.fresh(order, false)
    }

    fn release(&self, frames: Fresh) {
        let order = frames.order();
        self.arena.give(frames.publish().0, order);
    }

    fn reclaim_frames(&self, first: Phys, order: u32) {
        self.arena.give(first.0, order);
    }

    #[inline]
    fn load<W: Word>(&self, table: Phys, i: usize) -> W {
        W::load(&self.words::<W>(table, i..i + 1)[0])
    }

    #[inline]
    fn store<W: Word>(&self, table: Phys, i: usize, w: W) {
        W::store(&self.words::<W>(table, i..i + 1)[0], w);
    }

    #[inline]
    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W> {
        W::cas(&self.words::<W>(table, i..i + 1)[0], old, new)
    }

    fn load128(&self, table: Phys, i: usize) -> u128 {
        self.arena.wide(table, i).load()
    }

    fn store128(&self, table: Phys, i: usize, w: u128) {
        self.arena.wide(table, i).store(w);
    }

    #[inline]
    fn fill_private<W: Word>(
        &self,
        fresh: &mut Fresh,
        range: Range<usize>,
        mut entry: impl FnMut(usize) -> W,
    ) {
        let start = self.arena.pointer(fresh.phys().0).cast::<W>();
        assert!(range.start <= range.end && range.end <= (FRAME_SIZE << fresh.order()) / W::BYTES);
        for i in range {
            // SAFETY: inside the run, which the linear `Fresh` alone reaches.
            unsafe { start.add(i).write(entry(i)) };
        }
    }

    #[inline]
    fn run<W: Word>(&self, table: Phys, range: Range<usize>, visit: impl FnMut(usize, &W::Atomic)) {
        portcullis_pgtable::mem::visit(range.start, self.words::<W>(table, range), visit);
    }

    #[inline]
    fn barrier(&self) {
        fence(Ordering::Release);
    }

    fn clean(&self, _: Phys, _: Range<usize>) {}
}
