//! What is possible now.
//!
//! Most steps let a task go on and leave everything else as it was. So the list is kept until
//! somebody has changed something, or a time has come that changes it by itself.

use super::{
    shared::{Shared, State, Status, Why},
    strategy::Label,
};
use crate::hardware::{HwWork, INTERRUPTS_UNDER_WAY, Msi};
use portcullis::Time;

/// A step that is possible.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice {
    /// A task goes on.
    Resume(usize),
    /// A task's wait ends by its deadline.
    Deadline(usize),
    /// The hardware takes a step.
    Hardware(HwWork),
    /// An interrupt arrives.
    Interrupt(Msi),
    /// The timer's time has come.
    Tick,
}

/// Everything that is possible, and until when that is so unless something is done.
#[derive(Default)]
pub(super) struct Menu {
    choices: Vec<Choice>,
    labels: Vec<Label>,
    /// What the hardware can do: the end of the list, unless too many interrupts are under way.
    work: Vec<HwWork>,
    /// When it can do more.
    work_until: Option<Time>,
    /// When something else becomes possible of what is under way in hardware.
    pub(super) hardware_until: Option<Time>,
    /// When anything else does: a wait or the timer may end before.
    pub(super) until: Option<Time>,
    /// Nothing was chosen from it since it was made.
    is_new: bool,
}

impl Menu {
    /// What the choices are to the strategy.
    pub(super) fn labels(&self) -> &[Label] {
        &self.labels
    }

    /// The choice with the `i`th label.
    pub(super) fn choice(&self, i: usize) -> Choice {
        match self.choices.get(i) {
            Some(choice) => *choice,
            None => Choice::Hardware(self.work[i - self.choices.len()]),
        }
    }

    /// Whether it has changed since the last call.
    pub(super) fn take_new(&mut self) -> bool {
        std::mem::take(&mut self.is_new)
    }

    /// Brings it up to date.
    pub(super) fn renew(&mut self, shared: &Shared) {
        let now = shared.now();
        let touched = shared.take_touched() || self.work_until.is_some_and(|t| t <= now);
        if touched {
            self.look_at_hardware(shared);
        }
        if shared.take_changed() || touched || self.until.is_some_and(|t| t <= now) {
            self.list(&shared.state(), now);
            self.is_new = true;
        }
        // Now and then: it takes as long as all that is saved.
        debug_assert!(!now.0.is_multiple_of(16) || self.is_right(shared), "a change was not told");
    }

    fn look_at_hardware(&mut self, shared: &Shared) {
        self.work.clear();
        let until = shared.look_at_hardware(|hardware, now| {
            hardware.runnable(now, &mut self.work);
            hardware.next_deadline(now)
        });
        // What has come is possible already.
        self.work_until = until.flatten().filter(|t| *t > shared.now());
    }

    fn list(&mut self, state: &State, now: Time) {
        self.choices.clear();
        self.labels.clear();
        self.hardware_until = self.work_until;
        self.until = None;
        let mut add = |choice, class, n, item| {
            self.choices.push(choice);
            self.labels.push(label(class, n, item));
        };
        for (i, task) in state.tasks.iter().enumerate() {
            match task.status {
                Status::Ready => add(Choice::Resume(i), 1, i as u32, 0),
                Status::Waiting { until: Some(t), .. } if t <= now => {
                    add(Choice::Deadline(i), 2, i as u32, 0);
                }
                Status::Waiting { until: Some(t), .. } => earlier(&mut self.until, t),
                _ => {}
            }
        }
        for &(due, msi) in &state.pending {
            if due > now {
                earlier(&mut self.hardware_until, due);
            } else if !state.is_served(Why::Interrupt(msi)) {
                add(Choice::Interrupt(msi), 3, 0, msi.address << 32 | u64::from(msi.data));
            }
        }
        match state.timer {
            Some(t) if t > now => earlier(&mut self.until, t),
            Some(_) if !state.is_served(Why::Timer) => add(Choice::Tick, 4, 0, 0),
            _ => {}
        }
        if let Some(t) = self.hardware_until {
            earlier(&mut self.until, t);
        }
        if state.pending.len() < INTERRUPTS_UNDER_WAY {
            self.labels.extend(self.work.iter().map(|w| label(5, w.lane, w.item)));
        }
    }

    fn is_right(&self, shared: &Shared) -> bool {
        let mut fresh = Menu::default();
        fresh.look_at_hardware(shared);
        fresh.list(&shared.state(), shared.now());
        fresh.labels == self.labels && fresh.until == self.until
    }
}

/// Who takes a step is a number in a class.
fn label(class: u64, n: u32, item: u64) -> Label {
    Label { owner: class << 32 | u64::from(n), item }
}

fn earlier(until: &mut Option<Time>, t: Time) {
    if until.is_none_or(|u| t < u) {
        *until = Some(t);
    }
}
