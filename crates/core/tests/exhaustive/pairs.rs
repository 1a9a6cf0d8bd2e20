//! Each two operations of one device at the same time: the first is stepped so far, the other so far, and
//! then both to their ends, for all such points; or one of them, or both, are given up there. Afterwards
//! the device can be used as ever, and with it removed nothing is in use any more.

use crate::{
    allocator::{What, arm},
    common::*,
    given_up::after,
    operations::{
        spaces::{Space, space},
        stalls::retries,
    },
    rig::{Base, Rig, said},
};
use portcullis::error::AttachError;
use portcullis::{
    At, Attachment, Bond, Detaching, Gap, Op, Parked, Pasid, Platform, RegionKind, StallDecider, Stalling,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// What both have in hand.
struct Stage {
    rig: Rc<Rig>,
    d: Dev,
    one: Dom,
    two: Dom,
    space: Space,
    attached: RefCell<Vec<Att>>,
    by_pasid: Cell<Option<Att>>,
    bond: Cell<Option<Bond<Board>>>,
    parked: Cell<Option<Parked<Board>>>,
    stalling: Cell<Option<Stalling<Board>>>,
}

/// An operation that is under way, and what it says in the end.
type Side = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// Its name, and how it begins.
type Sides = &'static [(&'static str, fn(Rc<Stage>) -> Side)];

const PCI: Sides = &[
    ("attach", |s| Box::pin(attach(s, None))),
    ("attach a PASID", |s| Box::pin(attach(s, Pasid::new(6)))),
    ("replace", |s| Box::pin(replace(s))),
    ("detach", |s| Box::pin(detach(s))),
    ("drop", |s| {
        Box::pin(async move {
            drop(s.attached.borrow_mut().pop());
            Ok(())
        })
    }),
    ("detach a PASID", |s| {
        Box::pin(async move {
            if let Some(a) = s.by_pasid.take() {
                drop(ended(a.start_detach()).await);
            }
            Ok(())
        })
    }),
    ("reset", |s| Box::pin(async move { said(ended(s.d.start_reset()).await) })),
    ("park", |s| {
        Box::pin(async move {
            s.parked.set(Some(said(ended(s.d.start_park()).await)?));
            Ok(())
        })
    }),
    ("park and go on", |s| {
        Box::pin(async move {
            let parked = said(ended(s.d.start_park()).await)?;
            said(ended(parked.start_end()).await)
        })
    }),
    ("remove", |s| Box::pin(async move { said(ended(s.rig.iommu.start_remove_device(&s.d)).await) })),
    ("add a member", |s| {
        Box::pin(async move {
            let spec = s.rig.beside(2);
            let device = said(ended(s.rig.iommu.start_add_device(spec)).await)?;
            s.rig.devices.borrow_mut().push(device);
            Ok(())
        })
    }),
    ("unmap", |s| {
        Box::pin(async move {
            let mut unmapping = s.one.unmapping();
            said(unmapping.unmap(0x1000, 0x1000))?;
            said(ended(unmapping.start_sync()).await)
        })
    }),
    ("bind", |s| {
        Box::pin(async move {
            s.bond.set(Some(said(ended(s.space.start_bind(&s.d)).await)?));
            Ok(())
        })
    }),
    ("unbind", |s| {
        Box::pin(async move {
            if let Some(op) = s.bond.take().and_then(Bond::start_unbind) {
                drop::<Detaching<_>>(ended(op).await);
            }
            Ok(())
        })
    }),
    ("exit", |s| Box::pin(async move { said(ended(s.space.start_exit()).await) })),
    ("use by a driver", |s| {
        Box::pin(async move {
            drop(said(ended(s.d.start_use_by_driver()).await)?);
            Ok(())
        })
    }),
    ("its TLB dies", |s| {
        Box::pin(async move {
            s.rig.hw.state().dead.insert(s.d.sources()[0]);
            Ok(())
        })
    }),
];

/// Of a device that stalls.
const SOC: Sides = &[
    ("attach", |s| Box::pin(attach(s, None))),
    ("replace", |s| Box::pin(replace(s))),
    ("detach", |s| Box::pin(detach(s))),
    ("reset", |s| Box::pin(async move { said(ended(s.d.start_reset()).await) })),
    ("remove", |s| Box::pin(async move { said(ended(s.rig.iommu.start_remove_device(&s.d)).await) })),
    ("stall", |s| Box::pin(stall(s, false))),
    ("stall where it goes", |s| Box::pin(stall(s, true))),
    ("stall no more", |s| {
        Box::pin(async move {
            if let Some(guard) = s.stalling.take() {
                ended(guard.start_disable()).await;
            }
            Ok(())
        })
    }),
];

async fn attach(s: Rc<Stage>, pasid: Option<Pasid>) -> Result<(), String> {
    let attached = said(ended(s.rig.iommu.start_attach(&s.two, &s.d, pasid, data())).await)?;
    s.attached.borrow_mut().push(attached);
    Ok(())
}

