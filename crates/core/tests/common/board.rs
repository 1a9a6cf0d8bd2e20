//! The platform: one thread, a clock that moves when somebody waits.

use portcullis::{Platform, Seen, ShortLock, Sleep, Time, Window, Woken};
use portcullis_pgtable::testing::HeapMem;
use portcullis_pgtable::{Fresh, NoMem, Phys, Prot, TableMem, Word};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

type Hook = Box<dyn FnMut() + Send>;

#[derive(Clone)]
pub struct Board(Arc<Inner>);

struct Inner {
    mem: HeapMem,
    now: AtomicU64,
    timer: AtomicU64,
    random: AtomicU64,
    /// Short locks that are held now.
    held: Arc<AtomicUsize>,
    /// Short locks taken since the start.
    taken: Arc<AtomicUsize>,
    /// Looks at the clock since the start.
    looks: AtomicUsize,
    kicks: AtomicUsize,
    shutdown: AtomicBool,
    /// Waits until one is given up, that one included; 0 where none will be.
    give_up: AtomicUsize,
    /// Stands for another CPU: runs whenever somebody waits.
    on_wait: Mutex<Option<Hook>>,
    on_timer: Mutex<Option<Box<dyn Fn() + Send>>>,
    /// A worker that is quick.
    on_kick: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    maintained: Mutex<Vec<Maintained>>,
}

/// What was asked of the CPU's data caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintained {
    Cleaned(Phys, u64),
    Invalidated(Phys, u64),
}

const NEVER: u64 = u64::MAX;

impl Board {
    pub fn new(frames: usize) -> Board {
        Board(Arc::new(Inner {
            mem: HeapMem::new(frames),
            now: AtomicU64::new(0),
            timer: AtomicU64::new(NEVER),
            random: AtomicU64::new(1),
            held: Arc::default(),
            taken: Arc::default(),
            looks: AtomicUsize::new(0),
            kicks: AtomicUsize::new(0),
            shutdown: AtomicBool::new(false),
            give_up: AtomicUsize::new(0),
            on_wait: Mutex::default(),
            on_timer: Mutex::default(),
            on_kick: Mutex::default(),
            maintained: Mutex::default(),
        }))
    }

    pub fn mem(&self) -> &HeapMem {
        &self.0.mem
    }

    pub fn frames(&self) -> usize {
        self.0.mem.in_use()
    }

    /// Short locks taken, and looks at the clock, since the start.
    pub fn costs(&self) -> (usize, usize) {
        (self.0.taken.load(SeqCst), self.0.looks.load(SeqCst))
    }

    pub fn kicks(&self) -> usize {
        self.0.kicks.load(SeqCst)
    }

    /// Whether it ended before.
    pub fn shut_down(&self, down: bool) -> bool {
        self.0.shutdown.swap(down, SeqCst)
    }

    /// The wait with number `n` from here is given up, and no other. Whether one that was to be given
    /// up before was.
    pub fn give_up_at(&self, n: Option<usize>) -> bool {
        self.0.give_up.swap(n.map_or(0, |n| n + 1), SeqCst) == 0
    }

    /// No wait of `f` is given up, or counted.
    pub fn spared<R>(&self, f: impl FnOnce() -> R) -> R {
        let left = self.0.give_up.swap(0, SeqCst);
        let r = f();
        self.0.give_up.store(left, SeqCst);
        r
    }

    pub fn on_wait(&self, hook: Option<Hook>) {
        *self.0.on_wait.lock().unwrap() = hook;
    }

    pub fn on_timer(&self, tick: Option<Box<dyn Fn() + Send>>) {
        *self.0.on_timer.lock().unwrap() = tick;
    }

    /// What was asked of the data caches since the last time.
    pub fn take_maintained(&self) -> Vec<Maintained> {
        core::mem::take(&mut self.0.maintained.lock().unwrap())
    }

    /// What a walker of a second-stage table finds ([V] 9.8): four levels, R and W the lowest bits,
    /// bit 7 a leaf above the lowest level.
    pub fn walk(&self, root: Phys, iova: u64) -> Option<(Phys, Prot)> {
        let mut table = root;
        let mut prot = Prot::READ | Prot::WRITE;
        for shift in [39, 30, 21, 12] {
            let entry: u64 = self.0.mem.load(table, (iova >> shift & 0x1ff) as usize);
            let here = Prot::from_bits_truncate(entry as u32 & 3);
            if here.is_empty() {
                return None;
            }
            prot &= here;
            let address = entry & 0x000f_ffff_ffff_f000;
            if shift == 12 || entry & 0x80 != 0 {
                let below = (1 << shift) - 1;
                return Some((Phys(address & !below | iova & below), prot));
            }
            table = Phys(address);
        }
        None
    }

    pub fn on_next_kick(&self, worker: impl FnOnce() + Send + 'static) {
        *self.0.on_kick.lock().unwrap() = Some(Box::new(worker));
    }

