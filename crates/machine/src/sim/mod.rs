//! The deterministic simulation: a virtual clock and one seeded scheduler.
//!
//! Everything runs on one thread. Tasks, workers, interrupt handlers and the timer's handler have a
//! stack each; they give up control at [`Platform`](portcullis::Platform) calls and before the
//! atomic operations of `portcullis-sync`. The scheduler then chooses what happens next: one of
//! them goes on, the hardware takes a step, an interrupt arrives, a deadline passes, or the clock
//! jumps. One seed is one run, to the last byte.
//!
//! Memory is sequentially consistent here: weaker orders are loom's business.
//!
//! A run ends in an orderly way: [`Sim::finish`] makes every wait return
//! [`Woken::Shutdown`] and lets every stack come to its end. Stacks
//! that cannot (deadlock, or a panic elsewhere) are leaked, since a stack that is unwound by force
//! aborts the process when one of its destructors suspends.

mod config;
mod finding;
mod menu;
mod one_thread;
mod platform;
mod shared;
mod stack;
mod strategy;

pub use config::{Plant, Pool, SimConfig, SimStats};
pub use finding::{Stuck, StuckBecause, StuckTask, WaitsFor};
pub use platform::{SimLock, SimPlatform};
pub use shared::SimEvent;
pub use strategy::{Order, Strategy};

use crate::{
    costs,
    hardware::{Hardware, Msi},
    memory::MemoryError,
};
use menu::{Choice, Menu};
use parking_lot::Mutex;
use portcullis::{Time, Woken};
use portcullis_sync::hook::Op;
use shared::{Shared, Status, Why};
use stack::{Kind, Stack};
use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};
use strategy::{Chooser, Label};

type InterruptHandler = Arc<dyn Fn(&SimPlatform, Msi) + Send + Sync>;
type TimerHandler = Arc<dyn Fn(&SimPlatform) + Send + Sync>;

/// One run.
pub struct Sim {
    seed: u64,
    step_limit: u64,
    jump_budget: u64,
    strategy: Strategy,
    platform: SimPlatform,
    pool: Pool,
    chooser: Chooser,
    /// By number of the task.
    stacks: Vec<Option<Stack>>,
    on_interrupt: Option<InterruptHandler>,
    on_timer: Option<TimerHandler>,
    last: Option<usize>,
    /// A task panicked: nothing runs any more.
    broken: bool,
    menu: Menu,
}

/// What [`Sim::step`] may wait for when nothing is possible now.
#[derive(Clone, Copy, PartialEq)]
enum Until {
    /// Any event in time.
    Any,
    /// Only the hardware's and interrupts under way.
    HardwareIsQuiet,
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("seed", &self.seed)
            .field("strategy", &self.strategy)
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}

impl Sim {
    /// A run that has not begun.
    ///
    /// # Errors
    /// When its memory cannot be had.
    pub fn new(config: SimConfig) -> Result<Sim, MemoryError> {
        portcullis_sync::hook::register(at_atomic);
        let strategy = config.strategy.unwrap_or_else(|| Strategy::of_seed(config.seed));
        Ok(Sim {
            seed: config.seed,
            step_limit: config.step_limit,
            jump_budget: config.jump_budget,
            strategy,
            platform: SimPlatform::new(Shared::new(&config, strategy.slice)?),
            pool: config.pool,
            chooser: Chooser::new(config.seed, strategy),
            stacks: Vec::new(),
            on_interrupt: None,
            on_timer: None,
            last: None,
            broken: false,
            menu: Menu::default(),
        })
    }

    /// The platform's handle.
    pub fn platform(&self) -> &SimPlatform {
        &self.platform
    }

    /// Puts the hardware in.
    pub fn set_hardware(&mut self, hardware: impl Hardware) {
        self.shared().set_hardware(Some(Box::new(hardware)));
    }

    /// Takes the hardware out, if it is an `H`; what is left answers nothing.
    pub fn take_hardware<H: Hardware>(&mut self) -> Option<Box<H>> {
        let hardware: Box<dyn Any> = self.shared().take_hardware()?;
        hardware.downcast().ok()
    }

    /// Has `handler` called, in interrupt context, when an interrupt arrives. Without one they are
    /// counted and dropped. The same message is never handled twice at one time.
    pub fn on_interrupt(&mut self, handler: impl Fn(&SimPlatform, Msi) + Send + Sync + 'static) {
        self.on_interrupt = Some(Arc::new(handler));
    }

    /// Has `handler` called, in service context, when a time asked for with `timer_at` has come.
    pub fn on_timer(&mut self, handler: impl Fn(&SimPlatform) + Send + Sync + 'static) {
        self.on_timer = Some(Arc::new(handler));
    }

    /// Starts `n` workers, which call `work` after a kick until it returns false.
    pub fn workers(&mut self, n: usize, work: impl Fn(&SimPlatform) -> bool + Send + Sync + 'static) {
        let work = Arc::new(work);
        for i in 0..n {
            let work = work.clone();
            let body = Box::new(move |p: &SimPlatform| p.work_until_shutdown(&*work));
            let name = format!("worker {i}");
            self.shared().spawn(name, Kind::Worker, Why::Spawned, body);
        }
    }

