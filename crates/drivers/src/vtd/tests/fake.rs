//! Memory, registers and nothing behind them.

#![expect(unsafe_code, reason = "the test's own table memory")]

use core::{ops::Range, ptr};
use portcullis::{Platform, Seen, ShortLock, Sleep, Time, Window, Woken};
use portcullis_pgtable::{FRAME_SIZE, Fresh, NoMem, Phys, TableMem, Word};
use portcullis_spec::vtd::{
    qi::{Desc, DescType},
    regs::{Cap, Ecap, Fsts, Prs, offset},
};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    boxed::Box,
    collections::BTreeMap,
    sync::{Arc, Mutex},
    vec::Vec,
};

/// Where the frames begin.
const BASE: u64 = 0x10_0000;
const GCMD_SRTP: u32 = 1 << 30;

pub(super) struct Lock<T>(Mutex<T>);

impl<T: Send> ShortLock<T> for Lock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.try_lock().expect("a short lock is not taken twice"))
    }
}

type Reaction = Box<dyn FnOnce(&Fake) + Send>;

/// One thing that the driver did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Did {
    /// A store to this address of so many bytes, in one access.
    Store(u64, usize),
    Barrier,
    /// A write to this register.
    Write(u32),
}

struct State {
    regs: BTreeMap<u32, u32>,
    /// Every register write, in order: offset and value.
    writes: Vec<(u32, u64)>,
    /// Ranges that were cleaned, as addresses.
    cleaned: Vec<Range<u64>>,
    released: Vec<Phys>,
    /// GCMD takes no effect.
    stuck: bool,
    /// What hardware does next when a register is written.
    reactions: BTreeMap<u32, Reaction>,
    /// What was done to memory and registers, in order.
    done: Vec<Did>,
    frames_left: usize,
    /// There is no longer run of frames than of this order.
    longest_run: u32,
}

/// Frames by their number, and the runs that they are parts of.
#[derive(Default)]
struct Frames {
    at: Vec<usize>,
    runs: Vec<(*mut u8, Layout)>,
}

// SAFETY: a run is memory like any other; who may access it is decided where it is accessed.
unsafe impl Send for Frames {}

impl Drop for Frames {
    fn drop(&mut self) {
        for (run, layout) in self.runs.drain(..) {
            // SAFETY: allocated with this layout, and this is the last of the fake's clones.
            unsafe { dealloc(run, layout) };
        }
    }
}

