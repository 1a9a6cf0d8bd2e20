//! The invalidation queue (`[V]` 6.5.2, 11.4.9): submissions in, completions out, nobody waits.
//!
//! A submission is a list of descriptors and a wait descriptor behind it, which writes a status word
//! of its own when all before it is done. Submissions are numbered, and are resolved in order.
//! Slots are reused only after the wait behind them: hardware moves its head earlier, but until then
//! a time-out may force us to look at them again ([`super::recover`]).
//!
//! A submission that asks a device ends in a fence (FN=1). So nothing behind it, page-group responses
//! above all, is sent before the device has answered, and after a time-out it is certain what was
//! not sent (`[V]` 6.5.2.11).

use super::{
    invalidate::{Item, Items, Kind},
    regs::Regs,
    unit::Unit,
};
use alloc::{collections::VecDeque, vec::Vec};
use core::task::Poll;
use portcullis::{
    Platform, ShortLock, SourceId,
    driver::{HwLost, InvError, InvSeq, SubmitError},
};
use portcullis_pgtable::{FRAME_SIZE, NoMem, Phys};
use portcullis_spec::vtd::{
    qi::{Desc, DescWidth, InvWait},
    regs::{Fsts, Iqa, Iqt},
};

/// What a status word holds once its wait descriptor is complete.
const COMPLETE: u32 = 1;

/// Bytes of a status word.
const STATUS_SIZE: usize = 4;

/// Failures that are remembered. A waiter that asks after so many younger submissions gets
/// [`InvError::Aborted`], which costs a repetition.
const FAILURES: usize = 256;

/// How a submission ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    /// PD: completes behind the page requests received so far (`[V]` 6.5.2.9).
    pub(super) drain: bool,
}

/// One slot of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) kind: SlotKind,
    /// The submission it belongs to.
    pub(super) seq: u64,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotKind {
    /// An item of a submission.
    Item(Kind),
    /// A wait that only says where hardware is: behind one device's invalidation, or in the place
    /// of something that recovery took out.
    Mark,
    /// Taken out by recovery.
    Void,
}

/// The invalidation queue of one unit.
pub(super) struct Queue<P: Platform> {
    pub(super) regs: Regs<P>,
    pub(super) mem: P,
    width: DescWidth,
    /// Completions raise the invalidation completion event.
    pub(super) interrupt: bool,
    ring: P::Lock<Option<Ring>>,
}

/// What the queue's lock protects.
pub(super) struct Ring {
    /// The frames of the descriptors, and those of the status words, one for each slot.
    queue: Phys,
    status: Phys,
    pub(super) slots: Vec<Slot>,
    /// First slot that is in use.
    pub(super) retired: usize,
    /// First slot that is free.
    pub(super) tail: usize,
    /// Items that wait for room, by submission. Filled by recovery alone, and new submissions wait
    /// until it is empty: so it never holds more than the ring did.
    pub(super) backlog: VecDeque<(u64, Item)>,
    pub(super) issued: u64,
    /// Every submission up to here is done or failed.
    pub(super) resolved: u64,
    failures: Vec<Option<(u64, InvError)>>,
    /// One bit a requester: it let an invalidation time out, and is asked no more.
    silent: Vec<u64>,
    /// Each device's invalidation gets a wait of its own, so that a time-out names its device.
    pub(super) isolate: bool,
    pub(super) lost: bool,
    /// Errors that the service turn has not told yet.
    pub(super) told: Fsts,
    /// The source ids that belong to them.
    pub(super) ite_source: Option<SourceId>,
    pub(super) ice_source: Option<SourceId>,
    /// Queue errors in a row without a completion between.
    pub(super) refusals: u32,
    announced: u64,
}

impl<P: Platform> Queue<P> {
    pub(super) fn new(regs: Regs<P>, mem: P, unit: &Unit, interrupt: bool) -> Queue<P> {
        let ring = mem.lock(None);
        Queue {
            regs,
            mem,
            // In scalable mode every descriptor has 256 bits ([V] table 26).
            width: if unit.scalable { DescWidth::Bits256 } else { DescWidth::Bits128 },
            interrupt,
            ring,
        }
    }

