//! Every operation given up at each of its waits in turn, as a step form is that is dropped: what it
//! had begun is taken back, or ended by a worker. Afterwards the devices can be used as ever, and with
//! them removed nothing is in use any more.

use crate::{
    allocator::{What, arm, aside, disarm, take_sites, watched},
    common::*,
    operations::{self, Case, Operation},
    rig::{Base, Rig, said},
};
use portcullis::{DeviceState, Pasid, error::AttachError};
use std::rc::Rc;

/// The life of an operation that is given up at a wait, or at none.
struct Ended {
    /// Whether it came to that wait.
    given_up: bool,
    /// Allocated and not freed in the whole life; frames too.
    left: (isize, usize),
    /// What is not as it should be.
    wrong: Option<String>,
}

/// Given up at this wait; after this allocation was refused, where one is.
fn life(op: &Operation, at: Option<usize>, refused: Option<usize>) -> Ended {
    let base = aside(Base::new);
    arm(What::Nothing);
    let ((given_up, wrong), left) = watched(|| {
        let rig = Rc::new(if op.bare { Rig::bare(&base) } else { Rig::new(&base) });
        let Case { mut run, look } = (op.make)(&rig);
        rig.board.give_up_at(at);
        arm(refused.map_or(What::Nothing, What::Refuse));
        let said = run();
        disarm();
        let given_up = rig.board.give_up_at(None);
        rig.work();
        let wrong = after(&rig, (run, look));
        // Neither is watched.
        (given_up, aside(move || wrong.err().map(|why| format!("said {said:?}: {why}"))))
    });
    base.nothing_is_walked_that_is_free();
    Ended { given_up, left: (left, base.frames()), wrong }
}

/// What has to hold after the workers have done their part.
pub fn after(rig: &Rig, case: impl Sized) -> Result<(), String> {
    if rig.iommu.usage().instances == 0 {
        rig.register().map_err(|e| aside(|| format!("to register: {e}")))?;
    }
    drop(case);
    rig.work();
    rig.iommu.tick();
    let load = rig.iommu.load();
    if (load.running, load.waiting, load.held_back) != (0, 0, 0) {
        return aside(|| Err(format!("{load:?}")));
    }
    // Nothing is attached.
    let used = rig.iommu.instance_usage(IOMMU).expect("it is there");
    if used.places != used.requesters {
        return aside(|| Err(format!("{used:?}")));
    }
    let devices = aside(|| rig.devices.borrow().clone());
    for d in &devices {
        usable(rig, d).map_err(|e| aside(|| format!("device {}: {e}", d.id().0)))?;
    }
    aside(|| drop(devices));
    remove_all(rig)?;
    // Whatever device was on its way in is let in now.
    for spec in [rig.spec(1), rig.spec(2)] {
        rig.add(spec).map_err(|e| aside(|| format!("again: {e}")))?;
    }
    remove_all(rig)?;
    aside(|| nothing_is_left(rig))
}

fn usable(rig: &Rig, d: &Dev) -> Result<(), String> {
    match d.state() {
        DeviceState::NoIommu | DeviceState::Removed => return Ok(()),
        DeviceState::Ready { .. } => {}
        _ => said(rig.iommu.retry_device(&cx(), d))?,
    }
    match attaches(rig, d) {
        // They say what helps.
        Err(AttachError::Parked(_) | AttachError::Quarantined(_)) => {}
        other => said(other)?,
    }
    said(d.reset(&cx()))?;
    if d.is_quarantined() {
        return Err(aside(|| "it is quarantined".to_owned()));
    }
    said(attaches(rig, d))
}

fn attaches(rig: &Rig, d: &Dev) -> Result<(), AttachError> {
    for pasid in [None, Pasid::new(5)] {
        let dom = if d.features().ats { rig.served(d) } else { rig.plain(d) };
        let attached = rig.iommu.attach(&cx(), &dom, d, pasid, data())?;
        drop(attached.begin_detach(&cx()));
    }
    Ok(())
}

fn remove_all(rig: &Rig) -> Result<(), String> {
    loop {
        let Some(device) = rig.devices.borrow_mut().pop() else { return Ok(()) };
        said(rig.iommu.remove_device(&cx(), device).map_err(|(_, e)| e))?;
    }
}

fn nothing_is_left(rig: &Rig) -> Result<(), String> {
    let (all, one) = (rig.iommu.usage(), rig.iommu.instance_usage(IOMMU).expect("it is there"));
    let used = (all.devices, all.attachments, all.pasids, one.requesters, one.tags, one.places);
    let asked = (one.credits, one.requests, one.partials, one.stalls);
    let known = rig.hw.devices().len();
    let state = rig.hw.state();
    let hardware = (known, state.entries.len(), state.stalling.len(), state.held.len());
    match (used, asked, hardware) {
        ((0, 0, 0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)) => Ok(()),
        _ => Err(format!("{all:?}\n{one:?}\nhardware: {hardware:?}")),
    }
}

#[test]
fn an_operation_that_is_given_up_at_any_wait_leaves_nothing_behind() {
    let (mut found, mut waits) = (String::new(), 0);
    for op in operations::all() {
        let clean = life(op, None, None);
        assert_eq!(clean.wrong, None, "{}", op.name);
        for n in 0.. {
            let ended = life(op, Some(n), None);
            if !ended.given_up {
                waits += n;
                break;
            }
            if let Some(why) = ended.wrong {
                found += &format!("{}, given up at wait {n}: {why}\n", op.name);
            } else if ended.left != clean.left {
                let (left, usually) = (ended.left, clean.left);
                found += &format!("{}, given up at wait {n}: left {left:?}, usually {usually:?}\n", op.name);
            }
        }
    }
    assert!(found.is_empty(), "{} of {waits} lives are wrong:\n{found}", found.lines().count());
    assert!(waits > 150, "{waits} waits");
}

#[test]
fn what_is_refused_for_want_of_memory_may_be_given_up_on_its_way_back() {
    let (mut found, mut waits) = (String::new(), 0);
    for op in operations::all() {
        for n in fallible(op) {
            for at in 0.. {
                let ended = life(op, Some(at), Some(n));
                if !ended.given_up {
                    waits += at;
                    break;
                }
                if let Some(why) = ended.wrong {
                    found += &format!("{}, allocation {n} refused, given up at wait {at}: {why}\n", op.name);
                }
            }
        }
    }
    assert!(found.is_empty(), "{} of {waits} lives are wrong:\n{found}", found.lines().count());
    assert!(waits > 100, "{waits} waits");
}

/// The numbers of the allocations that can be refused.
fn fallible(op: &Operation) -> Vec<usize> {
    let base = aside(Base::new);
    watched(|| {
        let rig = Rc::new(if op.bare { Rig::bare(&base) } else { Rig::new(&base) });
        let mut case = (op.make)(&rig);
        arm(What::Record);
        assert_eq!((case.run)(), Ok(()), "{}", op.name);
        disarm();
    });
    let sites = take_sites().into_iter().enumerate();
    sites.filter(|(_, s)| s.fallible && !s.is_of_the_test()).map(|(n, _)| n).collect()
}
