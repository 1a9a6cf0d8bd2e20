//! Our [`Platform`]: what the library asks of whoever embeds it, and how bare metal answers.
//!
//! This file is the porting guide. A port implements two traits on one handle: [`TableMem`], the
//! frames that hardware walks while we write them, and [`Platform`], which is locks, waiting, time,
//! workers and registers. Clones of a handle name one machine, and state is in the handle, not in
//! statics, so that two machines can live in one program.
//!
//! Contexts: *sleepable* may wait and allocate; *service*, after an interrupt or a timer, does
//! neither; *interrupt* is inside a handler. What may be called in any of them uses atomics,
//! registers and short locks only. This image has one CPU, no threads and no interrupts: it asks
//! whether something happened. Where a machine with threads differs, the method says so.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use core::{ops::Range, ptr};

use portcullis::{Iommu, Platform, Seen, ShortLock as _, Sleep, Time, Window, Woken};
use portcullis_pgtable::{FRAME_SIZE, Fresh, NoMem, Phys, TableMem, Word};
use portcullis_sync::wide::{self, AtomicU128};

use crate::{clock::Clock, cpu, heap, lock::SpinLock, mmio::Registers};

/// The one window of this machine: the registers of its remapping unit.
pub const VTD: Window = Window(0);

/// Frames for tables and queues: 1 MiB.
const FRAMES: usize = 256;

/// The handle. A clone costs a count.
#[derive(Clone)]
pub struct BareMetal(Arc<Machine>);

struct Machine {
    clock: Clock,
    vtd: Registers,
    cache_line: usize,
    /// Address of the first frame; virtual and physical addresses are the same here.
    frames: usize,
    /// Indexes of free frames, with room for all: giving one back allocates nothing.
    free: SpinLock<Vec<usize>>,
    kicked: AtomicBool,
    /// When the timer is due; `u64::MAX` for never.
    timer: AtomicU64,
}

impl BareMetal {
    /// Checks what the library relies on, and refuses a machine that does not have it. Where the
    /// unit's registers are, firmware tells.
    pub fn new(clock: Clock, vtd: Registers) -> Result<Self, &'static str> {
        // Without, they are made under a lock, and no lock stops a walker.
        wide::check().map_err(|_| "16-byte stores are not atomic")?;
        if !cpu::has_random() {
            return Err("the CPU has no RDRAND");
        }
        Ok(Self(Arc::new(Machine {
            clock,
            vtd,
            cache_line: cpu::cache_line(),
            frames: heap::pages(FRAMES),
            free: SpinLock::from(Vec::from_iter(0..FRAMES)),
            kicked: AtomicBool::new(false),
            timer: AtomicU64::new(u64::MAX),
        })))
    }

    /// What the main loop calls between its own steps: the timer, then the work for workers. With
    /// threads, a timer interrupt and worker threads do the same.
    pub fn run_pending(&self, iommu: &Iommu<Self>, cx: &Sleep<'_>) {
        let due = self.0.timer.swap(u64::MAX, Ordering::AcqRel);
        if due <= self.now().0 {
            iommu.tick();
        } else {
            self.0.timer.fetch_min(due, Ordering::AcqRel);
        }
        if self.0.kicked.swap(false, Ordering::AcqRel) {
            while iommu.run(cx) {}
        }
    }

    /// Frames that nobody holds.
    pub fn free_frames(&self) -> usize {
        self.0.free.with(|free| free.len())
    }
}

impl Machine {
    fn registers(&self, window: Window) -> &Registers {
        if window == VTD { &self.vtd } else { &Registers::NONE }
    }

    /// The index of a frame. The trait allows a panic: addresses and indexes come from the library,
    /// never from a device.
    fn frame(&self, table: Phys) -> usize {
        let offset = (table.0 as usize).wrapping_sub(self.frames);
        assert!(offset < FRAMES * FRAME_SIZE && offset.is_multiple_of(FRAME_SIZE), "no frame at {table}");
        offset / FRAME_SIZE
    }

    /// Takes `n` frames in a row, aligned to their number, out of `free`: the index of the first.
    fn take(&self, free: &mut Vec<usize>, n: usize) -> Option<usize> {
        if n == 1 {
            return free.pop();
        }
        let aligned = |i: &&usize| (self.frames / FRAME_SIZE + **i).is_multiple_of(n);
        let whole = |i: &&usize| (**i..**i + n).all(|i| free.contains(&i));
        let first = *free.iter().filter(aligned).find(whole)?;
        free.retain(|i| !(first..first + n).contains(i));
        Some(first)
    }

