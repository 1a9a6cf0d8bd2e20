//! What caches keep: the IOMMU's, and those of devices with ATS.

use super::{
    actor::Actor,
    paging::reads_own,
    room::Room,
    stage::{Ending, Setting, Stage, Task, perform},
};
use crate::{pager::PAGE, platform::MachinePlatform};
use portcullis::{Platform, Time, driver::Stage as Table};
use portcullis_models::endpoint::Intent;
use portcullis_pgtable::{Phys, Prot};

const BASE: u64 = 0x4000_0000;
/// Pages below one table of the last level.
const TABLE_PAGES: u64 = 512;

fn page(n: u64) -> u64 {
    BASE + n * PAGE
}

fn fill(room: &Room, pages: std::ops::Range<u64>) -> Result<(), String> {
    pages.map(page).try_for_each(|iova| room.map(iova, true).map(|_| ()))
}

/// A page is unmapped under a device without ATS: after the sync nothing leads there, and its
/// neighbour is as it was.
pub fn unmap(setting: &Setting) -> Ending {
    perform("unmap", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x08, false)?;
        let other = stage.device(cx, 0x10, false)?;
        let room = stage.room(&[&device, &other], Table::Any)?;
        fill(&room, 0..8)?;
        let lodgers = [room.attach(cx, &device, None)?, room.attach(cx, &other, None)?];
        for n in 0..8 {
            reads_own(cx, &device, None, &room, page(n))?;
            reads_own(cx, &other, None, &room, page(n))?;
        }
        for n in [1, 3, 4] {
            room.unmap(cx, &[page(n)])?;
            device.must_not(cx, None, page(n), Intent::Read(16))?;
            other.must_not(cx, None, page(n), Intent::Write(vec![1; 16]))?;
            reads_own(cx, &device, None, &room, page(n + 1 + u64::from(n == 3)))?;
        }
        // The whole table goes, and comes back with other frames.
        room.unmap(cx, &room.pages())?;
        device.must_not(cx, None, page(0), Intent::Read(16))?;
        fill(&room, 0..2)?;
        reads_own(cx, &device, None, &room, page(0))?;
        lodgers.into_iter().try_for_each(|l| l.detach(cx))
    })
}

/// Devices that cache translations: an unmap takes theirs as well, and only those it is about.
pub fn device_tlbs(setting: &Setting) -> Ending {
    perform("device TLBs", setting, |stage, cx| {
        stage.start(cx)?;
        let devices = [stage.device(cx, 0x08, true)?, stage.device(cx, 0x10, true)?];
        let room = stage.room(&[&devices[0], &devices[1]], Table::Any)?;
        fill(&room, 0..8)?;
        let mut lodgers = Vec::new();
        for d in &devices {
            lodgers.push(room.attach(cx, d, None)?);
            (0..8).try_for_each(|n| reads_own(cx, d, None, &room, page(n)))?;
            (0..8).try_for_each(|n| reads_own(cx, d, None, &room, page(n)))?;
            if stage.is_calm() && hits(d) < 8 {
                return Err(format!("{} does not cache what it was told", d.id));
            }
        }
        room.unmap(cx, &[page(2), page(3)])?;
        for d in &devices {
            d.must_not(cx, None, page(2), Intent::Read(16))?;
            d.must_not(cx, None, page(3), Intent::Write(vec![2; 16]))?;
            let before = (hits(d), misses(d));
            reads_own(cx, d, None, &room, page(1))?;
            reads_own(cx, d, None, &room, page(4))?;
            if stage.is_calm() && (hits(d), misses(d)) != (before.0 + 2, before.1) {
                return Err(format!("{} forgot the neighbours of what was unmapped", d.id));
            }
        }
        lodgers.into_iter().try_for_each(|l| l.detach(cx))
    })
}

fn hits(actor: &Actor) -> u64 {
    actor.endpoint(|e| e.statistics().dtlb_hits).unwrap_or(0)
}

fn misses(actor: &Actor) -> u64 {
    actor.endpoint(|e| e.statistics().dtlb_misses).unwrap_or(0)
}

