//! Page requests: from a device to a resolver and back, and all that comes between.

use super::{
    actor::Actor,
    room::{Lodger, Manner, Room},
    stage::{Ending, Setting, Stage, Task, perform},
};
use crate::{machine::INSTANCE, pager::PAGE, platform::MachinePlatform};
use portcullis::{Sleep, driver::Stage as Table};
use portcullis_drivers::vtd::QueueSize;
use portcullis_models::{
    bus::{AddressType, Operation, Pasid, Prefix, Request},
    endpoint::Intent,
    log::DropCause,
};

const BASE: u64 = 0x4000_0000;
const OTHER: u64 = 0x8000_0000;
const PAGES: u64 = 16;

fn page(n: u64) -> u64 {
    BASE + n * PAGE
}

fn all() -> std::ops::Range<u64> {
    BASE..page(PAGES)
}

/// Reads the mark at the begin of a page, and checks whose it is.
pub(super) fn reads_own(
    cx: &Sleep<'_>,
    actor: &Actor,
    pasid: Option<u32>,
    room: &Room,
    iova: u64,
) -> Result<(), String> {
    let data = actor.must(cx, pasid, iova, Intent::Read(16))?;
    if data == room.mark(iova) {
        return Ok(());
    }
    Err(format!(
        "{} read {data:02x?} at {iova:#x}, PASID {pasid:?}, where another's mark should be",
        actor.id
    ))
}

/// The same where a group may contain pages of the device's earlier place, which are refused and the
/// group with them.
fn reads_in_time(
    cx: &Sleep<'_>,
    actor: &Actor,
    pasid: Option<u32>,
    room: &Room,
    iova: u64,
) -> Result<(), String> {
    for _ in 0..PAGES {
        let _ = actor.access(cx, pasid, iova, Intent::Read(16))?;
    }
    reads_own(cx, actor, pasid, room, iova)
}

/// A device pages its memory in: reads and writes, a page that does not exist, a page that was
/// taken away again, the end.
pub fn page_requests(setting: &Setting) -> Ending {
    perform("page requests", setting, |stage, cx| {
        stage.start(cx)?;
        for (id, pasid, table) in [(0x08, None, Table::Second), (0x10, Some(7), Table::First)] {
            one_pager(stage, cx, id, pasid, table)?;
        }
        let t = stage.tally();
        if t.settled_by("software: Success") == 0 || t.settled_by("software: Invalid") == 0 {
            return Err(format!("no request was granted, or none refused: {:?}", t.settled));
        }
        Ok(())
    })
}

fn one_pager(stage: &Stage, cx: &Sleep<'_>, id: u16, pasid: Option<u32>, table: Table) -> Result<(), String> {
    let device = stage.device(cx, id, true)?;
    let room = stage.paged_room(&[&device], table, all(), Manner::Serve(3_000))?;
    let lodger = room.attach(cx, &device, pasid)?;
    let reads: Vec<_> = (0..6).map(|n| (n, device.begin(pasid, page(n), Intent::Read(16)))).collect();
    for (n, ticket) in reads {
        // What the adversary made fail is read again below.
        match device.end(cx, ticket)? {
            Ok(data) if data != room.mark(page(n)) => return Err(format!("page {n} reads {data:02x?}")),
            Err(failure) if stage.is_calm() => return Err(format!("page {n}: {failure:?}")),
            _ => {}
        }
    }
    for n in 0..PAGES {
        reads_own(cx, &device, pasid, &room, page(n))?;
        let data = vec![n as u8 ^ 0x5a; 64];
        device.must(cx, pasid, page(n) + 128, Intent::Write(data.clone()))?;
        let mut found = vec![0; 64];
        let frame = room.frame(page(n)).ok_or("a page that was written is not there")?;
        stage.platform.ram().read(frame.0 + 128, &mut found).map_err(|e| e.to_string())?;
        if found != data {
            return Err(format!("page {n} was written and holds something else"));
        }
    }
    device.must_not(cx, pasid, page(PAGES), Intent::Read(16))?;
    let before = device.device.counters().requests;
    room.unmap(cx, &[page(3)])?;
    reads_own(cx, &device, pasid, &room, page(3))?;
    if device.device.counters().requests == before {
        return Err("a page that was taken away was read without a request".into());
    }
    lodger.detach(cx)
}

