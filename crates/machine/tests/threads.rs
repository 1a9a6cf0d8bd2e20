//! The threaded platform: waits, timer, workers, interrupts, and its end.

use portcullis::{Platform, ShortLock, Sleep, Time, Window, Woken};
use portcullis_machine::{
    hardware::{Hardware, HwWork, Msi, Width},
    threads::Threads,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

fn threads() -> Threads {
    Threads::new(0, 1 << 20).unwrap()
}

/// Each write of a number makes that many steps; each step raises an interrupt and takes 50 us.
#[derive(Default)]
struct Device {
    left: u64,
    steps: u64,
    not_before: Time,
    raised: Vec<Msi>,
}

impl Hardware for Device {
    fn runnable(&mut self, now: Time, out: &mut Vec<HwWork>) {
        if self.left > 0 && self.not_before <= now {
            out.push(HwWork { lane: 0, item: 0 });
        }
    }
    fn run(&mut self, now: Time, _: HwWork) -> u64 {
        self.left -= 1;
        self.steps += 1;
        self.not_before = now + Duration::from_micros(50);
        self.raised.push(Msi { address: 0xfee0_0000, data: 1 });
        0
    }
    fn next_deadline(&mut self, _: Time) -> Option<Time> {
        (self.left > 0).then_some(self.not_before)
    }
    fn mmio_read(&mut self, _: Time, _: Window, _: u32, _: Width) -> u64 {
        self.steps
    }
    fn mmio_write(&mut self, _: Time, _: Window, _: u32, _: Width, value: u64) {
        self.left += value;
    }
    fn take_interrupts(&mut self, out: &mut Vec<Msi>) {
        out.append(&mut self.raised);
    }
}

#[test]
fn from_a_register_to_a_worker_and_back() {
    let mut threads = threads();
    threads.set_hardware(Device::default());
    let dirty = Arc::new(AtomicBool::new(false));
    let d = dirty.clone();
    threads.on_interrupt(move |p, _| {
        d.store(true, Ordering::SeqCst);
        p.kick();
    });
    let p = threads.platform().clone();
    let state = Arc::new((p.lock(0), p.event()));
    let s = state.clone();
    threads.workers(2, move |p| {
        let had = dirty.swap(false, Ordering::SeqCst);
        if had {
            let steps = p.read64(Window(0), 0);
            s.0.with(|n| *n = steps.max(*n));
            p.notify(&s.1);
        }
        had
    });
    p.write64(Window(0), 0, 100);
    let cx = Sleep::in_sleepable_context();
    loop {
        let seen = p.seen(&state.1);
        if state.0.with(|n| *n == 100) {
            break;
        }
        let end = p.wait(&cx, &state.1, seen, Some(p.now() + Duration::from_secs(60)));
        assert_eq!(end, Woken::Notified);
    }
    threads.stop();
    assert_eq!(p.read32(Window(0), 0), u32::MAX, "no hardware is left");
}

#[test]
fn deadlines_and_the_timer_come_in_time() {
    let mut threads = threads();
    let ticked_at = Arc::new(AtomicU64::new(0));
    let t = ticked_at.clone();
    threads.on_timer(move |p| t.store(p.now().0, Ordering::SeqCst));
    let p = threads.platform();
    p.timer_at(Time(3_600_000_000_000));
    p.timer_at(Time(10_000_000));
    let event = p.event();
    let until = p.now() + Duration::from_millis(50);
    let cx = Sleep::in_sleepable_context();
    assert_eq!(p.wait(&cx, &event, p.seen(&event), Some(until)), Woken::Deadline);
    assert!(p.now() >= until);
    assert!(ticked_at.load(Ordering::SeqCst) >= 10_000_000);
    threads.stop();
}

#[test]
fn stop_ends_every_wait() {
    let threads = threads();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let p = threads.platform().clone();
            thread::spawn(move || {
                let event = p.event();
                p.wait(&Sleep::in_sleepable_context(), &event, p.seen(&event), None)
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(10));
    threads.stop();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), Woken::Shutdown);
    }
}

#[test]
fn a_panic_of_a_worker_comes_out_of_stop() {
    let mut threads = threads();
    threads.workers(1, |_| panic!("no work today"));
    let panic = catch_unwind(AssertUnwindSafe(|| threads.stop())).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"no work today"));
}
