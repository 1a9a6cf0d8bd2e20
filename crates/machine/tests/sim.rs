//! The simulation itself: determinism, locks, waits, the clock, interrupts, the end of a run, and
//! that it finds what is planted.
#![cfg(feature = "sim")]

use parking_lot::Mutex;
use portcullis::{Platform, ShortLock, Sleep, Time, Window, Woken};
use portcullis_machine::{
    hardware::{Hardware, HwWork, INTERRUPTS_UNDER_WAY, Msi, Width},
    platform::MachinePlatform,
    sim::{Order, Plant, Pool, Sim, SimConfig, SimPlatform, Strategy, StuckBecause, WaitsFor},
};
use portcullis_pgtable::{FRAME_SIZE, TableMem};
use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

fn small(seed: u64, pool: &Pool) -> SimConfig {
    SimConfig { memory: 16 * FRAME_SIZE, step_limit: 100_000, pool: pool.clone(), ..SimConfig::new(seed) }
}

fn sim(seed: u64) -> Sim {
    Sim::new(small(seed, &Pool::default())).unwrap()
}

fn sleepable() -> Sleep<'static> {
    Sleep::in_sleepable_context()
}

/// A few tasks that fight over a lock and read a shared word in between.
fn contest(seed: u64, pool: &Pool) -> (u64, Vec<u32>, Time) {
    let mut sim = Sim::new(small(seed, pool)).unwrap();
    let order = Arc::new(sim.platform().lock(Vec::new()));
    let shared = Arc::new(portcullis_sync::atomic::AtomicU64::new(0));
    for task in 0..3 {
        let (order, shared) = (order.clone(), shared.clone());
        sim.spawn(format!("contestant {task}"), move |_| {
            for _ in 0..6 {
                order.with(|o| {
                    // A preemption point with the lock held.
                    shared.fetch_add(1, portcullis_sync::atomic::Ordering::Relaxed);
                    o.push(task);
                });
            }
        });
    }
    sim.run().unwrap();
    let outcome = (sim.schedule_hash(), order.with(std::mem::take), sim.now());
    sim.finish().unwrap();
    outcome
}

#[test]
fn one_seed_is_one_run() {
    let pool = Pool::default();
    for seed in 0..20 {
        let first = contest(seed, &Pool::default());
        assert_eq!(first, contest(seed, &pool));
        assert_eq!(first.1.len(), 18);
    }
}

#[test]
fn seeds_differ() {
    let pool = Pool::default();
    let runs: Vec<_> = (0..200).map(|seed| contest(seed, &pool)).collect();
    let hashes: HashSet<_> = runs.iter().map(|r| r.0).collect();
    assert!(hashes.len() >= 190, "{} different schedules", hashes.len());
    let outcomes: HashSet<_> = runs.iter().map(|r| &r.1).collect();
    assert!(outcomes.len() >= 20, "{} outcomes", outcomes.len());
}

/// A consumer that waits for a flag as the trait asks for it, a producer that sets it once.
fn handover(seed: u64, plant: Option<Plant>, pool: &Pool) -> bool {
    let config = SimConfig { plant, spurious_wakeups: false, ..small(seed, pool) };
    let mut sim = Sim::new(config).unwrap();
    let flag = Arc::new(portcullis_sync::atomic::AtomicBool::new(false));
    let event = Arc::new(sim.platform().event());
    let (f, e) = (flag.clone(), event.clone());
    sim.spawn("consumer", move |p| {
        loop {
            let seen = p.seen(&e);
            if f.load(portcullis_sync::atomic::Ordering::Acquire) {
                return;
            }
            if p.wait(&sleepable(), &e, seen, None) == Woken::Shutdown {
                return;
            }
        }
    });
    sim.spawn("producer", move |p| {
        flag.store(true, portcullis_sync::atomic::Ordering::Release);
        p.notify(&event);
    });
    let end = sim.run();
    if let Err(stuck) = &end {
        assert_eq!(stuck.because, StuckBecause::Deadlock);
        assert_eq!(stuck.tasks.len(), 1);
        assert_eq!(stuck.tasks[0].name, "consumer");
        assert!(matches!(stuck.tasks[0].waits_for, WaitsFor::Event { until: None, .. }));
    }
    sim.finish().unwrap();
    end.is_ok()
}

