//! Domains and attachments of small scenarios, with the oracle told of every step.

use super::{actor::Actor, stage::Stage};
use crate::{
    oracle::{Oracle, Place},
    pager::PAGE,
    platform::{AnyPlatform, MachinePlatform},
};
use parking_lot::Mutex;
use portcullis::{
    Attachment, Detaching, Device, Domain, DomainOptions, External, Gap, PageGroup, Pasid, Replaced,
    Resolver, Response, Sleep, Waited,
    driver::{Stage as TableStage, TableRequest},
};
use portcullis_models::bus::Pasid as BusPasid;
use portcullis_pgtable::{Phys, Prot};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// How a resolver goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Maps what is asked for, after so many nanoseconds of sleep.
    Serve(u64),
    /// Says Invalid, after so many nanoseconds.
    Refuse(u64),
}

/// The data of an attachment.
pub struct Tenant {
    number: u64,
    place: Place,
    epoch: u64,
    room: Room,
}

type Dom = Domain<AnyPlatform, External<Tenant>>;

/// A domain. A handle.
#[derive(Clone)]
pub struct Room {
    stage: Stage,
    domain: Dom,
    inside: Arc<Inside>,
}

struct Inside {
    /// What its resolver makes present.
    range: Range<u64>,
    manner: Mutex<Manner>,
    pages: Mutex<BTreeMap<u64, Page>>,
    entered: Mutex<u64>,
    served: Mutex<u64>,
    refused: Mutex<u64>,
}

#[derive(Clone, Copy)]
struct Page {
    frame: Phys,
    /// Differs each time it is mapped.
    number: u64,
    /// False while it is being mapped, and from its unmap until that is synced: nobody else may
    /// use its address meanwhile.
    there: bool,
}

/// An attachment.
pub struct Lodger {
    attachment: Attachment<AnyPlatform>,
    place: Place,
    room: Room,
    number: u64,
}

/// A detach that was begun.
pub struct Leaving {
    detaching: Detaching<AnyPlatform>,
    number: u64,
    oracle: Oracle,
}

impl Stage {
    /// A domain whose mappings the scenario makes.
    ///
    /// # Errors
    /// The core's reason.
    pub fn room(&self, devices: &[&Actor], stage: TableStage) -> Result<Room, String> {
        self.make_room(devices, TableRequest { stage, ..TableRequest::default() }, 0..0, None)
    }

    /// A domain whose mappings the scenario makes, in which writes can be tracked.
    ///
    /// # Errors
    /// The core's reason.
    pub fn tracked_room(&self, devices: &[&Actor], stage: TableStage) -> Result<Room, String> {
        let table = TableRequest { stage, dirty: true, ..TableRequest::default() };
        self.make_room(devices, table, 0..0, None)
    }

    /// A domain that is paged in on demand within `range`.
    ///
    /// # Errors
    /// The core's reason.
    pub fn paged_room(
        &self,
        devices: &[&Actor],
        stage: TableStage,
        range: Range<u64>,
        manner: Manner,
    ) -> Result<Room, String> {
        let table = TableRequest { stage, ..TableRequest::default() };
        self.make_room(devices, table, range, Some(manner))
    }

    fn make_room(
        &self,
        devices: &[&Actor],
        table: TableRequest,
        range: Range<u64>,
        manner: Option<Manner>,
    ) -> Result<Room, String> {
        let devices: Vec<&Device<AnyPlatform>> = devices.iter().map(|a| &a.device).collect();
        let options = DomainOptions { table, ..DomainOptions::default() };
        let domain = self.iommu.external_domain(&devices, options, manner.map(|_| Host(self.clone())));
        let manner = Mutex::new(manner.unwrap_or(Manner::Refuse(0)));
        let inside = Inside {
            range,
            manner,
            pages: Mutex::default(),
            entered: Mutex::default(),
            served: Mutex::default(),
            refused: Mutex::default(),
        };
        Ok(Room { stage: self.clone(), domain: domain.map_err(|e| e.to_string())?, inside: Arc::new(inside) })
    }
}

impl Room {
    /// The number of its domain.
    pub fn id(&self) -> u64 {
        self.domain.id()
    }

    /// The domain itself, for what the room does not do.
    pub fn domain(&self) -> &Dom {
        &self.domain
    }

    /// Changes how its resolver goes about it.
    pub fn set_manner(&self, manner: Manner) {
        *self.inside.manner.lock() = manner;
    }

    /// Groups answered with Success and with Invalid so far.
    pub fn answered(&self) -> (u64, u64) {
        (*self.inside.served.lock(), *self.inside.refused.lock())
    }

