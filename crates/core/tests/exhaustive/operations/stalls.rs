//! Stalls: enabled, decided, and ended by whatever may end them.

use super::{Case, Operation, devices::direct, on};
use crate::{
    allocator::aside,
    common::*,
    rig::{Rig, said},
};
use portcullis::error::{AttachError, StallError};
use portcullis::{
    At, Deferred, Domain, DomainOptions, Gap, PageGroup, Response, Sleep, SourceId, StallDecider, StallId,
    StalledAccess, Stalling, UserObject, Verdict,
};
use std::{
    rc::Rc,
    sync::{Arc, Mutex},
};

type Never = fn(&Sleep<'_>, &Arc<Data>, PageGroup<'_, Board>);

pub const ALL: &[Operation] = &[
    on("enable stalls", |rig| {
        let (d, e) = (rig.soc_device(1), rig.soc_device(2));
        let dom = rig.plain(&d);
        let attached = [rig.attach(&dom, &d), rig.attach(&dom, &e)];
        let rig = rig.clone();
        Case::keeping(move || {
            let _ = &attached;
            said(rig.iommu.enable_stall(&cx(), &dom, StallDecider::sleeping(retries)))
        })
    }),
    on("enable stalls in steps", |rig| {
        let d = rig.soc_device(1);
        let dom = rig.plain(&d);
        let a = rig.attach(&dom, &d);
        let rig = rig.clone();
        Case::keeping(move || {
            let _ = &a;
            let mut enabling = rig.iommu.start_enable_stall(&dom, StallDecider::sleeping(retries));
            loop {
                if let std::task::Poll::Ready(enabled) = enabling.step() {
                    break said(enabled);
                }
            }
        })
    }),
    on("attach where it stalls", |rig| {
        let d = rig.soc_device(1);
        let dom = rig.plain(&d);
        let guard = enabled(rig, &dom);
        let rig = rig.clone();
        Case::keeping(move || {
            let _ = &guard;
            said(rig.iommu.attach(&cx(), &dom, &d, None, data()))
        })
    }),
    on("replace by a domain that stalls", |rig| {
        let d = rig.soc_device(1);
        let (one, two) = (rig.plain(&d), rig.plain(&d));
        let guard = enabled(rig, &two);
        replaces(rig, rig.attach(&one, &d), two, guard)
    }),
    on("replace in a domain that stalls", |rig| {
        let d = rig.soc_device(1);
        let (one, two) = (rig.plain(&d), rig.plain(&d));
        let (a, guard) = (rig.attach(&one, &d), enabled(rig, &one));
        stalls(rig, 2);
        replaces(rig, a, two, guard)
    }),
    on("be refused a replace by a domain that stalls", |rig| {
        let d = rig.add(direct(rig.soc_spec(1))).expect("added");
        let (one, two) = (rig.plain(&d), rig.plain(&d));
        let (mut kept, guard) = (Some(rig.attach(&one, &d)), enabled(rig, &two));
        rig.hw.state().rigid.insert(At { source: SourceId(1), pasid: None });
        let rig = rig.clone();
        Case::new(move || {
            let _ = &guard;
            let old = kept.take().expect("it stands");
            match rig.iommu.replace(&cx(), old, &two, data(), Gap::Allowed) {
                Ok(_) => panic!("it stalls"),
                Err((old, AttachError::Stall(StallError::Place { .. }))) => {
                    kept = old;
                    Ok(())
                }
                Err((old, e)) => {
                    kept = old;
                    said(Err(e))
                }
            }
        })
    }),
    on("detach what stalls", |rig| {
        let d = rig.soc_device(1);
        let dom = rig.plain(&d);
        let (mut kept, guard) = (Some(rig.attach(&dom, &d)), enabled(rig, &dom));
        stalls(rig, 2);
        rig.hw.state().held.insert(StallId(9), SourceId(1));
        rig.hw.state().late_stalls.push(stall(1, 9));
        let rig = rig.clone();
        Case::new(move || {
            let _ = &guard;
            drop(kept.take().expect("it cannot be refused").begin_detach(&cx()));
            rig.work();
            Ok(())
        })
    }),
    on("disable stalls", |rig| {
        let d = rig.soc_device(1);
        let dom = rig.plain(&d);
        let (a, mut guard) = (rig.attach(&dom, &d), Some(enabled(rig, &dom)));
        stalls(rig, 2);
        let rig = rig.clone();
        Case::new(move || {
            let _ = &a;
            guard.take().expect("it cannot be refused").disable(&cx());
            rig.work();
            settle(&rig);
            Ok(())
        })
    }),
    on("reset what stalls", |rig| {
        let d = rig.soc_device(1);
        let dom = rig.plain(&d);
        let (a, guard) = (rig.attach(&dom, &d), enabled(rig, &dom));
        stalls(rig, 2);
        let rig = rig.clone();
        Case::new(move || {
            let _ = (&a, &guard);
            let reset = said(d.reset(&cx()));
            rig.work();
            reset
        })
    }),
    on("decide what stalls on a worker", |rig| {
        let d = rig.soc_device(1);
        let dom = rig.plain(&d);
        let (a, guard) = (rig.attach(&dom, &d), enabled(rig, &dom));
        decides(rig, (a, guard))
    }),
    on("decide what stalls at once", |rig| {
        let d = rig.soc_device(1);
        let dom = rig.plain(&d);
        let a = rig.attach(&dom, &d);
        let decider = StallDecider::immediate(|_: &Arc<Data>, _: &StalledAccess| Verdict::Terminate);
        let guard = rig.iommu.enable_stall(&cx(), &dom, decider).expect("it can");
        decides(rig, (a, guard))
    }),
    on("have what stalls decided elsewhere", |rig| {
        let d = rig.soc_device(1);
        let made = rig.iommu.user_object_domain(&[&d], DomainOptions::default(), None::<Never>);
        let dom: Domain<Board, UserObject<Data>> = made.expect("made");
        let a = rig.iommu.attach(&cx(), &dom, &d, None, data()).expect("attached");
        let held: Arc<Mutex<Vec<Deferred<Board>>>> = Arc::new(Mutex::new(Vec::with_capacity(4)));
        let list = held.clone();
        let decider =
            StallDecider::elsewhere(move |_: &Arc<Data>, s: Deferred<Board>| list.lock().unwrap().push(s));
        let guard = rig.iommu.enable_stall(&cx(), &dom, decider).expect("it can");
        let rig = rig.clone();
        Case::new(move || {
            let _ = (&a, &guard);
            aside(|| {
                for tag in 1..3 {
                    rig.hw.stalls(stall(1, tag));
                }
            });
            while rig.hw.waiting() > 0 {
                rig.iommu.service(IOMMU);
            }
            while let Some(stalled) = held.lock().unwrap().pop() {
                said(stalled.respond(Response::Success))?;
            }
            settle(&rig);
            Ok(())
        })
    }),
];

