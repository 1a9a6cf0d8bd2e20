//! Everything at once: attach, detach, replace, bind, unbind, map, unmap, exit, reset and unplug, by seed,
//! while devices work and fault, and what they move is compared.

mod binds;

use self::binds::{Binder, Current};
use super::{
    Amount,
    actor::Actor,
    room::{Lodger, Manner, Room},
    stage::{Ending, Setting, Stage, Task, perform},
};
use crate::{pager::PAGE, platform::MachinePlatform};
use parking_lot::Mutex;
use portcullis::{Config, Gap, Sleep, driver::Stage as Table};
use portcullis_drivers::vtd::QueueSize;
use portcullis_models::endpoint::Intent;
use portcullis_pgtable::Phys;
use std::sync::Arc;

/// How much happens.
pub const SIZE: Amount = Amount { of: "changes by each task", usual: 40, least: 1, most: 100_000 };
/// How many devices.
pub const DEVICES: Amount = Amount { of: "devices", usual: 4, least: 1, most: 32 };

const BASE: u64 = 0x4000_0000;
const PAGES: u64 = 12;
/// Nanoseconds between two changes of a berth, of a domain, and between two disturbances of a
/// device, at most.
const STAYS: u64 = 400_000;
const KEPT: u64 = 400_000;
const DISTURBED: u64 = 8_000_000;
/// Nanoseconds between two rounds of accesses, at most.
const IDLE: u64 = 60_000;
/// Bytes of one access.
const PIECE: usize = 64;
/// Entries of the page-request queue that can be in use: one page, which is little for so many.
const PAGE_QUEUE: u32 = 127;
/// Nanoseconds after which a device that does not answer is cut off: soon, since some do not.
const DEVICE_TLB_TIMEOUT: u64 = 500_000;
/// The same on threads, where the hardware may not get to run for a while.
const DEVICE_TLB_TIMEOUT_ON_THREADS: u64 = 400_000_000;

/// Devices with and without trust, some of them with PASIDs; domains with and without a resolver.
/// Whether an access succeeds is chance. Where it leads is not: what is read has to be of a domain
/// that the device was attached to meanwhile, and what was written has to be there.
pub fn churn(setting: &Setting) -> Ending {
    let devices = setting.devices.unwrap_or(DEVICES.usual);
    let rounds = setting.size.unwrap_or(SIZE.usual);
    let mut setting = setting.clone();
    let share = (PAGE_QUEUE - setting.core.credit_reserve) / devices as u32;
    let share = share.clamp(1, setting.core.credits_per_device);
    setting.core = Config { credits_per_device: share, ..setting.core };
    setting.options.page_request_queue = QueueSize::MIN;
    let threads = setting.threads.is_some();
    setting.unit.device_tlb_timeout =
        if threads { DEVICE_TLB_TIMEOUT_ON_THREADS } else { DEVICE_TLB_TIMEOUT };
    perform("churn", &setting, move |stage, cx| {
        stage.start(cx)?;
        let posts = (0..devices).map(|n| Post::new(stage, cx, n)).collect::<Result<Vec<_>, _>>()?;
        let actors: Vec<Actor> = posts.iter().map(|p| p.actor()).collect();
        let actors: Vec<&Actor> = actors.iter().collect();
        let range = BASE..BASE + PAGES * PAGE;
        let mut rooms = Vec::new();
        for (table, ns) in [(Table::Second, 0), (Table::Second, 9_000), (Table::First, 2_000)] {
            rooms.push(stage.paged_room(&actors, table, range.clone(), Manner::Serve(ns))?);
        }
        rooms.push(stage.room(&actors, Table::Second)?);
        rooms.push(stage.room(&actors, Table::First)?);
        let spaces = Current::new(stage, actors[0], range)?;
        let mut tasks: Vec<Task> = Vec::new();
        let mut rng = stage.rng(0);
        let mut seed = || rng.u64(..);
        for post in &posts {
            for berth in &post.berths {
                let (p, b) = (post.clone(), berth.clone());
                // Without trust there is no ATS, and without that nobody asks for pages.
                let open = if post.trusted { rooms.clone() } else { rooms[3..].to_vec() };
                let n = seed();
                tasks.push(Box::new(move |stage, cx| Mover::new(stage, p, b, open, n).moves(cx, rounds)));
                let (p, b, actor, n) = (post.clone(), berth.clone(), post.actor(), seed());
                tasks.push(Box::new(move |stage, cx| works(stage, cx, &p, &actor, &b, n)));
            }
            if post.binds {
                let (p, current, n) = (post.clone(), spaces.clone(), seed());
                tasks.push(Box::new(move |stage, cx| Binder::new(stage, p, current, n).binds(cx, rounds)));
            }
            let (p, n) = (post.clone(), seed());
            tasks.push(Box::new(move |stage, cx| disturbs(stage, cx, &p, n)));
        }
        let (p, n) = (posts.clone(), seed());
        tasks.push(Box::new(move |_, cx| spaces.lives(cx, &p, n)));
        for room in rooms {
            let (posts, n) = (posts.clone(), seed());
            tasks.push(Box::new(move |stage, cx| changes(stage, cx, &posts, &room, n)));
        }
        stage.together(cx, tasks)
    })
}