    /// Groups that its resolver was given so far.
    pub fn entered(&self) -> u64 {
        *self.inside.entered.lock()
    }

    /// The frame that is mapped at a page.
    pub fn frame(&self, iova: u64) -> Option<Phys> {
        self.inside.pages.lock().get(&iova).filter(|p| p.there).map(|p| p.frame)
    }

    /// The same with a number that is another one each time it is mapped.
    pub fn frame_and_number(&self, iova: u64) -> Option<(Phys, u64)> {
        self.inside.pages.lock().get(&iova).filter(|p| p.there).map(|p| (p.frame, p.number))
    }

    /// Pages mapped now.
    pub fn pages(&self) -> Vec<u64> {
        self.inside.pages.lock().iter().filter(|(_, p)| p.there).map(|(iova, _)| *iova).collect()
    }

    /// Maps a fresh frame that begins with the page's address and the domain's number, so that
    /// whoever reads it knows what it read.
    ///
    /// # Errors
    /// The core's reason.
    pub fn map(&self, iova: u64, write: bool) -> Result<Phys, String> {
        let ram = self.stage.platform.ram();
        let frame = ram.page().map_err(|e| e.to_string())?;
        let number = self.stage.number();
        {
            let mut pages = self.inside.pages.lock();
            if pages.contains_key(&iova) {
                ram.free_page(frame);
                return Err(format!("{iova:#x} is mapped, or about to be"));
            }
            pages.insert(iova, Page { frame, number, there: false });
        }
        ram.write(frame.0, &self.mark(iova)).map_err(|e| e.to_string())?;
        self.stage.oracle.map(self.id(), iova, frame.0, PAGE, write);
        let prot = if write { Prot::READ | Prot::WRITE } else { Prot::READ };
        let mapped = self.domain.map_range(iova, frame, PAGE, prot);
        let mut pages = self.inside.pages.lock();
        if let Err(e) = mapped {
            pages.remove(&iova);
            self.stage.oracle.unmapped(self.id(), iova);
            ram.free_page(frame);
            return Err(e.to_string());
        }
        pages.insert(iova, Page { frame, number, there: true });
        Ok(frame)
    }

    /// What [`map`](Room::map) writes to the begin of a page.
    pub fn mark(&self, iova: u64) -> [u8; 16] {
        let mut mark = [0; 16];
        mark[..8].copy_from_slice(&iova.to_le_bytes());
        mark[8..].copy_from_slice(&self.id().to_le_bytes());
        mark
    }

    /// Unmaps pages in one go and frees their frames once no device can reach them.
    ///
    /// # Errors
    /// The core's reason; then the frames stay where they are.
    pub fn unmap(&self, cx: &Sleep<'_>, pages: &[u64]) -> Result<(), String> {
        let mut unmapping = self.domain.unmapping();
        let mut frames = Vec::new();
        for &iova in pages {
            let Some(frame) = self.leaves(iova) else { continue };
            unmapping.unmap(iova, PAGE).map_err(|e| e.to_string())?;
            frames.push((iova, frame));
        }
        unmapping.sync(cx).map_err(|e| e.to_string())?;
        for (iova, frame) in frames {
            self.left(iova, frame);
        }
        Ok(())
    }

    /// Marks a page as leaving, so that nobody else unmaps it, and returns its frame.
    fn leaves(&self, iova: u64) -> Option<Phys> {
        let mut pages = self.inside.pages.lock();
        let page = pages.get_mut(&iova).filter(|p| p.there)?;
        page.there = false;
        Some(page.frame)
    }

    /// The sync of a page's unmap has returned.
    fn left(&self, iova: u64, frame: Phys) {
        self.stage.oracle.unmapped(self.id(), iova);
        self.inside.pages.lock().remove(&iova);
        self.stage.platform.ram().free_page(frame);
    }

    fn tenant(&self, actor: &Actor, pasid: Option<u32>) -> Arc<Tenant> {
        let place = actor.at(pasid);
        let epoch = self.stage.oracle.epoch(place);
        Arc::new(Tenant { number: self.stage.number(), place, epoch, room: self.clone() })
    }