pub fn retries(_: &Sleep<'_>, _: &Arc<Data>, _: &StalledAccess) -> Verdict {
    Verdict::Retry
}

fn enabled(rig: &Rig, dom: &Dom) -> Stalling<Board> {
    rig.iommu.enable_stall(&cx(), dom, StallDecider::sleeping(retries)).expect("it can")
}

/// Transactions fault and are held.
fn stalls(rig: &Rig, n: u64) {
    (1..=n).for_each(|tag| assert!(rig.hw.stalls(stall(1, tag))));
    rig.iommu.service(IOMMU);
}

fn replaces(rig: &Rc<Rig>, a: Att, to: Dom, guard: Stalling<Board>) -> Case {
    let (mut kept, rig, held) = (Some(a), rig.clone(), data());
    Case::new(move || {
        let _ = &guard;
        let old = kept.take().expect("it stands");
        let done = match rig.iommu.replace(&cx(), old, &to, held.clone(), Gap::Allowed) {
            Ok((new, _, _)) => {
                kept = Some(new);
                Ok(())
            }
            Err((old, e)) => {
                kept = old;
                said(Err(e))
            }
        };
        done.inspect(|()| rig.work())
    })
}

fn decides(rig: &Rc<Rig>, keeps: (Att, Stalling<Board>)) -> Case {
    let rig = rig.clone();
    Case::new(move || {
        let _ = &keeps;
        aside(|| {
            for tag in 1..3 {
                rig.hw.stalls(stall(1, tag));
            }
        });
        settle(&rig);
        Ok(())
    })
}

/// Serves until nothing is under way.
fn settle(rig: &Rig) {
    let stalls = || rig.iommu.instance_usage(IOMMU).expect("it is there").stalls;
    while rig.hw.waiting() > 0 || stalls() > 0 || rig.iommu.load().waiting > 0 {
        rig.iommu.service(IOMMU);
        rig.work();
    }
    // What is decided may still wait for room in the hardware's queue.
    rig.iommu.tick();
}