/// A device goes from one domain to another in which the same addresses lead elsewhere; by its
/// requester id and, where the unit has them, in a PASID.
pub fn domain_switch(setting: &Setting) -> Ending {
    perform("domain switch", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x08, false)?;
        let pasids = stage.setting.unit.pasid_bits > 0 && !stage.setting.options.force_legacy;
        let second = [(None, Table::Any), (Some(3), Table::First)];
        for (pasid, table) in second.into_iter().take(if pasids { 2 } else { 1 }) {
            let rooms = [stage.room(&[&device], table)?, stage.room(&[&device], table)?];
            rooms.iter().try_for_each(|r| fill(r, 0..4))?;
            let mut lodger = rooms[0].attach(cx, &device, pasid)?;
            for n in 0..4 {
                reads_own(cx, &device, pasid, lodger.room(), page(n))?;
            }
            for turn in 1..4 {
                lodger.detach(cx)?;
                lodger = rooms[turn % 2].attach(cx, &device, pasid)?;
                for n in 0..4 {
                    reads_own(cx, &device, pasid, lodger.room(), page(n))?;
                }
            }
            lodger.detach(cx)?;
            device.must_not(cx, pasid, page(0), Intent::Read(16))?;
        }
        Ok(())
    })
}

/// A table is emptied and unlinked, and other things happen before the sync. The frame that was a
/// table must not be somebody's data yet: a walker may still read it. Where it is free already, the
/// next frame of data is that one, and what it holds is a way to a page of nobody's business.
pub fn tables_wait_for_the_sync(setting: &Setting) -> Ending {
    perform("tables wait for the sync", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x08, false)?;
        let victim = stage.device(cx, 0x10, false)?;
        let room = stage.room(&[&device], Table::Second)?;
        let secret = stage.room(&[&victim], Table::Second)?;
        let kept = secret.map(page(0), true)?;
        let lodgers = [room.attach(cx, &device, None)?, secret.attach(cx, &victim, None)?];
        let ram = stage.platform.ram();
        for _ in 0..3 {
            // As many pages as a table has entries, since only what covers a table takes it out.
            let frame = ram.page().map_err(|e| e.to_string())?;
            for n in 0..TABLE_PAGES {
                stage.oracle.map(room.id(), page(n), frame.0, PAGE, true);
                let prot = Prot::READ | Prot::WRITE;
                room.domain().map_range(page(n), frame, PAGE, prot).map_err(|e| e.to_string())?;
            }
            device.must(cx, None, page(0), Intent::Read(16))?;
            let mut unmapping = room.domain().unmapping();
            unmapping.unmap(page(0), TABLE_PAGES * PAGE).map_err(|e| e.to_string())?;
            entries_to(stage, &secret, page(2), kept)?;
            // In no cache itself, but the way to its table is.
            let _ = device.access(cx, None, page(1), Intent::Read(16))?;
            unmapping.sync(cx).map_err(|e| e.to_string())?;
            (0..TABLE_PAGES).for_each(|n| stage.oracle.unmapped(room.id(), page(n)));
            ram.free_page(frame);
            device.must_not(cx, None, page(0), Intent::Read(16))?;
            device.must_not(cx, None, page(1), Intent::Read(16))?;
            secret.unmap(cx, &[page(2)])?;
        }
        lodgers.into_iter().try_for_each(|l| l.detach(cx))
    })
}

