//! Devices that keep the workers busy, and the others beside them.

use super::{
    actor::Actor,
    paging::reads_own,
    room::{Manner, Room},
    stage::{Ending, Setting, Stage, Task, perform},
};
use crate::{
    pager::PAGE,
    sim::{Order, Strategy},
};
use parking_lot::Mutex;
use portcullis::{Platform, Sleep, Storms, driver::Stage as Table};
use portcullis_models::{adversary::Level, endpoint::Intent};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

const BASE: u64 = 0x4000_0000;
const PAGES: u64 = 8;
/// Times that each honest device asks for each page, with the storm and without.
const ROUNDS: u64 = 10;
/// How long the resolvers of the storm take, and of the others.
const SLOW: u64 = 2_000_000;
const QUICK: u64 = 2_000;
/// How much worse the others may fare.
const FACTOR: u64 = 3;

fn page(n: u64) -> u64 {
    BASE + n * PAGE
}

/// One device asks for pages in four address spaces as fast as it can, and its resolvers take their
/// time: as many as there are workers. Another one, untrusted, faults as fast as it can. Two honest
/// devices page beside them: 99 of 100 of their requests are answered within three times what it
/// takes without the storm.
pub fn storm(setting: &Setting) -> Ending {
    let mut setting = setting.clone();
    // What is asserted is virtual time, and holds where nobody meddles.
    let calm = setting.adversary == Level::Off && setting.threads.is_none();
    if calm {
        setting.core.storms = Storms::default();
    }
    // The others let the clock jump, or let somebody wait for as long as they like.
    setting.strategy.get_or_insert(Strategy { order: Order::Uniform, jump: 0, slice: 3 });
    perform("storm", &setting, move |stage, cx| {
        stage.start(cx)?;
        let honest = [honest(stage, cx, 0x08)?, honest(stage, cx, 0x10)?];
        let before = page_in(stage, cx, &honest)?;
        let over = Arc::new(AtomicBool::new(false));
        let flood = stage.device(cx, 0x18, true)?;
        let mut lodgers = Vec::new();
        for pasid in [None, Some(1), Some(2), Some(3)] {
            let table = if pasid.is_some() { Table::First } else { Table::Second };
            let room = stage.paged_room(&[&flood], table, BASE..page(PAGES), Manner::Refuse(SLOW))?;
            lodgers.push((pasid, room.attach(cx, &flood, pasid)?));
        }
        let wild = stage.device(cx, 0x20, false)?;
        let during = Arc::new(Mutex::new(Vec::new()));
        let (measured, end, works) = (during.clone(), over.clone(), honest.clone());
        let pages: Task = Box::new(move |stage, cx| {
            // The storm comes first.
            stage.sleep(cx, 2 * SLOW)?;
            let result = page_in(stage, cx, &works);
            end.store(true, Ordering::Release);
            *measured.lock() = result?;
            Ok(())
        });
        let (asking, end) = (flood.clone(), over.clone());
        let floods: Task = Box::new(move |stage, cx| {
            let mut n = 0;
            while !end.load(Ordering::Acquire) {
                for pasid in [None, Some(1), Some(2), Some(3)] {
                    n += 1;
                    asking.begin(pasid, page(n % PAGES), Intent::Read(16));
                }
                stage.sleep(cx, 20_000)?;
            }
            Ok(())
        });
        let (faulting, end) = (wild.clone(), over.clone());
        let faults: Task = Box::new(move |stage, cx| {
            let mut n = 0;
            while !end.load(Ordering::Acquire) {
                n += 1;
                faulting.begin(None, page(n % PAGES), Intent::Write(vec![0; 16]));
                stage.sleep(cx, 20_000)?;
            }
            Ok(())
        });
        stage.together(cx, vec![pages, floods, faults])?;
        for (_, lodger) in lodgers {
            lodger.detach(cx)?;
        }
        let (before, during) = (p99(&before), p99(&during.lock()));
        if calm && during > FACTOR * before {
            return Err(format!(
                "99 of 100 answers in {before} ns without the storm, in {during} ns with it"
            ));
        }
        let (storm, faults) = (wild.device.storm(), wild.device.counters().faults);
        let blocked = stage.tally().blocked;
        if calm && (storm.masked == 0 || faults == 0 || 8 * faults > blocked) {
            return Err(format!("{blocked} requests were blocked and {faults} recorded: {storm:?}"));
        }
        Ok(())
    })
}

