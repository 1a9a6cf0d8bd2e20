//! The ladder against a model that keeps every event and looks at each window anew.

extern crate std;

use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const WINDOW: u64 = 10_000_000;

/// The model: which events fell into which window, and the rung at the end of it.
struct Model {
    t: Thresholds,
    window: u64,
    /// The count at the begin of the window, and the events in it.
    carried: u32,
    events: u32,
    rung: Rung,
    told_in_window: bool,
    masked: Vec<u64>,
    in_a_row: u32,
    untold: u64,
}

impl Model {
    fn new(t: Thresholds) -> Model {
        Model {
            t,
            window: 0,
            carried: 0,
            events: 0,
            rung: Rung::Log,
            told_in_window: false,
            masked: Vec::new(),
            in_a_row: 0,
            untold: 0,
        }
    }

    fn count(&self) -> u32 {
        self.carried + self.events
    }

    fn until(&mut self, now: u64) {
        while self.window < now / WINDOW {
            self.window += 1;
            if self.rung < Rung::Quarantine {
                (self.carried, self.events) = (self.count() / 2, 0);
                self.told_in_window = false;
                // Half of what it takes to get there holds it there, and one event at least.
                let held = |t: Option<u32>, n: u32| t.is_some_and(|t| n > 0 && 2 * n >= t);
                let n = self.count();
                self.rung = match self.rung {
                    Rung::Mask if held(self.t.mask, n) => Rung::Mask,
                    Rung::Mask | Rung::Coalesce if held(self.t.coalesce, n) => Rung::Coalesce,
                    _ => Rung::Log,
                };
            }
        }
    }

    fn event(&mut self, now: u64) -> (bool, Rung) {
        self.until(now);
        self.events += 1;
        let n = self.count();
        let over = |t: Option<u32>| t.is_some_and(|t| n >= t.max(1));
        let to = if self.rung >= Rung::Quarantine {
            if over(self.t.ask_reset) { Rung::AskReset } else { self.rung }
        } else if over(self.t.quarantine) {
            Rung::Quarantine
        } else if over(self.t.mask) {
            Rung::Mask
        } else if over(self.t.coalesce) {
            Rung::Coalesce
        } else {
            Rung::Log
        };
        let to = to.max(self.rung);
        if to != self.rung {
            self.rung = to;
            if to == Rung::Mask {
                let memory = self.t.memory.as_nanos() as u64;
                let soon = self.masked.last().is_some_and(|t| now - t <= memory);
                self.in_a_row = if soon { self.in_a_row + 1 } else { 0 };
                self.masked.push(now);
                if self.in_a_row > self.t.relapses && self.t.quarantine.is_some() {
                    self.rung = Rung::Quarantine;
                }
            }
            if self.rung == Rung::Quarantine {
                (self.carried, self.events) = (0, 0);
            }
        }
        let tell = match self.rung {
            Rung::Log => true,
            Rung::Coalesce => !core::mem::replace(&mut self.told_in_window, true),
            _ => false,
        };
        self.untold += u64::from(!tell);
        (tell, self.rung)
    }
}

fn thresholds() -> impl Strategy<Value = Thresholds> {
    let some = |r: core::ops::Range<u32>| prop_oneof![4 => r.prop_map(Some), 1 => Just(None)];
    (some(0..6), some(0..10), some(0..14), some(0..6), 0..4u32, 0..10u64).prop_map(
        |(coalesce, mask, quarantine, ask_reset, relapses, memory)| Thresholds {
            window: Duration::from_nanos(WINDOW),
            coalesce,
            mask,
            quarantine,
            ask_reset,
            relapses,
            memory: Duration::from_nanos(memory * WINDOW),
        },
    )
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    Event,
    Calm,
    Reset,
}