    /// Moves the clock, and fires the timer at each time it was asked for.
    pub fn advance(&self, to: Time) {
        loop {
            let timer = self.0.timer.load(SeqCst);
            if timer > to.0 {
                break;
            }
            self.0.timer.store(NEVER, SeqCst);
            self.0.now.fetch_max(timer, SeqCst);
            if let Ok(tick) = self.0.on_timer.try_lock()
                && let Some(tick) = &*tick
            {
                tick();
            }
        }
        self.0.now.fetch_max(to.0, SeqCst);
    }
}

pub struct Lock<T> {
    value: Mutex<T>,
    held: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

impl<T: Send> ShortLock<T> for Lock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut value = match self.value.try_lock() {
            Ok(v) => v,
            Err(TryLockError::Poisoned(v)) => v.into_inner(),
            Err(TryLockError::WouldBlock) => panic!("a short lock is taken by its holder"),
        };
        self.held.fetch_add(1, SeqCst);
        self.taken.fetch_add(1, SeqCst);
        let r = f(&mut value);
        self.held.fetch_sub(1, SeqCst);
        r
    }
}

impl Platform for Board {
    type Lock<T: Send + 'static> = Lock<T>;
    type Event = AtomicU64;

    fn lock<T: Send + 'static>(&self, value: T) -> Lock<T> {
        Lock { value: Mutex::new(value), held: self.0.held.clone(), taken: self.0.taken.clone() }
    }

    fn event(&self) -> AtomicU64 {
        AtomicU64::new(0)
    }

    fn seen(&self, event: &AtomicU64) -> Seen {
        Seen(event.load(SeqCst))
    }

    fn wait(&self, _: &Sleep<'_>, event: &AtomicU64, seen: Seen, until: Option<Time>) -> Woken {
        assert_eq!(self.0.held.load(SeqCst), 0, "a short lock is held over a wait");
        let left = self.0.give_up.load(SeqCst);
        self.0.give_up.store(left.saturating_sub(1), SeqCst);
        if left == 1 || self.0.shutdown.load(SeqCst) {
            return Woken::Shutdown;
        }
        let hook = self.0.on_wait.lock().unwrap().take();
        if let Some(mut hook) = hook {
            hook();
            self.0.on_wait.lock().unwrap().get_or_insert(hook);
        }
        if event.load(SeqCst) != seen.0 {
            return Woken::Notified;
        }
        let timer = Time(self.0.timer.load(SeqCst));
        match until {
            Some(t) if t <= timer => self.advance(t),
            None if timer.0 == NEVER => panic!("a wait that nobody will end"),
            _ => {
                self.advance(timer);
                return Woken::Notified;
            }
        }
        if event.load(SeqCst) != seen.0 { Woken::Notified } else { Woken::Deadline }
    }

    fn notify(&self, event: &AtomicU64) {
        event.fetch_add(1, SeqCst);
    }

    fn now(&self) -> Time {
        self.0.looks.fetch_add(1, SeqCst);
        Time(self.0.now.load(SeqCst))
    }

    fn timer_at(&self, at: Time) {
        self.0.timer.fetch_min(at.0.max(self.now().0 + 1), SeqCst);
    }

    fn random(&self) -> u64 {
        self.0.random.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst)
    }

    fn kick(&self) {
        self.0.kicks.fetch_add(1, SeqCst);
        let worker = self.0.on_kick.lock().unwrap().take();
        if let Some(worker) = worker {
            worker();
        }
    }

    fn clean_data(&self, phys: Phys, len: u64) {
        self.0.maintained.lock().unwrap().push(Maintained::Cleaned(phys, len));
    }

    fn invalidate_data(&self, phys: Phys, len: u64) {
        self.0.maintained.lock().unwrap().push(Maintained::Invalidated(phys, len));
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
    fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        assert_eq!(self.0.held.load(SeqCst), 0, "a short lock is held over an allocation");
        self.0.mem.frames(order)
    }
    fn release(&self, frames: Fresh) {
        self.0.mem.release(frames)
    }
    fn reclaim_frames(&self, first: Phys, order: u32) {
        self.0.mem.reclaim_frames(first, order)
    }
    fn load<W: Word>(&self, table: Phys, i: usize) -> W {
        self.0.mem.load(table, i)
    }
    fn store<W: Word>(&self, table: Phys, i: usize, w: W) {
        self.0.mem.store(table, i, w)
    }
    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W> {
        self.0.mem.cas(table, i, old, new)
    }
    fn load128(&self, table: Phys, i: usize) -> u128 {
        self.0.mem.load128(table, i)
    }
    fn store128(&self, table: Phys, i: usize, w: u128) {
        self.0.mem.store128(table, i, w)
    }
    fn fill_private<W: Word>(&self, frame: &mut Fresh, range: Range<usize>, entry: impl FnMut(usize) -> W) {
        self.0.mem.fill_private(frame, range, entry)
    }
    fn run<W: Word>(&self, table: Phys, range: Range<usize>, visit: impl FnMut(usize, &W::Atomic)) {
        self.0.mem.run::<W>(table, range, visit)
    }
    fn barrier(&self) {
        self.0.mem.barrier()
    }
    fn clean(&self, table: Phys, bytes: Range<usize>) {
        self.0.mem.clean(table, bytes)
    }
}