#[test]
fn a_lost_wakeup_is_found_and_only_where_it_is_planted() {
    let pool = Pool::default();
    let lost = (0..200).filter(|&seed| !handover(seed, Some(Plant::LostWakeup), &pool));
    assert!(lost.count() > 0, "200 seeds did not find it");
    for seed in 0..200 {
        assert!(handover(seed, None, &pool), "seed {seed}");
    }
}

#[test]
fn a_lock_excludes_although_its_holder_is_preempted() {
    let pool = Pool::default();
    let mut met_held = 0;
    for seed in 0..50 {
        let mut sim = Sim::new(small(seed, &pool)).unwrap();
        let lock = Arc::new(sim.platform().lock(0u32));
        let inside = Arc::new(AtomicBool::new(false));
        for task in 0..3 {
            let (lock, inside) = (lock.clone(), inside.clone());
            sim.spawn(format!("{task}"), move |p| {
                for _ in 0..5 {
                    lock.with(|n| {
                        assert!(!inside.swap(true, Ordering::Relaxed));
                        p.yield_now();
                        p.yield_now();
                        *n += 1;
                        inside.store(false, Ordering::Relaxed);
                    });
                }
            });
        }
        sim.run().unwrap();
        assert_eq!(lock.with(|n| *n), 15);
        met_held += sim.finish().unwrap().lock_waits;
    }
    assert!(met_held > 50, "locks were met held {met_held} times");
}

#[test]
fn a_task_that_locks_twice_is_a_deadlock_that_names_it() {
    let mut sim = sim(1);
    let lock = Arc::new(sim.platform().lock(()));
    sim.spawn("twice", move |_| lock.with(|()| lock.with(|()| ())));
    let stuck = sim.run().unwrap_err();
    assert_eq!(stuck.because, StuckBecause::Deadlock);
    assert!(matches!(stuck.tasks[0].waits_for, WaitsFor::Lock(_)));
    assert!(stuck.to_string().starts_with("seed 1: deadlock after"));
    assert!(stuck.to_string().contains("`twice` waits for lock"));
}

#[test]
fn a_task_that_never_ends_reaches_the_step_limit() {
    let mut sim = Sim::new(SimConfig { step_limit: 1_000, ..small(3, &Pool::default()) }).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let s = stop.clone();
    sim.spawn("spinner", move |p| {
        while !s.load(Ordering::Relaxed) {
            p.yield_now();
        }
    });
    let stuck = sim.run().unwrap_err();
    assert_eq!(stuck.because, StuckBecause::StepLimit);
    assert_eq!(stuck.tasks[0].waits_for, WaitsFor::Processor);
    stop.store(true, Ordering::Relaxed);
    sim.finish().unwrap();
}

#[test]
fn time_passes_by_deadlines_and_the_timer() {
    let mut sim = sim(5);
    let ticks = Arc::new(Mutex::new(Vec::new()));
    let t = ticks.clone();
    sim.on_timer(move |p| {
        let mut ticks = t.lock();
        ticks.push(p.now());
        if ticks.len() < 3 {
            p.timer_at(Time(p.now().0 + 1_000_000));
        }
    });
    sim.spawn("sleeper", |p| {
        p.timer_at(Time(9_000_000));
        p.timer_at(Time(2_000_000));
        p.timer_at(Time(8_000_000));
        let before = p.now();
        assert_eq!(p.sleep(&sleepable(), 50_000_000), Woken::Deadline);
        let slept = p.now().since(before).as_nanos();
        assert!((50_000_000..50_100_000).contains(&slept), "{slept}");
    });
    sim.run().unwrap();
    let ticks = ticks.lock().clone();
    assert_eq!(ticks.len(), 3);
    assert!(ticks[0] >= Time(2_000_000) && ticks[0] < Time(2_100_000));
    let stats = sim.finish().unwrap();
    assert_eq!((stats.ticks, stats.deadlines), (3, 1));
}

