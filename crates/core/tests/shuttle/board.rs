//! The platform on shuttle's threads. Time passes where every thread waits, and then to the next
//! moment that somebody waits for; and where a test says so.

use super::cx;
use portcullis::{Iommu, Platform, Seen, ShortLock, Sleep, Time, Window, Woken};
use portcullis_pgtable::{Fresh, NoMem, Phys, TableMem, Word};
use portcullis_sync::atomic::AtomicU64;
use shuttle::sync::{Condvar, Mutex, MutexGuard};
use std::{
    any::Any,
    cell::Cell,
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{self as real, Ordering::SeqCst},
    },
    time::Duration,
};

const NEVER: Time = Time(u64::MAX);
const FRAME: u64 = 0x1000;

#[derive(Clone)]
pub struct Board(Arc<Inner>);

struct Inner {
    clock: Mutex<Clock>,
    /// The clock's time, to be read without a switch to another thread.
    now: real::AtomicU64,
    random: real::AtomicU64,
    frames: std::sync::Mutex<BTreeMap<u64, Arc<Frame>>>,
    next_frame: real::AtomicU64,
    /// There is work for a worker.
    work: Event,
    /// The timer was set.
    alarm: Event,
}

/// A frame's entries, made when they are first used: a scheduler's atomic is not small.
type Frame = [OnceLock<AtomicU64>; 512];

/// Who waits for what.
struct Clock {
    timer: Time,
    /// Threads that do not wait.
    awake: usize,
    stopping: bool,
    sleepers: Vec<Sleeper>,
    events: u64,
}

struct Sleeper {
    event: u64,
    until: Time,
    woken: Arc<(Condvar, real::AtomicBool)>,
}

/// Something to wait for.
pub struct Event {
    id: u64,
    count: real::AtomicU64,
}

impl Event {
    fn new(id: u64) -> Event {
        Event { id, count: real::AtomicU64::new(0) }
    }
}

/// A thread of the test.
pub struct Thread {
    board: Board,
    over: Arc<(Event, real::AtomicBool)>,
}

impl Thread {
    pub fn join(self) {
        let (event, over) = &*self.over;
        loop {
            let seen = self.board.seen(event);
            if over.load(SeqCst) {
                return;
            }
            self.board.wait(&cx(), event, seen, None);
        }
    }
}

shuttle::thread_local! {
    /// Short locks that the thread holds.
    static HELD: Cell<usize> = Cell::new(0);
}

/// How many short locks the current thread holds.
pub fn held() -> usize {
    HELD.with(Cell::get)
}

impl Board {
    pub fn new() -> Board {
        Board(Arc::new(Inner {
            clock: Mutex::new(Clock {
                timer: NEVER,
                awake: 1,
                stopping: false,
                sleepers: Vec::new(),
                events: 2,
            }),
            now: real::AtomicU64::new(0),
            random: real::AtomicU64::new(1),
            frames: std::sync::Mutex::default(),
            next_frame: real::AtomicU64::new(0x10),
            work: Event::new(0),
            alarm: Event::new(1),
        }))
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.0.clock.lock().expect("a panic ends the execution")
    }

    /// Frames in use.
    pub fn in_use(&self) -> usize {
        self.0.frames.lock().unwrap().len()
    }

    pub fn spawn(&self, f: impl FnOnce() + Send + 'static) -> Thread {
        self.clock().awake += 1;
        let over = Arc::new((self.event(), real::AtomicBool::new(false)));
        let (board, told) = (self.clone(), over.clone());
        shuttle::thread::spawn(move || {
            f();
            told.1.store(true, SeqCst);
            board.notify(&told.0);
            let mut clock = board.clock();
            clock.awake -= 1;
            board.pass_if_idle(&mut clock);
        });
        Thread { board: self.clone(), over }
    }

    /// A thread that does sleepable work until the board stops.
    pub fn worker(&self, iommu: &Iommu<Board>) -> Thread {
        let (board, iommu) = (self.clone(), iommu.clone());
        self.spawn(move || {
            loop {
                let seen = board.seen(&board.0.work);
                while !board.clock().stopping && iommu.run_one(&cx()) {}
                if board.clock().stopping {
                    return;
                }
                board.wait(&cx(), &board.0.work, seen, None);
            }
        })
    }

