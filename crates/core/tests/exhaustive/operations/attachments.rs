//! Attach, replace, detach; page requests on the way.

use super::{Case, Operation, devices::direct, devices::with_direct, on};
use crate::{
    allocator::aside,
    common::*,
    rig::{Rig, said},
};
use portcullis::driver::Target;
use portcullis::error::AttachError;
use portcullis::{
    At, Claimant, CookieWidth, Cookies, Deferred, DomainOptions, DomainTag, Gap, PageGroup, Pasid, Response,
    Sleep, SourceId,
};
use portcullis_pgtable::{MapError, Phys};
use std::{
    rc::Rc,
    sync::{Arc, Mutex},
};

pub const ALL: &[Operation] = &[
    on("attach", |rig| {
        let d = rig.device(1);
        attaches(rig, &d, None)
    }),
    on("attach a PASID", |rig| {
        let d = rig.device(1);
        attaches(rig, &d, Pasid::new(5))
    }),
    on("attach a device with direct regions", |rig| {
        let d = rig.add(with_direct(rig)).expect("added");
        attaches(rig, &d, None)
    }),
    on("attach a group with aliases and direct regions", |rig| {
        let d = group(rig);
        let dom = rig.plain(&d);
        attaches_to(rig, &d, dom, None)
    }),
    on("attach to identity", |rig| {
        let d = rig.device(1);
        let dom = rig.iommu.identity_domain().expect("made");
        let rig = rig.clone();
        Case::keeping(move || said(rig.iommu.attach(&cx(), &dom, &d, None, Arc::new(()))))
    }),
    on("attach to nothing", |rig| {
        let d = rig.device(1);
        let dom = rig.iommu.blocked_domain().expect("made");
        let rig = rig.clone();
        Case::keeping(move || said(rig.iommu.attach(&cx(), &dom, &d, None, Arc::new(()))))
    }),
    on("attach in steps", |rig| {
        let d = rig.device(1);
        let dom = rig.served(&d);
        let rig = rig.clone();
        Case::keeping(move || {
            let mut attaching = rig.iommu.start_attach(&dom, &d, None, data());
            let attached = loop {
                if let std::task::Poll::Ready(attached) = attaching.step() {
                    break attached;
                }
            };
            said(attached)
        })
    }),
    on("be refused for a direct region", |rig| {
        let d = rig.device(1);
        let dom = rig.plain(&d);
        let other = rig.attach(&dom, &d);
        let late = rig.add(direct(rig.spec(2))).expect("added");
        // In the way of its second page.
        dom.map_range(0x20_1000, Phys(0x7_0000), 0x1000, RW).expect("mapped");
        let (rig, seen) = (rig.clone(), dom.clone());
        Case::new(move || {
            let _ = &other;
            match rig.iommu.attach(&cx(), &dom, &late, None, data()) {
                Err(AttachError::Direct { why: MapError::AlreadyMapped { .. }, .. }) => Ok(()),
                other => said(other.map(drop)),
            }
        })
        .and(move || format!("{:?}", seen.lookup(0x20_0000)))
    }),
    on("attach in the place of something", |rig| {
        let d = rig.device(1);
        let case = attaches(rig, &d, None);
        rig.hw.state().gaps = true;
        let at = At { source: SourceId(1), pasid: None };
        rig.hw.state().entries.insert(at, Target::Identity { tag: DomainTag(99) });
        case
    }),
    on("replace", |rig| {
        let d = rig.device(1);
        replaces(rig, &d, None)
    }),
    on("replace by a domain with a resolver", |rig| {
        let d = rig.device(1);
        let (one, two) = (rig.plain(&d), rig.served(&d));
        replaces_by(rig, &d, one, two, None)
    }),
    on("replace a PASID", |rig| {
        let d = rig.device(1);
        replaces(rig, &d, Pasid::new(5))
    }),
    on("replace through blocked", |rig| {
        rig.hw.state().gaps = true;
        let d = rig.device(1);
        replaces(rig, &d, None)
    }),
    on("replace for a group with direct regions", |rig| {
        let d = group(rig);
        let (one, two) = (rig.plain(&d), rig.plain(&d));
        replaces_by(rig, &d, one, two, None)
    }),
    on("detach", |rig| {
        let d = rig.device(1);
        detaches(rig, &d, None)
    }),
    on("detach a PASID", |rig| {
        let d = rig.device(1);
        detaches(rig, &d, Pasid::new(5))
    }),
    on("detach a device with direct regions", |rig| {
        let d = rig.add(with_direct(rig)).expect("added");
        detaches(rig, &d, None)
    }),
    on("detach a group with direct regions", |rig| {
        let d = group(rig);
        let mut kept = Some(rig.attach(&rig.plain(&d), &d));
        Case::new(move || {
            drop(kept.take().expect("it cannot be refused").begin_detach(&cx()));
            Ok(())
        })
    }),
    on("detach by key", |rig| {
        let d = rig.device(1);
        let a = rig.attach(&rig.served(&d), &d);
        let rig = rig.clone();
        Case::new(move || said(rig.iommu.begin_detach_by_key(&cx(), a.key())).map(drop))
    }),
    on("drop an attachment", |rig| {
        let d = rig.device(1);
        let mut kept = Some(rig.attach(&rig.served(&d), &d));
        let rig = rig.clone();
        Case::new(move || {
            drop(kept.take());
            rig.work();
            Ok(())
        })
    }),
    on("detach with requests under way", |rig| {
        let d = rig.device(1);
        let mut kept = Some(rig.attach(&rig.served(&d), &d));
        rig.hw.sends(&[first(1, 1, 0x3000), last(1, 1), last(1, 2), first(1, 3, 0x4000)]);
        rig.iommu.service(IOMMU);
        rig.hw.state().in_fabric.push(last(1, 4));
        let rig = rig.clone();
        Case::new(move || {
            drop(kept.take().expect("it cannot be refused").begin_detach(&cx()));
            rig.work();
            Ok(())
        })
    }),
    on("answer page requests", |rig| {
        let d = rig.device(1);
        let a = rig.attach(&rig.served(&d), &d);
        let rig = rig.clone();
        Case::new(move || {
            let _ = &a;
            aside(|| rig.hw.sends(&[first(1, 1, 0x3000), last(1, 1), last(1, 2)]));
            settle(&rig);
            Ok(())
        })
    }),
    on("hold groups by number and answer them", |rig| {
        let d = rig.device(1);
        let held: Arc<Mutex<Vec<Deferred<Board>>>> = Arc::new(Mutex::new(Vec::with_capacity(4)));
        let into = held.clone();
        let defers = move |_: &Sleep<'_>, _: &Arc<Data>, group: PageGroup<'_, Board>| {
            into.lock().unwrap().push(group.defer());
        };
        let made = rig.iommu.external_domain(&[&d], DomainOptions::default(), Some(defers));
        let a = rig.attach(&made.expect("made"), &d);
        rig.hw.sends(&[last(1, 1), last(1, 2)]);
        rig.iommu.service(IOMMU);
        rig.work();
        let rig = rig.clone();
        Case::new(move || {
            let _ = &a;
            let cookies = said(Cookies::new(&rig.board, 4, CookieWidth::Bits32))?;
            while let Some(group) = held.lock().unwrap().pop() {
                let cookie = cookies.hold(group).unwrap_or_else(|_| panic!("there is room"));
                said(cookies.respond(cookie, Claimant::Holder, Response::Success))?;
            }
            settle(&rig);
            Ok(())
        })
    }),
];

