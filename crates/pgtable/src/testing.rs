//! Table memory on the heap: counts its frames, fails on demand, and can hide what was not
//! cleaned from a walker.

use crate::mem::{FRAME_SIZE, Fresh, NoMem, Phys, TableMem, Word};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{cell::UnsafeCell, fmt, ops::Range};
use portcullis_sync::{
    atomic::{AtomicBool, AtomicU64, Ordering, fence},
    wide::AtomicU128,
};
use std::sync::{Mutex, PoisonError};

/// A pool of frames. Clones share it.
///
/// In builds with debug assertions an access to a frame that is not handed out panics, and so
/// does giving one back twice, in all builds.
#[derive(Clone)]
pub struct HeapMem(Arc<Pool>);

struct Pool {
    base: u64,
    frames: Box<[Frame]>,
    /// What a walker sees that does not snoop: bytes get here when they are cleaned.
    cleaned: Option<Box<[Frame]>>,
    /// Which frames are handed out.
    taken: Box<[AtomicBool]>,
    state: Mutex<State>,
}

struct State {
    free: Vec<usize>,
    allowed: Option<usize>,
    around_cas: Option<(Moment, Box<dyn FnOnce() + Send>)>,
}

/// When [`HeapMem::around_next_cas`] calls back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the swap.
    Before,
    /// After it.
    After,
}

#[repr(align(4096))]
struct Frame(UnsafeCell<[u8; FRAME_SIZE]>);

// SAFETY: a frame that is handed out is accessed through atomics only, and one that is not, or is
// `Fresh`, has a single owner.
#[expect(unsafe_code, reason = "table memory")]
unsafe impl Sync for Frame {}
// SAFETY: as above; a frame holds plain bytes.
#[expect(unsafe_code, reason = "table memory")]
unsafe impl Send for Frame {}

impl Frame {
    fn filled(n: usize) -> Box<[Frame]> {
        // What no one wrote is noticed when it is taken for an entry.
        (0..n).map(|_| Frame(UnsafeCell::new([0xa5; FRAME_SIZE]))).collect()
    }

    fn atomics<A>(&self, range: Range<usize>) -> &[A] {
        assert!(range.start <= range.end && range.end <= FRAME_SIZE / size_of::<A>());
        let start = self.0.get().cast::<A>();
        // SAFETY: the range lies inside the frame, which is aligned for any atomic, lives as long
        // as `self`, and is accessed as atomics only while it is handed out.
        #[expect(unsafe_code, reason = "table memory")]
        unsafe {
            core::slice::from_raw_parts(start.add(range.start), range.len())
        }
    }
}

impl State {
    /// Takes `n` frames in a row, aligned to their number.
    fn take(&mut self, taken: &[AtomicBool], n: usize) -> Option<usize> {
        let first = if n == 1 {
            self.free.pop()?
        } else {
            let mut runs = (0..taken.len() / n).map(|run| run * n);
            let free = |first: &usize| taken[*first..first + n].iter().all(|t| !t.load(Ordering::Relaxed));
            let first = runs.find(free)?;
            self.free.retain(|i| !(first..first + n).contains(i));
            first
        };
        for t in &taken[first..first + n] {
            t.store(true, Ordering::Relaxed);
        }
        Some(first)
    }
}

impl HeapMem {
    /// `n` frames for walkers that snoop. Address 0 is one of them.
    pub fn new(n: usize) -> HeapMem {
        HeapMem::with(0, n, false)
    }

    /// `n` frames for walkers that see only what was cleaned.
    pub fn incoherent(n: usize) -> HeapMem {
        HeapMem::with(0x1_0000_0000, n, true)
    }

    fn with(base: u64, n: usize, incoherent: bool) -> HeapMem {
        HeapMem(Arc::new(Pool {
            base,
            frames: Frame::filled(n),
            cleaned: incoherent.then(|| Frame::filled(n)),
            taken: (0..n).map(|_| AtomicBool::new(false)).collect(),
            state: Mutex::new(State { free: (0..n).rev().collect(), allowed: None, around_cas: None }),
        }))
    }

    /// Lets the next `n` requests for a frame succeed and all others fail; `None` ends that.
    pub fn allow(&self, n: Option<usize>) {
        self.state(|s| s.allowed = n);
    }

    /// Number of frames that are handed out.
    pub fn in_use(&self) -> usize {
        self.0.taken.iter().filter(|t| t.load(Ordering::Relaxed)).count()
    }

    /// Calls `f` once, around the next compare-and-swap: what another CPU might do there.
    pub fn around_next_cas(&self, moment: Moment, f: impl FnOnce() + Send + 'static) {
        self.state(|s| s.around_cas = Some((moment, Box::new(f))));
    }

    /// Entry `i` of `table` as the walker sees it.
    pub fn walker_load(&self, table: Phys, i: usize) -> u64 {
        let frames = self.0.cleaned.as_ref().unwrap_or(&self.0.frames);
        frames[self.number(table)].atomics::<AtomicU64>(i..i + 1)[0].load(Ordering::Acquire)
    }