    /// Descriptors of a queue of 2^`order` frames.
    fn entries(&self, order: u32) -> usize {
        FRAME_SIZE << order >> self.width.shift()
    }

    /// The status words of a queue of 2^`order` frames take 2^n frames.
    pub(super) fn status_order(&self, order: u32) -> u32 {
        (self.entries(order) * STATUS_SIZE).div_ceil(FRAME_SIZE).ilog2()
    }

    /// The books of a queue of 2^`order` frames. Allocates.
    pub(super) fn ring(&self, order: u32) -> Result<Ring, NoMem> {
        Ring::new(self.entries(order)).map_err(|_| NoMem)
    }

    /// Programs the queue's address and an empty queue; the enable command is the caller's. Called
    /// once.
    pub(super) fn set_up(&self, mut ring: Ring, queue: Phys, status: Phys) {
        let pages = ring.slots.len() / self.entries(0);
        (ring.queue, ring.status) = (queue, status);
        self.ring.with(|r| *r = Some(ring));
        let wide = self.width == DescWidth::Bits256;
        self.regs.set_iqt(Iqt::new());
        self.regs.set_iqa(Iqa::new().with_qs(pages.ilog2() as u8).with_iqa(queue.0).with_dw(wide));
    }

    /// Descriptors that it holds; none before it is set up.
    pub(super) fn capacity(&self) -> u32 {
        self.locked(|_, ring| ring.slots.len() as u32 - 1).unwrap_or(0)
    }

    /// Queues a submission. `before` runs inside the lock once it is certain that there is room: it
    /// stores the entries that the invalidations are for.
    pub(super) fn submit(
        &self,
        items: &Items,
        end: End,
        before: impl FnOnce(),
    ) -> Result<InvSeq, SubmitError> {
        self.locked(|q, ring| {
            q.make_room(ring, items.slots(ring.isolate))?;
            before();
            Ok(q.enqueue(ring, items, end))
        })
        .unwrap_or(Err(SubmitError::Lost(HwLost)))
    }

    /// Runs `f` inside the lock, where entries are stored.
    pub(super) fn exclusively(&self, f: impl FnOnce()) {
        self.ring.with(|_| f());
    }

    /// Queues a page-group response if there is room for one. `take` makes it then, inside the lock;
    /// `None` sends nothing.
    pub(super) fn respond(&self, take: impl FnOnce() -> Option<Desc>) -> Result<(), SubmitError> {
        self.locked(|q, ring| {
            q.make_room(ring, 2)?;
            if let Some(response) = take() {
                let mut items = Items::new();
                items.response(response);
                q.enqueue(ring, &items, End::default());
            }
            Ok(())
        })
        .unwrap_or(Err(SubmitError::Lost(HwLost)))
    }

    /// Whether a submission is resolved. `InvSeq(0)` stands for nothing to wait for.
    pub(super) fn done(&self, seq: InvSeq) -> Poll<Result<(), InvError>> {
        if seq.0 == 0 {
            return Poll::Ready(Ok(()));
        }
        self.locked(|q, ring| {
            if ring.resolved < seq.0 {
                q.look(ring);
            }
            ring.outcome(seq.0)
        })
        .unwrap_or(Poll::Ready(Err(lost())))
    }

    /// Everything that was queued before.
    pub(super) fn newest(&self) -> InvSeq {
        self.locked(|_, ring| InvSeq(ring.issued)).unwrap_or(InvSeq(0))
    }

    /// Everything up to here is done or failed.
    pub(super) fn resolved(&self) -> InvSeq {
        let look = |q: &Self, ring: &mut Ring| {
            q.look(ring);
            InvSeq(ring.resolved)
        };
        self.locked(look).unwrap_or(InvSeq(0))
    }

