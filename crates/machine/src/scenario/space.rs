//! An address space of the CPU, as a kernel would have it: its own table in the format of the CPU, pages
//! that come with a fault and are taken away again, and an end. The oracle is told of every page.

use super::stage::Stage;
use crate::{
    oracle::Place,
    pager::PAGE,
    platform::{AnyPlatform, MachinePlatform},
};
use parking_lot::Mutex;
use portcullis::{AddressSpace, Domain, Faulted, Request, Sleep, Sva, TableSource};
use portcullis_models::bus::{Pasid, RequesterId};
use portcullis_pgtable::{Config, FormatDesc, Gather, IoTable, Phys, Prot, Synced, Table, X86FirstStage};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// Nanoseconds that a fault takes.
const FAULT: u64 = 2_000;
/// Bytes of the mark that each page begins with.
pub const MARK: usize = 16;

/// The domain of an address space.
pub type Space = Domain<AnyPlatform, Sva<Mm>>;

/// An address space.
pub struct Mm {
    stage: Stage,
    table: Table<X86FirstStage, AnyPlatform>,
    /// What can be there.
    range: Range<u64>,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    /// `None` while a page is mapped, and from its unmap until no device can reach its frame: nobody else
    /// may use the address meanwhile.
    pages: BTreeMap<u64, Option<(Phys, u64)>>,
    /// What the oracle knows the domain and its handlers by, all of them under one place.
    domain: u64,
    handlers: Option<(Place, u64)>,
    /// It is being torn down.
    exits: bool,
    faults: u64,
    /// Faults that are under way.
    running: u64,
}

impl TableSource for Mm {
    fn desc(&self) -> FormatDesc {
        self.table.desc()
    }
    fn root(&self) -> Phys {
        self.table.root()
    }
}

impl AddressSpace for Mm {
    fn fault(&self, cx: &Sleep<'_>, request: &Request) -> Faulted {
        let Some((place, number)) = self.inside.lock().handlers else { return Faulted::NotMapped };
        self.inside.lock().running += 1;
        self.stage.oracle.handler_enters(place, number);
        self.stage.platform.sleep(cx, FAULT);
        let done = self.bring_in(request.address & !(PAGE - 1));
        self.stage.oracle.handler_leaves(place, number);
        self.inside.lock().running -= 1;
        if done { Faulted::Handled } else { Faulted::NotMapped }
    }
}

impl Mm {
    /// An address space whose pages can be in `range`, and its domain. The oracle hears of its handlers
    /// under the place that it has at device `of`.
    ///
    /// # Errors
    /// The core's reason.
    pub fn share(stage: &Stage, range: Range<u64>, of: RequesterId) -> Result<Space, String> {
        let config =
            Config { input_bits: 47, output_bits: 46, coherent: true, levels: 4, ..Config::default() };
        let table = Table::new(stage.platform.clone(), config).map_err(|e| e.to_string())?;
        let mm = Arc::new(Mm { stage: stage.clone(), table, range, inside: Mutex::default() });
        let space = stage.iommu.address_space_domain(mm.clone()).map_err(|e| e.to_string())?;
        let mut inside = mm.inside.lock();
        let place = (of, Pasid::new(space.pasid().get()));
        (inside.domain, inside.handlers) = (space.id(), Some((place, stage.number())));
        drop(inside);
        Ok(space)
    }

    /// What the page at an address begins with, in this address space and no other.
    pub fn mark(&self, iova: u64) -> [u8; MARK] {
        let mut mark = [0; MARK];
        mark[..8].copy_from_slice(&iova.to_le_bytes());
        mark[8..].copy_from_slice(&self.inside.lock().domain.to_le_bytes());
        mark
    }

    /// The frame that is at an address, and a number that is another one each time it came in.
    pub fn frame(&self, iova: u64) -> Option<(Phys, u64)> {
        self.inside.lock().pages.get(&iova).copied().flatten()
    }

    /// Whether no fault is under way.
    pub fn is_idle(&self) -> bool {
        self.inside.lock().running == 0
    }

    /// Faults so far.
    pub fn faults(&self) -> u64 {
        self.inside.lock().faults
    }

    /// Pages that are there now.
    pub fn pages(&self) -> Vec<u64> {
        self.inside.lock().pages.iter().filter(|(_, page)| page.is_some()).map(|(iova, _)| *iova).collect()
    }

    /// Makes a page present, for whoever asks: a fault of the CPU would do the same. Who is second finds
    /// it there, or about to leave, and asks again.
    pub fn bring_in(&self, iova: u64) -> bool {
        let (ram, number) = (self.stage.platform.ram(), self.stage.number());
        let Ok(frame) = ram.page() else { return false };
        let domain = {
            let mut inside = self.inside.lock();
            inside.faults += 1;
            let free = !inside.exits && self.range.contains(&iova) && !inside.pages.contains_key(&iova);
            if !free {
                ram.free_page(frame);
                return !inside.exits && self.range.contains(&iova);
            }
            inside.pages.insert(iova, None);
            inside.domain
        };
        let written = ram.write(frame.0, &self.mark(iova)).is_ok();
        self.stage.oracle.map(domain, iova, frame.0, PAGE, true);
        let mapped = written && self.table.map(iova, frame, PAGE, Prot::READ | Prot::WRITE).is_ok();
        if mapped {
            self.inside.lock().pages.insert(iova, Some((frame, number)));
        } else {
            self.left(domain, iova, frame);
        }
        mapped
    }

    /// No device can reach a page any more.
    fn left(&self, domain: u64, iova: u64, frame: Phys) {
        self.stage.oracle.unmapped(domain, iova);
        self.inside.lock().pages.remove(&iova);
        self.stage.platform.ram().free_page(frame);
    }

    /// Takes pages out, as the CPU side does: entries first, then the caches, then the frames.
    ///
    /// # Errors
    /// The table's reason, or that of `invalidate`.
    pub fn take_out(
        &self,
        iovas: &[u64],
        invalidate: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let mut gather = Gather::new();
        let mut frames = Vec::new();
        for iova in iovas {
            let page = self.inside.lock().pages.get_mut(iova).and_then(Option::take);
            let Some((frame, _)) = page else { continue };
            self.table.unmap(*iova, PAGE, &mut gather).map_err(|e| e.to_string())?;
            frames.push((*iova, frame));
        }
        invalidate()?;
        self.table.retire(gather.into_retired(), Synced::after_completed_invalidation());
        let domain = self.inside.lock().domain;
        frames.into_iter().for_each(|(iova, frame)| self.left(domain, iova, frame));
        Ok(())
    }

    /// Ends, whoever uses it: when this returns no device reaches what was there.
    ///
    /// # Errors
    /// The core's reason.
    pub fn exits(&self, cx: &Sleep<'_>, space: &Space) -> Result<(), String> {
        self.inside.lock().exits = true;
        // What comes in at this moment is taken out with the rest.
        self.stage.until(cx, "the last faults of an address space", || self.is_idle())?;
        space.exit(cx).map_err(|e| e.to_string())?;
        // No walker reads the table: nothing is left to be invalidated.
        self.take_out(&self.pages(), || Ok(()))
    }

    /// The last attachment is gone, and all handlers with it.
    pub fn is_gone(&self) {
        if let Some((_, number)) = self.inside.lock().handlers {
            self.stage.oracle.gone(number);
        }
    }
}