/// Three address spaces of one device, the same addresses in each: its requester id and two PASIDs.
/// They do not see one another, and the end of one leaves the others paging.
pub fn pasids(setting: &Setting) -> Ending {
    perform("pasids", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x18, true)?;
        let mut lodgers = Vec::new();
        for (pasid, table) in [(None, Table::Second), (Some(5), Table::First), (Some(6), Table::First)] {
            let room = stage.paged_room(&[&device], table, all(), Manner::Serve(1_000))?;
            lodgers.push((pasid, room.attach(cx, &device, pasid)?));
        }
        let look = |lodgers: &[(Option<u32>, Lodger)], pages: std::ops::Range<u64>| {
            for n in pages {
                for (pasid, lodger) in lodgers {
                    reads_own(cx, &device, *pasid, lodger.room(), page(n))?;
                }
            }
            Ok::<_, String>(())
        };
        look(&lodgers, 0..4)?;
        let (pasid, leaver) = lodgers.remove(1);
        leaver.detach(cx)?;
        refused_untranslated(cx, stage, &device, pasid)?;
        // Pages that are there, and pages that have to be asked for.
        look(&lodgers, 0..8)?;
        for (_, lodger) in lodgers {
            lodger.detach(cx)?;
        }
        Ok(())
    })
}

/// A device that uses a PASID after its end: the request is sent as it is, since a device with ATS
/// would ask for a translation first and be told to switch ATS off.
fn refused_untranslated(
    cx: &Sleep<'_>,
    stage: &Stage,
    device: &Actor,
    pasid: Option<u32>,
) -> Result<(), String> {
    let prefix = pasid.and_then(Pasid::new).map(Prefix::user);
    let before = stage.tally().blocked;
    let request = Request {
        source: device.id,
        prefix,
        at: AddressType::Untranslated,
        addr: page(0),
        op: Operation::Read(16),
    };
    device.endpoint(|e| e.port_mut().raw_request(request));
    // Should it be let through, the oracle says so.
    stage.until(cx, "a refusal", || stage.tally().blocked > before)
}

/// A device floods a queue of one page until it overflows: hardware answers for software, half groups are
/// dropped, and an honest device beside it gets its pages all the same.
pub fn queue_overflow(setting: &Setting) -> Ending {
    let mut setting = setting.clone();
    setting.options.page_request_queue = QueueSize::MIN;
    perform("queue overflow", &setting, |stage, cx| {
        stage.start(cx)?;
        let honest = stage.device(cx, 0x20, true)?;
        let flood = stage.device(cx, 0x28, true)?;
        let room = stage.paged_room(&[&honest], Table::Second, all(), Manner::Serve(500))?;
        let swamp =
            stage.paged_room(&[&flood], Table::Second, OTHER..OTHER + 4 * PAGE, Manner::Serve(500))?;
        let lodger = room.attach(cx, &honest, None)?;
        let swimmer = swamp.attach(cx, &flood, None)?;
        let (pages, copier) = (room.clone(), honest.clone());
        let work: Task = Box::new(move |_, cx| {
            for n in 0..PAGES {
                reads_own(cx, &copier, None, &pages, page(n))?;
                // Taken away again: there is always something to ask for.
                pages.unmap(cx, &[page(n)])?;
                reads_own(cx, &copier, None, &pages, page(n))?;
            }
            Ok(())
        });
        let f = flood.clone();
        let noise: Task = Box::new(move |stage, cx| {
            for _ in 0..40 {
                f.endpoint(|e| {
                    for n in 0..200 {
                        e.port_mut().raw_page_request(None, OTHER + n % 8 * PAGE, true, n % 16 == 15);
                    }
                });
                f.until_silent(cx)?;
                let tally = stage.tally();
                if tally.dropped.contains_key(&DropCause::Full) && tally.settled_by("hardware") > 0 {
                    return Ok(());
                }
            }
            Err("the queue did not overflow, or the hardware answered nothing".into())
        });
        stage.together(cx, vec![work, noise])?;
        lodger.detach(cx)?;
        swimmer.detach(cx)?;
        let counters = flood.device.counters();
        if counters.partials_dropped == 0 || counters.quota == 0 {
            return Err(format!("nothing of the flood was dropped: {counters:?}"));
        }
        Ok(())
    })
}