    /// Looks for completions and errors. Returns whether somebody who waits should look again, and
    /// the errors that were met since the last call.
    pub(super) fn service(&self) -> (bool, Errors) {
        self.locked(|q, ring| {
            q.look(ring);
            let news = ring.announced != ring.resolved || ring.lost;
            ring.announced = ring.resolved;
            let errors = Errors {
                bits: core::mem::take(&mut ring.told),
                timed_out: ring.ite_source.take(),
                invalid: ring.ice_source.take(),
            };
            (news, errors)
        })
        .unwrap_or_default()
    }

    /// Whether a requester let an invalidation time out and was not forgiven.
    pub(super) fn is_silent(&self, source: SourceId) -> bool {
        self.locked(|_, ring| ring.is_silent(source.0 as u16)).unwrap_or(false)
    }

    /// Whether the queue was given up.
    pub(super) fn is_lost(&self) -> bool {
        self.locked(|_, ring| ring.lost).unwrap_or(false)
    }

    /// A requester answers again, or is somebody else now.
    pub(super) fn forgive(&self, source: SourceId) {
        self.locked(|_, ring| ring.set_silent(source.0 as u16, false));
    }

    fn locked<R>(&self, f: impl FnOnce(&Self, &mut Ring) -> R) -> Option<R> {
        self.ring.with(|ring| ring.as_mut().map(|ring| f(self, ring)))
    }

    /// Makes sure of so many free slots, looking for completions only where there are too few.
    fn make_room(&self, ring: &mut Ring, slots: usize) -> Result<(), SubmitError> {
        if ring.free() < slots || !ring.backlog.is_empty() {
            self.look(ring);
        }
        if ring.lost {
            Err(SubmitError::Lost(HwLost))
        } else if ring.free() < slots || !ring.backlog.is_empty() {
            Err(SubmitError::Full)
        } else {
            Ok(())
        }
    }

    fn enqueue(&self, ring: &mut Ring, items: &Items, end: End) -> InvSeq {
        ring.issued += 1;
        let seq = ring.issued;
        for item in items.as_slice() {
            self.put_item(ring, seq, *item);
        }
        let wait = InvWait::new()
            .with_fence(items.asks_a_device())
            .with_pd(end.drain)
            .with_interrupt(self.interrupt);
        let kind = Kind::End;
        self.put_item(ring, seq, Item { kind, desc: wait.desc() });
        self.ring_bell(ring);
        InvSeq(seq)
    }

    /// Puts one item, and in isolation the wait behind it. The caller has made sure of the room.
    pub(super) fn put_item(&self, ring: &mut Ring, seq: u64, item: Item) {
        match item.kind {
            Kind::DeviceTlb(sid) if ring.is_silent(sid) => {
                ring.fail(seq, InvError::DeviceTimeout(SourceId(sid.into())));
            }
            Kind::DeviceTlb(_) => {
                self.put(ring, seq, SlotKind::Item(item.kind), item.desc);
                if ring.isolate {
                    self.put_wait(ring, seq, SlotKind::Mark, InvWait::fence_only());
                }
            }
            Kind::End => {
                let [q0, q1, ..] = item.desc;
                let wait = InvWait::from_bits(portcullis_spec::vtd::join(q0, q1));
                self.put_wait(ring, seq, SlotKind::Item(Kind::End), wait);
            }
            Kind::Own | Kind::Response => {
                self.put(ring, seq, SlotKind::Item(item.kind), item.desc);
            }
        }
    }

    /// Puts a wait that reports to the status word of its own slot: waits may complete out of order
    /// (`[V]` 6.5.2.12), so one word for all would not do.
    fn put_wait(&self, ring: &mut Ring, seq: u64, kind: SlotKind, wait: InvWait) {
        let desc = self.reporting(ring, ring.tail, wait);
        self.put(ring, seq, kind, desc);
    }

