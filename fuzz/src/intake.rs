//! The core's fault path over a scripted driver: page requests and faults of any kind, in any
//! order with attaches, detaches, resets, workers and time.

use portcullis::driver::PageRequest;
use portcullis::{Access, FaultKind, Pasid, RawFault, Reason, Response, SourceId, VendorBits};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::bytes::Bytes;
use common::{Att, Call, Dev, Dom, IOMMU, World, cx, data};

/// The scripted machine of the core's own tests.
#[allow(unused_imports, missing_docs, reason = "a part of it is used here")]
#[path = "../../crates/core/tests/common/mod.rs"]
mod common;

/// Steps of one run: enough for every order of a few events.
const STEPS: usize = 200;

/// A group, as a device knows it.
type Key = (SourceId, Option<Pasid>, u16);

/// Plays the bytes as events. A group gets at most one answer for each time its last request was
/// sent, and every one whose device was not reset gets one in the end.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    let world = World::new();
    let devices = [world.device(1), world.device(2)];
    let domain = domain(&world, &devices[0]);
    let mut play = Play { world, devices, domain, attached: [None, None, None, None], sent: BTreeMap::new() };
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

struct Play {
    world: World,
    devices: [Dev; 2],
    domain: Dom,
    /// Device 1 and 2, without PASID and with PASID 1.
    attached: [Option<Att>; 4],
    /// How often a group's last request was sent, and whether a reset may have made it void.
    sent: BTreeMap<Key, (usize, bool)>,
}

impl Play {
    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.u8() % 10 {
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
        for attachment in self.attached.iter_mut().filter_map(Option::take) {
            attachment.begin_detach(&cx()).wait(&cx(), None);
        }
        self.world.iommu.service(IOMMU);
        self.world.work();
        self.world.pass(Duration::from_secs(120));
        self.world.iommu.service(IOMMU);
        self.world.work();
        assert_eq!(self.world.hw.waiting(), 0, "requests were not taken");
        self.check(true);
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
