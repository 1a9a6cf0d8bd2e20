//! Instances, devices, observers, claims and resets.

use super::{Case, Operation, bare, on};
use crate::{
    allocator::aside,
    common::*,
    rig::{Rig, said},
};
use portcullis::topology::{Address, Buses, Function, Hierarchy, Kind};
use portcullis::{
    Bus, Config, DefaultKind, DeviceId, DeviceSpec, DeviceState, FaultRecord, GroupId, Iommu, Membership,
    OwnerId, Pasid, ReservedRegion, Scope, Sleep, SourceId, StallDecider, StalledAccess, Told, Verdict,
};
use std::{cell::Cell, rc::Rc, sync::Arc};

pub const ALL: &[Operation] = &[
    bare("make the subsystem", |rig| {
        let board = rig.board.clone();
        let config = Config { devices: 2, attachments: 2, ..Config::default() };
        Case::keeping(move || said(Iommu::new(board.clone(), config)))
    }),
    bare("register", |rig| {
        let rig = rig.clone();
        Case::new(move || rig.register())
    }),
    bare("register under a device that waits", |rig| {
        let rig = rig.clone();
        let waits = rig.add(with_direct(&rig)).expect("it waits");
        Case::new(move || {
            rig.register()?;
            // One that is refused says so, holds nobody up, and is tried again when there is memory.
            rig.board.mem().allow(None);
            said(rig.iommu.retry_device(&cx(), &waits))
        })
    }),
    bare("try a device again", |rig| {
        let rig = rig.clone();
        let refused = rig.add(with_direct(&rig)).expect("it waits");
        rig.board.mem().allow(Some(1));
        rig.register().expect("it starts");
        rig.board.mem().allow(None);
        assert!(matches!(refused.state(), DeviceState::Refused { .. }));
        Case::new(move || said(rig.iommu.retry_device(&cx(), &refused)))
    }),
    bare("add a device that waits", |rig| adds(rig, |rig| rig.spec(1))),
    on("add a device", |rig| adds(rig, |rig| rig.spec(1))),
    on("add a device without an IOMMU", |rig| {
        adds(rig, |rig| DeviceSpec { upstreams: Vec::new(), ..rig.spec(1) })
    }),
    on("add a device with direct regions", |rig| adds(rig, with_direct)),
    on("add a second member with direct regions", |rig| {
        rig.add(direct(rig.member(1))).expect("added");
        adds(rig, |rig| direct(rig.member(2)))
    }),
    on("add a second member with direct regions and remove it", |rig| {
        rig.add(with_another_id(direct(rig.member(1)))).expect("added");
        let rig = rig.clone();
        rig.devices.borrow_mut().reserve(4);
        // How many are asked to let go of the regions.
        let asked = Rc::new(Cell::new(None));
        let seen = asked.clone();
        Case::new(move || {
            rig.add(with_another_id(direct(rig.member(2))))?;
            let device = rig.devices.borrow_mut().pop().expect("it was added");
            said(rig.iommu.remove_device(&cx(), device).map_err(|(_, e)| e))?;
            asked.set(rig.hw.state().batches.last().map(|(tags, ..)| tags.len()));
            Ok(())
        })
        .and(move || format!("asked: {:?}", seen.get()))
    }),
    on("join a group that is attached", |rig| {
        let one = rig.add(direct(rig.member(1))).expect("added");
        joins(rig, &one, |rig| direct(rig.member(2)))
    }),
    on("join a group that is attached and asks for pages", |rig| {
        let of_it = |rig: &Rig, n| DeviceSpec { trusted: true, ..with_group(rig.spec(n)) };
        let one = rig.add(of_it(rig, 1)).expect("added");
        joins(rig, &one, move |rig| of_it(rig, 2))
    }),
    on("join a group that stalls", |rig| {
        let of_it = |rig: &Rig, n| DeviceSpec {
            bus: Bus::Platform { may_stall: true },
            trusted: false,
            ..with_group(rig.spec(n))
        };
        let one = rig.add(of_it(rig, 1)).expect("added");
        let dom = rig.plain(&one);
        let resolver = |_: &Sleep<'_>, _: &Arc<Data>, _: &StalledAccess| Verdict::Retry;
        let stalling = rig.iommu.enable_stall(&cx(), &dom, StallDecider::sleeping(resolver)).expect("it can");
        let a = rig.attach(&dom, &one);
        let rig = rig.clone();
        rig.devices.borrow_mut().reserve(4);
        Case::new(move || {
            let _ = (&a, &stalling);
            rig.add(of_it(&rig, 2)).map(drop)
        })
    }),
    on("add a device in steps", |rig| {
        let rig = rig.clone();
        Case::new(move || {
            let mut adding = rig.iommu.start_add_device(with_direct(&rig));
            let added = loop {
                if let std::task::Poll::Ready(added) = adding.step() {
                    break added;
                }
            };
            rig.devices.borrow_mut().push(said(added)?);
            Ok(())
        })
    }),
    on("remove a device", |rig| {
        rig.device(1);
        removes(rig)
    }),
    on("remove a device with direct regions", |rig| {
        rig.add(with_direct(rig)).expect("added");
        removes(rig)
    }),
    on("remove a member of a group", |rig| {
        rig.add(direct(rig.member(1))).expect("added");
        rig.add(direct(rig.member(2))).expect("added");
        removes(rig)
    }),
    on("ask for a group and its regions", |rig| {
        let d = rig.add(with_direct(rig)).expect("added");
        Case::new(move || {
            said(d.group())?;
            said(d.reserved_regions())?;
            said(d.group_regions()).map(drop)
        })
    }),
    on("group a topology and place a device", |rig| {
        let ids = |n: u64| DeviceId(n);
        let port = |n: u8| {
            let kind = Kind::RootPort(Buses { secondary: n, subordinate: n });
            Function::new(ids(0x10 + u64::from(n)), Address::new(0, 0, n, 0), kind)
        };
        let endpoint = |f: u8| Function::new(ids(f.into()), Address::new(0, 1, 0, f), Kind::Endpoint);
        let functions = vec![port(1), port(2), endpoint(1), endpoint(2)];
        let machine = Hierarchy { functions, platform: Vec::new() };
        let rig = rig.clone();
        Case::new(move || {
            let serve = |_: &Function, rid: u16| Some((IOMMU, SourceId(rid.into())));
            let grouping = said(machine.group(serve))?;
            let placed = said(rig.spec(1).placed(&grouping))?;
            let group = placed.group.expect("two functions that nothing keeps apart");
            assert_eq!(group.merges.len(), 1);
            assert_eq!(placed.upstreams[0].sources, [SourceId(0x101)]);
            Ok(())
        })
    }),
    on("take a PASID of a device", |rig| {
        let d = rig.device(1);
        let mut taken = Vec::with_capacity(1);
        Case::new(move || {
            taken.push(said(d.take_pasid())?);
            Ok(())
        })
    }),
    on("subscribe", |rig| {
        let rig = rig.clone();
        Case::keeping(move || said(rig.iommu.observe(Scope::All, 4)))
    }),
    on("observe at once", |rig| {
        let rig = rig.clone();
        Case::keeping(move || said(rig.iommu.observe_immediate(Scope::All, |_: &FaultRecord| {})))
    }),
    on("observe asleep", |rig| {
        let rig = rig.clone();
        Case::keeping(move || {
            let observer = |_: &Sleep<'_>, _: &Told| {};
            said(rig.iommu.observe_sleeping(Scope::All, 4, observer))
        })
    }),
    on("claim", |rig| {
        let d = rig.device(1);
        Case::keeping(move || said(d.claim(OwnerId(1))))
    }),
    on("attach by a claim", |rig| {
        let d = rig.add(with_direct(rig)).expect("added");
        let dom = rig.served(&d);
        let claim = d.claim(OwnerId(1)).expect("nobody has it");
        let rig = rig.clone();
        Case::keeping(move || said(rig.iommu.attach(&cx(), &dom, claim.device(), None, data())))
    }),
    on("use by a driver, translating", |rig| uses(rig, DefaultKind::Translating, false)),
    on("use by a driver, translating, two members", |rig| uses(rig, DefaultKind::Translating, true)),
    on("use by a driver, identity", |rig| uses(rig, DefaultKind::Identity, false)),
    on("use by a driver, blocked", |rig| uses(rig, DefaultKind::Blocked, false)),
    on("end the use by a driver", |rig| {
        let d = rig.device(1);
        let mut used = Some(d.use_by_driver(&cx()).expect("nobody has it"));
        Case::keeping(move || {
            used.take().expect("it cannot be refused").end(&cx());
            Ok(())
        })
    }),
    on("drop the use by a driver", |rig| {
        let d = rig.device(1);
        let mut used = Some(d.use_by_driver(&cx()).expect("nobody has it"));
        let rig = rig.clone();
        Case::new(move || {
            drop(used.take());
            rig.work();
            Ok(())
        })
    }),
    on("reset a device", |rig| {
        let d = rig.device(1);
        Case::new(move || said(d.reset(&cx())))
    }),
    on("reset a device with direct regions", |rig| {
        let d = rig.add(with_direct(rig)).expect("added");
        Case::new(move || said(d.reset(&cx())))
    }),
    on("reset a device with attachments and page requests", |rig| {
        let d = rig.device(1);
        let (a, b) = attached_twice(rig, &d);
        rig.hw.sends(&[first(1, 1, 0x3000), last(1, 2)]);
        rig.iommu.service(IOMMU);
        Case::new(move || {
            let _ = (&a, &b);
            said(d.reset(&cx()))
        })
    }),
    on("reset a device with direct regions and attachments", |rig| {
        let d = rig.add(with_direct(rig)).expect("added");
        let (a, b) = attached_twice(rig, &d);
        Case::new(move || {
            let _ = (&a, &b);
            said(d.reset(&cx()))
        })
    }),
    on("park and go on", |rig| {
        let d = rig.device(1);
        let ab = attached_twice(rig, &d);
        Case::new(move || {
            let _ = &ab;
            let outer = said(d.park(&cx()))?;
            let inner = said(d.park(&cx()))?;
            said(inner.end(&cx()))?;
            said(outer.end(&cx()))
        })
    }),
    on("service a page request that nobody may make", |rig| {
        rig.device(1);
        let rig = rig.clone();
        Case::new(move || {
            aside(|| rig.hw.sends(&[last(1, 1)]));
            rig.iommu.service(IOMMU);
            while rig.hw.waiting() > 0 {
                rig.iommu.service(IOMMU);
            }
            // What found the hardware's queue full is sent again.
            rig.iommu.tick();
            Ok(())
        })
    }),
];