/// A page of data, mapped into `room`, that would make sense as a table: every entry leads to
/// `target`.
fn entries_to(stage: &Stage, room: &Room, iova: u64, target: Phys) -> Result<(), String> {
    let data = room.map(iova, true)?;
    for n in 0..PAGE / 8 {
        let entry = (target.0 | 3).to_le_bytes();
        stage.platform.ram().write(data.0 + n * 8, &entry).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Devices whose own TLB does not answer are cut off, and others wait at most one hardware time-out
/// for each of them.
pub fn device_tlb_timeout(setting: &Setting) -> Ending {
    perform("device TLB time-out", setting, |stage, cx| {
        stage.start(cx)?;
        let deaf = [stage.device(cx, 0x08, true)?, stage.device(cx, 0x10, true)?];
        let honest = [stage.device(cx, 0x18, true)?, stage.device(cx, 0x20, true)?];
        let shared = stage.room(&[&deaf[0], &deaf[1], &honest[0]], Table::Any)?;
        let apart = stage.room(&[&honest[1]], Table::Any)?;
        fill(&shared, 0..4)?;
        fill(&apart, 0..4)?;
        let mut lodgers = vec![
            shared.attach(cx, &deaf[0], None)?,
            shared.attach(cx, &deaf[1], None)?,
            shared.attach(cx, &honest[0], None)?,
            apart.attach(cx, &honest[1], None)?,
        ];
        for n in 0..4 {
            for d in deaf.iter().chain(&honest[..1]) {
                reads_own(cx, d, None, &shared, page(n))?;
            }
            reads_own(cx, &honest[1], None, &apart, page(n))?;
        }
        for d in &deaf {
            d.endpoint(|e| e.set_deaf(true));
        }
        // Where hardware does not name the silent device, every one that was asked is suspect.
        let named = stage.setting.unit.names_suspects;
        let suspects = deaf.len() as u64 + if named { 0 } else { 1 };
        let mut tasks: Vec<Task> = Vec::new();
        for (room, n) in [(&shared, 0), (&apart, 1), (&apart, 2), (&shared, 3)] {
            let room = room.clone();
            tasks.push(Box::new(move |stage, cx| {
                let begun = stage.platform.now();
                room.unmap(cx, &[page(n)])?;
                let slack = if stage.on_threads() { SLACK_ON_THREADS } else { SLACK };
                let most = suspects * stage.setting.unit.device_tlb_timeout + slack;
                let waited = stage.platform.now().since(begun).as_nanos() as u64;
                if waited > most {
                    return Err(format!("an unmap waited {waited} ns for {suspects} suspects"));
                }
                Ok(())
            }));
        }
        for d in deaf.clone() {
            // It goes on with what it cached: memory that it can reach is nobody else's yet.
            tasks.push(Box::new(move |stage, cx| {
                let until = Time(stage.platform.now().0 + 3 * stage.setting.unit.device_tlb_timeout);
                while stage.platform.now() < until {
                    let _ = d.access(cx, None, page(0), Intent::Write(vec![0xdd; 16]))?;
                    let _ = d.access(cx, None, page(3), Intent::Read(16))?;
                    stage.sleep(cx, stage.setting.unit.device_tlb_timeout / 16)?;
                }
                Ok(())
            }));
        }
        stage.together(cx, tasks)?;
        for d in &deaf {
            if !d.device.is_quarantined() {
                return Err(format!("{} is deaf and not quarantined", d.id));
            }
            d.must_not(cx, None, page(1), Intent::Read(16))?;
        }
        for d in &honest {
            if d.device.is_quarantined() {
                return Err(format!("{} answers and is quarantined", d.id));
            }
        }
        reads_own(cx, &honest[0], None, &shared, page(1))?;
        // A new life.
        deaf[0].endpoint(|e| e.set_deaf(false));
        deaf[0].device.reset(cx).map_err(|e| e.to_string())?;
        reads_own(cx, &deaf[0], None, &shared, page(1))?;
        shared.unmap(cx, &[page(1)])?;
        deaf[0].must_not(cx, None, page(1), Intent::Read(16))?;
        lodgers.drain(..).try_for_each(|l| l.detach(cx))
    })
}

/// What software needs beyond the hardware's time-outs, in nanoseconds.
const SLACK: u64 = 20_000_000;
/// The same where other programs want the processor too.
const SLACK_ON_THREADS: u64 = 5_000_000_000;

/// A domain is unmapped while a device is being attached to it that reads all the time: the device
/// must not keep what it read in between, neither in the IOMMU's TLB nor in its own.
pub fn unmap_at_attach(setting: &Setting) -> Ending {
    perform("unmap at attach", setting, |stage, cx| {
        stage.start(cx)?;
        let mut rng = stage.rng(3);
        for round in 0..6 {
            let device = stage.device(cx, 0x40 + 8 * round, round % 2 == 1)?;
            let room = stage.room(&[&device], Table::Any)?;
            fill(&room, 0..24)?;
            let (r, ns) = (room.clone(), rng.u64(..8_000));
            let unmaps: Task = Box::new(move |stage, cx| {
                stage.sleep(cx, ns)?;
                r.unmap(cx, &r.pages())
            });
            let d = device.clone();
            let attaches: Task = Box::new(move |stage, cx| {
                let lodger = room.attach(cx, &d, None)?;
                stage.sleep(cx, 60_000)?;
                for n in 0..24 {
                    let _ = d.access(cx, None, page(n), Intent::Read(16))?;
                }
                lodger.detach(cx)
            });
            let reads: Task = Box::new(move |_, cx| {
                for _ in 0..12 {
                    for n in [23, 22] {
                        let _ = device.access(cx, None, page(n), Intent::Read(16))?;
                    }
                }
                Ok(())
            });
            stage.together(cx, vec![unmaps, attaches, reads])?;
        }
        Ok(())
    })
}
