//! Groups held by number, against a plain model of who may answer what.

use crate::common::{self, *};
use portcullis::{
    Claimant, Code, Config, CookieError, CookieWidth, Cookies, Deferred, DeviceId, Key, Response,
};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

const DEVICES: u32 = 2;
const CAPACITY: usize = 5;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A device asks; its group is held by number, if there is room.
    Arrives(u32),
    /// The nth cookie ever given out, by one who speaks for the nth device or attachment.
    Respond(usize, Speaker, bool),
    /// A number that somebody made up.
    Forged(u64, bool),
    Detach(u32),
    Release(u32),
    /// Milliseconds.
    Pass(u64),
}

#[derive(Clone, Copy, Debug)]
enum Speaker {
    Owner,
    Device(u32),
    Attachment(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let device = 1..=DEVICES;
    let speaker = prop_oneof![
        2 => Just(Speaker::Owner),
        1 => device.clone().prop_map(Speaker::Device),
        1 => device.clone().prop_map(Speaker::Attachment),
    ];
    prop_oneof![
        6 => device.clone().prop_map(Step::Arrives),
        6 => (any::<usize>(), speaker, any::<bool>()).prop_map(|(n, s, ok)| Step::Respond(n, s, ok)),
        1 => (any::<u64>(), any::<bool>()).prop_map(|(n, ok)| Step::Forged(n, ok)),
        1 => device.clone().prop_map(Step::Detach),
        1 => device.prop_map(Step::Release),
        1 => (0..3000u64).prop_map(Step::Pass),
    ]
}

/// What the model knows of a group whose cookie was given out.
#[derive(Clone, Copy, Debug)]
struct Held {
    device: u32,
    attachment: Key,
    index: u16,
    answered: bool,
    /// Its cookie names nothing any more.
    gone: bool,
}

struct Run {
    w: World,
    devices: BTreeMap<u32, Dev>,
    dom: Dom,
    attached: BTreeMap<u32, Att>,
    arrived: Arc<Mutex<Vec<Deferred<Board>>>>,
    cookies: Cookies<Board>,
    width: CookieWidth,
    held: Vec<(u64, Held)>,
    expected: Vec<common::Sent>,
    index: u16,
}

impl Run {
    fn new(width: CookieWidth) -> Run {
        let w = World::with(Config { group_deadline: Some(Duration::from_secs(2)), ..Config::default() });
        let devices: BTreeMap<u32, Dev> = (1..=DEVICES).map(|n| (n, w.device(n))).collect();
        let arrived = Arc::<Mutex<Vec<Deferred<Board>>>>::default();
        let keeps = arrived.clone();
        let dom = w.resolved_by(&devices[&1], move |_, _, g| keeps.lock().unwrap().push(g.defer()));
        let cookies = Cookies::new(&w.board, CAPACITY, width).unwrap();
        let attached = devices.iter().map(|(n, d)| (*n, w.attach(&dom, d))).collect();
        w.hw.take_log();
        Run {
            w,
            devices,
            dom,
            attached,
            arrived,
            cookies,
            width,
            held: Vec::new(),
            expected: Vec::new(),
            index: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Arrives(device) => self.arrives(device),
            Step::Respond(n, speaker, ok) if !self.held.is_empty() => {
                let n = n % self.held.len();
                self.respond(n, speaker, if ok { Response::Success } else { Response::Invalid });
            }
            Step::Respond(..) => {}
            Step::Forged(n, ok) => {
                let n = if self.width == CookieWidth::Bits32 { n >> 32 } else { n };
                if !self.held.iter().any(|(cookie, _)| *cookie == n) {
                    let response = if ok { Response::Success } else { Response::Invalid };
                    let refused = self.cookies.respond(n, Claimant::Holder, response);
                    assert_eq!(refused, Err(CookieError::Forged(n)));
                }
            }
            Step::Detach(device) => {
                let old = self.attached.remove(&device).expect("attached");
                assert!(old.begin_detach(&cx()).is_gone());
                self.answers_itself(|h| h.device == device);
                let new = self.w.attach(&self.dom, &self.devices[&device]);
                self.attached.insert(device, new);
            }
            Step::Release(device) => {
                let key = self.attached[&device].key();
                let here = |h: &Held| h.attachment == key && !h.gone;
                let count = self.held.iter().filter(|(_, h)| here(h)).count();
                assert_eq!(self.cookies.release(key), count);
                self.answers_itself(here);
                self.held.iter_mut().filter(|(_, h)| here(h)).for_each(|(_, h)| h.gone = true);
            }
            Step::Pass(ms) => {
                self.w.pass(Duration::from_millis(ms));
                // The deadline of two seconds took what the model has to learn from the answers.
                let sent = self.w.hw.answers();
                let late = |h: &Held| sent.contains(&common::sent(h.device, h.index, Code::Invalid));
                self.answers_itself(late);
            }
        }
        let waiting = self.held.iter().filter(|(_, h)| !h.gone).count();
        assert_eq!(self.cookies.len(), waiting);
        let mut sent = self.w.hw.answers();
        sent.sort_by_key(|s| s.index);
        self.expected.sort_by_key(|s| s.index);
        assert_eq!(sent, self.expected, "after {step:?}");
    }

    /// The core answers Invalid what matches and still waits.
    fn answers_itself(&mut self, which: impl Fn(&Held) -> bool) {
        for (_, h) in self.held.iter_mut().filter(|(_, h)| which(h) && !h.answered) {
            h.answered = true;
            self.expected.push(common::sent(h.device, h.index, Code::Invalid));
        }
    }