fn adds(rig: &Rc<Rig>, spec: fn(&Rig) -> DeviceSpec) -> Case {
    let rig = rig.clone();
    rig.devices.borrow_mut().reserve(4);
    Case::new(move || rig.add(spec(&rig)).map(drop))
}

/// Adds a device to a group of which the requester ids and a PASID are attached to different domains.
fn joins(rig: &Rc<Rig>, one: &Dev, spec: impl Fn(&Rig) -> DeviceSpec + 'static) -> Case {
    let (a, b) = match one.features().ats {
        true => attached_twice(rig, one),
        false => {
            let pasid = Pasid::new(5);
            let by_pasid = rig.iommu.attach(&cx(), &rig.plain(one), one, pasid, data()).expect("attached");
            (rig.attach(&rig.plain(one), one), by_pasid)
        }
    };
    let rig = rig.clone();
    rig.devices.borrow_mut().reserve(4);
    Case::new(move || {
        rig.add(spec(&rig))?;
        assert!(a.places().count() == b.places().count());
        Ok(())
    })
}

fn with_group(mut spec: DeviceSpec) -> DeviceSpec {
    spec.group = Some(Membership { group: GroupId(1), merges: Vec::new() });
    spec
}

/// Removes the last device.
fn removes(rig: &Rc<Rig>) -> Case {
    let rig = rig.clone();
    Case::new(move || {
        let device = rig.devices.borrow_mut().pop().expect("there is one");
        said(rig.iommu.remove_device(&cx(), device).map_err(|(device, e)| {
            rig.devices.borrow_mut().push(device);
            e
        }))
    })
}

