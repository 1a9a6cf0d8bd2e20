//! The whole core on shuttle's threads, over the scripted driver: every last request is settled once
//! and none is lost, no handler runs after Gone, no bound is passed, nobody waits for ever.
//!
//! Runs with `--cfg portcullis_shuttle`. `PORTCULLIS_SCHEDULES` is the number of schedules of each
//! scenario, half of them by chance and half by PCT (Burckhardt et al., ASPLOS 2010). A failure
//! prints its schedule, which `shuttle::replay` takes.
#![cfg(portcullis_shuttle)]
#![allow(dead_code, reason = "the scripted driver serves other tests too")]

mod board;
#[path = "../common/devices.rs"]
mod devices;
#[path = "../common/hardware.rs"]
mod hardware;
#[path = "../common/requests.rs"]
mod requests;
mod room;
mod stalls;
#[path = "../common/vendors.rs"]
mod vendors;

use board::{Board, held};
use devices::IOMMU;
use hardware::{Call, Hardware};
use portcullis::{
    Access, Code, Deferred, FaultKind, FaultRecord, Gap, Observer, Platform, RawFault, Reason, Response,
    Scope, Sleep, SourceId, Told, Waited,
};
use requests::{Sent, pasid};
use room::{Attached, Room, SHARE, small};
use shuttle::{
    Config, Runner,
    scheduler::{PctScheduler, RandomScheduler},
    sync::{Mutex, MutexGuard},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use vendors::Vendor;

/// The sleepable context of a thread of the test.
fn cx() -> Sleep<'static> {
    Sleep::in_sleepable_context()
}

/// Schedules of each scenario.
fn schedules() -> usize {
    std::env::var("PORTCULLIS_SCHEDULES").map_or(2000, |n| n.parse().expect("a number of schedules"))
}

const SEED: u64 = 0x706f_7274_6375_6c6c;

fn explore(schedules: usize, scenario: impl Fn() + Send + Sync + Copy + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    let half = schedules.div_ceil(2);
    Runner::new(RandomScheduler::new_from_seed(SEED, half), config.clone()).run(scenario);
    Runner::new(PctScheduler::new_from_seed(SEED, 3, half), config).run(scenario);
}

#[test]
fn requests_arrive_while_attachments_come_and_go() {
    explore(schedules(), || {
        let room = Room::new(1);
        let d = room.device(1);
        let dom = room.served(&d);
        let device = d.clone();
        let owner = room.spawn(move |r| {
            for _ in 0..2 {
                let (a, data) = r.attach(&dom, &device, None);
                r.detach(a, &data);
            }
            // The last one is dropped: a worker detaches it.
            drop(r.attach(&dom, &device, None));
        });
        let device = room.spawn(move |r| (0..2).for_each(|_| r.sends(1, None)));
        owner.join();
        device.join();
        room.close();
    });
}

#[test]
fn requests_arrive_while_an_attachment_is_replaced() {
    explore(schedules(), || {
        let room = Room::new(1);
        let d = room.device(1);
        let (one, two) = (room.served(&d), room.served(&d));
        let (a, old) = room.attach(&one, &d, None);
        let owner = room.spawn(move |r| {
            let data = Attached::new();
            let (b, gone, _) = r
                .iommu
                .replace(&cx(), a, &two, data.clone(), Gap::Allowed)
                .map_err(|(_, e)| e)
                .expect("replaced");
            assert_eq!(gone.wait(&cx(), None), Waited::Gone);
            drop(gone);
            old.is_gone();
            r.detach(b, &data);
        });
        let device = room.spawn(move |r| (0..2).for_each(|_| r.sends(1, None)));
        owner.join();
        device.join();
        room.close();
    });
}

/// Two kernel drivers take a group at the same moment: one attaches its default domain, and both have
/// that.
#[test]
fn two_drivers_take_a_group_at_once() {
    explore(schedules(), || {
        let room = Room::new(1);
        let d = room.device(1);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let drivers = [(); 2].map(|()| {
            let (d, taken) = (d.clone(), taken.clone());
            room.board.spawn(move || {
                let used = d.use_by_driver(&cx()).expect("it is the kernel's");
                taken.lock().expect("nobody panics with it").push(used);
            })
        });
        drivers.into_iter().for_each(|driver| driver.join());
        let taken: Vec<_> = taken.lock().expect("nobody panics with it").drain(..).collect();
        let domains: Vec<_> = taken.iter().map(|used| used.dma().map(|dma| dma.id())).collect();
        assert!(matches!(domains[..], [Some(one), Some(other)] if one == other), "{domains:?}");
        assert_eq!(room.iommu.usage().attachments, 1);
        taken.into_iter().for_each(|used| used.end(&cx()));
        room.close();
    });
}