    fn arrives(&mut self, device: u32) {
        self.index += 1;
        let index = self.index;
        self.w.sends(&[last(device, index)]);
        self.w.work();
        let Some(group) = self.arrived.lock().unwrap().pop() else {
            // Over its share.
            self.expected.push(common::sent(device, index, Code::Invalid));
            return;
        };
        let attachment = group.attachment();
        let live = |h: &Held| !h.gone && !h.answered;
        let full = self.held.iter().filter(|(_, h)| live(h)).count() == CAPACITY;
        let crowded = self.held.iter().filter(|(_, h)| !h.gone).count() == CAPACITY;
        match self.cookies.hold(group) {
            Ok(cookie) => {
                assert!(!full);
                assert_ne!(cookie, 0);
                if self.width == CookieWidth::Bits32 {
                    assert!(cookie <= u64::from(u32::MAX));
                }
                assert!(self.held.iter().all(|(c, _)| *c != cookie), "given out before");
                if crowded {
                    // One that was answered gave up its place: the one whose cookie is stale now.
                    let gone = self.held.iter_mut().find(|(c, h)| {
                        let response = Response::Success;
                        !h.gone
                            && h.answered
                            && self.cookies.respond(*c, Claimant::OfDevice(DeviceId(0)), response)
                                == Err(CookieError::Stale(*c))
                    });
                    gone.expect("one gave up its place").1.gone = true;
                }
                let held = Held { device, attachment, index, answered: false, gone: false };
                self.held.push((cookie, held));
            }
            Err(group) => {
                assert!(full, "refused although there was room");
                group.respond(Response::Invalid).unwrap();
                self.expected.push(common::sent(device, index, Code::Invalid));
            }
        }
    }

    fn respond(&mut self, n: usize, speaker: Speaker, response: Response) {
        let (cookie, h) = self.held[n];
        let (claimant, may) = match speaker {
            Speaker::Owner => (Claimant::Holder, true),
            Speaker::Device(d) => (Claimant::OfDevice(DeviceId(d.into())), d == h.device),
            Speaker::Attachment(d) => {
                let key = self.attached[&d].key();
                (Claimant::OfAttachment(key), key == h.attachment)
            }
        };
        let expected = match h {
            Held { gone: true, .. } => Err(CookieError::Stale(cookie)),
            _ if !may => Err(CookieError::Foreign(cookie)),
            Held { answered: true, .. } => Err(CookieError::Answered(cookie)),
            _ => Ok(()),
        };
        assert_eq!(self.cookies.respond(cookie, claimant, response), expected);
        if matches!(expected, Ok(()) | Err(CookieError::Answered(_))) {
            let held = &mut self.held[n].1;
            (held.answered, held.gone) = (true, true);
        }
        if expected.is_ok() {
            let code = match response {
                Response::Success => Code::Success,
                Response::Invalid => Code::Invalid,
            };
            self.expected.push(common::sent(h.device, h.index, code));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever numbers come back, and from whom: each group is answered once, by one who may, and
    /// everything else is told apart and changes nothing.
    #[test]
    fn cookies_answer_what_their_holder_may_answer_once(
        steps in prop::collection::vec(step(), 1..60),
        wide in any::<bool>(),
    ) {
        let mut run = Run::new(if wide { CookieWidth::Bits64 } else { CookieWidth::Bits32 });
        steps.into_iter().for_each(|s| run.step(s));
        drop(run.cookies);
        let unanswered = run.held.iter().filter(|(_, h)| !h.answered);
        let mut expected = run.expected;
        expected.extend(unanswered.map(|(_, h)| common::sent(h.device, h.index, Code::Invalid)));
        let mut sent = run.w.hw.answers();
        sent.sort_by_key(|s| s.index);
        expected.sort_by_key(|s| s.index);
        prop_assert_eq!(sent, expected, "a table that is dropped answers what is left in it");
    }
}

#[test]
fn a_cookie_of_another_table_is_forged() {
    let mut run = Run::new(CookieWidth::Bits64);
    let other = Cookies::new(&run.w.board, CAPACITY, CookieWidth::Bits64).unwrap();
    run.arrives(1);
    let (cookie, _) = run.held[0];
    assert_eq!(other.respond(cookie, Claimant::Holder, Response::Success), Err(CookieError::Forged(cookie)));
    assert!(run.w.hw.answers().is_empty());
    run.respond(0, Speaker::Owner, Response::Success);
    assert_eq!(run.w.hw.answers(), [sent(1, 1, Code::Success)]);
}

#[test]
fn a_number_wider_than_the_table_s_is_forged() {
    let mut run = Run::new(CookieWidth::Bits32);
    run.arrives(1);
    let wide = run.held[0].0 | 1 << 32;
    let refused = run.cookies.respond(wide, Claimant::Holder, Response::Success);
    assert_eq!(refused, Err(CookieError::Forged(wide)));
}

/// Successive cookies of one table share no pattern: about half of their bits change.
#[test]
fn the_next_cookie_cannot_be_told_from_the_last() {
    let mut run = Run::new(CookieWidth::Bits64);
    for _ in 0..64 {
        run.arrives(1);
        run.respond(run.held.len() - 1, Speaker::Owner, Response::Success);
    }
    let pairs = run.held.windows(2).map(|p| (p[0].0 ^ p[1].0).count_ones());
    let mean = f64::from(pairs.sum::<u32>()) / 63.0;
    assert!((28.0..36.0).contains(&mean), "{mean} bits of 64 change");
}