    /// Where the entries `range`, of `width` bytes each, of a frame begin.
    fn entries(&self, table: Phys, range: &Range<usize>, width: usize) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= FRAME_SIZE / width, "entries {range:?}");
        let frame = self.frames + self.frame(table) * FRAME_SIZE;
        ptr::with_exposed_provenance_mut(frame + range.start * width)
    }

    fn entry<W: Word>(&self, table: Phys, i: usize) -> &W::Atomic {
        let entry = self.entries(table, &(i..i.saturating_add(1)), W::BYTES);
        // SAFETY: inside a frame, which lives as long as `self`, and aligned to its width. `Word`
        // is sealed: the atomic is that of a u32 or u64, whose layout is the integer's. CPU and
        // walkers access a live table atomically only.
        unsafe { &*entry.cast() }
    }

    fn entry128(&self, table: Phys, i: usize) -> &AtomicU128 {
        let entry = self.entries(table, &(i..i.saturating_add(1)), 16);
        // SAFETY: inside a frame, aligned to 16; such entries are accessed as a whole only, or
        // while no other access can race.
        unsafe { AtomicU128::from_ptr(entry.cast()) }
    }
}

/// Memory that is walked while it is written. `frame` is called where allocation is allowed, all
/// else in any context.
impl TableMem for BareMetal {
    /// Zeroed, and out of everybody's reach: the linear [`Fresh`] is the exclusive right to it.
    fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        let n = 1usize.checked_shl(order).ok_or(NoMem)?;
        let index = self.0.free.with(|free| self.0.take(free, n)).ok_or(NoMem)?;
        let first = self.0.frames + index * FRAME_SIZE;
        // SAFETY: the run was free, so neither the CPU nor a walker uses it.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(first).write_bytes(0, n * FRAME_SIZE) };
        // SAFETY: as above; zeroed, aligned, and no longer in the list of free frames.
        Ok(unsafe { Fresh::from_raw(Phys(first as u64), order) })
    }

    /// The library calls this after the invalidation that makes it true that no walker comes here.
    fn reclaim_frames(&self, first: Phys, order: u32) {
        let first = self.0.frame(first);
        self.0.free.with(|free| {
            for index in first..first + (1 << order) {
                assert!(free.len() < FRAMES, "a frame was given back twice");
                free.push(index);
            }
        });
    }
    fn release(&self, frames: Fresh) {
        let order = frames.order();
        self.reclaim_frames(frames.publish(), order);
    }

    // One access of the entry's own width each, acquire or release: the walker sees the old entry or
    // the new one. `Word` brings the orderings; index `i` counts entries, not bytes.
    fn load<W: Word>(&self, table: Phys, i: usize) -> W {
        W::load(self.0.entry::<W>(table, i))
    }
    fn store<W: Word>(&self, table: Phys, i: usize, w: W) {
        W::store(self.0.entry::<W>(table, i), w);
    }
    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W> {
        W::cas(self.0.entry::<W>(table, i), old, new)
    }
    // The same for 16 bytes. Hardware takes such an entry in one read, so a lock would not do.
    fn load128(&self, table: Phys, i: usize) -> u128 {
        self.0.entry128(table, i).load()
    }
    fn store128(&self, table: Phys, i: usize, w: u128) {
        self.0.entry128(table, i).store(w);
    }

    /// Plain stores are enough: the borrow of the `Fresh` shows that no walker is there yet.
    fn fill_private<W: Word>(
        &self,
        frames: &mut Fresh,
        range: Range<usize>,
        mut entry: impl FnMut(usize) -> W,
    ) {
        assert!(range.end <= (FRAME_SIZE << frames.order()) / W::BYTES, "entries {range:?}");
        let first = self.0.entries(frames.phys(), &(0..0), W::BYTES).cast::<W>();
        for i in range {
            // SAFETY: inside the run, just checked, and the run is borrowed exclusively.
            unsafe { first.add(i).write(entry(i)) };
        }
    }

    /// One check for many entries: maps and unmaps go through here.
    fn run<W: Word>(&self, table: Phys, range: Range<usize>, mut visit: impl FnMut(usize, &W::Atomic)) {
        let first = self.0.entries(table, &range, W::BYTES).cast::<W::Atomic>();
        for (n, i) in range.enumerate() {
            // SAFETY: as in `entry`; `entries` checked the range.
            visit(i, unsafe { &*first.add(n) });
        }
    }

    /// Earlier stores become visible to the device side before later ones: a full fence here, a
    /// `dsb` on Arm.
    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }

    /// For walkers that do not snoop, which a unit says by ECAP.C or ECAP.SMPWCS. A platform whose
    /// units all snoop may leave it empty.
    fn clean(&self, table: Phys, bytes: Range<usize>) {
        let first = self.0.entries(table, &bytes, 1).addr();
        cpu::flush(first..first + bytes.len(), self.0.cache_line);
        fence(Ordering::SeqCst); // A flush comes after the stores to its line, and before this.
    }
}