/// A device is detached while its requests are in the fabric, in the queue and with a resolver that
/// sleeps, and is attached elsewhere at once. Nothing of the old place reaches the new one.
pub fn request_at_detach(setting: &Setting) -> Ending {
    perform("page request at detach", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x30, true)?;
        let mut rng = stage.rng(1);
        for round in 0..4 {
            let pasid = (round % 2 == 1).then_some(9);
            let table = if pasid.is_some() { Table::First } else { Table::Second };
            let manner = Manner::Serve(rng.u64(1..60_000));
            let old = stage.paged_room(&[&device], table, all(), manner)?;
            let new = OTHER..OTHER + PAGES * PAGE;
            let new = stage.paged_room(&[&device], table, new, Manner::Serve(500))?;
            let lodger = old.attach(cx, &device, pasid)?;
            let mut open = Vec::new();
            for n in 0..PAGES {
                open.push(device.begin(pasid, page(n), Intent::Read(16)));
                if rng.u32(..3) == 0 {
                    stage.sleep(cx, rng.u64(..6_000))?;
                }
            }
            let leaving = lodger.begin_detach(cx)?;
            let lodger = new.attach(cx, &device, pasid)?;
            let d = device.clone();
            let moved = new.clone();
            let waits: Task = Box::new(move |_, cx| leaving.wait(cx));
            let works: Task = Box::new(move |_, cx| {
                // The device may have lost its ATS to the gap: its reset is another scenario.
                if d.endpoint(|e| e.capabilities().ats().is_some()) == Some(true) {
                    for n in 0..4 {
                        reads_in_time(cx, &d, pasid, &moved, OTHER + n * PAGE)?;
                    }
                }
                Ok(())
            });
            stage.together(cx, vec![waits, works])?;
            for ticket in open {
                let _ = device.end(cx, ticket)?;
            }
            lodger.detach(cx)?;
            device.device.reset(cx).map_err(|e| e.to_string())?;
        }
        Ok(())
    })
}

/// A device asks for pages where no resolver is, because another of its address spaces has one. That
/// one ends, and page requests with it; then the other, and its place is taken by one with a
/// resolver. What was on its way all the while is not for that one.
pub fn requests_switched_off(setting: &Setting) -> Ending {
    perform("page requests switched off", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x30, true)?;
        let mut rng = stage.rng(5);
        let (fixed, other) = (Some(2), Some(3));
        for _ in 0..8 {
            let bare = stage.room(&[&device], Table::First)?;
            let pager = stage.paged_room(&[&device], Table::First, all(), Manner::Serve(0))?;
            let next = stage.paged_room(&[&device], Table::First, all(), Manner::Serve(0))?;
            let without = bare.attach(cx, &device, fixed)?;
            let with = pager.attach(cx, &device, other)?;
            let d = device.clone();
            let ns = rng.u64(1..1_000);
            let asks: Task = Box::new(move |stage, cx| {
                let mut open = Vec::new();
                for n in 0..PAGES {
                    open.push(d.begin(fixed, page(n), Intent::Read(16)));
                    stage.sleep(cx, ns)?;
                }
                open.into_iter().try_for_each(|ticket| d.end(cx, ticket).map(|_| ()))
            });
            let ns = rng.u64(1..8_000);
            let moves: Task = Box::new(move |stage, cx| {
                stage.sleep(cx, ns)?;
                with.detach(cx)?;
                without.detach(cx)?;
                Ok(())
            });
            stage.together(cx, vec![asks, moves])?;
            let lodger = next.attach(cx, &device, fixed)?;
            lodger.detach(cx)?;
            device.device.reset(cx).map_err(|e| e.to_string())?;
        }
        Ok(())
    })
}