#[test]
fn the_clock_jumps_past_a_deadline_while_the_answer_is_possible() {
    let run = |seed, jump_budget| {
        let mut sim = Sim::new(SimConfig {
            strategy: Some(Strategy { order: Order::Uniform, jump: 4, slice: 2 }),
            jump_budget,
            ..small(seed, &Pool::default())
        })
        .unwrap();
        let event = Arc::new(sim.platform().event());
        let done = Arc::new(AtomicBool::new(false));
        let (e, d) = (event.clone(), done.clone());
        sim.spawn("answer", move |p| {
            for _ in 0..5 {
                p.yield_now();
            }
            d.store(true, Ordering::Relaxed);
            p.notify(&e);
        });
        let late = Arc::new(AtomicBool::new(false));
        let l = late.clone();
        sim.spawn("waiter", move |p| {
            let until = Some(Time(1_000_000_000));
            loop {
                let seen = p.seen(&event);
                if done.load(Ordering::Relaxed) {
                    return;
                }
                if p.wait(&sleepable(), &event, seen, until) == Woken::Deadline {
                    l.store(true, Ordering::Relaxed);
                    return;
                }
            }
        });
        sim.run().unwrap();
        sim.finish().unwrap();
        late.load(Ordering::Relaxed)
    };
    let late = (0..100).filter(|&seed| run(seed, u64::MAX)).count();
    assert!(late > 5 && late < 95, "late in {late} of 100");
    assert_eq!((0..100).filter(|&seed| run(seed, 999_000_000)).count(), 0);
}

/// A device: a write to register 0 starts work; every step of it raises an interrupt.
#[derive(Default)]
struct Device {
    left: u64,
    not_before: u64,
    raised: Vec<Msi>,
    steps: u64,
}

const MSI: Msi = Msi { address: 0xfee0_0000, data: 0x41 };

impl Hardware for Device {
    fn runnable(&mut self, now: Time, out: &mut Vec<HwWork>) {
        if self.left > 0 && self.not_before <= now.0 {
            out.push(HwWork { lane: 0, item: self.left });
        }
    }
    fn run(&mut self, now: Time, _: HwWork) -> u64 {
        self.left -= 1;
        self.steps += 1;
        self.not_before = now.0 + 500;
        self.raised.push(MSI);
        100
    }
    fn next_deadline(&mut self, _: Time) -> Option<Time> {
        (self.left > 0).then_some(Time(self.not_before))
    }
    fn mmio_read(&mut self, _: Time, _: Window, offset: u32, width: Width) -> u64 {
        assert_eq!((offset, width), (8, Width::Qword));
        self.steps
    }
    fn mmio_write(&mut self, now: Time, _: Window, offset: u32, width: Width, value: u64) {
        assert_eq!((offset, width), (0, Width::Dword));
        self.left = value;
        self.not_before = now.0 + 1_000;
    }
    fn take_interrupts(&mut self, out: &mut Vec<Msi>) {
        out.append(&mut self.raised);
    }
}

