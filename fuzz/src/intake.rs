//! The core's fault path over a scripted driver: page requests, stalls and faults of any kind, in any
//! order with attaches, detaches, guards, resets, workers and time.

use portcullis::driver::{PageRequest, Stall};
use portcullis::{
    Access, Bus, FaultKind, Pasid, RawFault, Reason, Response, Sleep, SourceId, StallDecider, StallId,
    StalledAccess, Stalling, VendorBits, Verdict,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::bytes::Bytes;
use common::{Att, Board, Call, Data, Dev, Dom, IOMMU, World, cx, data};

/// The scripted machine of the core's own tests.
#[allow(unused_imports, missing_docs, reason = "a part of it is used here")]
#[path = "../../crates/core/tests/common/mod.rs"]
mod common;

/// Steps of one run: enough for every order of a few events.
const STEPS: usize = 200;

/// Steps from here on concern what stalls.
const STALLS_FROM: u8 = 0xf0;

/// A group, as a device knows it.
type Key = (SourceId, Option<Pasid>, u16);

/// Plays the bytes as events. A group gets at most one answer for each time its last request was
/// sent, and every one whose device was not reset gets one in the end. The scripted hardware fails where
/// a transaction is resumed that it does not hold, and holds none in the end.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    let world = World::new();
    let devices = [world.device(1), world.device(2)];
    let domain = domain(&world, &devices[0]);
    let bears = bears_stalls(&world);
    let holds = world.plain(&bears);
    let mut play = Play {
        world,
        devices,
        domain,
        attached: [None, None, None, None],
        sent: BTreeMap::new(),
        bears,
        holds,
        stalling: None,
        held_at: None,
    };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        play.step(&mut input);
        play.check(false);
    }
    play.end();
}

/// A resolver whose verdict is in the address.
fn domain(world: &World, device: &Dev) -> Dom {
    world.resolved_by(device, |_, _, group| {
        let address = group.requests().map(|r| r.address).last().unwrap_or(0);
        match address >> 12 & 3 {
            0 => group.respond(Response::Success).expect("not answered yet"),
            1 => group.respond(Response::Invalid).expect("not answered yet"),
            2 => drop(group),
            _ => drop(group.defer()),
        }
    })
}

/// A device that is on no PCIe, and bears stalls.
fn bears_stalls(world: &World) -> Dev {
    let mut spec = world.spec(4);
    (spec.bus, spec.trusted, spec.caps.page_requests) = (Bus::Platform { may_stall: true }, false, None);
    world.iommu.add_device(&cx(), spec).expect("there is room")
}

struct Play {
    world: World,
    devices: [Dev; 2],
    domain: Dom,
    /// Device 1 and 2, without PASID and with PASID 1.
    attached: [Option<Att>; 4],
    /// How often a group's last request was sent, and whether a reset may have made it void.
    sent: BTreeMap<Key, (usize, bool)>,
    /// Device 4, the domain in which it stalls, whether it does, and where it is attached.
    bears: Dev,
    holds: Dom,
    stalling: Option<Stalling<Board>>,
    held_at: Option<Att>,
}

impl Play {
    fn step(&mut self, input: &mut Bytes<'_>) {
        let what = input.u8();
        if what >= STALLS_FROM {
            return self.stall_step(what, input);
        }
        match what % 10 {
            0..3 => self.send(input, true),
            3 => self.send(input, false),
            4 => {
                self.world.hw.faults(fault(input));
                self.world.iommu.service(IOMMU);
            }
            5 => self.turn(input),
            6 => {
                self.world.iommu.run_one(&cx());
            }
            7 => self.world.pass(Duration::from_millis(u64::from(input.u8()) * 50)),
            8 if input.u8().is_multiple_of(4) => self.reset(input),
            _ => self.world.work(),
        }
    }

    fn send(&mut self, input: &mut Bytes<'_>, well_formed: bool) {
        // Device 3 is not known.
        let source = SourceId(1 + u32::from(input.u8() % 3));
        let flags = input.u8();
        let pasid = if flags & 1 != 0 { Pasid::new(1 + u32::from(input.u8() % 2)) } else { None };
        let request = PageRequest {
            source,
            pasid,
            index: u16::from(input.u8() % 4),
            address: u64::from(input.u8()) << 12,
            read: flags & 2 != 0,
            write: flags & 4 != 0,
            exec: flags & 8 != 0,
            privileged: flags & 16 != 0,
            last: flags & 32 != 0,
            ..common::last(source.0, 0)
        };
        // The driver compares them when the answer comes.
        let vendor = VendorBits([request.index.into(), input.u64(), 0, 0]);
        let request = PageRequest { vendor, ..request };
        if request.last {
            self.sent.entry((source, pasid, request.index)).or_default().0 += 1;
        }
        if well_formed {
            self.world.sends(&[request]);
        } else {
            self.world.hw.sends_malformed(request);
            self.world.iommu.service(IOMMU);
        }
    }

    /// Attaches, or detaches what is attached.
    fn turn(&mut self, input: &mut Bytes<'_>) {
        let place = usize::from(input.u8()) % 4;
        match self.attached[place].take() {
            Some(attachment) => {
                attachment.begin_detach(&cx()).wait(&cx(), None);
            }
            None => {
                let pasid = if place % 2 == 1 { Pasid::new(1) } else { None };
                let device = &self.devices[place / 2];
                let attached = self.world.iommu.attach(&cx(), &self.domain, device, pasid, data());
                self.attached[place] = Some(attached.expect("the place is free"));
            }
        }
    }