    /// `wait` with the status word of `slot`, which is cleared.
    pub(super) fn reporting(&self, ring: &Ring, slot: usize, wait: InvWait) -> Desc {
        let (frame, index) = ring.status_of(slot);
        self.mem.store::<u32>(frame, index, 0);
        wait.with_sw(true)
            .with_status_address(frame.0 + (index * STATUS_SIZE) as u64)
            .with_status_data(COMPLETE)
            .desc()
    }

    fn put(&self, ring: &mut Ring, seq: u64, kind: SlotKind, desc: Desc) {
        let slot = ring.tail;
        ring.slots[slot] = Slot { kind, seq };
        self.write(ring, slot, desc);
        ring.tail = ring.next(slot);
    }

    fn words(&self) -> usize {
        self.width.bytes() / 8
    }

    /// The frame that a slot is in, and the index of its first quadword there.
    fn words_of(&self, ring: &Ring, slot: usize) -> (Phys, usize) {
        let (frame, slot) = (slot / self.entries(0), slot % self.entries(0));
        (frame_of(ring.queue, frame), slot * self.words())
    }

    /// Writes a descriptor. The queue is always snooped (`[V]` 11.4.3, C).
    pub(super) fn write(&self, ring: &Ring, slot: usize, desc: Desc) {
        let (frame, first) = self.words_of(ring, slot);
        for (i, word) in desc.iter().take(self.words()).enumerate() {
            self.mem.store::<u64>(frame, first + i, *word);
        }
    }

    pub(super) fn read(&self, ring: &Ring, slot: usize) -> Desc {
        let (frame, first) = self.words_of(ring, slot);
        let mut desc = [0; 4];
        for (i, word) in desc.iter_mut().take(self.words()).enumerate() {
            *word = self.mem.load::<u64>(frame, first + i);
        }
        desc
    }

    pub(super) fn ring_bell(&self, ring: &Ring) {
        self.mem.barrier();
        let offset = (ring.tail as u64) << self.width.shift();
        self.regs.set_iqt(Iqt::new().with_qt(offset));
    }

    /// The slot that hardware works on next. What hardware says is not trusted to be inside the
    /// part in use.
    pub(super) fn head(&self, ring: &Ring) -> usize {
        let slot = (self.regs.iqh().qh() >> self.width.shift()) as usize % ring.slots.len();
        if ring.distance(ring.retired, slot) <= ring.used() { slot } else { ring.retired }
    }

    /// Takes completions, deals with errors, and moves on what waits for room. An empty queue has
    /// errors too: a device may complete what nobody asked of it.
    fn look(&self, ring: &mut Ring) {
        self.reap(ring);
        self.recover(ring);
        self.reap(ring);
        self.pump(ring);
    }

    pub(super) fn is_complete(&self, ring: &Ring, slot: usize) -> bool {
        let (frame, index) = ring.status_of(slot);
        self.mem.load::<u32>(frame, index) == COMPLETE
    }

    /// Frees the slots up to each completed wait, in order.
    pub(super) fn reap(&self, ring: &mut Ring) {
        let mut slot = ring.retired;
        while slot != ring.tail {
            let Slot { kind, seq } = ring.slots[slot];
            let next = ring.next(slot);
            match kind {
                SlotKind::Item(Kind::End) => {
                    if !self.is_complete(ring, slot) {
                        return;
                    }
                    ring.resolved = seq;
                    ring.refusals = 0;
                    ring.retired = next;
                }
                SlotKind::Mark => {
                    if !self.is_complete(ring, slot) {
                        return;
                    }
                    ring.retired = next;
                }
                SlotKind::Item(_) | SlotKind::Void => {}
            }
            slot = next;
        }
    }

    /// Moves items from the backlog into the ring while there is room.
    fn pump(&self, ring: &mut Ring) {
        let mut moved = false;
        while ring.free() >= 2 {
            let Some((seq, item)) = ring.backlog.pop_front() else {
                break;
            };
            self.put_item(ring, seq, item);
            moved = true;
        }
        if moved {
            self.ring_bell(ring);
        }
    }
}