/// A resolver answers at the very time at which a detach answers for it: one of them does, before
/// the place is free.
pub fn answer_at_detach(setting: &Setting) -> Ending {
    perform("answer at detach", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x30, true)?;
        let mut rng = stage.rng(4);
        let room = stage.paged_room(&[&device], Table::Second, all(), Manner::Serve(0))?;
        for _ in 0..16 {
            let begun = room.entered();
            room.set_manner(Manner::Serve(rng.u64(..4_000)));
            let lodger = room.attach(cx, &device, None)?;
            let ticket = device.begin(None, page(0), Intent::Read(16));
            let mut looks = 0;
            // The hardware may have refused it.
            stage.until(cx, "a resolver", || {
                looks += 1;
                room.entered() > begun || looks > 50
            })?;
            let leaving = lodger.begin_detach(cx)?;
            leaving.wait(cx)?;
            let _ = device.end(cx, ticket)?;
            room.unmap(cx, &room.pages())?;
            device.device.reset(cx).map_err(|e| e.to_string())?;
        }
        Ok(())
    })
}

/// A device is reset while its requests wait for a resolver: they are void, a late answer is
/// discarded, and the device works again.
pub fn reset_with_requests(setting: &Setting) -> Ending {
    perform("reset with requests outstanding", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x38, true)?;
        let mut rng = stage.rng(2);
        let room = stage.paged_room(&[&device], Table::Second, all(), Manner::Serve(0))?;
        let lodger = room.attach(cx, &device, None)?;
        let mut voided = 0;
        for round in 0..60 {
            if round >= 6 && voided > 0 {
                break;
            }
            room.unmap(cx, &room.pages())?;
            room.set_manner(Manner::Serve(rng.u64(1..80_000)));
            for n in 0..8 {
                device.begin(None, page(n), Intent::Write(vec![round; 32]));
            }
            stage.sleep(cx, rng.u64(..30_000))?;
            device.device.reset(cx).map_err(|e| e.to_string())?;
            room.set_manner(Manner::Serve(0));
            reads_own(cx, &device, None, &room, page(9))?;
            voided = device.endpoint(|e| e.statistics().void).unwrap_or(0);
        }
        lodger.detach(cx)?;
        if voided == 0 || stage.tally().settled_by("void") != voided {
            return Err(format!("{voided} groups were void, settled so: {:?}", stage.tally().settled));
        }
        Ok(())
    })
}

/// Resolvers that sleep, more of them than workers: the others wait, nothing is lost, and a detach
/// waits for its own only. What the waits rely on is that no wake-up is lost.
pub fn sleeping_resolvers(setting: &Setting) -> Ending {
    perform("sleeping resolvers", setting, |stage, cx| {
        stage.start(cx)?;
        let faults = stage.iommu.observe(portcullis::Scope::Instance(INSTANCE), 64);
        let faults = faults.map_err(|e| e.to_string())?;
        let mut tasks: Vec<Task> = Vec::new();
        for n in 0..3 {
            tasks.push(Box::new(move |stage, cx| {
                let device = stage.device(cx, 0x40 + 8 * n, true)?;
                let ns = 500 + 700 * u64::from(n);
                let room = stage.paged_room(&[&device], Table::Second, all(), Manner::Serve(ns))?;
                for _ in 0..3 {
                    let lodger = room.attach(cx, &device, None)?;
                    let ticket = device.begin(None, page(0), Intent::Read(16));
                    stage.sleep(cx, 4_000)?;
                    lodger.detach(cx)?;
                    let _ = device.end(cx, ticket)?;
                    room.unmap(cx, &room.pages())?;
                    device.device.reset(cx).map_err(|e| e.to_string())?;
                }
                Ok(())
            }));
        }
        // An untrusted device that is attached to nothing: each of its accesses is a record.
        tasks.push(Box::new(move |stage, cx| {
            let device = stage.device(cx, 0x80, false)?;
            for n in 0..3 {
                let ticket = device.begin(None, page(n), Intent::Read(16));
                if faults.next(cx, None).is_none() {
                    return Err("the run ended before a fault was told".into());
                }
                let _ = device.end(cx, ticket)?;
            }
            Ok(())
        }));
        stage.together(cx, tasks)
    })
}
