//! Devices that mean harm, each alone with a neighbour's memory.

use super::{
    paging::reads_own,
    room::Manner,
    stage::{Ending, Setting, perform},
};
use crate::{pager::PAGE, platform::MachinePlatform};
use portcullis::driver::Stage as Table;
use portcullis_models::{
    bus::Pasid,
    endpoint::{Flood, FloodConfig, Rogue, RogueConfig},
};

const BASE: u64 = 0x4000_0000;
const OUTSIDE: u64 = 0x7000_0000;
/// What the untrusted rogue does before it falls silent.
const MISDEEDS: u64 = 440;
/// Page requests of the flood.
const FLOOD: u64 = 1_200;

/// A device that is not trusted and has no ATS: it reads and writes outside of what it has, forges
/// translated requests and page requests, answers invalidations that nobody asked it for, and
/// raises interrupts.
pub fn untrusted_rogue(setting: &Setting) -> Ending {
    perform("untrusted rogue", setting, |stage, cx| {
        stage.start(cx)?;
        let ram = stage.platform.ram();
        let engine = Rogue::new(RogueConfig {
            budget: MISDEEDS,
            outside: OUTSIDE..OUTSIDE + (1 << 24),
            physical: ram.base()..ram.base() + ram.size() as u64,
            pasids: Pasid::new(5).into_iter().collect(),
        });
        let rogue = stage.device_with(cx, 0x6600, false, Box::new(engine))?;
        let neighbour = stage.device(cx, 0x08, true)?;
        let room = stage.room(&[&rogue], Table::Any)?;
        let home = stage.paged_room(&[&neighbour], Table::First, BASE..BASE + 16 * PAGE, Manner::Serve(0))?;
        room.map(BASE, true)?;
        let lodger = room.attach(cx, &rogue, None)?;
        let honest = home.attach(cx, &neighbour, Some(5))?;
        for n in 0..16 {
            reads_own(cx, &neighbour, Some(5), &home, BASE + n * PAGE)?;
        }
        stage.until(cx, "a hundred refusals", || stage.tally().blocked >= 100)?;
        rogue.until_silent(cx)?;
        let counters = rogue.device.counters();
        if home.answered().0 == 0 || counters.success != 0 {
            return Err(format!("the rogue had a page request granted: {counters:?}"));
        }
        lodger.detach(cx)?;
        honest.detach(cx)
    })
}

/// A trusted device with ATS that forges no address and floods page requests: none is the last of
/// its group, all come again, and more than it was granted.
pub fn flooding_rogue(setting: &Setting) -> Ending {
    perform("flooding rogue", setting, |stage, cx| {
        stage.start(cx)?;
        let engine = Flood::new(FloodConfig { budget: FLOOD, pages: BASE..BASE + 8 * PAGE });
        let rogue = stage.device_with(cx, 0x6608, true, Box::new(engine))?;
        let neighbour = stage.device(cx, 0x08, true)?;
        let swamp = stage.paged_room(&[&rogue], Table::Any, BASE..BASE + 8 * PAGE, Manner::Serve(0))?;
        let home = stage.paged_room(&[&neighbour], Table::Any, BASE..BASE + 16 * PAGE, Manner::Serve(0))?;
        let honest = home.attach(cx, &neighbour, None)?;
        let lodger = swamp.attach(cx, &rogue, None)?;
        for n in 0..16 {
            reads_own(cx, &neighbour, None, &home, BASE + n * PAGE)?;
        }
        let sent = || rogue.endpoint(|e| e.statistics().page_requests).unwrap_or(0);
        stage.until(cx, "the end of the flood", || sent() >= FLOOD)?;
        let held = || {
            let counters = rogue.device.counters();
            counters.quota > 0 && counters.requests >= 100
        };
        if !stage.on_threads() {
            stage.until(cx, "a flood that is held to its share", held)?;
        }
        lodger.detach(cx)?;
        honest.detach(cx)
    })
}