/// Two members, each with an alias and a direct region.
fn group(rig: &Rig) -> Dev {
    rig.add(direct(rig.member(1))).expect("added");
    rig.add(direct(rig.member(2))).expect("added")
}

/// Serves until nothing is under way.
fn settle(rig: &Rig) {
    let requests = || rig.iommu.instance_usage(IOMMU).expect("it is there").requests;
    while rig.hw.waiting() > 0 || requests() > 0 || rig.iommu.load().waiting > 0 {
        rig.iommu.service(IOMMU);
        rig.work();
    }
    // What is decided may still wait for room in the hardware's queue.
    rig.iommu.tick();
}

fn attaches(rig: &Rc<Rig>, d: &Dev, pasid: Option<Pasid>) -> Case {
    let dom = rig.served(d);
    attaches_to(rig, d, dom, pasid)
}

fn attaches_to(rig: &Rc<Rig>, d: &Dev, dom: Dom, pasid: Option<Pasid>) -> Case {
    let (rig, d, seen) = (rig.clone(), d.clone(), dom.clone());
    let held = data();
    let counted = held.clone();
    Case::keeping(move || said(rig.iommu.attach(&cx(), &dom, &d, pasid, held.clone()))).and(move || {
        let direct = [0x10_0000, 0x10_1000, 0x20_0000, 0x20_1000].map(|iova| seen.lookup(iova).is_some());
        format!("unused: {}, data held: {}, {direct:?}", seen.is_unused(), Arc::strong_count(&counted))
    })
}

fn replaces(rig: &Rc<Rig>, d: &Dev, pasid: Option<Pasid>) -> Case {
    let (one, two) = (rig.served(d), rig.served(d));
    replaces_by(rig, d, one, two, pasid)
}

fn replaces_by(rig: &Rc<Rig>, d: &Dev, one: Dom, two: Dom, pasid: Option<Pasid>) -> Case {
    let (old_data, new_data) = (data(), data());
    let mut kept = Some(rig.iommu.attach(&cx(), &one, d, pasid, old_data.clone()).expect("attached"));
    if pasid.is_none() && d.features().ats {
        rig.hw.sends(&[first(1, 1, 0x3000)]);
        rig.iommu.service(IOMMU);
    }
    let (rig, counted, to) = (rig.clone(), new_data.clone(), two.clone());
    Case::new(move || {
        let old = kept.take().expect("it stands");
        match rig.iommu.replace(&cx(), old, &to, new_data.clone(), Gap::Allowed) {
            Ok((new, old, _)) => {
                assert!(old.is_gone());
                kept = Some(new);
                Ok(())
            }
            Err((old, e)) => {
                kept = old;
                said(Err(e))
            }
        }
    })
    .and(move || {
        let data = (Arc::strong_count(&old_data), Arc::strong_count(&counted));
        format!("unused: {} {}, data held: {data:?}", one.is_unused(), two.is_unused())
    })
}

fn detaches(rig: &Rc<Rig>, d: &Dev, pasid: Option<Pasid>) -> Case {
    let dom = rig.served(d);
    let held = data();
    let mut kept = Some(rig.iommu.attach(&cx(), &dom, d, pasid, held.clone()).expect("attached"));
    Case::new(move || {
        drop(kept.take().expect("it cannot be refused").begin_detach(&cx()));
        Ok(())
    })
    .and(move || format!("unused: {}, data held: {}", dom.is_unused(), Arc::strong_count(&held)))
}
