//! Stacks that suspend: which coroutine runs now, and how it gives control back.
#![allow(unsafe_code, reason = "the coroutine that runs is known by a pointer to its own stack")]

use super::{SimPlatform, shared::Shared};
use corosensei::{Coroutine, CoroutineResult, Yielder, stack::DefaultStack};
use parking_lot::Mutex;
use std::{cell::Cell, ptr, sync::Arc};

/// What a coroutine is for: decides what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A task of the scenario: the run lasts until it ends.
    Task,
    /// A worker: sleepable as a task, but the run does not wait for it.
    Worker,
    /// An interrupt's handler or the timer's: must not wait.
    Service,
}

pub(super) type Body = Box<dyn FnOnce(&SimPlatform) + Send>;

/// The coroutine that runs on this thread now. It lives on that coroutine's own stack.
pub(super) struct Running<'a> {
    yielder: &'a Yielder<(), ()>,
    pub(super) shared: &'a Shared,
    pub(super) task: usize,
    pub(super) kind: Kind,
    /// Short locks it holds.
    pub(super) locks: Cell<u32>,
    /// How deep it is in stretches without preemption.
    pub(super) undisturbed: Cell<u32>,
}

thread_local! {
    static CURRENT: Cell<*const Running<'static>> = const { Cell::new(ptr::null()) };
}

/// Calls `f` with the coroutine that runs now, if one does.
#[inline]
pub(super) fn current<R>(f: impl FnOnce(Option<&Running<'_>>) -> R) -> R {
    let p = CURRENT.get();
    // SAFETY: CURRENT is not null only while the coroutine whose stack holds the pointed-to value
    // runs: `run_as` sets it after the value is made and clears it before it goes, `suspend` clears
    // it before it leaves the stack and sets it again when the stack is back. So the value
    // outlives this call, unless the call itself suspends, in which case it waits on its stack.
    f(unsafe { p.as_ref() })
}

impl Running<'_> {
    /// Gives control to the scheduler, until it resumes this coroutine.
    pub(super) fn suspend(&self) {
        CURRENT.set(ptr::null());
        self.yielder.suspend(());
        CURRENT.set(ptr::from_ref(self).cast());
    }

    fn run_as(&self, f: impl FnOnce()) {
        struct Clear;
        impl Drop for Clear {
            fn drop(&mut self) {
                CURRENT.set(ptr::null());
            }
        }
        CURRENT.set(ptr::from_ref(self).cast());
        let _clear = Clear;
        f();
    }
}

/// A coroutine on a pooled stack.
pub(super) struct Stack(Coroutine<(), (), ()>);

impl Stack {
    pub(super) fn new(pool: &Stacks, p: SimPlatform, task: usize, kind: Kind, body: Body) -> Stack {
        Stack(Coroutine::with_stack(pool.take(), move |yielder, ()| {
            let running = Running {
                yielder,
                shared: p.shared(),
                task,
                kind,
                locks: Cell::new(0),
                undisturbed: Cell::new(0),
            };
            running.run_as(|| body(&p));
        }))
    }

    /// Runs until the coroutine suspends (false) or returns (true). A panic inside comes out here.
    pub(super) fn resume(&mut self) -> bool {
        // A simulation may itself run on a stack of another one.
        struct Outer(*const Running<'static>);
        impl Drop for Outer {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _outer = Outer(CURRENT.replace(ptr::null()));
        matches!(self.0.resume(()), CoroutineResult::Return(()))
    }

    /// Gives the stack back if the coroutine came to its end. One that did not is leaked: unwinding
    /// it by force would abort the process as soon as a destructor suspends.
    pub(super) fn retire(self, pool: &Stacks) {
        if self.0.done() {
            pool.give(self.0.into_stack());
        } else if self.0.started() {
            std::mem::forget(self.0);
        }
    }
}

/// Stacks that nobody runs on. A handle.
#[derive(Clone, Default)]
pub(super) struct Stacks(Arc<Mutex<Vec<DefaultStack>>>);

/// Bytes of address space of one stack; only what is used becomes memory.
const STACK_SIZE: usize = 1 << 20;

impl Stacks {
    fn take(&self) -> DefaultStack {
        let pooled = self.0.lock().pop();
        pooled.unwrap_or_else(|| {
            DefaultStack::new(STACK_SIZE).expect("the system refuses a stack's address space")
        })
    }

    fn give(&self, stack: DefaultStack) {
        self.0.lock().push(stack);
    }
}