async fn replace(s: Rc<Stage>) -> Result<(), String> {
    let Some(old) = s.attached.borrow_mut().pop() else { return Ok(()) };
    match ended(s.rig.iommu.start_replace(old, &s.two, data(), Gap::Allowed)).await {
        Ok((new, ..)) => {
            s.attached.borrow_mut().push(new);
            Ok(())
        }
        Err((old, e)) => {
            s.attached.borrow_mut().extend(old);
            said(Err(e))
        }
    }
}

async fn detach(s: Rc<Stage>) -> Result<(), String> {
    let attached = s.attached.borrow_mut().pop();
    if let Some(a) = attached {
        assert!(ended(a.start_detach()).await.is_gone(), "no handler runs");
    }
    Ok(())
}

async fn stall(s: Rc<Stage>, where_it_goes: bool) -> Result<(), String> {
    let domain = if where_it_goes { &s.two } else { &s.one };
    let decider = StallDecider::sleeping(retries);
    let guard = said(ended(s.rig.iommu.start_enable_stall(domain, decider)).await)?;
    drop(s.stalling.replace(Some(guard)));
    Ok(())
}

async fn ended<T>(mut op: Op<'_, T>) -> T {
    poll_fn(|_| op.step()).await
}

impl Rig {
    /// A member of the first device's group, which stays trusted: they have no id in common.
    fn beside(&self, n: u32) -> portcullis::DeviceSpec {
        let group = portcullis::Membership { group: portcullis::GroupId(1), merges: Vec::new() };
        portcullis::DeviceSpec { group: Some(group), ..crate::operations::devices::direct(self.spec(n)) }
    }
}

/// What the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One that makes page requests, by a PASID and in an address space.
    Pci,
    /// One with direct regions, that makes none so far.
    Direct,
    /// One that stalls.
    Soc,
}

fn stage(rig: &Rc<Rig>, kind: Kind) -> Rc<Stage> {
    let d = match kind {
        Kind::Pci => rig.device(1),
        Kind::Direct => rig.add(rig.beside(1)).expect("added"),
        Kind::Soc => rig.soc_device(1),
    };
    let two = if kind == Kind::Soc { rig.plain(&d) } else { rig.served(&d) };
    let one = rig.plain(&d);
    // What replaces goes through blocked, but for direct regions.
    rig.hw.state().gaps = kind == Kind::Pci;
    let space = space(rig);
    let attached = RefCell::new(vec![rig.attach(&one, &d)]);
    let (by_pasid, bond) = match kind {
        Kind::Pci => {
            let by_pasid = rig.iommu.attach(&cx(), &two, &d, Pasid::new(5), data()).expect("attached");
            (Some(by_pasid), Some(space.bind(&cx(), &d).expect("bound")))
        }
        _ => (None, None),
    };
    Rc::new(Stage {
        rig: rig.clone(),
        d,
        one,
        two,
        space,
        attached,
        by_pasid: Cell::new(by_pasid),
        bond: Cell::new(bond),
        parked: Cell::new(None),
        stalling: Cell::new(None),
    })
}

impl Stage {
    /// The hardware translates for what is attached, and for nothing else; for nothing where the device is
    /// parked. An address space may have exited.
    fn is_shown(&self) -> Result<(), String> {
        self.rig.work();
        let mut wanted: BTreeSet<At> = self.attached.borrow().iter().map(Attachment::at).collect();
        if let Some(a) = self.by_pasid.take() {
            wanted.insert(a.at());
            self.by_pasid.set(Some(a));
        }
        let probe = self.rig.iommu.attach(&cx(), &self.two, &self.d, Pasid::new(7), data());
        let parked = matches!(probe, Err(AttachError::Parked(_)));
        if matches!(probe, Err(AttachError::NotUp(_))) || self.d.is_quarantined() {
            return Ok(());
        }
        probe.into_iter().for_each(|a| drop(a.begin_detach(&cx())));
        if parked {
            wanted.clear();
        }
        let at = At { source: self.d.sources()[0], pasid: None };
        let has_direct =
            self.d.reserved_regions().expect("memory").iter().any(|r| r.kind == RegionKind::Direct);
        if has_direct {
            wanted.insert(at);
        }
        let of_it = |a: &At| a.source == at.source && a.pasid != Some(self.space.pasid());
        let shown = self.rig.hw.state().entries.keys().copied().filter(of_it).collect();
        if wanted == shown {
            return Ok(());
        }
        Err(format!("parked: {parked}, attached: {wanted:?}, shown: {shown:?}"))
    }
}

thread_local! {
    /// What is under way: also whoever waits for it steps it.
    static UNDER_WAY: RefCell<[Option<Side>; 2]> = const { RefCell::new([None, None]) };
}

fn is_over(n: usize) -> bool {
    UNDER_WAY.with_borrow(|u| u[n].is_none())
}

