//! Demand paging behind a domain: pages come in when a device asks for them, and go out when their
//! frames are needed.

use crate::{
    life::Life,
    oracle::{Oracle, Place},
    platform::{AnyPlatform, MachinePlatform},
};
use parking_lot::Mutex;
use portcullis::{Domain, External, PageGroup, Platform, Request, Resolver, Response, Sleep, Unmapping};
use portcullis_pgtable::{Phys, Prot};
use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::{Arc, OnceLock},
};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Nanoseconds that reading or writing back a page takes.
const STORAGE: u64 = 8_000;

/// An IOVA range backed by bytes.
pub struct Region {
    /// First IOVA, a multiple of the page size.
    pub start: u64,
    /// What is there while no frame holds it.
    pub bytes: Backing,
}

/// Where a region's bytes are.
pub enum Backing {
    /// Shared and never written.
    ReadOnly(Arc<[u8]>),
    /// The device's own.
    Writable(Vec<u8>),
}

impl Backing {
    fn len(&self) -> u64 {
        match self {
            Backing::ReadOnly(b) => b.len() as u64,
            Backing::Writable(b) => b.len() as u64,
        }
    }

    /// The page at an offset; behind the last byte are zeros.
    fn page(&self, offset: u64) -> Cow<'_, [u8]> {
        let all: &[u8] = match self {
            Backing::ReadOnly(b) => b,
            Backing::Writable(b) => b,
        };
        let rest = all.get(offset as usize..).unwrap_or_default();
        match rest.get(..PAGE as usize) {
            Some(page) => page.into(),
            None => {
                let mut page = rest.to_vec();
                page.resize(PAGE as usize, 0);
                page.into()
            }
        }
    }
}

impl Region {
    fn pages(&self) -> Range<u64> {
        self.start..self.start + self.bytes.len().next_multiple_of(PAGE)
    }

    fn writable(&self) -> bool {
        matches!(self.bytes, Backing::Writable(_))
    }
}

/// What a pager did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PagerCounts {
    /// Groups answered with Success.
    pub served: u64,
    /// Groups answered with Invalid: pages outside of every region, or writes to read-only ones.
    pub refused: u64,
    /// Groups that somebody else had answered first.
    pub too_late: u64,
    /// Pages filled and mapped.
    pub filled: u64,
    /// Pages unmapped, invalidated and given up.
    pub evicted: u64,
    /// Of these, pages written back.
    pub written_back: u64,
    /// Pages that the clock spared because a device had used them.
    pub spared: u64,
}

/// The pages of one attachment. Handed to attach as its data.
pub struct Space {
    /// The number by which the oracle knows the attachment.
    pub attachment: u64,
    place: Place,
    oracle: Oracle,
    life: Life,
    domain: OnceLock<Domain<AnyPlatform, External<Space>>>,
    /// Taken out by the resolver while it works; an attachment has one worker at a time.
    pager: Mutex<Option<Pager>>,
}

struct Pager {
    regions: Vec<Region>,
    free: Vec<Phys>,
    /// Resident pages by IOVA.
    resident: BTreeMap<u64, Phys>,
    /// The clock's hand: least recently faulted first.
    order: VecDeque<u64>,
    counts: PagerCounts,
}

impl Space {
    /// Pages over `frames`, for the attachment that the oracle knows by a number.
    pub fn new(
        attachment: u64,
        place: Place,
        regions: Vec<Region>,
        frames: Vec<Phys>,
        oracle: Oracle,
        life: Life,
    ) -> Arc<Space> {
        let pager = Pager {
            regions,
            free: frames,
            resident: BTreeMap::new(),
            order: VecDeque::new(),
            counts: PagerCounts::default(),
        };
        Arc::new(Space {
            attachment,
            place,
            oracle,
            life,
            domain: OnceLock::new(),
            pager: Mutex::new(Some(pager)),
        })
    }

    /// Says which domain the pages are mapped into. Once, before the first request.
    pub fn serve(&self, domain: &Domain<AnyPlatform, External<Space>>) {
        // A second domain for the same pages would be a mistake of the scenario: the first stays.
        let _ = self.domain.set(domain.clone());
    }

    /// What was done so far.
    pub fn counts(&self) -> PagerCounts {
        self.pager.lock().as_ref().map(|p| p.counts).unwrap_or_default()
    }

    /// Writes back and gives up everything that is resident, and returns the frames.
    ///
    /// # Errors
    /// When the hardware is lost: then the pages stay where they are.
    pub fn release(
        &self,
        platform: &AnyPlatform,
        cx: &Sleep<'_>,
    ) -> Result<Vec<Phys>, portcullis::error::SyncError> {
        let Some(mut pager) = self.pager.lock().take() else { return Ok(Vec::new()) };
        let mut result = Ok(());
        while let (Ok(()), Some(page)) = (result, pager.order.pop_front()) {
            result = self.evict(platform, cx, &mut pager, page).map(|frame| pager.free.push(frame));
        }
        let frames = std::mem::take(&mut pager.free);
        *self.pager.lock() = Some(pager);
        result.map(|()| frames)
    }

    /// The bytes of region `n`, once everything was released.
    pub fn take_bytes(&self, n: usize) -> Vec<u8> {
        let mut pager = self.pager.lock();
        match pager.as_mut().and_then(|p| p.regions.get_mut(n)) {
            Some(Region { bytes: Backing::Writable(b), .. }) => std::mem::take(b),
            Some(Region { bytes: Backing::ReadOnly(b), .. }) => b.to_vec(),
            None => Vec::new(),
        }
    }

