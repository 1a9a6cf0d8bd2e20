//! Where threads wait: for events, for work, for the timer.

use super::Inner;
use parking_lot::{Condvar, Mutex};
use portcullis::{Time, Woken};
use std::{
    array,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Instant,
};

/// Places to wait at. Events share them: who waits beside is woken now and then for nothing.
const PLACES: usize = 64;

/// Something to wait for.
#[derive(Debug)]
pub struct ThreadEvent {
    place: usize,
    notified: AtomicU64,
}

impl ThreadEvent {
    pub(super) fn seen(&self) -> u64 {
        self.notified.load(Ordering::SeqCst)
    }
}

/// All places. The workers have the first one to themselves.
pub(super) struct Bells {
    places: [Place; PLACES],
    events: AtomicUsize,
    /// Notified when there is sleepable work.
    work: ThreadEvent,
}

#[derive(Default)]
struct Place {
    state: Mutex<State>,
    rung: Condvar,
}

#[derive(Default)]
struct State {
    shutdown: bool,
    /// Workers that have found nothing to do since the last kick.
    resting: usize,
}

impl Default for Bells {
    fn default() -> Bells {
        Bells {
            places: array::from_fn(|_| Place::default()),
            events: AtomicUsize::new(0),
            work: ThreadEvent { place: 0, notified: AtomicU64::new(0) },
        }
    }
}

impl Bells {
    pub(super) fn event(&self) -> ThreadEvent {
        let n = self.events.fetch_add(1, Ordering::Relaxed);
        ThreadEvent { place: 1 + n % (PLACES - 1), notified: AtomicU64::new(0) }
    }

    pub(super) fn work(&self) -> &ThreadEvent {
        &self.work
    }

    /// Waits until the event is notified after `seen` was read, or until the deadline.
    pub(super) fn wait(&self, event: &ThreadEvent, seen: u64, until: Option<Instant>) -> Woken {
        self.wait_noted(event, seen, until, |_| {})
    }

    /// Waits for work; `rests` is called once this worker stands among those that rest.
    pub(super) fn rest(&self, seen: u64, rests: impl FnOnce()) -> Woken {
        self.wait_noted(&self.work, seen, None, |state| {
            state.resting += 1;
            rests();
        })
    }

    fn wait_noted(
        &self,
        event: &ThreadEvent,
        seen: u64,
        until: Option<Instant>,
        note: impl FnOnce(&mut State),
    ) -> Woken {
        let place = &self.places[event.place];
        let mut state = place.state.lock();
        let mut note = Some(note);
        loop {
            if state.shutdown {
                return Woken::Shutdown;
            }
            if event.seen() != seen {
                return Woken::Notified;
            }
            if let Some(note) = note.take() {
                note(&mut state);
            }
            match until {
                Some(t) if t <= Instant::now() => return Woken::Deadline,
                Some(t) => {
                    place.rung.wait_until(&mut state, t);
                }
                None => place.rung.wait(&mut state),
            }
        }
    }

    pub(super) fn notify(&self, event: &ThreadEvent) {
        let place = &self.places[event.place];
        // Under the lock, so that it does not fall between a waiter's look and its sleep.
        let mut state = place.state.lock();
        state.resting = 0;
        event.notified.fetch_add(1, Ordering::SeqCst);
        drop(state);
        place.rung.notify_all();
    }

    /// Workers that rest, none of them with a kick that it has not followed.
    pub(super) fn resting(&self) -> usize {
        self.places[self.work.place].state.lock().resting
    }

    pub(super) fn shut_down(&self) {
        for place in &self.places {
            place.state.lock().shutdown = true;
            place.rung.notify_all();
        }
    }
}

/// The one timer.
#[derive(Default)]
pub(super) struct Timer {
    state: Mutex<Alarm>,
    set: Condvar,
}

#[derive(Default)]
struct Alarm {
    at: Option<Time>,
    /// Its handler runs.
    served: bool,
    shutdown: bool,
}

impl Timer {
    pub(super) fn at(&self, at: Time) {
        let mut alarm = self.state.lock();
        let is_next = alarm.at.is_none_or(|next| at < next);
        if is_next {
            alarm.at = Some(at);
        }
        drop(alarm);
        // Whoever keeps it waits for an earlier time, else.
        if is_next {
            self.set.notify_all();
        }
    }

    /// Waits for the time; the handler of the one before has returned. False at the end.
    pub(super) fn expires(&self, inner: &Inner) -> bool {
        let mut alarm = self.state.lock();
        alarm.served = false;
        inner.calm.changed();
        loop {
            match alarm.at {
                _ if alarm.shutdown => return false,
                Some(t) if t <= inner.now() => {
                    alarm.at = None;
                    alarm.served = true;
                    return true;
                }
                Some(t) => {
                    self.set.wait_until(&mut alarm, inner.instant(t));
                }
                None => self.set.wait(&mut alarm),
            }
        }
    }

    pub(super) fn is_served(&self) -> bool {
        self.state.lock().served
    }

    pub(super) fn shut_down(&self) {
        self.state.lock().shutdown = true;
        self.set.notify_all();
    }
}
