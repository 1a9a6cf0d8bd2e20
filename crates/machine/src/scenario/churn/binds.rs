//! Address spaces in the middle of it all: devices are bound to one and unbound, at any moment of their
//! DMA, its pages come and go, and it exits while they use it; then there is another.

use super::{IDLE, PIECE, Post, STAYS};
use crate::{
    oracle::Place,
    pager::PAGE,
    platform::{AnyPlatform, MachinePlatform},
    scenario::{
        actor::{Actor, Ended},
        space::{MARK, Mm, Space},
        stage::Stage,
    },
};
use parking_lot::Mutex;
use portcullis::{Bond, Sleep, Waited, error::BindError};
use portcullis_models::{bus::RequesterId, endpoint::Intent};
use portcullis_pgtable::Phys;
use std::{ops::Range, sync::Arc};

/// Nanoseconds between two changes of an address space, at most, and one in how many is its exit.
const KEPT: u64 = 300_000;
const EXITS: u32 = 24;

/// The address space that devices are bound to. A handle.
#[derive(Clone)]
pub struct Current {
    stage: Stage,
    of: RequesterId,
    range: Range<u64>,
    space: Arc<Mutex<Arc<Space>>>,
}

impl Current {
    /// The first one. The books name it by the place that it has at this device.
    pub fn new(stage: &Stage, of: &Actor, range: Range<u64>) -> Result<Current, String> {
        let space = Arc::new(Mutex::new(Arc::new(Mm::share(stage, range.clone(), of.id)?)));
        Ok(Current { stage: stage.clone(), of: of.id, range, space })
    }

    fn space(&self) -> Arc<Space> {
        self.space.lock().clone()
    }

    /// Takes pages out of the address space, and ends it now and then.
    pub fn lives(self, cx: &Sleep<'_>, posts: &[Post], seed: u64) -> Result<(), String> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut ended: Vec<Arc<Space>> = Vec::new();
        while !posts.iter().all(Post::is_over) {
            self.stage.sleep(cx, rng.u64(..KEPT))?;
            let space = self.space();
            let mm = space.address_space();
            if rng.u32(..EXITS) > 0 {
                let pages: Vec<u64> = mm.pages().into_iter().filter(|_| rng.u32(..3) == 0).collect();
                let (Some(first), Some(last)) = (pages.first(), pages.last()) else { continue };
                let gone = *first..*last + PAGE;
                mm.take_out(&pages, || space.invalidate(cx, gone).map_err(|e| e.to_string()))?;
                self.stage.count("pages taken from address spaces", pages.len() as u64);
                continue;
            }
            if !space.is_unused() {
                self.stage.count("address spaces that exited while bound", 1);
            }
            mm.exits(cx, &space)?;
            let next = Arc::new(Mm::share(&self.stage, self.range.clone(), self.of)?);
            *self.space.lock() = next;
            ended.push(space);
            // Whoever was bound has waited until no handler ran, and then let go of it.
            for space in ended.extract_if(.., |space| Arc::strong_count(space) == 1) {
                self.over(cx, &space)?;
            }
        }
        ended.push(self.space());
        ended.iter().try_for_each(|space| self.over(cx, space))
    }

    /// Nobody uses an address space any more. A bind that met its exit left nothing attached, but did not
    /// wait for a fault that may run.
    fn over(&self, cx: &Sleep<'_>, space: &Space) -> Result<(), String> {
        let mm = space.address_space();
        if !space.is_unused() {
            return Err(format!("somebody is bound to address space {} still", space.id()));
        }
        self.stage.until(cx, "the last fault of an address space", || mm.is_idle())?;
        mm.is_gone();
        Ok(())
    }
}

/// Binds a device, uses the address space, and unbinds it in the middle.
pub struct Binder {
    stage: Stage,
    post: Post,
    current: Current,
    /// A stretch of each page is its alone.
    stretch: u64,
    rng: fastrand::Rng,
}

/// A device that is bound.
struct Bound {
    space: Arc<Space>,
    bonds: Vec<Bond<AnyPlatform>>,
    place: Place,
}

/// An access under way: where, what is written there, and what was at that page when it began.
type Open = (u64, Option<Vec<u8>>, Option<(Phys, u64)>, u64);

impl Binder {
    pub fn new(stage: &Stage, post: Post, current: Current, seed: u64) -> Binder {
        let stretch = PIECE as u64 * post.number;
        Binder { stage: stage.clone(), post, current, stretch, rng: fastrand::Rng::with_seed(seed) }
    }

    pub fn binds(mut self, cx: &Sleep<'_>, rounds: usize) -> Result<(), String> {
        let mut result = Ok(());
        for _ in 0..rounds {
            result = self.round(cx);
            if result.is_err() {
                break;
            }
        }
        self.post.state.lock().ended += 1;
        result
    }

    fn round(&mut self, cx: &Sleep<'_>) -> Result<(), String> {
        if self.post.is_closed() {
            return self.post.left(&self.stage, cx);
        }
        let Some(bound) = self.bind(cx)? else { return self.stage.sleep(cx, self.rng.u64(..STAYS)) };
        let actor = self.post.actor();
        for _ in 0..self.rng.u32(1..6) {
            let resets = actor.resets();
            let open = self.begins(&actor, &bound);
            if !self.post.is_closed() && self.rng.u32(..4) > 0 {
                self.compares(cx, &actor, resets, &bound, open)?;
                self.stage.sleep(cx, self.rng.u64(..IDLE))?;
                continue;
            }
            self.stage.sleep(cx, self.rng.u64(..IDLE / 8))?;
            let space = self.unbind(cx, bound)?;
            // What is under way then ends somehow, before anything else has the PASID.
            return self.ends(cx, &actor, resets, &space, open);
        }
        self.unbind(cx, bound).map(drop)
    }