    fn state<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    #[inline]
    fn number(&self, table: Phys) -> usize {
        (table.0.wrapping_sub(self.0.base) / FRAME_SIZE as u64) as usize
    }

    #[inline]
    fn live(&self, table: Phys) -> &Frame {
        let n = self.number(table);
        debug_assert!(self.0.taken[n].load(Ordering::Relaxed), "frame {table} is not handed out");
        &self.0.frames[n]
    }

    fn call_around_cas(&self, now: Moment) {
        let due = self.state(|s| s.around_cas.take_if(|(m, _)| *m == now));
        if let Some((_, f)) = due {
            f();
        }
    }
}

impl fmt::Debug for HeapMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapMem")
            .field("frames", &self.0.frames.len())
            .field("in_use", &self.in_use())
            .finish()
    }
}

impl TableMem for HeapMem {
    fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        let mut fresh = self.frames_to_fill(order)?;
        self.fill_private::<u64>(&mut fresh, 0..(FRAME_SIZE / 8) << order, |_| 0);
        Ok(fresh)
    }

    fn frames_to_fill(&self, order: u32) -> Result<Fresh, NoMem> {
        let count = 1usize.checked_shl(order).ok_or(NoMem)?;
        let n = self.state(|s| {
            match &mut s.allowed {
                Some(0) => return Err(NoMem),
                Some(n) => *n -= 1,
                None => {}
            }
            s.take(&self.0.taken, count).ok_or(NoMem)
        })?;
        // SAFETY: the frames were not handed out, so nothing else refers to them, and the run is
        // aligned. What `frames` hands out is zeroed there.
        #[expect(unsafe_code, reason = "table memory")]
        unsafe {
            Ok(Fresh::from_raw(Phys(self.0.base + (n * FRAME_SIZE) as u64), order))
        }
    }

    fn release(&self, frames: Fresh) {
        let order = frames.order();
        self.reclaim_frames(frames.publish(), order);
    }

    fn reclaim_frames(&self, first: Phys, order: u32) {
        let n = self.number(first);
        self.state(|s| {
            for n in n..n + (1 << order) {
                let was = self.0.taken[n].swap(false, Ordering::Relaxed);
                assert!(was, "frame {n} of the run at {first} was given back twice");
                s.free.push(n);
            }
        });
    }

    fn load<W: Word>(&self, table: Phys, i: usize) -> W {
        W::load(&self.live(table).atomics::<W::Atomic>(i..i + 1)[0])
    }

    fn store<W: Word>(&self, table: Phys, i: usize, w: W) {
        W::store(&self.live(table).atomics::<W::Atomic>(i..i + 1)[0], w);
    }

    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W> {
        self.call_around_cas(Moment::Before);
        let done = W::cas(&self.live(table).atomics::<W::Atomic>(i..i + 1)[0], old, new);
        self.call_around_cas(Moment::After);
        done
    }

    fn load128(&self, table: Phys, i: usize) -> u128 {
        self.live(table).atomics::<AtomicU128>(i..i + 1)[0].load()
    }

    fn store128(&self, table: Phys, i: usize, w: u128) {
        self.live(table).atomics::<AtomicU128>(i..i + 1)[0].store(w);
    }

    fn fill_private<W: Word>(
        &self,
        fresh: &mut Fresh,
        range: Range<usize>,
        mut entry: impl FnMut(usize) -> W,
    ) {
        debug_assert!(self.0.taken[self.number(fresh.phys())].load(Ordering::Relaxed));
        let first = self.number(fresh.phys());
        let run = &self.0.frames[first..first + (1 << fresh.order())];
        assert!(range.start <= range.end && range.end <= run.len() * FRAME_SIZE / size_of::<W>());
        let start = UnsafeCell::raw_get(run.as_ptr().cast::<UnsafeCell<u8>>()).cast::<W>();
        for i in range {
            // SAFETY: the index was checked, and `Fresh` is the only way to these frames.
            #[expect(unsafe_code, reason = "table memory")]
            unsafe {
                start.add(i).write(entry(i));
            }
        }
    }

    fn run<W: Word>(&self, table: Phys, range: Range<usize>, visit: impl FnMut(usize, &W::Atomic)) {
        crate::mem::visit(range.start, self.live(table).atomics(range), visit);
    }

    #[inline]
    fn barrier(&self) {
        fence(Ordering::Release);
    }

    #[inline]
    fn clean(&self, table: Phys, bytes: Range<usize>) {
        let Some(cleaned) = &self.0.cleaned else {
            return;
        };
        // Whole cache lines go to memory, as on hardware.
        let words = bytes.start / 64 * 8..bytes.end.div_ceil(64) * 8;
        let from = self.live(table).atomics::<AtomicU64>(words.clone());
        let to = cleaned[self.number(table)].atomics::<AtomicU64>(words);
        for (from, to) in from.iter().zip(to) {
            to.store(from.load(Ordering::Acquire), Ordering::Release);
        }
    }
}