#[derive(Clone)]
pub(super) struct Fake {
    frames: Arc<Mutex<Frames>>,
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub(super) fn new(cap: Cap, ecap: Ecap) -> Fake {
        let fake = Fake {
            frames: Arc::default(),
            state: Arc::new(Mutex::new(State {
                regs: BTreeMap::new(),
                writes: Vec::new(),
                cleaned: Vec::new(),
                released: Vec::new(),
                stuck: false,
                reactions: BTreeMap::new(),
                done: Vec::new(),
                frames_left: usize::MAX,
                longest_run: u32::MAX,
            })),
        };
        fake.set32(offset::VER, 0x10);
        fake.set64(offset::CAP, cap.into_bits());
        fake.set64(offset::ECAP, ecap.into_bits());
        fake
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock().unwrap())
    }

    pub(super) fn set32(&self, at: u32, value: u32) {
        self.with(|s| s.regs.insert(at, value));
    }

    pub(super) fn set64(&self, at: u32, value: u64) {
        self.set32(at, value as u32);
        self.set32(at + 4, (value >> 32) as u32);
    }

    pub(super) fn get32(&self, at: u32) -> u32 {
        self.with(|s| s.regs.get(&at).copied().unwrap_or(0))
    }

    pub(super) fn get64(&self, at: u32) -> u64 {
        u64::from(self.get32(at)) | u64::from(self.get32(at + 4)) << 32
    }

    pub(super) fn stick(&self, stuck: bool) {
        self.with(|s| s.stuck = stuck);
    }

    /// What hardware does once `at` was written.
    pub(super) fn after_write(&self, at: u32, reaction: impl FnOnce(&Fake) + Send + 'static) {
        self.with(|s| s.reactions.insert(at, Box::new(reaction)));
    }

    /// What was done since the last call: stores to the frame that holds `at`, barriers and register
    /// writes.
    pub(super) fn done_around(&self, at: u64) -> Vec<Did> {
        let mut done = self.with(|s| core::mem::take(&mut s.done));
        done.retain(|d| !matches!(d, Did::Store(to, _) if to & !0xfff != at & !0xfff));
        done
    }

    pub(super) fn limit_frames(&self, n: usize) {
        self.with(|s| s.frames_left = n);
    }

    /// From here on memory is in pieces.
    pub(super) fn limit_runs(&self, order: u32) {
        self.with(|s| s.longest_run = order);
    }

    /// Frames that were handed out and not given back.
    pub(super) fn frames_in_use(&self) -> usize {
        let handed_out = self.frames.lock().unwrap().at.iter().filter(|f| **f != 0).count();
        handed_out - self.with(|s| s.released.len())
    }

    pub(super) fn released(&self) -> Vec<Phys> {
        self.with(|s| s.released.clone())
    }

    /// The writes since the last call.
    pub(super) fn writes(&self) -> Vec<(u32, u64)> {
        self.with(|s| core::mem::take(&mut s.writes))
    }

    pub(super) fn was_cleaned(&self, at: u64, len: u64) -> bool {
        self.with(|s| s.cleaned.iter().any(|r| r.start <= at && at + len <= r.end))
    }

    /// A quadword of memory.
    pub(super) fn peek(&self, at: u64) -> u64 {
        self.load(Phys(at & !0xfff), (at & 0xfff) as usize / 8)
    }

    pub(super) fn poke(&self, at: u64, value: u64) {
        self.store(Phys(at & !0xfff), (at & 0xfff) as usize / 8, value);
    }

    fn wide(&self) -> bool {
        self.get64(offset::IQA) & 1 << 11 != 0
    }

    fn queue_shift(&self) -> u32 {
        if self.wide() { 5 } else { 4 }
    }

    /// The descriptor in a slot of the invalidation queue.
    pub(super) fn slot(&self, slot: u64) -> Desc {
        let at = (self.get64(offset::IQA) & !0xfff) + (slot << self.queue_shift());
        let mut desc = [0; 4];
        let words = if self.wide() { 4 } else { 2 };
        for (i, word) in desc.iter_mut().take(words).enumerate() {
            *word = self.peek(at + 8 * i as u64);
        }
        desc
    }

    pub(super) fn head(&self) -> u64 {
        self.get64(offset::IQH) >> self.queue_shift()
    }

    pub(super) fn tail(&self) -> u64 {
        self.get64(offset::IQT) >> self.queue_shift()
    }

    pub(super) fn slots(&self) -> u64 {
        // QS in bits 2:0.
        4096 << (self.get64(offset::IQA) & 7) >> self.queue_shift()
    }

    /// The descriptors that hardware has not passed.
    pub(super) fn queued(&self) -> Vec<Desc> {
        let mut list = Vec::new();
        let mut slot = self.head();
        while slot != self.tail() {
            list.push(self.slot(slot));
            slot = (slot + 1) % self.slots();
        }
        list
    }

    /// Moves the head by `n` descriptors; the waits among them report if `complete`.
    pub(super) fn fetch(&self, n: u64, complete: bool) {
        for _ in 0..n {
            let slot = self.head();
            assert_ne!(slot, self.tail(), "nothing to fetch");
            let desc = self.slot(slot);
            let is_wait = DescType::field(&desc) == DescType::Wait.bits();
            if complete && is_wait && desc[0] & 1 << 5 != 0 {
                let at = desc[1] & !3;
                self.store::<u32>(Phys(at & !0xfff), (at & 0xfff) as usize / 4, (desc[0] >> 32) as u32);
            }
            let next = (slot + 1) % self.slots();
            self.set64(offset::IQH, next << self.queue_shift());
        }
    }

    pub(super) fn complete_all(&self) {
        while self.head() != self.tail() {
            self.fetch(1, true);
        }
    }

    fn written(&self, at: u32, value: u64) {
        self.with(|s| {
            s.writes.push((at, value));
            s.done.push(Did::Write(at));
        });
        let low = value as u32;
        let w1c = |mask: u32| self.set32(at, self.get32(at) & !(low & mask));
        match at {
            offset::GCMD => {
                if !self.with(|s| s.stuck) {
                    let rtps = self.get32(offset::GSTS) & GCMD_SRTP;
                    self.set32(offset::GSTS, low | rtps);
                }
            }
            offset::FSTS => w1c(Fsts::W1C),
            offset::PRS => w1c(Prs::W1C),
            offset::ICS => w1c(1),
            offset::PMEN => {
                let epm = low & 1 << 31;
                self.set32(at, epm | epm >> 31);
            }
            // F of the fault recording registers.
            0x220..0x260 if at % 16 == 12 => {
                w1c(1 << 31);
                let pending = (0..4).any(|i| self.get32(0x22c + 16 * i) >> 31 != 0);
                let fsts = self.get32(offset::FSTS) & !2;
                self.set32(offset::FSTS, fsts | u32::from(pending) << 1);
            }
            _ => self.set32(at, low),
        }
        if let Some(reaction) = self.with(|s| s.reactions.remove(&at)) {
            reaction(self);
        }
    }

    fn pointer<T>(&self, table: Phys, i: usize) -> *const T {
        let frames = self.frames.lock().unwrap();
        let frame = frames.at[((table.0 - BASE) / FRAME_SIZE as u64) as usize];
        assert!((i + 1) * size_of::<T>() <= FRAME_SIZE);
        ptr::with_exposed_provenance::<T>(frame).wrapping_add(i)
    }

    fn atomic<W: Word>(&self, table: Phys, i: usize) -> &W::Atomic {
        // SAFETY: the pointer is inside a frame, which is aligned to its size, zeroed at first and
        // not freed before `self`; every access to frames is atomic, and tests have one thread.
        unsafe { &*self.pointer::<W::Atomic>(table, i) }
    }
}

