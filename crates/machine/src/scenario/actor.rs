//! Devices of scenarios: endpoints that do what they are told, and what the core knows of them.

use super::stage::{LOOK, Stage};
use crate::{
    board::Board,
    machine,
    oracle::Place,
    platform::{AnyPlatform, MachinePlatform},
};
use parking_lot::Mutex;
use portcullis::{Device, Sleep};
use portcullis_models::{
    adversary::Adversary,
    bus::{Pasid, Prefix, RequesterId},
    endpoint::{Endpoint, Engine, Failure, Intent, Port},
};
use std::{collections::BTreeMap, sync::Arc};

/// How an access ended.
pub type Ended = Result<Vec<u8>, Failure>;

#[derive(Default)]
struct Results {
    ended: BTreeMap<u64, Ended>,
    resets: u64,
}

/// A device on the stage: the endpoint and what the core knows of it.
#[derive(Clone)]
pub struct Actor {
    stage: Stage,
    /// Its requester id.
    pub id: RequesterId,
    /// Its place in the complex.
    pub place: usize,
    /// The core's handle.
    pub device: Device<AnyPlatform>,
    results: Arc<Mutex<Results>>,
}

impl Stage {
    /// Plugs an endpoint in that does what it is told, and adds its device.
    ///
    /// # Errors
    /// The core's reason.
    pub fn device(&self, cx: &Sleep<'_>, id: u16, trusted: bool) -> Result<Actor, String> {
        let results = Arc::new(Mutex::new(Results::default()));
        let hand = Box::new(Hand(results.clone()));
        self.device_with(cx, id, trusted, hand).map(|a| Actor { results, ..a })
    }

    /// The same with another engine: its accesses are not the scenario's.
    ///
    /// # Errors
    /// The core's reason.
    pub fn device_with(
        &self,
        cx: &Sleep<'_>,
        id: u16,
        trusted: bool,
        engine: Box<dyn Engine>,
    ) -> Result<Actor, String> {
        let rid = RequesterId(id);
        let endpoint = Endpoint::new(rid, self.setting.seed ^ u64::from(id) << 32, engine);
        let (place, spec) = machine::plug(&self.platform, endpoint, trusted);
        let device = self.iommu.add_device(cx, spec).map_err(|e| e.to_string())?;
        self.casts(place, trusted, &device);
        Ok(Actor { stage: self.clone(), id: rid, place, device, results: Arc::default() })
    }

    /// Tells the core that a device is no more. What it was attached to was detached before.
    ///
    /// # Errors
    /// The core's reason.
    pub fn unplug(&self, cx: &Sleep<'_>, actor: &Actor) -> Result<(), String> {
        self.cast.lock().remove(&actor.place);
        self.iommu.remove_device(cx, actor.device.clone()).map_err(|(_, e)| e.to_string())
    }

    /// Tells the core of an unplugged device again, which has forgotten everything meanwhile.
    ///
    /// # Errors
    /// The core's reason.
    pub fn plug_again(&self, cx: &Sleep<'_>, actor: &Actor, trusted: bool) -> Result<Actor, String> {
        let spec = machine::spec(&self.platform, actor.place, actor.id, trusted);
        // A fresh function: its reset is what it comes out of.
        spec.control.reset();
        let device = self.iommu.add_device(cx, spec).map_err(|e| e.to_string())?;
        self.casts(actor.place, trusted, &device);
        Ok(Actor { device, ..actor.clone() })
    }

    fn casts(&self, place: usize, trusted: bool, device: &Device<AnyPlatform>) {
        let role = if trusted { "trusted" } else { "not trusted, no ATS" };
        self.cast.lock().insert(place, (role.into(), device.clone()));
    }
}

impl Actor {
    /// Where it translates: by its requester id, or inside a PASID.
    pub fn at(&self, pasid: Option<u32>) -> Place {
        (self.id, pasid.and_then(Pasid::new))
    }

    /// Calls `f` with the endpoint.
    pub fn endpoint<R>(&self, f: impl FnOnce(&mut Endpoint) -> R) -> Option<R> {
        self.stage.platform.hardware::<Board, _>(|b| b.complex.endpoint_mut(self.place).map(f)).flatten()
    }

    /// Begins an access.
    pub fn begin(&self, pasid: Option<u32>, iova: u64, intent: Intent) -> u64 {
        let prefix = pasid.and_then(Pasid::new).map(Prefix::user);
        let ticket = self.endpoint(|e| {
            e.port_mut().set_prefix(prefix);
            e.port_mut().access(iova, intent)
        });
        ticket.unwrap_or(0)
    }