/// Errors of the queue for the service turn to tell.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Errors {
    /// IQE, ITE, ICE.
    pub(super) bits: Fsts,
    /// Whose invalidation timed out, where that is known.
    pub(super) timed_out: Option<SourceId>,
    /// Who sent an invalid completion, where hardware says it.
    pub(super) invalid: Option<SourceId>,
}

impl Ring {
    fn new(entries: usize) -> Result<Ring, alloc::collections::TryReserveError> {
        let void = Slot { kind: SlotKind::Void, seq: 0 };
        let mut backlog = VecDeque::new();
        backlog.try_reserve_exact(entries)?;
        Ok(Ring {
            queue: Phys(0),
            status: Phys(0),
            slots: filled(void, entries)?,
            retired: 0,
            tail: 0,
            backlog,
            issued: 0,
            resolved: 0,
            failures: filled(None, FAILURES)?,
            silent: filled(0, (1 << 16) / 64)?,
            isolate: false,
            lost: false,
            told: Fsts::new(),
            ite_source: None,
            ice_source: None,
            refusals: 0,
            announced: 0,
        })
    }

    /// The frame of a slot's status word, and its index there.
    fn status_of(&self, slot: usize) -> (Phys, usize) {
        let per_frame = FRAME_SIZE / STATUS_SIZE;
        (frame_of(self.status, slot / per_frame), slot % per_frame)
    }

    pub(super) fn next(&self, slot: usize) -> usize {
        (slot + 1) % self.slots.len()
    }

    pub(super) fn distance(&self, from: usize, to: usize) -> usize {
        (to + self.slots.len() - from) % self.slots.len()
    }

    pub(super) fn used(&self) -> usize {
        self.distance(self.retired, self.tail)
    }

    /// One slot stays empty: equal head and tail mean an empty queue.
    fn free(&self) -> usize {
        self.slots.len() - 1 - self.used()
    }

    pub(super) fn is_silent(&self, sid: u16) -> bool {
        self.silent[usize::from(sid / 64)] & 1 << (sid % 64) != 0
    }

    pub(super) fn set_silent(&mut self, sid: u16, silent: bool) {
        let bit = 1 << (sid % 64);
        let word = &mut self.silent[usize::from(sid / 64)];
        *word = if silent { *word | bit } else { *word & !bit };
    }

    /// Whether an invalidation of a requester's TLB is unfinished.
    pub(super) fn asks(&self, sid: u16) -> bool {
        let asked = Kind::DeviceTlb(sid);
        let mut in_use = (0..self.used()).map(|i| self.slots[(self.retired + i) % self.slots.len()].kind);
        in_use.any(|kind| kind == SlotKind::Item(asked))
            || self.backlog.iter().any(|(_, item)| item.kind == asked)
    }

    /// Notes that a submission failed. It stays unresolved until the rest of it is done; the first
    /// reason is kept.
    pub(super) fn fail(&mut self, seq: u64, error: InvError) {
        let place = &mut self.failures[seq as usize % FAILURES];
        if place.is_none_or(|(s, _)| s != seq) {
            *place = Some((seq, error));
        }
    }

    fn outcome(&self, seq: u64) -> Poll<Result<(), InvError>> {
        if self.resolved < seq {
            return if self.lost { Poll::Ready(Err(lost())) } else { Poll::Pending };
        }
        Poll::Ready(match self.failures[seq as usize % FAILURES] {
            Some((s, error)) if s == seq => Err(error),
            // A younger failure took the place: whether this one failed is not known any more.
            Some((s, _)) if s > seq => Err(InvError::Aborted),
            _ => Ok(()),
        })
    }
}

/// A frame of a run.
fn frame_of(first: Phys, n: usize) -> Phys {
    Phys(first.0 + (n * FRAME_SIZE) as u64)
}

fn filled<T: Clone>(value: T, n: usize) -> Result<Vec<T>, alloc::collections::TryReserveError> {
    let mut v = Vec::new();
    v.try_reserve_exact(n)?;
    v.resize(n, value);
    Ok(v)
}

fn lost() -> InvError {
    InvError::Lost(HwLost)
}
