//! Memory is copied while devices write to it, as a live migration does.

use super::{
    actor::Actor,
    room::Room,
    stage::{Ending, Setting, Stage, Task, perform},
};
use crate::{pager::PAGE, platform::MachinePlatform};
use parking_lot::Mutex;
use portcullis::{Sleep, driver::Stage as Table};
use portcullis_models::endpoint::Intent;
use std::{collections::BTreeMap, sync::Arc};

const BASE: u64 = 0x4000_0000;
/// Pages that devices write to; as many more are only read.
const WRITTEN: u64 = 12;
/// Writes of each device.
const WRITES: u32 = 60;
/// Bytes of each.
const BYTES: usize = 32;
/// Nanoseconds between two rounds of the copy.
const ROUND: u64 = 20_000;

fn page(n: u64) -> u64 {
    BASE + n * PAGE
}

/// What the other side has of a domain's memory, by IOVA.
type Copied = BTreeMap<u64, Vec<u8>>;

/// A domain is copied while a device without ATS and one with ATS write to it, both with hot
/// translations: what is told as dirty is copied again, and when the devices have stopped, one more
/// round makes the copy complete. In the second stage by requester id, and in the first in a PASID.
pub fn migration(setting: &Setting) -> Ending {
    perform("migration", setting, |stage, cx| {
        stage.start(cx)?;
        let plain = stage.device(cx, 0x08, false)?;
        let caching = stage.device(cx, 0x10, true)?;
        for (pasid, table) in [(None, Table::Second), (Some(3), Table::First)] {
            // Without PASID capability the first stage is for requester ids too.
            let pasid = pasid.filter(|_| stage.setting.unit.pasid_bits > 0);
            let room = match (stage.tracked_room(&[&plain, &caching], table), tracks(stage, table)) {
                (Ok(room), true) => room,
                (Err(reason), false) if reason.contains("dirty bits") => continue,
                (Err(reason), _) => return Err(reason),
                (Ok(_), false) => return Err("walkers that keep no dirty bits are said to".into()),
            };
            (0..2 * WRITTEN).try_for_each(|n| room.map(page(n), true).map(|_| ()))?;
            let attached = [room.attach(cx, &plain, pasid)?, room.attach(cx, &caching, pasid)?];
            for actor in [&plain, &caching] {
                // Translations that need no update of a dirty bit are cached from here on.
                for n in 0..WRITTEN {
                    actor.must(cx, pasid, page(n), Intent::Write(vec![1; BYTES]))?;
                }
            }
            migrate(stage, cx, &room, &[plain.clone(), caching.clone()], pasid)?;
            attached.into_iter().try_for_each(|a| a.detach(cx))?;
        }
        Ok(())
    })
}

fn tracks(stage: &Stage, table: Table) -> bool {
    let unit = &stage.setting.unit;
    unit.walks_coherent && (table == Table::First || unit.second_stage_accessed_dirty)
}

fn migrate(
    stage: &Stage,
    cx: &Sleep<'_>,
    room: &Room,
    devices: &[Actor],
    pasid: Option<u32>,
) -> Result<(), String> {
    room.domain().set_dirty_tracking(cx, true).map_err(|e| e.to_string())?;
    let mut copied = Copied::new();
    copy(stage, room, (0..2 * WRITTEN).map(page), &mut copied)?;
    let copied = Arc::new(Mutex::new(copied));
    let working = Arc::new(Mutex::new(devices.len()));

    let mut tasks: Vec<Task> = Vec::new();
    for (n, device) in devices.iter().cloned().enumerate() {
        let working = working.clone();
        tasks.push(Box::new(move |stage, cx| {
            let mut rng = stage.rng(0x100 + n as u64);
            let written = writes(stage, cx, &device, pasid, &mut rng);
            *working.lock() -= 1;
            written
        }));
    }
    let (copies, r, still) = (copied.clone(), room.clone(), working);
    tasks.push(Box::new(move |stage, cx| {
        while *still.lock() > 0 {
            round(stage, cx, &r, &copies)?;
            stage.sleep(cx, ROUND)?;
        }
        Ok(())
    }));
    stage.together(cx, tasks)?;

    round(stage, cx, room, &copied)?;
    let again = round(stage, cx, room, &copied)?;
    if again > 0 {
        return Err(format!("{again} pages are dirty that nobody wrote to"));
    }
    for (iova, bytes) in copied.lock().iter() {
        if *bytes != read(stage, room, *iova)? {
            return Err(format!("the copy of {iova:#x} is not what a device wrote last"));
        }
    }
    room.domain().set_dirty_tracking(cx, false).map_err(|e| e.to_string())
}

/// Writes here and there, and reads what nobody writes to.
fn writes(
    stage: &Stage,
    cx: &Sleep<'_>,
    device: &Actor,
    pasid: Option<u32>,
    rng: &mut fastrand::Rng,
) -> Result<(), String> {
    for _ in 0..WRITES {
        let at = page(rng.u64(..WRITTEN)) + rng.u64(..PAGE / BYTES as u64) * BYTES as u64;
        let bytes = (0..BYTES).map(|_| rng.u8(..)).collect();
        device.must(cx, pasid, at, Intent::Write(bytes))?;
        device.must(cx, pasid, page(WRITTEN + rng.u64(..WRITTEN)), Intent::Read(BYTES as u32))?;
        stage.sleep(cx, rng.u64(..4_000))?;
    }
    Ok(())
}

/// Copies what was written to since the last round. Returns how many pages that were.
fn round(stage: &Stage, cx: &Sleep<'_>, room: &Room, copied: &Mutex<Copied>) -> Result<usize, String> {
    let mut told = Vec::new();
    room.domain()
        .read_and_clear_dirty(cx, BASE, 2 * WRITTEN * PAGE, |iova, len| told.push((iova, len)))
        .map_err(|e| e.to_string())?;
    for (iova, len) in &told {
        if *len != PAGE || *iova >= page(WRITTEN) {
            return Err(format!("{len:#x} bytes at {iova:#x} are told as dirty, which nobody wrote to"));
        }
    }
    stage.count("pages told as dirty", told.len() as u64);
    copy(stage, room, told.iter().map(|t| t.0), &mut copied.lock())?;
    Ok(told.len())
}

fn copy(
    stage: &Stage,
    room: &Room,
    pages: impl Iterator<Item = u64>,
    copied: &mut Copied,
) -> Result<(), String> {
    for iova in pages {
        copied.insert(iova, read(stage, room, iova)?);
    }
    Ok(())
}

fn read(stage: &Stage, room: &Room, iova: u64) -> Result<Vec<u8>, String> {
    let frame = room.frame(iova).ok_or_else(|| format!("{iova:#x} is not mapped"))?;
    let mut bytes = vec![0; PAGE as usize];
    stage.platform.ram().read(frame.0, &mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}