impl Platform for BareMetal {
    /// Excludes every other context, interrupts of the same CPU included. Held shortly: never over
    /// a wait, an allocation or a call out, and never twice by one context.
    type Lock<T: Send + 'static> = SpinLock<T>;
    /// Counts notifications, so that one between a look and the wait is not lost.
    type Event = AtomicU64;

    /// Sleepable, as is `event`: both may allocate.
    fn lock<T: Send + 'static>(&self, value: T) -> SpinLock<T> {
        value.into()
    }
    fn event(&self) -> AtomicU64 {
        AtomicU64::new(0)
    }

    /// Read before the condition is looked at that is then waited for; any context.
    fn seen(&self, event: &AtomicU64) -> Seen {
        Seen(event.load(Ordering::Acquire))
    }

    /// Sleepable; where a thread would sleep. Runs nothing else on the caller's stack, and may
    /// return early as notified. The library looks at the hardware by itself and passes a deadline,
    /// so to spin until then is enough. Without a deadline it waits for other software, and there is
    /// none here: that the platform ends makes it give up.
    fn wait(&self, _: &Sleep<'_>, event: &AtomicU64, seen: Seen, until: Option<Time>) -> Woken {
        loop {
            if event.load(Ordering::Acquire) != seen.0 {
                return Woken::Notified;
            }
            match until {
                None => return Woken::Shutdown,
                Some(until) if until <= self.now() => return Woken::Deadline,
                Some(_) => core::hint::spin_loop(), // PAUSE
            }
        }
    }

    /// Wakes all who wait, in any context, so it takes no lock that a waiter holds while it looks.
    fn notify(&self, event: &AtomicU64) {
        event.fetch_add(1, Ordering::AcqRel);
    }

    /// Never goes backwards, on whichever CPU it is read; deadlines are counted by it.
    fn now(&self) -> Time {
        Time::default() + self.0.clock.now()
    }

    /// Any context. The earliest time counts until [`Iommu::tick`] is called; early is allowed.
    fn timer_at(&self, at: Time) {
        self.0.timer.fetch_min(at.0, Ordering::AcqRel);
    }

    /// Keys start at such a number, so that nobody guesses one. The clock is the last resort.
    fn random(&self) -> u64 {
        cpu::random().unwrap_or_else(|| self.now().0)
    }

    /// Any context, so it only leaves a mark for [`BareMetal::run_pending`].
    fn kick(&self) {
        self.0.kicked.store(true, Ordering::Release);
    }

    /// A register that is not there reads as ones, like one that does not answer, and drivers know
    /// that: offsets come out of capability registers too.
    fn read32(&self, window: Window, offset: u32) -> u32 {
        self.0.registers(window).read(offset).unwrap_or(u32::MAX)
    }
    /// One access of 8 bytes, so that its halves belong together.
    fn read64(&self, window: Window, offset: u32) -> u64 {
        self.0.registers(window).read(offset).unwrap_or(u64::MAX)
    }
    /// May be a doorbell: what was stored to tables must be visible before. It is on x86, uncached
    /// stores included; on Arm it takes a `dsb`.
    fn write32(&self, window: Window, offset: u32, value: u32) {
        self.0.registers(window).write(offset, value);
    }
    fn write64(&self, window: Window, offset: u32, value: u64) {
        self.0.registers(window).write(offset, value);
    }
}
