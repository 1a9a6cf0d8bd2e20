//! A platform without threads of its own: hardware acts inside the register write that sets it going,
//! and whoever waits steps it. What an I/O asks of the hardware can be counted to the last one here,
//! and its time holds no switch between threads.

use parking_lot::Mutex;
use portcullis::{Platform, Seen, ShortLock, Sleep, Time, Window, Woken};
use portcullis_machine::{
    board::Board,
    hardware::{Hardware, HwWork, Width},
    memory::Ram,
};
use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// Invalidation Queue Tail (`[V]` 11.4.9.2): whatever is queued is queued by a write of it.
const IQT: u32 = 0x88;
/// Bytes of a descriptor in scalable mode.
const DESCRIPTOR: u64 = 32;
/// Type of a wait descriptor (`[V]` 6.5.2.9).
const WAIT: u8 = 5;

/// The platform. A handle.
#[derive(Clone)]
pub(crate) struct Inline(Arc<Inner>);

struct Inner {
    ram: Ram,
    start: Instant,
    hardware: Mutex<Bench>,
    counts: Counts,
}

#[derive(Default)]
struct Bench {
    board: Option<Board>,
    work: Vec<HwWork>,
    tail: u64,
}

/// What was asked of the hardware, and how often somebody waited for it.
#[derive(Default)]
struct Counts {
    descriptors: AtomicU64,
    fences: AtomicU64,
    waits: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
}

/// The same at one moment, or between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Descriptors queued, wait descriptors among them.
    pub(crate) descriptors: u64,
    /// Wait descriptors queued.
    pub(crate) fences: u64,
    /// Waits of a thread.
    pub(crate) waits: u64,
    /// Registers read.
    pub(crate) reads: u64,
    /// Registers written.
    pub(crate) writes: u64,
}

impl std::ops::Sub for Asked {
    type Output = Asked;
    fn sub(self, before: Asked) -> Asked {
        Asked {
            descriptors: self.descriptors - before.descriptors,
            fences: self.fences - before.fences,
            waits: self.waits - before.waits,
            reads: self.reads - before.reads,
            writes: self.writes - before.writes,
        }
    }
}

impl Inline {
    pub(crate) fn new(base: u64, memory: usize) -> Inline {
        Inline(Arc::new(Inner {
            ram: Ram::new(base, memory).expect("memory"),
            start: Instant::now(),
            hardware: Mutex::default(),
            counts: Counts::default(),
        }))
    }

    pub(crate) fn ram(&self) -> &Ram {
        &self.0.ram
    }

    pub(crate) fn set_board(&self, board: Board) {
        self.0.hardware.lock().board = Some(board);
    }

    /// Does something to the hardware, and lets it act until it has nothing to do.
    pub(crate) fn board<R>(&self, f: impl FnOnce(&mut Board) -> R) -> R {
        let mut bench = self.0.hardware.lock();
        let r = f(bench.board.as_mut().expect("a board"));
        self.settle(&mut bench);
        r
    }

    pub(crate) fn asked(&self) -> Asked {
        let Counts { descriptors, fences, waits, reads, writes } = &self.0.counts;
        let [descriptors, fences, waits, reads, writes] =
            [descriptors, fences, waits, reads, writes].map(|n| n.load(Ordering::Relaxed));
        Asked { descriptors, fences, waits, reads, writes }
    }

    fn settle(&self, bench: &mut Bench) {
        let Bench { board: Some(board), work, .. } = bench else { return };
        loop {
            let now = self.now();
            work.clear();
            board.runnable(now, work);
            if work.is_empty() {
                return;
            }
            for step in &*work {
                board.run(now, *step);
            }
            // Nobody takes interrupts here: whoever waits looks for himself.
            board.take_interrupts(&mut Vec::new());
        }
    }

    fn write(&self, window: Window, offset: u32, width: Width, value: u64) {
        let mut bench = self.0.hardware.lock();
        let counts = &self.0.counts;
        counts.writes.fetch_add(1, Ordering::Relaxed);
        if offset == IQT {
            let (base, size) = queue(&mut bench, window);
            while bench.tail != value && size > 0 {
                let mut kind = [0];
                let read = self.0.ram.read(base + bench.tail, &mut kind);
                counts.descriptors.fetch_add(1, Ordering::Relaxed);
                let fence = read.is_ok() && kind[0] & 0xf == WAIT;
                counts.fences.fetch_add(fence.into(), Ordering::Relaxed);
                bench.tail = (bench.tail + DESCRIPTOR) % size;
            }
        }
        let now = self.now();
        if let Some(board) = &mut bench.board {
            board.mmio_write(now, window, offset, width, value);
        }
        self.settle(&mut bench);
    }

    fn read(&self, window: Window, offset: u32, width: Width) -> u64 {
        self.0.counts.reads.fetch_add(1, Ordering::Relaxed);
        let now = self.now();
        let mut bench = self.0.hardware.lock();
        bench.board.as_mut().map_or(u64::MAX, |b| b.mmio_read(now, window, offset, width))
    }
}

/// Where the invalidation queue is, and its bytes: IQA.QS says 2^QS pages (`[V]` 11.4.9.3).
fn queue(bench: &mut Bench, window: Window) -> (u64, u64) {
    const IQA: u32 = 0x90;
    let iqa = bench.board.as_mut().map_or(0, |b| b.mmio_read(Time(0), window, IQA, Width::Qword));
    (iqa & !0xfff, 4096 << (iqa & 7))
}

/// A short lock.
pub(crate) struct InlineLock<T>(Mutex<T>);

impl<T: Send> ShortLock<T> for InlineLock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock())
    }
}

impl Platform for Inline {
    type Lock<T: Send + 'static> = InlineLock<T>;
    type Event = AtomicU64;

    fn lock<T: Send + 'static>(&self, value: T) -> InlineLock<T> {
        InlineLock(Mutex::new(value))
    }

    fn event(&self) -> AtomicU64 {
        AtomicU64::new(0)
    }

    fn seen(&self, event: &AtomicU64) -> Seen {
        Seen(event.load(Ordering::SeqCst))
    }

    /// Steps the hardware, and returns: the trait allows that.
    fn wait(&self, _: &Sleep<'_>, event: &AtomicU64, seen: Seen, until: Option<Time>) -> Woken {
        self.0.counts.waits.fetch_add(1, Ordering::Relaxed);
        self.settle(&mut self.0.hardware.lock());
        let late = until.is_some_and(|t| t <= self.now());
        if late && event.load(Ordering::SeqCst) == seen.0 { Woken::Deadline } else { Woken::Notified }
    }

    fn notify(&self, event: &AtomicU64) {
        event.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.0.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn timer_at(&self, _: Time) {}

    fn random(&self) -> u64 {
        RandomState::new().hash_one(0)
    }

    fn kick(&self) {}

    fn read32(&self, window: Window, offset: u32) -> u32 {
        self.read(window, offset, Width::Dword) as u32
    }

    fn write32(&self, window: Window, offset: u32, value: u32) {
        self.write(window, offset, Width::Dword, value.into());
    }

    fn read64(&self, window: Window, offset: u32) -> u64 {
        self.read(window, offset, Width::Qword)
    }

    fn write64(&self, window: Window, offset: u32, value: u64) {
        self.write(window, offset, Width::Qword, value);
    }
}

portcullis_machine::table_mem_of_ram!(Inline);