    /// How an access ended, if it did.
    pub fn ended(&self, ticket: u64) -> Option<Ended> {
        self.results.lock().ended.remove(&ticket)
    }

    /// Waits for the end of an access.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(&self, cx: &Sleep<'_>, ticket: u64) -> Result<Ended, String> {
        let mut result = None;
        self.stage.until(cx, "the end of an access", || {
            result = self.results.lock().ended.remove(&ticket);
            result.is_some()
        })?;
        result.ok_or_else(|| format!("{}: access {ticket} did not end", self.id))
    }

    /// Whether the endpoint was told to use no translations of its own any more: an answer of
    /// "unsupported request" does that, until its reset.
    pub fn has_lost_ats(&self) -> bool {
        self.device.features().ats && self.endpoint(|e| e.capabilities().ats().is_none()) == Some(true)
    }

    /// Times the endpoint was reset so far.
    pub fn resets(&self) -> u64 {
        self.results.lock().resets
    }

    /// Waits for the end of an access that was begun when there had been `resets`; `None` where the
    /// endpoint was reset since and has forgotten it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end_unless_reset(
        &self,
        cx: &Sleep<'_>,
        ticket: u64,
        resets: u64,
    ) -> Result<Option<Ended>, String> {
        let mut result = None;
        self.stage.until(cx, "the end of an access", || {
            let mut results = self.results.lock();
            result = results.ended.remove(&ticket);
            result.is_some() || results.resets != resets
        })?;
        Ok(result)
    }

    /// One access, begun and ended.
    ///
    /// # Errors
    /// When it does not end.
    pub fn access(
        &self,
        cx: &Sleep<'_>,
        pasid: Option<u32>,
        iova: u64,
        intent: Intent,
    ) -> Result<Ended, String> {
        let ticket = self.begin(pasid, iova, intent);
        self.end(cx, ticket)
    }

    /// An access that has to succeed. One whose page request the hardware refuses, as the adversary
    /// has it do, is tried again.
    ///
    /// # Errors
    /// When it fails.
    pub fn must(
        &self,
        cx: &Sleep<'_>,
        pasid: Option<u32>,
        iova: u64,
        intent: Intent,
    ) -> Result<Vec<u8>, String> {
        let threads = self.stage.on_threads();
        let tries = if self.stage.is_calm() && !threads { 1 } else { 64 };
        let mut last = None;
        for n in 0..tries {
            match self.access(cx, pasid, iova, intent.clone())? {
                Ok(data) => return Ok(data),
                Err(failure) => last = Some(failure),
            }
            if threads {
                // There hardware is fast beside software: what is in the way takes longer to go.
                self.stage.sleep(cx, LOOK << (n / 4))?;
            }
        }
        Err(format!("{} at {iova:#x}, PASID {pasid:?}: {last:?}", self.id))
    }

    /// An access that has to fail.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn must_not(
        &self,
        cx: &Sleep<'_>,
        pasid: Option<u32>,
        iova: u64,
        intent: Intent,
    ) -> Result<Failure, String> {
        match self.access(cx, pasid, iova, intent)? {
            Err(failure) => Ok(failure),
            Ok(_) => Err(format!("{} at {iova:#x}, PASID {pasid:?}: it was let through", self.id)),
        }
    }

    /// Waits until the engine has fallen silent.
    ///
    /// # Errors
    /// When the run ends.
    pub fn until_silent(&self, cx: &Sleep<'_>) -> Result<(), String> {
        let look = || {
            self.endpoint(|e| {
                let s = e.statistics();
                let blocked = s.blocked.values().sum::<u64>();
                (s.page_requests, s.accesses, blocked, e.port().outstanding())
            })
        };
        let (mut before, mut same) = (look(), 0);
        while same < 20 {
            self.stage.sleep(cx, 10_000)?;
            let now = look();
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
        Ok(())
    }
}

/// An engine without a will: the scenario begins accesses, and reads here how they ended.
struct Hand(Arc<Mutex<Results>>);

impl Engine for Hand {
    fn wants(&self, _: &Port) -> bool {
        false
    }

    fn step(&mut self, _: &mut Port, _: &mut Adversary, _: usize) {}

    fn ended(&mut self, _: &mut Port, ticket: u64, result: Result<Vec<u8>, Failure>) {
        self.0.lock().ended.insert(ticket, result);
    }

    fn reset(&mut self) {
        let mut results = self.0.lock();
        results.ended.clear();
        results.resets += 1;
    }
}