#[test]
fn interrupts_kick_workers_and_nothing_is_lost() {
    let pool = Pool::default();
    let mut merged = 0;
    for seed in 0..100 {
        let mut sim = Sim::new(small(seed, &pool)).unwrap();
        sim.set_hardware(Device::default());
        let done = Arc::new(sim.platform().event());
        let seen_steps = Arc::new(AtomicU64::new(0));
        let dirty = Arc::new(AtomicBool::new(false));
        let d = dirty.clone();
        sim.on_interrupt(move |p, msi| {
            assert_eq!(msi, MSI);
            d.store(true, Ordering::Relaxed);
            p.kick();
        });
        let (d, s) = (done.clone(), seen_steps.clone());
        sim.workers(2, move |p| {
            let had = dirty.swap(false, Ordering::Relaxed);
            if had {
                s.store(p.read64(Window(0), 8), Ordering::Relaxed);
                p.notify(&d);
            }
            had
        });
        sim.spawn("driver", move |p| {
            p.write32(Window(0), 0, 10);
            loop {
                let seen = p.seen(&done);
                if seen_steps.load(Ordering::Relaxed) == 10 {
                    return;
                }
                p.wait(&sleepable(), &done, seen, None);
            }
        });
        sim.run().unwrap();
        sim.settle().unwrap();
        let steps = sim.platform().hardware(|d: &mut Device| d.steps);
        assert_eq!(steps, Some(10));
        let stats = sim.stats();
        assert_eq!(stats.interrupts_raised, 10);
        assert!((1..=10).contains(&stats.interrupts));
        merged += stats.interrupts_raised - stats.interrupts;
        let device = sim.take_hardware::<Device>().unwrap();
        assert_eq!(device.steps, 10);
        assert_eq!(sim.platform().read64(Window(0), 8), u64::MAX);
        sim.finish().unwrap();
    }
    assert!(merged > 0);
}

/// Raises a different interrupt with every step, for ever.
#[derive(Default)]
struct Babbler(u32, Vec<Msi>);

impl Hardware for Babbler {
    fn runnable(&mut self, _: Time, out: &mut Vec<HwWork>) {
        out.push(HwWork { lane: 0, item: 0 });
    }
    fn run(&mut self, _: Time, _: HwWork) -> u64 {
        self.0 += 1;
        self.1.push(Msi { data: self.0, ..MSI });
        1
    }
    fn next_deadline(&mut self, _: Time) -> Option<Time> {
        None
    }
    fn mmio_read(&mut self, _: Time, _: Window, _: u32, _: Width) -> u64 {
        0
    }
    fn mmio_write(&mut self, _: Time, _: Window, _: u32, _: Width, _: u64) {}
    fn take_interrupts(&mut self, out: &mut Vec<Msi>) {
        out.append(&mut self.1);
    }
}

#[test]
fn a_device_that_babbles_is_held_back() {
    for seed in 0..10 {
        // No jump ends the sleep early.
        let config = SimConfig { jump_budget: 0, ..small(seed, &Pool::default()) };
        let mut sim = Sim::new(config).unwrap();
        sim.set_hardware(Babbler::default());
        sim.spawn("patient", |p| {
            p.sleep(&sleepable(), 20_000);
        });
        sim.run().unwrap();
        let stats = sim.stats();
        let under_way = stats.interrupts_raised - stats.interrupts;
        assert!(under_way <= INTERRUPTS_UNDER_WAY as u64);
        assert!(stats.interrupts > 100);
        let _: Box<Babbler> = sim.take_hardware().unwrap();
        sim.finish().unwrap();
    }
}

#[test]
fn shutdown_ends_every_wait() {
    let mut sim = sim(8);
    let ends = Arc::new(Mutex::new(Vec::new()));
    for i in 0..3 {
        let ends = ends.clone();
        sim.spawn(format!("waiter {i}"), move |p| {
            let event = p.event();
            let end = loop {
                match p.wait(&sleepable(), &event, p.seen(&event), None) {
                    Woken::Notified => {}
                    end => break end,
                }
            };
            // And every later one.
            let again = p.wait(&sleepable(), &event, p.seen(&event), None);
            ends.lock().push((end, again));
        });
    }
    sim.workers(2, |_| false);
    assert_eq!(sim.run().unwrap_err().tasks.len(), 5);
    sim.finish().unwrap();
    assert_eq!(*ends.lock(), [(Woken::Shutdown, Woken::Shutdown); 3]);
}

