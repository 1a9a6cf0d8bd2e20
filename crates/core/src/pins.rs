//! Direct regions in a domain: mapped one to one for the devices that need them, closed to the
//! domain's owner, and taken out when the last device that needs them has left.

use crate::{
    domain::DomainInner,
    driver::HwLost,
    platform::{Platform, ShortLock},
    reserved::ReservedRegion,
    sync::{Unmapping, flush},
};
use alloc::{sync::Arc, vec::Vec};
use core::{future::poll_fn, task::Poll};
use portcullis_pgtable::{IoTable, MapError, Phys, Prot};
use portcullis_sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What of a domain is mapped for direct regions.
pub(crate) struct Pins<P: Platform> {
    /// How many regions are pinned: an unmap looks here first.
    count: AtomicUsize,
    state: P::Lock<State>,
}

#[derive(Default)]
struct State {
    /// Somebody pins or unpins.
    turning: bool,
    /// What was taken out last is not invalidated yet.
    stale: bool,
    /// First and last address of each region, as often as it is needed.
    wanted: Vec<(u64, u64)>,
    /// What was mapped for them, and not by the owner: start and length.
    ours: Vec<(u64, u64)>,
}

/// A region that could not be mapped. Nothing changed.
#[derive(Clone, Copy)]
pub(crate) struct NotPinned {
    pub(crate) start: u64,
    pub(crate) why: MapError,
}

impl<P: Platform> Pins<P> {
    pub(crate) fn new(platform: &P) -> Pins<P> {
        Pins { count: AtomicUsize::new(0), state: platform.lock(State::default()) }
    }

    /// The first address of a range that belongs to a direct region.
    pub(crate) fn touches(&self, iova: u64, len: u64) -> Option<u64> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let last = iova.saturating_add(len.saturating_sub(1));
        self.state.with(|s| {
            let touched = s.wanted.iter().filter(|(first, end)| *first <= last && iova <= *end);
            touched.map(|(first, _)| (*first).max(iova)).min()
        })
    }

    fn turn(&self) -> Poll<()> {
        let free = self.state.with(|s| !core::mem::replace(&mut s.turning, true));
        if free { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Notes regions, all or none.
    fn want<'r>(&self, regions: impl Iterator<Item = &'r ReservedRegion> + Clone) -> Result<(), ()> {
        let more = regions.clone().count();
        let mut wanted: Vec<(u64, u64)> = Vec::new();
        // The turn is ours, so nobody else changes the list.
        let had = self.state.with(|s| s.wanted.len());
        wanted.try_reserve_exact(had + more).map_err(|_| ())?;
        let old = self.state.with(|s| {
            wanted.extend_from_slice(&s.wanted);
            wanted.extend(regions.map(|r| (r.start, r.last())));
            self.count.store(wanted.len(), Ordering::Release);
            core::mem::replace(&mut s.wanted, wanted)
        });
        drop(old);
        Ok(())
    }

    fn unwant<'r>(&self, regions: impl Iterator<Item = &'r ReservedRegion>) {
        self.state.with(|s| {
            for r in regions {
                if let Some(i) = s.wanted.iter().position(|w| *w == (r.start, r.last())) {
                    s.wanted.swap_remove(i);
                }
            }
            self.count.store(s.wanted.len(), Ordering::Release);
        });
    }

    /// Adds what was mapped to what is ours.
    fn keep(&self, runs: &[(u64, u64)]) -> Result<(), ()> {
        let had = self.state.with(|s| s.ours.len());
        let mut ours: Vec<(u64, u64)> = Vec::new();
        ours.try_reserve_exact(had + runs.len()).map_err(|_| ())?;
        let old = self.state.with(|s| {
            ours.extend_from_slice(&s.ours);
            ours.extend_from_slice(runs);
            core::mem::replace(&mut s.ours, ours)
        });
        drop(old);
        Ok(())
    }

    fn is_stale(&self) -> bool {
        self.state.with(|s| s.stale)
    }

    /// Notes whether something was taken out that is not invalidated yet. Whether it was so before.
    fn set_stale(&self, stale: bool) -> bool {
        self.state.with(|s| core::mem::replace(&mut s.stale, stale))
    }

    /// Takes out one run that nobody wants a part of any more.
    fn unwanted(&self) -> Option<(u64, u64)> {
        self.state.with(|s| {
            let State { wanted, ours, .. } = s;
            let needed = |(start, len): &(u64, u64)| {
                wanted.iter().any(|(first, last)| *first < start + len && start <= last)
            };
            let i = ours.iter().position(|run| !needed(run))?;
            Some(ours.swap_remove(i))
        })
    }
}

/// The right to change a domain's pins; given back on drop.
struct Turn<'a, P: Platform>(&'a DomainInner<P>);

impl<'a, P: Platform> Turn<'a, P> {
    async fn take(domain: &'a DomainInner<P>) -> Turn<'a, P> {
        poll_fn(|_| domain.pins.turn()).await;
        Turn(domain)
    }
}

impl<P: Platform> Drop for Turn<'_, P> {
    fn drop(&mut self) {
        self.0.pins.state.with(|s| s.turning = false);
        self.0.shared.hub.progressed();
    }
}