pub fn direct(mut spec: DeviceSpec) -> DeviceSpec {
    let SourceId(id) = spec.upstreams[0].sources[0];
    spec.regions = vec![ReservedRegion::direct(0x10_0000 * u64::from(id), 0x2000, RW)];
    spec
}

/// So many ids in all that there is no room for those of the second member without an allocation.
fn with_another_id(mut spec: DeviceSpec) -> DeviceSpec {
    let SourceId(id) = spec.upstreams[0].sources[0];
    spec.upstreams[0].sources.push(SourceId(id + 200));
    spec
}

pub fn with_direct(rig: &Rig) -> DeviceSpec {
    direct(rig.spec(1))
}

fn uses(rig: &Rc<Rig>, kind: DefaultKind, group: bool) -> Case {
    let of_kind = |spec| DeviceSpec { default_domain: Some(kind), ..spec };
    let d = match group {
        false => rig.add(of_kind(with_direct(rig))),
        true => rig.add(of_kind(rig.member(1))).and_then(|_| rig.add(of_kind(rig.member(2)))),
    };
    let d = d.expect("added");
    Case::keeping(move || said(d.use_by_driver(&cx())))
}

/// The requester id and a PASID, to different domains.
fn attached_twice(rig: &Rig, d: &Dev) -> (Att, Att) {
    let (one, two) = (rig.served(d), rig.plain(d));
    let pasid = Pasid::new(5);
    let by_pasid = rig.iommu.attach(&cx(), &two, d, pasid, data()).expect("attached");
    (rig.attach(&one, d), by_pasid)
}