fn happening() -> impl Strategy<Value = (u64, Happens)> {
    let gap = prop_oneof![4 => Just(0), 4 => 0..WINDOW / 4, 2 => 0..4 * WINDOW, 1 => 0..40 * WINDOW];
    let what = prop_oneof![
        12 => Just(Happens::Event),
        3 => Just(Happens::Calm),
        1 => Just(Happens::Reset),
    ];
    (gap, what)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_ladder_does_what_the_model_says(
        t in thresholds(),
        story in prop::collection::vec(happening(), 1..120),
    ) {
        let (mut ladder, mut model) = (Ladder::new(t), Model::new(t));
        let (mut now, mut before) = (0, Rung::Log);
        let (mut events, mut told, mut given) = (0u64, 0u64, 0u64);
        for (gap, what) in story {
            now += gap;
            let step = match what {
                Happens::Event => {
                    events += 1;
                    let (tell, _) = model.event(now);
                    let step = ladder.event(Time(now));
                    prop_assert_eq!(step.tell, tell);
                    step
                }
                Happens::Calm => {
                    model.until(now);
                    ladder.calm(Time(now))
                }
                Happens::Reset => {
                    // The model's windows begin at multiples; a reset begins one.
                    now = now.next_multiple_of(WINDOW);
                    model.until(now);
                    (model.carried, model.events) = (0, 0);
                    (model.rung, model.told_in_window) = (Rung::Log, false);
                    let before = ladder.calm(Time(now));
                    ladder.absolve(Time(now));
                    Step { change: None, ..before }
                }
            };
            if !matches!(what, Happens::Reset) {
                let rung = ladder.seen().rung;
                prop_assert_eq!(rung, model.rung);
                prop_assert_eq!(step.change, (rung != before).then_some(rung));
            }
            before = ladder.seen().rung;
            told += u64::from(step.tell);
            given += step.untold;
            prop_assert_eq!(ladder.seen().untold, model.untold);
            // Nothing is counted twice, and nothing is forgotten.
            prop_assert_eq!(told + given + ladder.untold, events);
            if let Some(due) = ladder.due() {
                prop_assert!(due.0 > now && due.0 <= now + WINDOW);
            }
        }
    }

    /// However many events there are, what is told of a window is bounded.
    #[test]
    fn what_is_told_is_bounded(gaps in prop::collection::vec(0..WINDOW / 50, 1..2_000)) {
        let t = Thresholds { quarantine: None, ..Thresholds::FAULTS };
        let mut ladder = Ladder::new(t);
        let (mut now, mut told) = (0, Vec::new());
        for gap in gaps {
            now += gap;
            if ladder.event(Time(now)).tell {
                told.push(now / WINDOW);
            }
        }
        let coalesce = t.coalesce.unwrap() as usize;
        for window in told.iter() {
            prop_assert!(told.iter().filter(|w| *w == window).count() <= coalesce);
        }
    }
}

#[test]
fn ten_faults_in_ten_milliseconds_cut_a_device_off_and_nine_do_not() {
    let mut ladder = Ladder::new(Thresholds::FAULTS);
    let changes: Vec<_> = (0..10).filter_map(|n| ladder.event(Time(n * 900_000)).change).collect();
    assert_eq!(changes, [Rung::Coalesce, Rung::Mask, Rung::Quarantine]);
    let mut ladder = Ladder::new(Thresholds::FAULTS);
    for n in 0..9 {
        let _ = ladder.event(Time(n * 900_000));
    }
    assert_eq!(ladder.seen().rung, Rung::Mask);
    assert_eq!(ladder.calm(Time(100_000_000)).change, Some(Rung::Log));
}

#[test]
fn a_fault_now_and_then_is_told_for_ever() {
    let mut ladder = Ladder::new(Thresholds::FAULTS);
    for n in 0..10_000 {
        let step = ladder.event(Time(n * 5_000_000));
        assert_eq!((step.tell, step.change), (true, None));
    }
}

#[test]
fn hardware_that_is_muted_again_and_again_is_cut_off() {
    let mut ladder = Ladder::new(Thresholds { quarantine: Some(1000), ..Thresholds::FAULTS });
    let mut now = 0;
    for _ in 0..200 {
        if ladder.seen().rung >= Rung::Quarantine {
            break;
        }
        match ladder.seen().rung {
            // While the hardware is muted, nothing comes.
            Rung::Mask => now = ladder.due().unwrap().0,
            _ => now += 10_000,
        }
        let _ =
            if ladder.seen().rung == Rung::Mask { ladder.calm(Time(now)) } else { ladder.event(Time(now)) };
    }
    assert_eq!(ladder.seen().rung, Rung::Quarantine);
    assert_eq!(ladder.seen().masked, u64::from(Thresholds::FAULTS.relapses) + 1);
}

#[test]
fn a_device_that_is_cut_off_and_still_faults_is_to_be_reset() {
    let mut ladder = Ladder::new(Thresholds::FAULTS);
    let steps: Vec<_> = (0..20).map(|n| ladder.event(Time(n))).collect();
    assert_eq!(steps[19].change, Some(Rung::AskReset));
    assert_eq!(ladder.calm(Time(u64::MAX)).change, None, "time alone does not help");
    ladder.absolve(Time(1_000));
    assert_eq!((ladder.seen().rung, ladder.seen().resets_asked), (Rung::Log, 1));
    assert!(ladder.event(Time(1_001)).tell);
}