/// Where a device stands, plugged in or not.
#[derive(Clone)]
struct Post {
    /// From 1.
    number: u64,
    trusted: bool,
    berths: Vec<Arc<Berth>>,
    /// It is bound to address spaces now and then, beside what is in the berths.
    binds: bool,
    state: Arc<Mutex<Standing>>,
}

struct Standing {
    actor: Actor,
    /// Its berths have to be left and stay empty, and it is bound to nothing.
    closed: bool,
    /// Times they had to be so far.
    closings: u64,
    /// Movers and binders that have left for the last of these.
    left: usize,
    /// Those that will not come back.
    ended: usize,
    /// Disturbances that go on, and those there were: what is refused meanwhile is no surprise.
    disturbed: u32,
    disturbances: u64,
}

/// A place of a device: its requester id, or a PASID.
struct Berth {
    /// Not that of any other, from 1.
    number: u64,
    pasid: Option<u32>,
    stay: Mutex<Stay>,
}

/// Who is in a berth.
#[derive(Default)]
struct Stay {
    /// The rooms it was about to be attached to, in order.
    rooms: Vec<Room>,
    /// It is attached to the last of them, and nothing is being done about that.
    settled: bool,
}

impl Post {
    fn new(stage: &Stage, cx: &Sleep<'_>, n: usize) -> Result<Post, String> {
        let trusted = n % 4 != 2;
        let pasids: &[Option<u32>] = match n % 4 {
            0 | 2 => &[None],
            1 => &[Some(20), Some(200)],
            _ => &[None, Some(30)],
        };
        let actor = stage.device(cx, 8 * (n as u16 + 1), trusted)?;
        let berths = pasids
            .iter()
            .map(|&pasid| Arc::new(Berth { number: stage.number(), pasid, stay: Mutex::default() }));
        let state =
            Standing { actor, closed: false, closings: 0, left: 0, ended: 0, disturbed: 0, disturbances: 0 };
        // Only a walker that snoops the CPU reads its tables.
        let binds = trusted && stage.setting.unit.walks_coherent;
        Ok(Post {
            number: n as u64 + 1,
            trusted,
            berths: berths.collect(),
            binds,
            state: Arc::new(Mutex::new(state)),
        })
    }

    /// Movers and binders.
    fn people(&self) -> usize {
        self.berths.len() + usize::from(self.binds)
    }

    fn actor(&self) -> Actor {
        self.state.lock().actor.clone()
    }

    /// Whether its berths are left for good.
    fn is_over(&self) -> bool {
        self.state.lock().ended == self.people()
    }

    fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Waits until every berth is empty, and nobody comes back before it is opened.
    fn clear(&self, stage: &Stage, cx: &Sleep<'_>) -> Result<(), String> {
        {
            let mut state = self.state.lock();
            (state.closed, state.left) = (true, 0);
            state.closings += 1;
        }
        stage.until(cx, "the berths of a device to be left", || {
            let state = self.state.lock();
            state.left + state.ended == self.people()
        })
    }

    /// What is refused from now on, to whoever began before the disturbance ends, is no surprise.
    fn disturb(&self) {
        let mut state = self.state.lock();
        state.disturbed += 1;
        state.disturbances += 1;
    }

    fn calm(&self) {
        self.state.lock().disturbed -= 1;
    }

    /// Somebody has left, and waits until the device is plugged in again.
    fn left(&self, stage: &Stage, cx: &Sleep<'_>) -> Result<(), String> {
        let which = {
            let mut state = self.state.lock();
            state.left += 1;
            state.closings
        };
        stage.until(cx, "a device to be plugged in again", || {
            let state = self.state.lock();
            !state.closed || state.closings != which
        })
    }

    /// While a device is cut off, which may be because the hardware was too slow for it, it cannot be
    /// attached; at any other time it can.
    fn refused(&self, stage: &Stage, before: u64, why: String) -> Result<(), String> {
        let (disturbed, after) = self.disturbances();
        stage.count("attaches refused", 1);
        let cut_off = self.actor().device.is_quarantined();
        if disturbed || cut_off || before != after {
            Ok(())
        } else {
            Err(format!("an attach was refused: {why}"))
        }
    }

    fn disturbances(&self) -> (bool, u64) {
        let state = self.state.lock();
        (state.disturbed > 0, state.disturbances)
    }
}

impl Berth {
    /// A room may be looked into from here on.
    fn moves_to(&self, room: &Room) {
        let mut stay = self.stay.lock();
        stay.rooms.push(room.clone());
        stay.settled = false;
    }

    fn settles(&self) {
        self.stay.lock().settled = true;
    }

    fn leaves(&self) {
        self.stay.lock().settled = false;
    }

    /// How many rooms it was in, the last of them, and whether it is settled there.
    fn now(&self) -> (usize, Option<Room>, bool) {
        let stay = self.stay.lock();
        (stay.rooms.len(), stay.rooms.last().cloned(), stay.settled)
    }
}

/// Attaches, detaches and replaces at one berth.
struct Mover {
    stage: Stage,
    post: Post,
    berth: Arc<Berth>,
    rooms: Vec<Room>,
    rng: fastrand::Rng,
}

impl Mover {
    fn new(stage: &Stage, post: Post, berth: Arc<Berth>, rooms: Vec<Room>, seed: u64) -> Mover {
        Mover { stage: stage.clone(), post, berth, rooms, rng: fastrand::Rng::with_seed(seed) }
    }

    fn moves(mut self, cx: &Sleep<'_>, rounds: usize) -> Result<(), String> {
        let mut lodger: Option<Lodger> = None;
        let mut result = Ok(());
        for _ in 0..rounds {
            result = self.round(cx, &mut lodger);
            if result.is_err() {
                break;
            }
        }
        if let Some(lodger) = lodger {
            self.berth.leaves();
            result = lodger.detach(cx).and(result);
        }
        self.post.state.lock().ended += 1;
        result
    }

    fn round(&mut self, cx: &Sleep<'_>, lodger: &mut Option<Lodger>) -> Result<(), String> {
        if self.post.is_closed() {
            return self.steps_aside(cx, lodger.take());
        }
        let room = self.rooms[self.rng.usize(..self.rooms.len())].clone();
        *lodger = match lodger.take() {
            None => self.attach(cx, &room)?,
            Some(old) if self.rng.bool() => {
                self.berth.leaves();
                let leaving = old.begin_detach(cx)?;
                self.stage.count("detaches", 1);
                let new = if self.rng.bool() { self.attach(cx, &room)? } else { None };
                leaving.wait(cx)?;
                new
            }
            Some(old) => Some(self.replace(cx, old, &room)?),
        };
        self.stage.sleep(cx, self.rng.u64(..STAYS))
    }