    /// A thread that ticks when the timer fires, until the board stops.
    pub fn timer(&self, iommu: &Iommu<Board>) -> Thread {
        let (board, iommu) = (self.clone(), iommu.clone());
        self.spawn(move || {
            loop {
                let seen = board.seen(&board.0.alarm);
                if board.clock().stopping {
                    return;
                }
                if !board.tick_if_due(&iommu) {
                    let timer = board.clock().timer;
                    board.wait(&cx(), &board.0.alarm, seen, Some(timer).filter(|t| *t != NEVER));
                }
            }
        })
    }

    /// What the timer's interrupt does.
    pub fn tick_if_due(&self, iommu: &Iommu<Board>) -> bool {
        let mut clock = self.clock();
        let due = clock.timer <= self.now();
        if due {
            clock.timer = NEVER;
            drop(clock);
            iommu.tick();
        }
        due
    }

    /// Where the timer is set, time passes to when it fires.
    pub fn pass_to_timer(&self) -> bool {
        let mut clock = self.clock();
        let timer = clock.timer;
        if timer != NEVER {
            self.set(&mut clock, timer);
        }
        timer != NEVER
    }

    /// The workers and the timer end when they have done what they are at.
    pub fn stop(&self) {
        self.clock().stopping = true;
        self.notify(&self.0.work);
        self.notify(&self.0.alarm);
    }

    /// Time passes while others run.
    pub fn pass(&self, d: Duration) {
        let mut clock = self.clock();
        self.set(&mut clock, self.now() + d);
    }

    fn set(&self, clock: &mut Clock, to: Time) {
        self.0.now.fetch_max(to.0, SeqCst);
        clock.wake(|s| s.until <= to);
    }

    /// Where nobody is awake, time passes to the next moment that somebody waits for. Where nobody
    /// waits for any, shuttle reports the deadlock.
    fn pass_if_idle(&self, clock: &mut Clock) {
        let next = clock.sleepers.iter().map(|s| s.until).min().unwrap_or(NEVER);
        if clock.awake == 0 && next != NEVER {
            self.set(clock, next);
        }
    }

    fn entry<W: Word, R>(&self, table: Phys, i: usize, f: impl FnOnce(&W::Atomic) -> R) -> R {
        let frame = self.0.frames.lock().unwrap().get(&table.0).cloned();
        let frame = frame.expect("a frame is used after it was freed");
        let entry: &dyn Any = frame[i].get_or_init(|| AtomicU64::new(0));
        f(entry.downcast_ref().expect("entries of 64 bits"))
    }
}

impl Clock {
    fn wake(&mut self, who: impl Fn(&Sleeper) -> bool) {
        for sleeper in self.sleepers.extract_if(.., |s| who(s)) {
            self.awake += 1;
            sleeper.woken.1.store(true, SeqCst);
            sleeper.woken.0.notify_one();
        }
    }
}

/// A lock that knows its holder.
pub struct Lock<T>(Mutex<T>);

impl<T: Send> ShortLock<T> for Lock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.0.lock().expect("a panic ends the execution");
        HELD.with(|h| h.set(h.get() + 1));
        let r = f(&mut value);
        HELD.with(|h| h.set(h.get() - 1));
        r
    }
}

impl Platform for Board {
    type Lock<T: Send + 'static> = Lock<T>;
    type Event = Event;