fn give_up(n: usize) {
    drop(UNDER_WAY.with_borrow_mut(|u| u[n].take()));
}

fn poll(n: usize) {
    let Some(mut side) = UNDER_WAY.with_borrow_mut(|u| u[n].take()) else { return };
    match side.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        // Refused or not: what it leaves is what counts.
        Poll::Ready(_) => drop(side),
        Poll::Pending => UNDER_WAY.with_borrow_mut(|u| u[n] = Some(side)),
    }
}

/// A step of one of them, and a service turn.
fn step(rig: &Rig, n: usize) {
    poll(n);
    rig.iommu.service(IOMMU);
}

/// Steps both until they are over. Workers come by now and then, and time passes.
fn to_the_end(rig: &Rc<Rig>) -> Result<(), String> {
    for round in 1..200 {
        step(rig, 0);
        step(rig, 1);
        if is_over(0) && is_over(1) {
            return Ok(());
        }
        if round % 8 == 0 {
            rig.work();
            rig.board.advance(rig.board.now() + Duration::from_secs(10));
        }
    }
    Err("they do not end".to_owned())
}

/// Who is given up where they meet.
#[derive(Clone, Copy, Debug)]
enum GivenUp {
    Nobody,
    First,
    Both,
}

/// Where the two meet: so many steps of the first, then so many of the second. What is wrong then.
fn life(
    kind: Kind,
    sides: Sides,
    which: (usize, usize),
    at: (usize, usize),
    given_up: GivenUp,
) -> Option<String> {
    let base = Base::new();
    arm(What::Nothing);
    let rig = Rc::new(Rig::new(&base));
    let stage = stage(&rig, kind);
    let begin = |n: usize| sides[n].1(stage.clone());
    UNDER_WAY.with_borrow_mut(|u| *u = [Some(begin(which.0)), Some(begin(which.1))]);
    for (n, steps) in [(0, at.0), (1, at.1)] {
        (0..steps).for_each(|_| step(&rig, n));
    }
    match given_up {
        GivenUp::Nobody => {}
        GivenUp::First => give_up(0),
        GivenUp::Both => {
            give_up(0);
            give_up(1);
        }
    }
    // A worker may wait for one of them, and they go on meanwhile.
    let mut waits = 0;
    rig.board.on_wait(Some(Box::new(move || {
        waits += 1;
        assert!(waits < 10_000, "a worker waits for ever");
        poll(0);
        poll(1);
    })));
    let done = to_the_end(&rig);
    give_up(0);
    give_up(1);
    rig.board.on_wait(None);
    rig.hw.state().dead.clear();
    rig.hw.state().gaps = false;
    let wrong = done.and_then(|()| stage.is_shown()).and_then(|()| after(&rig, stage)).err();
    drop(rig);
    base.nothing_is_walked_that_is_free();
    wrong
}

/// How many steps one takes by itself, so that every point of it is met.
fn steps(kind: Kind, sides: Sides, which: usize) -> usize {
    let base = Base::new();
    let rig = Rc::new(Rig::new(&base));
    let stage = stage(&rig, kind);
    UNDER_WAY.with_borrow_mut(|u| *u = [Some(sides[which].1(stage.clone())), None]);
    let steps = (1..100).find(|_| {
        step(&rig, 0);
        is_over(0)
    });
    steps.unwrap_or_else(|| panic!("{} does not end", sides[which].0))
}

fn all(kind: Kind, sides: Sides) {
    let length: Vec<usize> = (0..sides.len()).map(|n| steps(kind, sides, n)).collect();
    let (mut found, mut lives) = (String::new(), 0);
    for (a, b) in (0..sides.len()).flat_map(|a| (0..sides.len()).map(move |b| (a, b))) {
        for (i, j) in (0..=length[a]).flat_map(|i| (0..=length[b]).map(move |j| (i, j))) {
            for given_up in [GivenUp::Nobody, GivenUp::First, GivenUp::Both] {
                if matches!(given_up, GivenUp::Both) && a > b {
                    // Nothing comes after, so that it is the same as the other way round.
                    continue;
                }
                lives += 1;
                if let Some(why) = life(kind, sides, (a, b), (i, j), given_up) {
                    let (one, other) = (sides[a].0, sides[b].0);
                    found += &format!("{one}, {i} steps, {other}, {j} steps, {given_up:?}: {why}\n");
                }
            }
        }
    }
    assert!(found.is_empty(), "{} of {lives} lives are wrong:\n{found}", found.lines().count());
    assert!(lives > 500, "{lives} lives");
}

#[test]
fn two_operations_at_once_leave_nothing_behind() {
    all(Kind::Pci, PCI);
}

#[test]
fn two_operations_at_once_of_a_device_with_direct_regions_leave_nothing_behind() {
    all(Kind::Direct, PCI);
}

#[test]
fn two_operations_at_once_of_a_device_that_stalls_leave_nothing_behind() {
    all(Kind::Soc, SOC);
}