/// The requester id and a PASID of one device, each let go of by its own thread.
#[test]
fn two_detaches_of_one_device_at_once() {
    explore(schedules(), || {
        let room = Room::new(2);
        let d = room.device(1);
        let dom = room.served(&d);
        let places = [None, pasid(1)];
        let attached = places.map(|p| room.attach(&dom, &d, p));
        let device = room.spawn(move |r| places.iter().for_each(|p| r.sends(1, *p)));
        let owners = attached.map(|(a, data)| room.spawn(move |r| r.detach(a, &data)));
        owners.into_iter().for_each(|o| o.join());
        device.join();
        room.close();
    });
}

/// One attachment let go of by its owner and, by its key, by somebody else.
#[test]
fn two_detaches_of_one_attachment_at_once() {
    explore(schedules(), || {
        let room = Room::new(1);
        let d = room.device(1);
        let dom = room.served(&d);
        let (a, data) = room.attach(&dom, &d, None);
        let key = a.key();
        let device = room.spawn(move |r| r.sends(1, None));
        let other = room.spawn(move |r| {
            if let Ok(gone) = r.iommu.begin_detach_by_key(&cx(), key) {
                assert_eq!(gone.wait(&cx(), None), Waited::Gone);
            }
        });
        let gone = room.begin_detach(a);
        assert_eq!(gone.wait(&cx(), None), Waited::Gone);
        other.join();
        drop(gone);
        data.is_gone();
        device.join();
        room.close();
    });
}

type Kept = Arc<Mutex<Vec<(u16, Deferred<Board>)>>>;

/// A domain whose resolver keeps each group, with its index, and counts what is outstanding.
fn keeps(room: &Room, device: &room::Dev) -> (room::Dom, Kept) {
    let kept = Kept::default();
    let keep = kept.clone();
    let domain = room.domain(device, move |group| {
        // Nobody can take a request of a group that is answered already.
        let Some(last) = group.request(group.len() - 1) else { return };
        let mut kept = keep.lock().unwrap();
        kept.push(((last.address / 0x1000) as u16, group.defer()));
        // Whoever is counted had a credit when the lock was taken.
        let out: usize = kept.iter().filter(|(_, g)| g.request(0).is_some()).map(|(_, g)| g.len()).sum();
        assert!(out <= SHARE as usize, "{out} requests are outstanding");
    });
    (domain, kept)
}

/// Answers what is kept, a few times. Where somebody else was first, that answer stands.
fn answers(room: &Room, kept: &Kept, times: usize) {
    for _ in 0..times {
        let next = kept.lock().unwrap().pop();
        if let Some((index, group)) = next
            && group.respond(Response::Success).is_err()
        {
            assert_ne!(room.code(index), Some(Code::Success), "somebody else answered {index}");
        }
        shuttle::thread::yield_now();
    }
}

/// Nobody can answer any more: a detach has.
fn is_late(kept: &Kept) {
    let late = core::mem::take(&mut *kept.lock().unwrap());
    for (index, group) in late {
        assert!(group.respond(Response::Success).is_err(), "{index} outlived its attachment");
    }
}

#[test]
fn a_deadline_an_answer_and_a_detach_at_once() {
    explore(schedules(), || {
        let room = Room::new(1);
        let d = room.device(1);
        let (dom, kept) = keeps(&room, &d);
        let (a, data) = room.attach(&dom, &d, None);
        room.sends(1, None);
        let keeps = kept.clone();
        let responder = room.spawn(move |r| answers(r, &keeps, 6));
        let clock = room.spawn(move |r| {
            r.board.pass(Duration::from_secs(11));
            r.iommu.tick();
        });
        room.detach(a, &data);
        responder.join();
        clock.join();
        is_late(&kept);
        room.close();
    });
}

/// A device that asks for more than its share, of a hardware that has no room for answers at first.
#[test]
fn a_device_never_has_more_than_its_share() {
    explore(schedules(), || {
        let room = Room::new(1);
        let d = room.device(1);
        let (dom, kept) = keeps(&room, &d);
        let (a, data) = room.attach(&dom, &d, None);
        room.hw.state().responses_full = true;
        let device = room.spawn(move |r| (0..3).for_each(|_| r.sends(1, None)));
        let keeps = kept.clone();
        let responder = room.spawn(move |r| answers(r, &keeps, 6));
        let hardware = room.spawn(move |r| r.hw.state().responses_full = false);
        responder.join();
        room.detach(a, &data);
        device.join();
        hardware.join();
        is_late(&kept);
        room.close();
    });
}