    fn lock<T: Send + 'static>(&self, value: T) -> Lock<T> {
        Lock(Mutex::new(value))
    }

    fn event(&self) -> Event {
        let mut clock = self.clock();
        clock.events += 1;
        Event::new(clock.events)
    }

    fn seen(&self, event: &Event) -> Seen {
        Seen(event.count.load(SeqCst))
    }

    fn wait(&self, _: &Sleep<'_>, event: &Event, seen: Seen, until: Option<Time>) -> Woken {
        assert_eq!(held(), 0, "a short lock is held over a wait");
        let mut clock = self.clock();
        if event.count.load(SeqCst) != seen.0 {
            return Woken::Notified;
        }
        let until = until.unwrap_or(NEVER);
        if until <= self.now() {
            return Woken::Deadline;
        }
        let woken = Arc::new((Condvar::new(), real::AtomicBool::new(false)));
        clock.sleepers.push(Sleeper { event: event.id, until, woken: woken.clone() });
        clock.awake -= 1;
        self.pass_if_idle(&mut clock);
        while !woken.1.load(SeqCst) {
            clock = woken.0.wait(clock).expect("a panic ends the execution");
        }
        if event.count.load(SeqCst) != seen.0 { Woken::Notified } else { Woken::Deadline }
    }

    fn notify(&self, event: &Event) {
        let mut clock = self.clock();
        event.count.fetch_add(1, SeqCst);
        clock.wake(|s| s.event == event.id);
    }

    fn now(&self) -> Time {
        Time(self.0.now.load(SeqCst))
    }

    fn timer_at(&self, at: Time) {
        let mut clock = self.clock();
        clock.timer = clock.timer.min(at.max(Time(self.now().0 + 1)));
        drop(clock);
        self.notify(&self.0.alarm);
    }

    fn random(&self) -> u64 {
        self.0.random.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst)
    }

    fn kick(&self) {
        self.notify(&self.0.work);
    }

    fn read32(&self, _: Window, _: u32) -> u32 {
        unreachable!("the scripted driver has no registers")
    }
    fn write32(&self, _: Window, _: u32, _: u32) {
        unreachable!("the scripted driver has no registers")
    }
    fn read64(&self, _: Window, _: u32) -> u64 {
        unreachable!("the scripted driver has no registers")
    }
    fn write64(&self, _: Window, _: u32, _: u64) {
        unreachable!("the scripted driver has no registers")
    }
}

impl TableMem for Board {
    #[expect(unsafe_code, reason = "table memory of the test")]
    fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        assert_eq!(held(), 0, "a short lock is held over an allocation");
        assert_eq!(order, 0, "the driver's tables are of one frame");
        let first = self.0.next_frame.fetch_add(1, SeqCst) * FRAME;
        let frame = Arc::new([const { OnceLock::new() }; 512]);
        self.0.frames.lock().unwrap().insert(first, frame);
        // SAFETY: no frame had this address before, and its entries are zero where nobody wrote.
        Ok(unsafe { Fresh::from_raw(Phys(first), 0) })
    }
    fn release(&self, frame: Fresh) {
        self.reclaim(frame.publish());
    }
    fn reclaim_frames(&self, first: Phys, _: u32) {
        let known = self.0.frames.lock().unwrap().remove(&first.0);
        assert!(known.is_some(), "a frame is freed once");
    }
    fn load<W: Word>(&self, table: Phys, i: usize) -> W {
        self.entry::<W, W>(table, i, W::load)
    }
    fn store<W: Word>(&self, table: Phys, i: usize, w: W) {
        self.entry::<W, ()>(table, i, |a| W::store(a, w));
    }
    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W> {
        self.entry::<W, _>(table, i, |a| W::cas(a, old, new))
    }
    fn load128(&self, _: Phys, _: usize) -> u128 {
        unreachable!("page tables have no such entries")
    }
    fn store128(&self, _: Phys, _: usize, _: u128) {
        unreachable!("page tables have no such entries")
    }
    fn fill_private<W: Word>(
        &self,
        frame: &mut Fresh,
        range: Range<usize>,
        mut entry: impl FnMut(usize) -> W,
    ) {
        range.for_each(|i| self.store(frame.phys(), i, entry(i)));
    }
    fn run<W: Word>(&self, table: Phys, range: Range<usize>, mut visit: impl FnMut(usize, &W::Atomic)) {
        range.for_each(|i| self.entry::<W, ()>(table, i, |a| visit(i, a)));
    }
    fn barrier(&self) {}
    fn clean(&self, _: Phys, _: Range<usize>) {}
}