    /// Makes one page present. `Ok(false)`: there is no such page for this access.
    fn bring_in(
        &self,
        platform: &AnyPlatform,
        cx: &Sleep<'_>,
        pager: &mut Pager,
        request: &Request,
        prgi: u16,
    ) -> Result<bool, portcullis::error::SyncError> {
        let page = request.address & !(PAGE - 1);
        let Some(n) = pager.regions.iter().position(|r| r.pages().contains(&page)) else { return Ok(false) };
        if request.write && !pager.regions[n].writable() {
            return Ok(false);
        }
        if pager.resident.contains_key(&page) {
            return Ok(true);
        }
        let (frame, evicted) = match pager.free.pop() {
            Some(frame) => (frame, None),
            None => {
                let Some(victim) = self.victim(pager) else { return Ok(false) };
                (self.evict(platform, cx, pager, victim)?, Some(victim))
            }
        };
        platform.sleep(cx, STORAGE);
        let region = &pager.regions[n];
        let content = region.bytes.page(page - region.start);
        let writable = region.writable();
        let prot = if writable { Prot::READ | Prot::WRITE } else { Prot::READ };
        let written = platform.ram().write(frame.0, &content).is_ok();
        let domain = self.domain.get();
        let mapped = match domain {
            Some(d) if written => {
                self.oracle.map(d.id(), page, frame.0, PAGE, writable);
                let done = d.map_range(page, frame, PAGE, prot).is_ok();
                if !done {
                    self.oracle.unmapped(d.id(), page);
                }
                done
            }
            _ => false,
        };
        if !mapped {
            pager.free.push(frame);
            return Ok(false);
        }
        pager.resident.insert(page, frame);
        pager.order.push_back(page);
        pager.counts.filled += 1;
        self.life.mapped(platform.now().0, self.place.0, prgi, page, frame.0, evicted);
        Ok(true)
    }

    /// Whose frame is taken: the page least recently faulted, or, where the format keeps accessed
    /// bits, the first that no device has used since the hand last passed.
    fn victim(&self, pager: &mut Pager) -> Option<u64> {
        let domain = self.domain.get()?;
        for _ in 0..pager.order.len() {
            let page = pager.order.pop_front()?;
            match domain.accessed(page, PAGE, true) {
                Ok(true) => {
                    pager.counts.spared += 1;
                    pager.order.push_back(page);
                }
                Ok(false) | Err(_) => return Some(page),
            }
        }
        pager.order.pop_front()
    }

    /// Unmaps, invalidates, writes back: in that order, since until the invalidation is complete
    /// the device still writes.
    fn evict(
        &self,
        platform: &AnyPlatform,
        cx: &Sleep<'_>,
        pager: &mut Pager,
        page: u64,
    ) -> Result<Phys, portcullis::error::SyncError> {
        let Some(frame) = pager.resident.remove(&page) else { return Ok(Phys(0)) };
        if let Some(domain) = self.domain.get() {
            let mut unmapping: Unmapping<'_, AnyPlatform> = domain.unmapping();
            let removed = unmapping.unmap(page, PAGE);
            debug_assert!(removed.is_ok(), "a resident page is mapped: {removed:?}");
            unmapping.sync(cx)?;
            self.oracle.unmapped(domain.id(), page);
        }
        pager.counts.evicted += 1;
        let region = pager.regions.iter_mut().find(|r| r.pages().contains(&page));
        if let Some(Region { start, bytes: Backing::Writable(bytes) }) = region {
            platform.sleep(cx, STORAGE);
            let from = (page - *start) as usize;
            let to = bytes.len().min(from + PAGE as usize);
            if let Some(page) = bytes.get_mut(from..to) {
                // The frame is in memory: it was given by it.
                let read = platform.ram().read(frame.0, page);
                debug_assert!(read.is_ok(), "{read:?}");
            }
            pager.counts.written_back += 1;
        }
        Ok(frame)
    }
}

/// The resolver of a demand-paged domain.
pub struct Paging(pub AnyPlatform);

impl Resolver<AnyPlatform, Space> for Paging {
    fn resolve(&self, cx: &Sleep<'_>, space: &Arc<Space>, group: PageGroup<'_, AnyPlatform>) {
        let platform = &self.0;
        space.oracle.handler_enters(space.place, space.attachment);
        let prgi = group.index();
        space.life.resolving(platform.now().0, space.place.0, prgi, group.len());
        let taken = space.pager.lock().take();
        if let Some(mut pager) = taken {
            let mut all = true;
            for request in group.requests() {
                all &= matches!(space.bring_in(platform, cx, &mut pager, &request, prgi), Ok(true));
            }
            let (response, code) =
                if all { (Response::Success, "Success") } else { (Response::Invalid, "Invalid") };
            space.life.answered(platform.now().0, space.place.0, prgi, code);
            match group.respond(response) {
                Ok(()) if all => pager.counts.served += 1,
                Ok(()) => pager.counts.refused += 1,
                Err(_) => pager.counts.too_late += 1,
            }
            *space.pager.lock() = Some(pager);
        }
        space.oracle.handler_leaves(space.place, space.attachment);
    }
}
