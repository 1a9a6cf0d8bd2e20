//! Everything at once: attach, detach, replace, map and unmap, by seed, while devices work and fault.

use super::{
    room::{Lodger, Manner, Room},
    stage::{Actor, Ending, Setting, Stage, Task, perform},
};
use crate::pager::PAGE;
use portcullis::{Gap, Sleep, driver::Stage as Table};
use portcullis_models::endpoint::Intent;

const BASE: u64 = 0x4000_0000;
const PAGES: u64 = 12;
/// Changes that each task makes.
const ROUNDS: u32 = 12;

/// Three devices, two of them trusted, one of those with PASIDs; domains with and without a
/// resolver. Whether an access succeeds is chance; where it may not lead is not.
pub fn churn(setting: &Setting) -> Ending {
    perform("churn", setting, |stage, cx| {
        stage.start(cx)?;
        let trusted = [stage.device(cx, 0x08, true)?, stage.device(cx, 0x10, true)?];
        let untrusted = stage.device(cx, 0x18, false)?;
        let range = BASE..BASE + PAGES * PAGE;
        let devices = [&trusted[0], &trusted[1], &untrusted];
        let mut paged = Vec::new();
        for (table, ns) in [(Table::Second, 0), (Table::Second, 9_000), (Table::First, 2_000)] {
            paged.push(stage.paged_room(&devices, table, range.clone(), Manner::Serve(ns))?);
        }
        let fixed = vec![stage.room(&devices, Table::Second)?, stage.room(&devices, Table::First)?];
        let mut tasks: Vec<Task> = Vec::new();
        let mut cast = |n: u64, actor: &Actor, pasid: Option<u32>, rooms: &[Room]| {
            let (actor, rooms) = (actor.clone(), rooms.to_vec());
            tasks.push(Box::new(move |stage, cx| moves(stage, cx, n, &actor, pasid, &rooms)));
        };
        let all: Vec<Room> = paged.iter().chain(&fixed).cloned().collect();
        cast(0, &trusted[0], None, &all);
        cast(1, &trusted[1], Some(2), &all);
        cast(2, &trusted[1], Some(200), &paged);
        cast(3, &untrusted, None, &fixed);
        let works =
            [(&trusted[0], None), (&trusted[1], Some(2)), (&trusted[1], Some(200)), (&untrusted, None)];
        for (n, (actor, pasid)) in works.into_iter().enumerate() {
            let actor = actor.clone();
            tasks.push(Box::new(move |stage, cx| accesses(stage, cx, 10 + n as u64, &actor, pasid)));
        }
        for (n, room) in all.iter().enumerate() {
            let room = room.clone();
            tasks.push(Box::new(move |stage, cx| changes(stage, cx, 20 + n as u64, &room)));
        }
        stage.together(cx, tasks)
    })
}

/// Attaches, detaches and replaces.
fn moves(
    stage: &Stage,
    cx: &Sleep<'_>,
    task: u64,
    actor: &Actor,
    pasid: Option<u32>,
    rooms: &[Room],
) -> Result<(), String> {
    let mut rng = stage.rng(task);
    let mut lodger: Option<Lodger> = None;
    for _ in 0..ROUNDS {
        let room = &rooms[rng.usize(..rooms.len())];
        lodger = match lodger.take() {
            None => Some(room.attach(cx, actor, pasid)?),
            Some(old) if rng.bool() => {
                let leaving = old.begin_detach(cx)?;
                let new = if rng.bool() { Some(room.attach(cx, actor, pasid)?) } else { None };
                leaving.wait(cx)?;
                new
            }
            Some(old) => {
                let gap = if rng.bool() { Gap::Allowed } else { Gap::Refused };
                match old.replace(cx, actor, room, gap)? {
                    Ok((new, leaving, _)) => {
                        leaving.wait(cx)?;
                        Some(new)
                    }
                    Err(old) => Some(old),
                }
            }
        };
        stage.sleep(cx, rng.u64(..40_000))?;
    }
    lodger.map_or(Ok(()), |l| l.detach(cx))
}

/// Reads and writes, here and there.
fn accesses(
    stage: &Stage,
    cx: &Sleep<'_>,
    task: u64,
    actor: &Actor,
    pasid: Option<u32>,
) -> Result<(), String> {
    let mut rng = stage.rng(task);
    for _ in 0..6 * ROUNDS {
        let mut open = Vec::new();
        for _ in 0..rng.u32(1..4) {
            let iova = BASE + rng.u64(..PAGES + 1) * PAGE;
            let intent = if rng.bool() { Intent::Read(64) } else { Intent::Write(vec![1; 64]) };
            open.push(actor.begin(pasid, iova, intent));
        }
        for ticket in open {
            let _ = actor.end(cx, ticket)?;
        }
        stage.sleep(cx, rng.u64(..8_000))?;
    }
    Ok(())
}

/// Maps pages and unmaps them, several at once, whoever brought them in.
fn changes(stage: &Stage, cx: &Sleep<'_>, task: u64, room: &Room) -> Result<(), String> {
    let mut rng = stage.rng(task);
    for _ in 0..2 * ROUNDS {
        let page = BASE + rng.u64(..PAGES) * PAGE;
        if rng.u32(..3) > 0 {
            // It may be there: a resolver was faster.
            let _ = room.map(page, rng.bool());
        } else {
            let pages: Vec<u64> = room.pages().into_iter().filter(|_| rng.bool()).collect();
            room.unmap(cx, &pages)?;
        }
        stage.sleep(cx, rng.u64(..20_000))?;
    }
    Ok(())
}