fn panic_of(f: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).unwrap_err();
    panic.downcast_ref::<String>().unwrap().clone()
}

#[test]
fn a_panic_names_seed_and_task() {
    let text = panic_of(|| {
        let mut sim = sim(77);
        sim.workers(1, |_| false);
        sim.spawn("clumsy", |p| {
            p.yield_now();
            assert_eq!(1, 2, "nothing works");
        });
        let _ = sim.run();
    });
    assert!(text.starts_with("seed 77: `clumsy` panicked"), "{text}");
    assert!(text.contains("nothing works"), "{text}");
}

#[test]
fn rules_of_contexts_are_enforced() {
    let run = |task: fn(&SimPlatform)| {
        panic_of(|| {
            let mut sim = sim(1);
            sim.on_timer(task);
            sim.spawn("task", |p| {
                p.timer_at(Time(0));
                p.sleep(&sleepable(), 1_000_000);
            });
            let _ = sim.run();
        })
    };
    let text = run(|p| {
        p.sleep(&sleepable(), 1);
    });
    assert!(text.contains("in interrupt or service context"), "{text}");
    let text = run(|p| p.release(p.frame().unwrap()));
    assert!(text.contains("taking a frame in interrupt"), "{text}");

    let text = panic_of(|| {
        let mut sim = sim(1);
        sim.spawn("task", |p| {
            let (lock, event) = (p.lock(()), p.event());
            lock.with(|()| p.wait(&sleepable(), &event, p.seen(&event), None));
        });
        let _ = sim.run();
    });
    assert!(text.contains("a wait with a short lock held"), "{text}");
}

#[test]
fn the_nth_frame_fails_in_a_task() {
    let mut sim = sim(2);
    sim.platform().ram().fail_frame(Some(2));
    sim.spawn("allocator", |p| {
        let got: Vec<bool> = (0..5).map(|_| p.frame().map(|f| p.release(f)).is_ok()).collect();
        assert_eq!(got, [true, true, false, true, true]);
    });
    sim.run().unwrap();
    assert_eq!(sim.platform().ram().count().tables, 0);
}

#[test]
fn calls_follow_one_another() {
    let mut sim = sim(4);
    let event = Arc::new(sim.platform().event());
    let (e, f) = (event.clone(), event.clone());
    sim.spawn("waker", move |p| {
        p.sleep(&sleepable(), 1_000);
        p.notify(&e);
    });
    let first = sim.call("first", move |p| {
        let seen = p.seen(&f);
        if seen.0 == 0 {
            p.wait(&sleepable(), &f, seen, None);
        }
        p.now()
    });
    let first = first.unwrap();
    assert!(sim.call("second", Platform::now).unwrap() > first);
    let stuck = sim.call("third", move |p| {
        let end = p.wait(&sleepable(), &event, p.seen(&event), None);
        assert_ne!(end, Woken::Deadline);
        p.wait(&sleepable(), &event, p.seen(&event), None)
    });
    assert_eq!(stuck.unwrap_err().because, StuckBecause::Deadlock);
    sim.finish().unwrap();
}

#[test]
fn a_pool_gives_memory_back_as_new() {
    let pool = Pool::default();
    for seed in 0..3 {
        let mut sim = Sim::new(small(seed, &pool)).unwrap();
        sim.spawn("writer", |p| {
            let t = p.frame().unwrap().publish();
            assert_eq!(p.load::<u64>(t, 5), 0);
            p.store::<u64>(t, 5, 1);
            p.store128(t, 0, 1);
            p.ram().write(t.0 + 4096 * 3, &[1, 2, 3]).unwrap();
        });
        sim.run().unwrap();
        assert_eq!(sim.platform().ram().count().tables, 1);
        sim.finish().unwrap();
    }
}