    /// Attaches a device, or one PASID of it.
    ///
    /// # Errors
    /// The core's reason.
    pub fn attach(&self, cx: &Sleep<'_>, actor: &Actor, pasid: Option<u32>) -> Result<Lodger, String> {
        let Stage { iommu, oracle, .. } = &self.stage;
        let tenant = self.tenant(actor, pasid);
        let (place, number) = (tenant.place, tenant.number);
        oracle.attach(place, self.id());
        let to = pasid.and_then(Pasid::new);
        match iommu.attach(cx, &self.domain, &actor.device, to, tenant) {
            Ok(attachment) => Ok(Lodger { attachment, place, room: self.clone(), number }),
            Err(e) => {
                oracle.replaced(place, self.id());
                Err(e.to_string())
            }
        }
    }
}

impl Lodger {
    /// Where it is.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Begins to detach; the place is free when this returns.
    ///
    /// # Errors
    /// When the hardware is lost.
    pub fn begin_detach(self, cx: &Sleep<'_>) -> Result<Leaving, String> {
        let oracle = self.room.stage.oracle.clone();
        let detaching = self.attachment.begin_detach(cx);
        oracle.detached(self.place, self.room.id());
        if detaching.lost() {
            return Err("the hardware was lost at detach".into());
        }
        Ok(Leaving { detaching, number: self.number, oracle })
    }

    /// Detaches and waits until it is gone.
    ///
    /// # Errors
    /// When the hardware is lost or the run ends.
    pub fn detach(self, cx: &Sleep<'_>) -> Result<(), String> {
        self.begin_detach(cx)?.wait(cx)
    }

    /// Replaces it by an attachment to another domain. `Ok(Err(old))`: refused.
    ///
    /// # Errors
    /// When the hardware is lost.
    pub fn replace(
        self,
        cx: &Sleep<'_>,
        actor: &Actor,
        to: &Room,
        gap: Gap,
    ) -> Result<Result<(Lodger, Leaving, Replaced), Lodger>, String> {
        let Lodger { attachment, place, room, number } = self;
        let Stage { iommu, oracle, .. } = &room.stage;
        let tenant = to.tenant(actor, place.1.map(BusPasid::get));
        let new = tenant.number;
        oracle.attach(place, to.id());
        match iommu.replace(cx, attachment, &to.domain, tenant, gap) {
            Ok((attachment, detaching, how)) => {
                oracle.replaced(place, room.id());
                let oracle = oracle.clone();
                let lodger = Lodger { attachment, place, room: to.clone(), number: new };
                Ok(Ok((lodger, Leaving { detaching, number, oracle }, how)))
            }
            Err((Some(attachment), _)) => {
                oracle.replaced(place, to.id());
                Ok(Err(Lodger { attachment, place, room, number }))
            }
            Err((None, e)) => Err(e.to_string()),
        }
    }
}

impl Leaving {
    /// Waits until no handler runs.
    ///
    /// # Errors
    /// When the run ends.
    pub fn wait(self, cx: &Sleep<'_>) -> Result<(), String> {
        match self.detaching.wait(cx, None) {
            Waited::Gone => {
                self.oracle.gone(self.number);
                Ok(())
            }
            other => Err(format!("the detach ended with {other:?}")),
        }
    }
}

/// The resolver of a paged room.
struct Host(Stage);

impl Resolver<AnyPlatform, Tenant> for Host {
    fn resolve(&self, cx: &Sleep<'_>, tenant: &Arc<Tenant>, group: PageGroup<'_, AnyPlatform>) {
        let Stage { platform, oracle, .. } = &self.0;
        oracle.handler_enters(tenant.place, tenant.number);
        oracle.delivered(tenant.place, tenant.epoch, group.index());
        let inside = &tenant.room.inside;
        *inside.entered.lock() += 1;
        let manner = *inside.manner.lock();
        let (ns, serve) = match manner {
            Manner::Serve(ns) => (ns, true),
            Manner::Refuse(ns) => (ns, false),
        };
        if ns > 0 {
            platform.sleep(cx, ns);
        }
        let all = serve && group.requests().all(|r| tenant.room.bring_in(r.address & !(PAGE - 1)));
        let response = if all { Response::Success } else { Response::Invalid };
        if group.respond(response).is_ok() {
            *(if all { inside.served.lock() } else { inside.refused.lock() }) += 1;
        }
        platform.yield_now();
        oracle.handler_leaves(tenant.place, tenant.number);
    }
}

impl Room {
    fn bring_in(&self, page: u64) -> bool {
        if !self.inside.range.contains(&page) {
            return false;
        }
        // Two devices may ask for one page: whoever is second finds it there, or about to be, and
        // asks again where it was not there yet.
        let known = self.inside.pages.lock().contains_key(&page);
        known || self.map(page, true).is_ok() || self.inside.pages.lock().contains_key(&page)
    }
}