    /// Leaves the berth until it is opened again.
    fn steps_aside(&self, cx: &Sleep<'_>, lodger: Option<Lodger>) -> Result<(), String> {
        if let Some(lodger) = lodger {
            self.berth.leaves();
            lodger.detach(cx)?;
            self.stage.count("detaches", 1);
        }
        self.post.left(&self.stage, cx)
    }

    fn attach(&mut self, cx: &Sleep<'_>, room: &Room) -> Result<Option<Lodger>, String> {
        let before = self.post.disturbances().1;
        self.berth.moves_to(room);
        match room.attach(cx, &self.post.actor(), self.berth.pasid) {
            Ok(lodger) => {
                self.berth.settles();
                let what =
                    if self.berth.pasid.is_some() { "PASIDs attached" } else { "requester ids attached" };
                self.stage.count(what, 1);
                Ok(Some(lodger))
            }
            Err(why) => self.post.refused(&self.stage, before, why).map(|()| None),
        }
    }

    fn replace(&mut self, cx: &Sleep<'_>, old: Lodger, room: &Room) -> Result<Lodger, String> {
        self.berth.moves_to(room);
        let back = old.room().clone();
        let gap = if self.rng.bool() { Gap::Allowed } else { Gap::Refused };
        match old.replace(cx, &self.post.actor(), room, gap)? {
            Ok((new, leaving, how)) => {
                self.berth.settles();
                self.stage.count(&format!("replaced, {how:?}").to_lowercase(), 1);
                leaving.wait(cx)?;
                Ok(new)
            }
            Err(old) => {
                self.stage.count("replaces refused", 1);
                self.berth.moves_to(&back);
                self.berth.settles();
                Ok(old)
            }
        }
    }
}

/// Resets a device, or unplugs it and plugs it in again: in an orderly way, or so that it falls
/// silent first and others notice.
fn disturbs(stage: &Stage, cx: &Sleep<'_>, post: &Post, seed: u64) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    while !post.is_over() {
        stage.sleep(cx, rng.u64(..DISTURBED))?;
        post.disturb();
        let actor = post.actor();
        if rng.bool() || actor.has_lost_ats() || actor.device.is_quarantined() {
            actor.device.reset(cx).map_err(|e| e.to_string())?;
            stage.count("resets", 1);
        } else {
            if post.trusted && rng.u32(..6) == 0 {
                actor.endpoint(|e| e.set_deaf(true));
                stage.count("devices that fell silent", 1);
                stage.sleep(cx, rng.u64(..40_000))?;
            }
            post.clear(stage, cx)?;
            stage.unplug(cx, &actor)?;
            stage.sleep(cx, rng.u64(..20_000))?;
            actor.endpoint(|e| e.set_deaf(false));
            let again = stage.plug_again(cx, &actor, post.trusted)?;
            stage.count("unplugged and plugged in again", 1);
            let mut state = post.state.lock();
            (state.actor, state.closed) = (again, false);
        }
        post.calm();
    }
    Ok(())
}

