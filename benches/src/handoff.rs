//! A group's way to a worker and back where the worker is another thread: spinning on a CPU of its
//! own, or asleep until it is woken. Both CPUs must be free for these to say anything.

use crate::{
    Row,
    faults::{Shape, World},
};
use portcullis::Sleep;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Groups of one measurement: the worker's thread is started once for all of them.
const GROUPS: u64 = 1 << 15;

pub(crate) fn rows() -> Vec<Row> {
    if thread::available_parallelism().is_ok_and(|n| n.get() < 2) {
        // One that spins would keep the other from what it waits for.
        return Vec::new();
    }
    let asleep = World::with_workers(1);
    vec![
        spinning("fault core: a group of one, by a worker, two CPUs, 64 in flight", 64),
        spinning("the same, one in flight: a round trip", 1),
        Row::new("a round trip to a worker that sleeps until it is woken", 1, move || {
            wait_for(&asleep, 1, thread::yield_now);
        }),
    ]
}

/// Groups in flight at once go to a worker that looks for work without a pause.
fn spinning(name: &str, in_flight: u64) -> Row {
    let world = World::new(Shape::Single, false, true);
    Row::new(name, GROUPS, move || {
        let over = AtomicBool::new(false);
        thread::scope(|s| {
            s.spawn(|| {
                let cx = Sleep::in_sleepable_context();
                while !over.load(Ordering::Relaxed) {
                    if !world.iommu().run(&cx) {
                        std::hint::spin_loop();
                    }
                }
            });
            (0..GROUPS / in_flight).for_each(|_| wait_for(&world, in_flight, std::hint::spin_loop));
            over.store(true, Ordering::Relaxed);
        });
    })
}

/// Hands groups over in one turn, and waits for all answers.
fn wait_for(world: &World, groups: u64, pause: fn()) {
    let answered = world.answered() + groups;
    world.service(groups);
    while world.answered() < answered {
        pause();
    }
}