fn honest(stage: &Stage, cx: &Sleep<'_>, id: u16) -> Result<(Actor, Room), String> {
    let device = stage.device(cx, id, true)?;
    let room = stage.paged_room(&[&device], Table::Second, BASE..page(PAGES), Manner::Serve(QUICK))?;
    // Attached for the whole run, which ends it.
    std::mem::forget(room.attach(cx, &device, None)?);
    Ok((device, room))
}

/// Has honest devices ask for pages again and again, side by side. Returns how long each answer took.
fn page_in(stage: &Stage, cx: &Sleep<'_>, honest: &[(Actor, Room)]) -> Result<Vec<u64>, String> {
    let latencies =
        |device: &Actor| device.endpoint(|e| e.statistics().latencies.clone()).unwrap_or_default();
    let before: Vec<usize> = honest.iter().map(|(device, _)| latencies(device).len()).collect();
    let tasks = honest.iter().cloned().map(|(device, room)| -> Task {
        Box::new(move |_, cx| {
            for n in 0..ROUNDS * PAGES {
                reads_own(cx, &device, None, &room, page(n % PAGES))?;
                room.unmap(cx, &[page(n % PAGES)])?;
            }
            Ok(())
        })
    });
    stage.together(cx, tasks.collect())?;
    let new = honest.iter().zip(before).flat_map(|((device, _), n)| latencies(device).split_off(n));
    Ok(new.collect())
}

fn p99(latencies: &[u64]) -> u64 {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(u64::MAX)
}

/// A resolver that does not return delays nobody's detach, not even that of its own attachment: only
/// who waits for the resolver itself waits.
pub fn stuck_resolver(setting: &Setting) -> Ending {
    // Far more than five detaches take here; on threads these are real nanoseconds.
    let patience = if setting.threads.is_some() { 1_000_000_000 } else { 60_000_000_000 };
    perform("stuck resolver", setting, move |stage, cx| {
        stage.start(cx)?;
        let (stuck, other) = (stage.device(cx, 0x30, true)?, stage.device(cx, 0x38, true)?);
        let bog = stage.paged_room(&[&stuck], Table::Second, BASE..page(PAGES), Manner::Serve(patience))?;
        let room = stage.paged_room(&[&other], Table::Second, BASE..page(PAGES), Manner::Serve(QUICK))?;
        let lodger = bog.attach(cx, &stuck, None)?;
        let ticket = stuck.begin(None, page(0), Intent::Read(16));
        let mut looks = 0;
        // The hardware may have refused it.
        stage.until(cx, "a resolver", || {
            looks += 1;
            bog.entered() > 0 || looks > 50
        })?;
        let since = stage.platform.now();
        for n in 0..4 {
            let lodger = room.attach(cx, &other, None)?;
            reads_own(cx, &other, None, &room, page(n))?;
            lodger.detach(cx)?;
            other.device.reset(cx).map_err(|e| e.to_string())?;
        }
        let leaving = lodger.begin_detach(cx)?;
        let took = stage.platform.now().since(since).as_nanos() as u64;
        if bog.entered() > 0 && (stage.iommu.load().running == 0 || took > patience / 2) {
            return Err(format!("five detaches beside a resolver that sits there took {took} ns"));
        }
        let _ = stuck.end(cx, ticket)?;
        leaving.wait(cx)
    })
}