/// Reads and writes, here and there, and compares.
fn works(
    stage: &Stage,
    cx: &Sleep<'_>,
    post: &Post,
    actor: &Actor,
    berth: &Berth,
    seed: u64,
) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    // A stretch of each page is this berth's alone.
    let stretch = PIECE as u64 * berth.number;
    while !post.is_over() {
        // Mostly where there is something: a device that is refused a translation may use none any
        // more before its reset.
        if !berth.now().2 && rng.u32(..64) > 0 {
            stage.sleep(cx, rng.u64(..IDLE))?;
            continue;
        }
        let resets = actor.resets();
        let mut open = Vec::new();
        for _ in 0..rng.u32(1..4) {
            let page = BASE + rng.u64(..PAGES + 1) * PAGE;
            let before = Before::of(berth, page);
            if rng.bool() {
                open.push((before, None, actor.begin(berth.pasid, page, Intent::Read(16))));
            } else {
                let data: Vec<u8> = (0..PIECE).map(|_| rng.u8(..)).collect();
                let ticket = actor.begin(berth.pasid, page + stretch, Intent::Write(data.clone()));
                open.push((before, Some(data), ticket));
            }
        }
        // Two writes to one place may land in any order: neither is compared.
        let pages: Vec<u64> = open.iter().filter(|o| o.1.is_some()).map(|o| o.0.page).collect();
        for (before, written, ticket) in open {
            // A reset takes what is under way with it.
            let Some(end) = actor.end_unless_reset(cx, ticket, resets)? else { continue };
            match (end, written) {
                (Err(_), _) => stage.count("accesses refused", 1),
                (Ok(data), None) => before.compares_read(stage, berth, &data)?,
                (Ok(_), Some(data)) => {
                    if pages.iter().filter(|p| **p == before.page).count() == 1 {
                        before.compares_write(stage, berth, stretch, &data)?;
                    }
                }
            }
        }
        stage.sleep(cx, rng.u64(..IDLE))?;
    }
    Ok(())
}

/// How things stood when an access began.
struct Before {
    page: u64,
    rooms: usize,
    settled: bool,
    mapped: Option<(Phys, u64)>,
}

impl Before {
    fn of(berth: &Berth, page: u64) -> Before {
        let (rooms, room, settled) = berth.now();
        Before { page, rooms, settled, mapped: room.and_then(|room| room.frame_and_number(page)) }
    }

    /// What was read is of a room that the device was in meanwhile.
    fn compares_read(&self, stage: &Stage, berth: &Berth, data: &[u8]) -> Result<(), String> {
        // The one it was in, the one it was being moved to, and all after them.
        let first = self.rooms.saturating_sub(2);
        if !berth.stay.lock().rooms[first..].iter().any(|room| room.mark(self.page) == data) {
            return Err(format!("{:#x} reads {data:02x?}, which is of no room it was in", self.page));
        }
        stage.count("reads compared", 1);
        Ok(())
    }

    /// What was written is there, if nothing has moved meanwhile.
    fn compares_write(&self, stage: &Stage, berth: &Berth, stretch: u64, data: &[u8]) -> Result<(), String> {
        let (Some((frame, _)), true) = (self.mapped, self.settled) else { return Ok(()) };
        let mut found = vec![0; data.len()];
        stage.platform.ram().read(frame.0 + stretch, &mut found).map_err(|e| e.to_string())?;
        let now = Before::of(berth, self.page);
        if !now.settled || (now.rooms, now.mapped) != (self.rooms, self.mapped) {
            return Ok(());
        }
        if found != data {
            return Err(format!("{:#x} was written and holds something else", self.page + stretch));
        }
        stage.count("writes compared", 1);
        Ok(())
    }
}

/// Maps pages and unmaps them, several at once, whoever brought them in.
fn changes(stage: &Stage, cx: &Sleep<'_>, posts: &[Post], room: &Room, seed: u64) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    while !posts.iter().all(Post::is_over) {
        let page = BASE + rng.u64(..PAGES) * PAGE;
        if rng.u32(..6) > 0 {
            // It may be there: a resolver was faster.
            let _ = room.map(page, rng.bool());
        } else {
            let pages: Vec<u64> = room.pages().into_iter().filter(|_| rng.u32(..3) == 0).collect();
            room.unmap(cx, &pages)?;
            stage.count("pages unmapped", pages.len() as u64);
        }
        stage.sleep(cx, rng.u64(..KEPT))?;
    }
    Ok(())
}