/// Maps regions one to one and closes them to the owner. All or none; a domain without a table
/// needs nothing. What the owner has mapped there just so stays the owner's, and cannot be unmapped
/// meanwhile. Sleepable context; allocates.
pub(crate) async fn pin<'r, P: Platform>(
    domain: &Arc<DomainInner<P>>,
    regions: impl Iterator<Item = &'r ReservedRegion> + Clone,
) -> Result<(), NotPinned> {
    let (Some(table), Some(first)) = (domain.table(), regions.clone().next()) else { return Ok(()) };
    let _turn = Turn::take(domain).await;
    let no_mem = NotPinned { start: first.start, why: MapError::NoMem { iova: first.start } };
    if domain.pins.want(regions.clone()).is_err() {
        return Err(no_mem);
    }
    let mut runs = Vec::new();
    let mapped = regions
        .clone()
        .try_for_each(|r| map_missing(table, r, &mut runs).map_err(|why| NotPinned { start: r.start, why }));
    let kept = mapped.and_then(|()| domain.pins.keep(&runs).map_err(|()| no_mem));
    if let Err(why) = kept {
        domain.pins.unwant(regions);
        // Of hardware that is lost, the domain keeps what it may still walk.
        let _ = take_out(domain, runs.into_iter()).await;
        return Err(why);
    }
    Ok(())
}

/// Takes back what [`pin`] did, for devices that do not use the domain any more: what nobody else
/// needs is unmapped and invalidated. `pinned` says whether they are pinned, so that it can be given up
/// and begun again.
pub(crate) async fn unpin<'r, P: Platform>(
    domain: &Arc<DomainInner<P>>,
    regions: impl Iterator<Item = &'r ReservedRegion> + Clone,
    pinned: &AtomicBool,
) -> Result<(), HwLost> {
    if domain.table().is_none() || regions.clone().next().is_none() {
        return Ok(());
    }
    let _turn = Turn::take(domain).await;
    if pinned.swap(false, Ordering::AcqRel) {
        domain.pins.unwant(regions);
    }
    take_out(domain, core::iter::from_fn(|| domain.pins.unwanted())).await
}

/// Unmaps runs, and waits until no device reaches them: none of them, nor what an earlier try took out and
/// was given up before it had waited.
async fn take_out<P: Platform>(
    domain: &Arc<DomainInner<P>>,
    runs: impl Iterator<Item = (u64, u64)>,
) -> Result<(), HwLost> {
    let Some(table) = domain.table() else { return Ok(()) };
    let mut unmapping = Unmapping::new(domain);
    for (start, len) in runs {
        // It was mapped as it is taken out, and nobody else may have unmapped it.
        let _ = table.unmap(start, len, &mut unmapping.gather);
    }
    if unmapping.gather.is_empty() && !domain.pins.is_stale() {
        return Ok(());
    }
    match domain.pins.set_stale(true) {
        false => unmapping.run().await?,
        true => {
            drop(unmapping);
            flush(domain).await?;
        }
    }
    domain.pins.set_stale(false);
    Ok(())
}

/// Maps what is not mapped yet of a region, and notes it.
fn map_missing(
    table: &dyn IoTable,
    region: &ReservedRegion,
    runs: &mut Vec<(u64, u64)>,
) -> Result<(), MapError> {
    let ReservedRegion { start, len, prot, .. } = *region;
    let desc = table.desc();
    let granule = 1u64 << desc.page_sizes.trailing_zeros().min(63);
    let whole = len.checked_next_multiple_of(granule).and_then(|len| start.checked_add(len));
    let end = whole.ok_or(MapError::InputRange { iova: start, len, bits: desc.input_bits })?;
    let mut at = start;
    while at < end {
        match table.lookup(at) {
            Some(leaf) if leaf.phys == Phys(at) && leaf.prot.contains(prot) => {
                at = leaf.start.saturating_add(leaf.size);
            }
            Some(leaf) => return Err(MapError::AlreadyMapped { iova: at, phys: leaf.phys }),
            None => {
                runs.try_reserve(1).map_err(|_| MapError::NoMem { iova: at })?;
                let len = map_up_to(table, at, end, prot)?;
                match runs.last_mut().filter(|(start, len)| start + len == at) {
                    Some((_, run)) => *run += len,
                    None => runs.push((at, len)),
                }
                at += len;
            }
        }
    }
    Ok(())
}

/// Maps from an address that is not mapped, in leaves as large as fit, up to the end or to what is mapped.
/// How much that was.
fn map_up_to(table: &dyn IoTable, at: u64, end: u64, prot: Prot) -> Result<u64, MapError> {
    match table.map(at, Phys(at), end - at, prot) {
        Ok(()) => Ok(end - at),
        Err(MapError::AlreadyMapped { iova, .. }) if iova > at => {
            table.map(at, Phys(at), iova - at, prot)?;
            Ok(iova - at)
        }
        Err(why) => Err(why),
    }
}