    fn bind(&mut self, cx: &Sleep<'_>) -> Result<Option<Bound>, String> {
        let (before, space, actor) = (self.post.disturbances().1, self.current.space(), self.post.actor());
        let place = actor.at(Some(space.pasid().get()));
        self.stage.oracle.attach(place, space.id());
        let mut bonds = match space.bind(cx, &actor.device) {
            Ok(bond) => vec![bond],
            Err(why) => {
                self.stage.oracle.replaced(place, space.id());
                // Between the exit and the next one.
                let over = why == BindError::Exited;
                let refused = || self.post.refused(&self.stage, before, why.to_string());
                return if over { Ok(None) } else { refused().map(|()| None) };
            }
        };
        self.stage.count("devices bound", 1);
        if self.rng.u32(..4) == 0 {
            // As often as it likes, until the exit.
            bonds.extend(space.bind(cx, &actor.device).ok());
        }
        Ok(Some(Bound { space, bonds, place }))
    }

    fn unbind(&self, cx: &Sleep<'_>, bound: Bound) -> Result<Arc<Space>, String> {
        let Bound { space, bonds, place } = bound;
        let last = bonds.len() - 1;
        for (n, bond) in bonds.into_iter().enumerate() {
            let Some(detaching) = bond.unbind(cx) else {
                if n == last {
                    return Err("the last bond was not the last".into());
                }
                continue;
            };
            self.stage.oracle.detached(place, space.id());
            if n < last || detaching.lost() || detaching.wait(cx, None) != Waited::Gone {
                return Err(format!("{place:?} was not unbound as it should be"));
            }
        }
        self.stage.count("devices unbound", 1);
        Ok(space)
    }

    fn begins(&mut self, actor: &Actor, bound: &Bound) -> Vec<Open> {
        let (mm, pasid) = (bound.space.address_space(), Some(bound.space.pasid().get()));
        let mut open: Vec<Open> = Vec::new();
        for _ in 0..self.rng.u32(1..4) {
            let pages = (self.current.range.end - self.current.range.start) / PAGE;
            let page = self.current.range.start + self.rng.u64(..pages + 1) * PAGE;
            let there = mm.frame(page);
            // Two writes to one place may land in any order.
            if self.rng.bool() || open.iter().any(|o| o.0 == page && o.1.is_some()) {
                open.push((page, None, there, actor.begin(pasid, page, Intent::Read(MARK as u32))));
            } else {
                let data: Vec<u8> = (0..PIECE).map(|_| self.rng.u8(..)).collect();
                let ticket = actor.begin(pasid, page + self.stretch, Intent::Write(data.clone()));
                open.push((page, Some(data), there, ticket));
            }
        }
        open
    }

    /// What is read is of this address space and no other; what is written is where it belongs.
    fn compares(
        &self,
        cx: &Sleep<'_>,
        actor: &Actor,
        resets: u64,
        bound: &Bound,
        open: Vec<Open>,
    ) -> Result<(), String> {
        let mm = bound.space.address_space();
        for (page, written, there, ticket) in open {
            let Some(end) = self.ended(cx, actor, ticket, resets)? else { continue };
            match (end, written, there) {
                (Err(_), ..) => self.stage.count("accesses refused", 1),
                (Ok(data), None, _) => self.compares_read(mm, page, &data)?,
                (Ok(_), Some(data), Some((frame, number))) => {
                    let mut found = vec![0; data.len()];
                    let at = frame.0 + self.stretch;
                    self.stage.platform.ram().read(at, &mut found).map_err(|e| e.to_string())?;
                    if mm.frame(page) == Some((frame, number)) && found != data {
                        return Err(format!(
                            "{:#x} was written and holds something else",
                            page + self.stretch
                        ));
                    }
                    self.stage.count("writes to address spaces compared", 1);
                }
                (Ok(_), Some(_), None) => {}
            }
        }
        Ok(())
    }

    /// How an access ended; `None` where it need not: the device was reset, or is about to be unplugged, and
    /// may have fallen silent.
    fn ended(
        &self,
        cx: &Sleep<'_>,
        actor: &Actor,
        ticket: u64,
        resets: u64,
    ) -> Result<Option<Ended>, String> {
        let mut ended = None;
        self.stage.until(cx, "the end of an access", || {
            ended = actor.ended(ticket);
            ended.is_some() || actor.resets() != resets || self.post.is_closed()
        })?;
        Ok(ended)
    }

    fn compares_read(&self, mm: &Mm, page: u64, data: &[u8]) -> Result<(), String> {
        if data != mm.mark(page) {
            return Err(format!("{page:#x} reads {data:02x?}, which is not of the address space"));
        }
        self.stage.count("reads of address spaces compared", 1);
        Ok(())
    }

    /// The same after the unbind: what did not fail was through before.
    fn ends(
        &self,
        cx: &Sleep<'_>,
        actor: &Actor,
        resets: u64,
        space: &Space,
        open: Vec<Open>,
    ) -> Result<(), String> {
        for (page, written, _, ticket) in open {
            if let (Some(Ok(data)), None) = (self.ended(cx, actor, ticket, resets)?, written) {
                self.compares_read(space.address_space(), page, &data)?;
            }
        }
        Ok(())
    }
}