    fn stall_step(&mut self, what: u8, input: &mut Bytes<'_>) {
        match what % 8 {
            0 => {
                self.held_at = match self.held_at.take() {
                    Some(attachment) => {
                        attachment.begin_detach(&cx()).wait(&cx(), None);
                        None
                    }
                    None => {
                        let attached = self.world.iommu.attach(&cx(), &self.holds, &self.bears, None, data());
                        Some(attached.expect("the place is free"))
                    }
                }
            }
            1 => {
                self.stalling = match self.stalling.take() {
                    Some(guard) => {
                        drop(guard);
                        None
                    }
                    None => Some(self.enable_stall()),
                }
            }
            2 => self.world.hw.ends_stalls(SourceId(4)),
            3 => self.bears.reset(&cx()).expect("the hardware is there"),
            4 => {
                // Verdicts find no room for a while.
                self.world.hw.state().resumes_full = true;
                self.world.work();
                self.world.hw.state().resumes_full = false;
            }
            5 => self.world.hw.reports_stall(stall(input)),
            _ => {
                let stall = stall(input);
                let taken = self.world.hw.state().held.contains_key(&stall.id);
                if !taken {
                    self.world.hw.stalls(stall);
                }
            }
        }
        self.world.iommu.service(IOMMU);
    }

    /// The verdict is in the address.
    fn enable_stall(&self) -> Stalling<Board> {
        let decide = |_: &Sleep<'_>, _: &Arc<Data>, stalled: &StalledAccess| match stalled.address >> 12 & 1 {
            0 => Verdict::Retry,
            _ => Verdict::Terminate,
        };
        let enabled = self.world.iommu.enable_stall(&cx(), &self.holds, StallDecider::sleeping(decide));
        enabled.expect("all that is attached bears it")
    }

    fn reset(&mut self, input: &mut Bytes<'_>) {
        let device = &self.devices[usize::from(input.u8()) % 2];
        for ((source, ..), (_, void)) in &mut self.sent {
            *void |= device.sources().contains(source);
        }
        device.reset(&cx()).expect("the hardware is there");
    }

    fn check(&self, all: bool) {
        let mut answers: BTreeMap<Key, usize> = BTreeMap::new();
        for call in &self.world.hw.state().log {
            if let Call::Answer(sent) = call {
                *answers.entry((sent.source, sent.pasid, sent.index)).or_default() += 1;
            }
        }
        for (key, answered) in &answers {
            let (sent, _) = self.sent.get(key).copied().unwrap_or_default();
            assert!(*answered <= sent, "{key:?}: {answered} answers to {sent} requests");
        }
        for (key, (sent, void)) in self.sent.iter().filter(|_| all) {
            let answered = answers.get(key).copied().unwrap_or(0);
            assert!(*void || answered == *sent, "{key:?}: {answered} answers to {sent} requests");
        }
    }

    fn end(mut self) {
        drop((self.stalling.take(), self.held_at.take()));
        for attachment in self.attached.iter_mut().filter_map(Option::take) {
            attachment.begin_detach(&cx()).wait(&cx(), None);
        }
        self.world.iommu.service(IOMMU);
        self.world.work();
        self.world.pass(Duration::from_secs(120));
        self.world.iommu.service(IOMMU);
        self.world.work();
        assert_eq!(self.world.hw.waiting(), 0, "requests were not taken");
        let held = self.world.hw.state().held.clone();
        assert!(held.is_empty(), "{held:?} are held for ever");
        self.check(true);
    }
}

/// A transaction of the device that bears stalls, of one that does not, or of one that is not known; its
/// tag may be in use.
fn stall(input: &mut Bytes<'_>) -> Stall {
    let (who, tag) = (input.u8(), u64::from(input.u8() % 12));
    let source = SourceId(match who % 8 {
        0 => 1,
        1 => 3,
        _ => 4,
    });
    Stall {
        id: StallId(tag),
        source,
        pasid: if who & 0x80 != 0 { Pasid::new(1) } else { None },
        address: u64::from(input.u8()) << 12,
        access: if who & 0x40 != 0 { Access::Write } else { Access::Read },
        privileged: false,
        stage: None,
        reason: Reason::NotMapped,
        code: 0x10,
        raw: [tag, 0, 0, 0],
    }
}

fn fault(input: &mut Bytes<'_>) -> RawFault {
    let kind = if input.u8() & 1 == 0 { FaultKind::Dma } else { FaultKind::Configuration };
    let flags = input.u8();
    RawFault {
        source: (flags & 1 != 0).then(|| SourceId(u32::from(input.u8() % 4))),
        pasid: if flags & 2 != 0 { Pasid::new(input.u32()) } else { None },
        access: if flags & 4 != 0 { Access::Write } else { Access::Read },
        privileged: flags & 8 != 0,
        address: (flags & 16 != 0).then(|| input.u64()),
        code: input.u32(),
        ..RawFault::new(kind, Reason::Permission)
    }
}