/// One resolver sleeps until the end of the test. Its attachment's hardware is let go of all the
/// same, another attachment of its device waits its turn, and another device is served and detached.
#[test]
fn a_resolver_that_sleeps_for_ever_holds_nobody_else_up() {
    explore(schedules(), || {
        let room = Room::new(2);
        let (d, e) = (room.device(1), room.device(2));
        let (wakes, awake) = (Arc::new(room.board.event()), Arc::new(AtomicBool::new(false)));
        let (board, event, may) = (room.board.clone(), wakes.clone(), awake.clone());
        let sleeps = room.domain(&d, move |group| {
            loop {
                let seen = board.seen(&event);
                if may.load(SeqCst) {
                    break;
                }
                board.wait(&cx(), &event, seen, None);
            }
            let _ = group.respond(Response::Success);
        });
        let served = room.served(&e);
        let (a, stuck) = room.attach(&sleeps, &d, None);
        let (b, data) = room.attach(&served, &e, None);
        let first = room.spawn(move |r| r.sends(1, None));
        let second = room.spawn(move |r| {
            r.sends(2, None);
            r.detach(b, &data);
            r.iommu.remove_device(&cx(), e).map_err(|(_, e)| e).expect("nothing holds it");
        });
        first.join();
        let gone = room.begin_detach(a);
        let waited = gone.wait(&cx(), Some(room.board.now() + Duration::from_secs(1)));
        let begun = stuck.groups.load(SeqCst) > 0;
        assert_eq!(waited, if begun { Waited::StillRunning } else { Waited::Gone });
        second.join();
        awake.store(true, SeqCst);
        room.board.notify(&wakes);
        assert_eq!(gone.wait(&cx(), None), Waited::Gone);
        drop(gone);
        stuck.is_gone();
        room.close();
    });
}

/// What a reset voids is answered at most once, and the device has its whole share afterwards.
#[test]
fn requests_arrive_while_the_device_is_reset() {
    explore(schedules(), || {
        let room = Room::new(1);
        let d = room.device(1);
        let dom = room.served(&d);
        let (a, data) = room.attach(&dom, &d, None);
        room.voids();
        let device = room.spawn(move |r| (0..2).for_each(|_| r.sends(1, None)));
        d.reset(&cx()).expect("reset");
        device.join();
        room.quiet();
        let refused = d.counters().quota;
        for _ in 0..SHARE {
            room.sends(1, None);
            room.quiet();
        }
        assert_eq!(d.counters().quota, refused, "the reset kept some of the device's share");
        drop(a);
        room.close();
        drop(data);
    });
}

#[derive(Clone, Default)]
struct Ear {
    over: Arc<AtomicBool>,
    late: Arc<AtomicUsize>,
    inside: Arc<AtomicUsize>,
    heard: Arc<AtomicUsize>,
}

impl Ear {
    fn hears(&self) {
        assert_eq!(held(), 0, "an observer is called with a short lock held");
        assert_eq!(self.inside.fetch_add(1, SeqCst), 0, "two calls of one observer at once");
        self.heard.fetch_add(1, SeqCst);
        // A call that had begun when the observation ended may come to its end.
        if self.over.load(SeqCst) {
            assert_eq!(self.late.fetch_add(1, SeqCst), 0, "a second call after the observation");
        }
        self.inside.fetch_sub(1, SeqCst);
    }
}

impl Observer for Ear {
    fn fault(&self, _: &Sleep<'_>, _: &Told) {
        self.hears();
    }
    fn lost(&self, _: &Sleep<'_>, _: u64) {
        self.hears();
    }
}

const RECORDS: usize = 4;

#[test]
fn observers_come_and_go_while_faults_are_told() {
    explore(schedules(), || {
        let room = Room::new(1);
        let stays = Ear::default();
        let staying = room.iommu.observe_sleeping(Scope::All, RECORDS, stays.clone()).expect("room");
        let device = room.spawn(move |r| {
            for _ in 0..RECORDS {
                r.hw.faults(RawFault {
                    source: Some(SourceId(1)),
                    access: Access::Write,
                    address: Some(0x1000),
                    code: 5,
                    ..RawFault::new(FaultKind::Dma, Reason::NotMapped)
                });
                r.iommu.service(IOMMU);
            }
        });
        let visitors = [true, false].map(|sleeps| {
            room.spawn(move |r| {
                let ear = Ear::default();
                let hears = ear.clone();
                let seat = if sleeps {
                    r.iommu.observe_sleeping(Scope::All, 2, ear.clone())
                } else {
                    r.iommu.observe_immediate(Scope::All, move |_: &FaultRecord| hears.hears())
                };
                drop(seat.expect("room"));
                ear.over.store(true, SeqCst);
            })
        });
        visitors.into_iter().for_each(|v| v.join());
        device.join();
        let ends = room.clone();
        room.close();
        assert_eq!((stays.heard.load(SeqCst), staying.lost()), (RECORDS, 0), "every record is told once");
        drop((staying, ends));
    });
}

/// The scenario that an answer outside the queue's lock breaks.
#[cfg(feature = "planted")]
#[test]
fn an_answer_that_is_taken_early_is_found() {
    use portcullis::config::Plant;
    let scenario = || {
        let config = portcullis::Config { plant: Some(Plant::AnswerTakenEarly), ..small() };
        let room = Room::with(1, config);
        let d = room.device(1);
        let dom = room.served(&d);
        let (a, data) = room.attach(&dom, &d, None);
        room.sends(1, None);
        room.detach(a, &data);
        room.close();
    };
    let failed = std::panic::catch_unwind(|| explore(4000, scenario)).expect_err("found");
    let why = failed.downcast_ref::<String>().expect("an assertion's message");
    assert!(why.contains("after its detach"), "{why}");
}
