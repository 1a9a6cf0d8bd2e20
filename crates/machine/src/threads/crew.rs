//! The threads of a platform: who runs, who panicked, who ends.

use super::{Inner, ThreadPlatform};
use parking_lot::{Condvar, Mutex};
use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

type Panic = Box<dyn Any + Send>;

#[derive(Default)]
pub(super) struct Crew {
    state: Mutex<State>,
    /// A thread has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    running: BTreeMap<u64, Member>,
    started: u64,
    /// The first panic, and whose it was.
    panic: Option<(String, Panic)>,
}

struct Member {
    name: String,
    /// The run lasts until it ends.
    task: bool,
}

impl Crew {
    pub(super) fn start(
        &self,
        name: String,
        task: bool,
        inner: &Arc<Inner>,
        body: impl FnOnce() + Send + 'static,
    ) {
        let number = {
            let mut state = self.state.lock();
            state.started += 1;
            let number = state.started;
            state.running.insert(number, Member { name: name.clone(), task });
            number
        };
        // The platform outlives its threads: they tell it of their end.
        let p = ThreadPlatform(inner.clone());
        let started = thread::Builder::new().name(name).spawn(move || {
            let end = catch_unwind(AssertUnwindSafe(body));
            p.0.crew.ends(number, end.err());
        });
        // Threads are few, and which there are is the scenario's choice.
        started.expect("the system refuses a thread");
    }

    fn ends(&self, number: u64, panic: Option<Panic>) {
        let mut state = self.state.lock();
        if let (Some(member), Some(panic)) = (state.running.remove(&number), panic) {
            state.panic.get_or_insert((member.name, panic));
        }
        drop(state);
        self.ended.notify_all();
    }

    /// Waits until no task is left, or somebody has panicked. Returns the tasks that are left after
    /// all the patience.
    pub(super) fn until_tasks_end(&self, patience: Duration) -> Vec<String> {
        let left = self.until(patience, |state| {
            state.panic.is_some() || !state.running.values().any(|member| member.task)
        });
        left.into_iter().filter(|member| member.1).map(|member| member.0).collect()
    }

    /// Waits until no thread is left. Returns those that are left after all the patience.
    pub(super) fn until_all_end(&self, patience: Duration) -> Vec<String> {
        let left = self.until(patience, |state| state.running.is_empty());
        left.into_iter().map(|member| member.0).collect()
    }

    /// Names of those that run when it is not so in time, and whether they are tasks.
    fn until(&self, patience: Duration, so: impl Fn(&State) -> bool) -> Vec<(String, bool)> {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        while !so(&state) {
            if self.ended.wait_until(&mut state, until).timed_out() && !so(&state) {
                return state.running.values().map(|m| (m.name.clone(), m.task)).collect();
            }
        }
        Vec::new()
    }

    pub(super) fn panicked(&self) -> bool {
        self.state.lock().panic.is_some()
    }

    pub(super) fn take_panic(&self) -> Option<(String, Panic)> {
        self.state.lock().panic.take()
    }
}