impl TableMem for Fake {
    fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        if order > self.with(|s| s.longest_run) {
            return Err(NoMem);
        }
        let left = self.with(|s| {
            let left = s.frames_left;
            s.frames_left = left.saturating_sub(1);
            left
        });
        if left == 0 {
            return Err(NoMem);
        }
        let n = 1 << order;
        let layout = Layout::from_size_align(n * FRAME_SIZE, n * FRAME_SIZE).unwrap();
        let mut frames = self.frames.lock().unwrap();
        // BASE is aligned to any run that a test asks for.
        while !frames.at.len().is_multiple_of(n) {
            frames.at.push(0);
        }
        let first = frames.at.len();
        // SAFETY: the layout has a size.
        let run = unsafe { alloc_zeroed(layout) };
        frames.runs.push((run, layout));
        frames.at.extend((0..n).map(|i| run.wrapping_add(i * FRAME_SIZE).expose_provenance()));
        let phys = Phys(BASE + first as u64 * FRAME_SIZE as u64);
        // SAFETY: the run is new, zeroed and aligned, and its address is given out once.
        Ok(unsafe { Fresh::from_raw(phys, order) })
    }

    fn release(&self, frames: Fresh) {
        let order = frames.order();
        self.reclaim_frames(frames.publish(), order);
    }

    fn reclaim_frames(&self, first: Phys, order: u32) {
        let frames = (0..1 << order).map(|i| Phys(first.0 + i * FRAME_SIZE as u64));
        self.with(|s| s.released.extend(frames));
    }

    fn load<W: Word>(&self, table: Phys, i: usize) -> W {
        W::load(self.atomic::<W>(table, i))
    }

    fn store<W: Word>(&self, table: Phys, i: usize, w: W) {
        let (at, bytes) = (table.0 + (i * size_of::<W>()) as u64, size_of::<W>());
        self.with(|s| s.done.push(Did::Store(at, bytes)));
        W::store(self.atomic::<W>(table, i), w);
    }

    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W> {
        W::cas(self.atomic::<W>(table, i), old, new)
    }

    fn load128(&self, table: Phys, i: usize) -> u128 {
        let half = |n| u128::from(self.load::<u64>(table, 2 * i + n));
        half(0) | half(1) << 64
    }

    fn store128(&self, table: Phys, i: usize, w: u128) {
        self.with(|s| s.done.push(Did::Store(table.0 + i as u64 * 16, 16)));
        u64::store(self.atomic::<u64>(table, 2 * i), w as u64);
        u64::store(self.atomic::<u64>(table, 2 * i + 1), (w >> 64) as u64);
    }

    fn fill_private<W: Word>(
        &self,
        frames: &mut Fresh,
        range: Range<usize>,
        mut entry: impl FnMut(usize) -> W,
    ) {
        let each = FRAME_SIZE / size_of::<W>();
        for i in range {
            let frame = Phys(frames.phys().0 + (i / each * FRAME_SIZE) as u64);
            self.store::<W>(frame, i % each, entry(i));
        }
    }

    fn run<W: Word>(&self, table: Phys, range: Range<usize>, mut visit: impl FnMut(usize, &W::Atomic)) {
        for i in range {
            visit(i, self.atomic::<W>(table, i));
        }
    }

    fn barrier(&self) {
        self.with(|s| s.done.push(Did::Barrier));
    }

    fn clean(&self, table: Phys, bytes: Range<usize>) {
        let range = table.0 + bytes.start as u64..table.0 + bytes.end as u64;
        self.with(|s| s.cleaned.push(range));
    }
}

impl Platform for Fake {
    type Lock<T: Send + 'static> = Lock<T>;
    type Event = ();

    fn lock<T: Send + 'static>(&self, value: T) -> Lock<T> {
        Lock(Mutex::new(value))
    }

    fn event(&self) {}

    fn seen(&self, (): &()) -> Seen {
        Seen(0)
    }

    fn wait(&self, _: &Sleep<'_>, (): &(), _: Seen, _: Option<Time>) -> Woken {
        unreachable!("a driver never waits")
    }

    fn notify(&self, (): &()) {}

    fn now(&self) -> Time {
        Time(0)
    }

    fn timer_at(&self, _: Time) {}

    fn random(&self) -> u64 {
        0
    }

    fn kick(&self) {}

    fn read32(&self, _: Window, at: u32) -> u32 {
        self.get32(at)
    }

    fn write32(&self, _: Window, at: u32, value: u32) {
        self.written(at, value.into());
    }

    fn read64(&self, _: Window, at: u32) -> u64 {
        self.get64(at)
    }

    fn write64(&self, _: Window, at: u32, value: u64) {
        self.written(at, value);
        self.set64(at, value);
    }
}
