//! All orders of what can end a stalled transaction: the first decides, the others change nothing.

use super::*;
use portcullis::{Attachment, Config, Detaching, Gap, Response};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The device faults.
    Event,
    /// Whoever it was passed on to, or a worker's resolver, says that it is to be retried.
    Answer,
    Deadline,
    Detach,
    Drop,
    Replace,
    Reset,
}

const STEPS: [Step; 7] =
    [Step::Event, Step::Answer, Step::Deadline, Step::Detach, Step::Drop, Step::Replace, Step::Reset];

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decides {
    Elsewhere,
    OnAWorker,
}

struct Stage {
    w: World,
    d: Dev,
    other: User,
    attached: Option<Attachment<Board>>,
    guard: Option<Stalling<Board>>,
    passed: Passed,
    gone: Vec<Detaching<Board>>,
    /// How the transaction must have ended, once it has.
    end: Option<Verdict>,
    held: bool,
}

impl Stage {
    fn new(decides: Decides) -> Stage {
        let config = Config { devices: 4, attachments: 8, observers: 1, ..Config::default() };
        let w = World::on(Board::new(24), config, 4);
        let d = soc_device(&w, 1);
        let (domain, other) = (user(&w, &d), user(&w, &d));
        let attached = w.iommu.attach(&cx(), &domain, &d, None, data()).expect("attached");
        let (guard, passed) = match decides {
            Decides::Elsewhere => pass_on(&w, &domain),
            Decides::OnAWorker => (decide(&w, &domain, Verdict::Retry), Passed::default()),
        };
        Stage {
            w,
            d,
            other,
            attached: Some(attached),
            guard: Some(guard),
            passed,
            gone: Vec::new(),
            end: None,
            held: false,
        }
    }

    /// The transaction has ended, with this verdict if it had not before.
    fn ends(&mut self, verdict: Verdict) {
        if self.held {
            self.end.get_or_insert(verdict);
        }
    }

    fn does(&mut self, step: Step) {
        match step {
            Step::Event => {
                self.held = self.w.hw.stalls(stall(1, 5));
                let stalls = self.guard.is_some() && self.attached.as_ref().is_some_and(|a| a.at() == AT);
                assert!(!self.held || stalls, "nothing is held where nobody decides");
                self.w.iommu.service(IOMMU);
            }
            Step::Answer => {
                let passed = core::mem::take(&mut *self.passed.lock().unwrap());
                for stalled in passed {
                    let first = stalled.respond(Response::Success).is_ok();
                    assert_eq!(first, self.end.is_none(), "who comes second is told so");
                    self.ends(Verdict::Retry);
                }
                let before = self.end;
                self.w.work();
                if before.is_none() && self.held && self.w.hw.state().held.is_empty() {
                    self.ends(Verdict::Retry);
                }
            }
            Step::Deadline => {
                self.w.pass(Duration::from_millis(1001));
                self.ends(Verdict::Terminate);
            }
            Step::Detach => {
                let Some(a) = self.attached.take() else { return };
                self.gone.push(a.begin_detach(&cx()));
                self.ends(Verdict::Terminate);
            }
            Step::Drop => {
                drop(self.guard.take());
                self.ends(Verdict::Terminate);
                // What is held is ended by the drop itself, the switch by the next turn.
                assert!(self.w.hw.state().held.is_empty());
                self.w.pass(Duration::from_micros(20));
                assert!(self.w.hw.state().stalling.is_empty());
            }
            Step::Replace => {
                let Some(a) = self.attached.take() else { return };
                let replaced = self.w.iommu.replace(&cx(), a, &self.other, data(), Gap::Allowed);
                let (new, old, _) = replaced.map_err(|(_, e)| e).expect("replaced");
                self.attached = Some(new);
                self.gone.push(old);
                self.ends(Verdict::Terminate);
                assert!(self.w.hw.state().stalling.is_empty(), "the other domain does not stall");
            }
            Step::Reset => {
                self.d.reset(&cx()).expect("reset");
                self.ends(Verdict::Terminate);
            }
        }
        if self.end.is_some() {
            assert!(self.w.hw.state().held.is_empty(), "it is ended when {step:?} is over");
        }
    }

    fn closes(mut self) {
        drop((self.guard.take(), self.attached.take()));
        let passed = core::mem::take(&mut *self.passed.lock().unwrap());
        passed.into_iter().for_each(|late| assert!(late.respond(Response::Success).is_err()));
        self.w.pass(Duration::from_millis(1));
        self.w.work();
        let expected = self.end.map(|v| ended(5, v));
        assert_eq!(self.w.hw.resumed(), expected.into_iter().collect::<Vec<_>>(), "once, by who was first");
        nothing_waits(&self.w);
        assert!(self.w.hw.state().stalling.is_empty());
        assert!(self.gone.iter().all(Detaching::is_gone));
        let c = self.d.counters();
        assert_eq!((c.stalls, c.retried + c.terminated), (u64::from(self.held), u64::from(self.held)));
    }
}

/// Calls `f` with every order of the steps.
fn orders(steps: &mut [Step], from: usize, f: &mut impl FnMut(&[Step])) {
    if from == steps.len() {
        return f(steps);
    }
    for i in from..steps.len() {
        steps.swap(from, i);
        orders(steps, from + 1, f);
        steps.swap(from, i);
    }
}

fn all(decides: Decides) {
    let mut verdicts = [0; 3];
    orders(&mut STEPS.clone(), 0, &mut |steps| {
        let done = std::panic::catch_unwind(|| {
            let mut stage = Stage::new(decides);
            steps.iter().for_each(|step| stage.does(*step));
            let end = stage.end;
            stage.closes();
            end
        });
        match done {
            Ok(None) => verdicts[0] += 1,
            Ok(Some(Verdict::Retry)) => verdicts[1] += 1,
            Ok(Some(Verdict::Terminate)) => verdicts[2] += 1,
            Err(_) => panic!("{decides:?}: {steps:?}"),
        }
    });
    assert_eq!(verdicts.iter().sum::<u32>(), 5040);
    assert!(verdicts.iter().all(|n| *n > 100), "each end is met: {verdicts:?}");
}

#[test]
fn all_orders_with_a_decider_elsewhere() {
    all(Decides::Elsewhere);
}

#[test]
fn all_orders_with_a_resolver_on_a_worker() {
    all(Decides::OnAWorker);
}