    /// Starts a task of the scenario. [`SimPlatform::spawn`] does the same from inside.
    pub fn spawn(&mut self, name: impl Into<String>, task: impl FnOnce(&SimPlatform) + Send + 'static) {
        self.platform.spawn(name, task);
    }

    /// Runs until every task of the scenario has ended.
    ///
    /// # Errors
    /// [`Stuck`] when nothing can happen any more, or too much has.
    ///
    /// # Panics
    /// With the seed and the name of the task, if one panics.
    pub fn run(&mut self) -> Result<(), Stuck> {
        let any_left = |sim: &Sim| sim.shared().state().tasks_left != 0;
        self.run_while(Until::Any, any_left)?;
        if any_left(self) {
            return Err(self.stuck(StuckBecause::Deadlock));
        }
        Ok(())
    }

    /// Runs `task` as one of the scenario's until it has ended, and whatever happens meanwhile;
    /// returns what it returns. For steps that wait, one after the other.
    ///
    /// # Errors
    /// As [`Sim::run`].
    ///
    /// # Panics
    /// As [`Sim::run`].
    pub fn call<R: Send + 'static>(
        &mut self,
        name: impl Into<String>,
        task: impl FnOnce(&SimPlatform) -> R + Send + 'static,
    ) -> Result<R, Stuck> {
        let result = Arc::new(Mutex::new(None));
        let slot = result.clone();
        self.spawn(name, move |p| {
            let r = task(p);
            *slot.lock() = Some(r);
        });
        self.run_while(Until::Any, |_| result.lock().is_none())?;
        let r = result.lock().take();
        r.ok_or_else(|| self.stuck(StuckBecause::Deadlock))
    }

    /// Runs until nothing is possible but that a deadline or the timer's time comes: the hardware
    /// is idle, no interrupt is under way, every worker sleeps.
    ///
    /// # Errors
    /// [`Stuck`] when that takes too many steps.
    ///
    /// # Panics
    /// As [`Sim::run`].
    pub fn settle(&mut self) -> Result<(), Stuck> {
        self.run_while(Until::HardwareIsQuiet, |_| true)
    }

    /// Ends the run: every wait returns Shutdown, every stack comes to its end.
    ///
    /// # Errors
    /// [`Stuck`] with what did not end.
    ///
    /// # Panics
    /// As [`Sim::run`].
    pub fn finish(mut self) -> Result<SimStats, Stuck> {
        self.shut_down()?;
        Ok(self.stats())
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How steps are chosen.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Virtual time.
    pub fn now(&self) -> Time {
        self.shared().now()
    }

    /// A hash of every choice made so far and of its time.
    pub fn schedule_hash(&self) -> u64 {
        self.chooser.hash()
    }

    /// What happened so far.
    pub fn stats(&self) -> SimStats {
        self.shared().state().stats
    }

    fn shared(&self) -> &Shared {
        self.platform.shared()
    }

    fn run_while(&mut self, until: Until, more: impl Fn(&Sim) -> bool) -> Result<(), Stuck> {
        let limit = self.stats().steps.saturating_add(self.step_limit);
        while more(self) {
            if self.shared().state().stats.steps >= limit {
                return Err(self.stuck(StuckBecause::StepLimit));
            }
            if !self.step(until) {
                break;
            }
        }
        Ok(())
    }

    /// Takes a step. False if none is possible.
    fn step(&mut self, until: Until) -> bool {
        self.menu.renew(self.platform.shared());
        if self.menu.labels().is_empty() {
            let Some(next) = self.next_event(until) else {
                return false;
            };
            self.jump_to(next);
            self.shared().state().stats.idle += 1;
            return true;
        }
        if self.chooser.jumps()
            && let Some(next) = self.next_event(until)
            && let Some(budget) = self.jump_budget.checked_sub(next.0 - self.now().0)
        {
            self.jump_budget = budget;
            self.jump_to(next);
            self.shared().state().stats.jumps += 1;
            return true;
        }
        let is_new = self.menu.take_new();
        let i = self.chooser.choose(self.menu.labels(), is_new);
        self.chooser.note(self.menu.labels()[i], self.now().0);
        self.shared().state().stats.steps += 1;
        self.take(self.menu.choice(i));
        true
    }

    /// The time after now at which something becomes possible.
    fn next_event(&self, until: Until) -> Option<Time> {
        match until {
            Until::Any => self.menu.until,
            Until::HardwareIsQuiet => self.menu.hardware_until,
        }
    }

    fn jump_to(&mut self, t: Time) {
        self.chooser.note(Label { owner: 0, item: 0 }, t.0);
        self.shared().set_now(t);
    }

    fn take(&mut self, choice: Choice) {
        match choice {
            Choice::Resume(task) => self.resume(task),
            Choice::Deadline(task) => {
                {
                    let mut state = self.shared().change();
                    state.stats.deadlines += 1;
                    state.tasks[task].wake(Woken::Deadline);
                }
                self.resume(task);
            }
            Choice::Hardware(work) => {
                let shared = self.shared();
                let cost = shared.with_hardware(|hardware, now| hardware.run(now, work));
                shared.charge(cost.unwrap_or(0));
                shared.state().stats.hardware += 1;
            }
            Choice::Interrupt(msi) => {
                {
                    let mut state = self.shared().change();
                    state.pending.retain(|p| p.1 != msi);
                    state.stats.interrupts += 1;
                }
                if let Some(handler) = self.on_interrupt.clone() {
                    self.serve(Why::Interrupt(msi), move |p| handler(p, msi));
                }
            }
            Choice::Tick => {
                {
                    let mut state = self.shared().change();
                    state.timer = None;
                    state.stats.ticks += 1;
                }
                if let Some(handler) = self.on_timer.clone() {
                    self.serve(Why::Timer, move |p| handler(p));
                }
            }
        }
    }

    /// Starts a handler at once, on a stack of its own.
    fn serve(&mut self, why: Why, handler: impl FnOnce(&SimPlatform) + Send + 'static) {
        let name = match why {
            Why::Interrupt(msi) => format!("interrupt {:#x}/{:#x}", msi.address, msi.data),
            _ => "timer".into(),
        };
        let task = self.shared().spawn(name, Kind::Service, why, Box::new(handler));
        self.resume(task);
    }

    fn resume(&mut self, task: usize) {
        self.give_birth();
        if self.last != Some(task) {
            self.shared().charge(costs::CONTEXT_SWITCH);
            self.last = Some(task);
        }
        self.shared().state().stats.resumed += 1;
        let Some(stack) = self.stacks.get_mut(task).and_then(Option::as_mut) else {
            unreachable!("a task that can run has a stack");
        };
        match catch_unwind(AssertUnwindSafe(|| stack.resume())) {
            Ok(false) => {}
            Ok(true) => {
                self.shared().change().done(task);
                if let Some(stack) = self.stacks[task].take() {
                    stack.retire(&self.pool.stacks);
                }
            }
            Err(panic) => {
                self.broken = true;
                let name = self.shared().state().tasks[task].name.clone();
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic without a text");
                panic!(
                    "seed {}: `{name}` panicked at step {}, {}: {text}",
                    self.seed,
                    self.stats().steps,
                    self.now()
                );
            }
        }
    }

    /// Gives new tasks their stacks.
    fn give_birth(&mut self) {
        if self.shared().state().born.is_empty() {
            return;
        }
        let born = std::mem::take(&mut self.shared().state().born);
        for (task, body) in born {
            let kind = self.shared().state().tasks[task].kind;
            let stack = Stack::new(&self.pool.stacks, self.platform.clone(), task, kind, body);
            if self.stacks.len() <= task {
                self.stacks.resize_with(task + 1, || None);
            }
            self.stacks[task] = Some(stack);
        }
    }

    fn shut_down(&mut self) -> Result<(), Stuck> {
        {
            let mut state = self.shared().change();
            state.shutdown = true;
            for task in &mut state.tasks {
                if matches!(task.status, Status::Waiting { .. }) {
                    task.wake(Woken::Shutdown);
                }
            }
        }
        let any_left = |sim: &Sim| sim.shared().state().tasks.iter().any(|t| t.status != Status::Done);
        self.run_while(Until::Any, any_left)?;
        if any_left(self) {
            return Err(self.stuck(StuckBecause::Deadlock));
        }
        Ok(())
    }

    fn stuck(&self, because: StuckBecause) -> Stuck {
        let state = self.shared().state();
        let left = state.tasks.iter().filter(|t| t.status != Status::Done);
        let tasks = left
            .map(|task| StuckTask {
                name: task.name.clone(),
                waits_for: match task.status {
                    Status::Waiting { event, until } => WaitsFor::Event { event, until },
                    Status::LockedOut(lock) => WaitsFor::Lock(lock),
                    Status::Ready | Status::Done => WaitsFor::Processor,
                },
            })
            .collect();
        Stuck { seed: self.seed, because, steps: state.stats.steps, now: self.shared().now(), tasks }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if !self.broken && !thread::panicking() {
            // What does not end is leaked below; `finish` tells, for those who ask.
            let _ = self.shut_down();
        }
        for stack in self.stacks.drain(..).flatten() {
            stack.retire(&self.pool.stacks);
        }
        // Whatever of these holds the platform's handle would keep itself alive.
        let born = std::mem::take(&mut self.shared().state().born);
        drop(born);
        self.shared().set_hardware(None);
    }
}

/// What `portcullis-sync` calls before every atomic operation.
fn at_atomic(_: Op) {
    stack::current(|running| {
        if let Some(running) = running {
            running.shared.point(costs::ATOMIC);
        }
    });
}
