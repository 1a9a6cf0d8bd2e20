//! The MSI window: IOVAs that an owner keeps free for the doorbells of interrupt controllers, where
//! a device's MSI writes are translated like any other (Arm, RISC-V). It belongs to the owner and
//! has nothing to do with faults.
//!
//! On x86 a message to the interrupt range is an interrupt and never translated: that range is
//! reserved, and its addresses are refused as doorbells like every other range that is never an
//! output.

use super::Maps;
use crate::{
    domain::{Domain, DomainInner},
    error::{DomainError, DomainMapError, MsiError, OutOfMemory},
    op::block_on,
    platform::{Platform, ShortLock, Sleep},
    reserved::{RegionKind, ReservedRegion},
};
use alloc::vec::Vec;
use core::{future::poll_fn, task::Poll};
use portcullis_pgtable::{MapError, Phys, Prot};

/// Where doorbells are mapped. The owner cannot map or unmap there itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiWindow {
    /// First IOVA, a multiple of the table's smallest page.
    pub base: u64,
    /// Bytes, a multiple of the table's smallest page, at most [`MsiWindow::MOST_PAGES`] of them.
    pub len: u64,
}

impl MsiWindow {
    /// Most pages, and so most doorbells, of one window.
    pub const MOST_PAGES: u64 = 256;

    /// Last IOVA; `None` for a window that wraps or is empty.
    fn last(&self) -> Option<u64> {
        self.base.checked_add(self.len.checked_sub(1)?)
    }
}

/// A page of a window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Page {
    Free,
    /// Somebody maps this doorbell there now.
    Claimed(Phys),
    /// It leads to this doorbell.
    Leads(Phys),
}

/// A window and where each of its pages leads.
pub(crate) struct Window<P: Platform> {
    base: u64,
    granule: u64,
    pages: P::Lock<Vec<Page>>,
}

/// Where a doorbell is.
enum Place {
    /// Mapped, at this IOVA.
    Mapped(u64),
    /// At this page, for the caller to map.
    Claimed(usize),
    Full,
}

impl<P: Platform> Window<P> {
    fn place(&self, doorbell: Phys) -> Poll<Place> {
        self.pages.with(|pages| {
            let find = |pages: &[Page], page| pages.iter().position(|p| *p == page);
            if let Some(i) = find(pages, Page::Leads(doorbell)) {
                return Poll::Ready(Place::Mapped(self.iova(i)));
            }
            if find(pages, Page::Claimed(doorbell)).is_some() {
                return Poll::Pending;
            }
            let Some(i) = find(pages, Page::Free) else { return Poll::Ready(Place::Full) };
            pages[i] = Page::Claimed(doorbell);
            Poll::Ready(Place::Claimed(i))
        })
    }

    fn iova(&self, i: usize) -> u64 {
        self.base + i as u64 * self.granule
    }
}

/// A page that is being mapped; free again on drop, unless it was.
struct Claim<'a, P: Platform> {
    domain: &'a DomainInner<P>,
    window: &'a Window<P>,
    page: usize,
    becomes: Page,
}

impl<P: Platform> Drop for Claim<'_, P> {
    fn drop(&mut self) {
        self.window.pages.with(|pages| pages[self.page] = self.becomes);
        self.domain.shared.hub.progressed();
    }
}

impl<P: Platform> DomainInner<P> {
    /// Gives the domain a window. From here on its owner cannot map there.
    pub(crate) fn open_window(&mut self, wanted: MsiWindow) -> Result<(), DomainError> {
        let refuse = |why| Err(DomainError::MsiWindow { base: wanted.base, len: wanted.len, why });
        let Some((desc, last)) = self.desc().zip(wanted.last()) else {
            return refuse("it is empty or wraps");
        };
        let granule = 1u64 << desc.page_sizes.trailing_zeros().min(63);
        if (wanted.base | wanted.len) & (granule - 1) != 0 {
            return refuse("it does not consist of whole pages");
        }
        if last >> desc.input_bits.min(63) != 0 {
            return refuse("it ends beyond the table's input width");
        }
        let count = wanted.len / granule;
        if count > MsiWindow::MOST_PAGES {
            return refuse("it has more pages than doorbells are kept track of");
        }
        if self.reserve(ReservedRegion::closed(wanted.base, wanted.len, RegionKind::SoftwareMsi))?.is_some() {
            return refuse("it touches a range that requester ids cannot translate");
        }
        let mut pages = Vec::new();
        pages.try_reserve_exact(count as usize).map_err(|_| OutOfMemory)?;
        pages.resize(count as usize, Page::Free);
        let pages = self.shared.hub.platform.lock(pages);
        self.window = Some(Window { base: wanted.base, granule, pages });
        Ok(())
    }
}

impl<P: Platform, O: Maps> Domain<P, O> {
    /// Maps the page of a doorbell into the MSI window, for writes, and returns the IOVA that a
    /// device's MSI must go to. A doorbell that is there already is not mapped again. Sleeps while
    /// another caller maps the same one.
    ///
    /// # Errors
    /// See [`MsiError`].
    pub fn map_msi(&self, cx: &Sleep<'_>, doorbell: Phys) -> Result<u64, MsiError> {
        let domain = &*self.inner;
        let window = domain.window.as_ref().ok_or(MsiError::NoWindow)?;
        let page = Phys(doorbell.0 & !(window.granule - 1));
        let offset = doorbell.0 - page.0;
        domain.check_output(page, window.granule)?;
        let place = block_on(&domain.shared.hub, cx, poll_fn(|_| window.place(page)));
        let i = match place.map_err(|_| MsiError::Shutdown)? {
            Place::Mapped(iova) => return Ok(iova + offset),
            Place::Claimed(i) => i,
            Place::Full => return Err(MsiError::Full(doorbell)),
        };
        let mut claim = Claim { domain, window, page: i, becomes: Page::Free };
        let iova = window.iova(i);
        map_doorbell(domain, iova, page, window.granule)?;
        claim.becomes = Page::Leads(page);
        Ok(iova + offset)
    }
}

/// For writes, and for reads where the format knows no memory that is only written. Never for
/// execution.
fn map_doorbell<P: Platform>(
    domain: &DomainInner<P>,
    iova: u64,
    page: Phys,
    len: u64,
) -> Result<(), DomainMapError> {
    let write = Prot::WRITE | Prot::MMIO;
    match domain.map_anywhere(iova, page, len, write) {
        Err(MapError::Permissions { .. }) => Ok(domain.map_anywhere(iova, page, len, write | Prot::READ)?),
        done => Ok(done?),
    }
}
