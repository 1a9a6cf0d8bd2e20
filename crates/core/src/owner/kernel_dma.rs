//! The kernel's DMA API as owner: it gives out the IOVAs itself, and its callers name physical
//! memory only.

use super::{
    Attaches, Owner,
    external::common_table,
    iova::{Iovas, NoIova},
    sealed,
};
use crate::{
    device::Device,
    domain::{Coherence, Domain, DomainInner},
    driver::{HwLost, TableRequest},
    error::{DmaMapError, DomainError, DomainMapError, OutOfMemory, SyncError},
    iommu::Iommu,
    op::{Op, block_on},
    platform::{Platform, ShortLock, Sleep},
    sync::{Unmapping, flush},
};
use alloc::sync::Arc;
use core::{fmt, panic::Location};
use portcullis_pgtable::{MapError, Phys, Prot};

/// The kernel's DMA API owns the mappings. Correct drivers make no page faults there, so that
/// there is nothing for a resolver to do.
#[derive(Debug)]
pub struct KernelDma;

impl sealed::Sealed for KernelDma {
    type Own<P: Platform> = Dma<P>;
}

impl Owner for KernelDma {
    type Data = ();
}

impl Attaches for KernelDma {}

/// What a domain of the DMA API is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaOptions {
    /// The table wanted.
    pub table: TableRequest,
    /// The highest address that the devices can put on the bus (a DMA mask).
    pub limit: u64,
    /// Mappings, and IOVAs that wait for a flush, that can exist at once.
    pub mappings: usize,
}

impl Default for DmaOptions {
    /// Devices with 64 address bits, and 1024 mappings.
    fn default() -> Self {
        DmaOptions { table: TableRequest::default(), limit: u64::MAX, mappings: 1024 }
    }
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The device reads.
    ToDevice,
    /// The device writes.
    FromDevice,
    /// Both.
    Both,
}

impl Direction {
    fn prot(self) -> Prot {
        match self {
            Direction::ToDevice => Prot::READ,
            Direction::FromDevice => Prot::WRITE,
            Direction::Both => Prot::READ | Prot::WRITE,
        }
    }
}

/// Reserved ranges that are noted of devices which are attached after a domain was made.
const LATER: usize = 64;

/// What a domain of the DMA API keeps beside its table.
pub struct Dma<P: Platform> {
    iovas: P::Lock<Iovas>,
    granule: u64,
    limit: u64,
    coherent: bool,
}

impl<P: Platform> Iommu<P> {
    /// A domain of the kernel's DMA API, for `devices` and every other device that can walk its
    /// table. Page 0, what requester ids cannot translate and the reserved regions of `devices` are
    /// never given out. Where one of their groups has a member whose DMA is not coherent, data is
    /// cleaned and invalidated as it changes hands; where all are coherent nothing is done, and no
    /// other device can be attached. Sleepable context.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn kernel_dma_domain(
        &self,
        devices: &[&Device<P>],
        options: DmaOptions,
    ) -> Result<Domain<P, KernelDma>, DomainError> {
        let table = common_table(devices, options.table)?;
        let desc = table.desc();
        let granule = 1u64 << desc.page_sizes.trailing_zeros().min(63);
        let limit = options.limit.min(u64::MAX >> (64 - u32::from(desc.input_bits.clamp(1, 64))));
        let mut inner = DomainInner::of_table(&self.shared, table, false, devices)?;
        let coherent = all_snoop(devices)?;
        if coherent {
            inner.coherence = Coherence::OfData;
        }
        let direct = devices.iter().flat_map(|d| d.member.spec.direct());
        let reserved = inner.reserved().iter().chain(direct);
        // A range takes two places where it lies around another. Some are left for devices that are
        // attached later.
        let mut iovas = Iovas::new(granule, options.mappings, 2 * reserved.clone().count() + LATER)?;
        for region in reserved {
            iovas.reserve(region.start, region.last()).map_err(|_| OutOfMemory)?;
        }
        let iovas = self.shared.hub.platform.lock(iovas);
        Ok(Domain::new(Arc::new(inner), None, Dma { iovas, granule, limit, coherent }))
    }
}

/// Whether the DMA of all members of the devices' groups snoops the CPU's caches.
fn all_snoop<P: Platform>(devices: &[&Device<P>]) -> Result<bool, DomainError> {
    for device in devices {
        for member in device.group.members() {
            if member.up()?.meets(Coherence::OfData).is_err() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

impl<P: Platform> Domain<P, KernelDma> {
    /// Maps memory for a device: `len` bytes at `phys`, which need not be aligned. The device sees
    /// all of the pages that they lie in. The data is the device's until
    /// [`Mapping::sync_for_cpu`] or the end of the mapping. Allocates table frames.
    ///
    /// # Errors
    /// See [`DmaMapError`]; nothing is mapped then.
    #[track_caller]
    pub fn dma_map(&self, phys: Phys, len: u64, direction: Direction) -> Result<Mapping<P>, DmaMapError> {
        let dma = &self.own;
        let offset = phys.0 & (dma.granule - 1);
        let last = len.checked_sub(1).ok_or(DmaMapError::ZeroLength(phys))?;
        let last = phys.0.checked_add(last).ok_or(DmaMapError::Wraps(phys, len))?;
        let page = Phys(phys.0 - offset);
        let size =
            ((last - page.0) | (dma.granule - 1)).checked_add(1).ok_or(DmaMapError::Wraps(phys, len))?;
        self.inner.check_output(page, size)?;
        let first = self.map_somewhere(page, size, direction)?;
        let mapping = Mapping {
            domain: self.inner.clone(),
            dma: self.own.clone(),
            first,
            size,
            offset,
            phys,
            len,
            direction,
            state: State::Mapped,
        };
        mapping.sync_for_device();
        Ok(mapping)
    }

    /// Takes an IOVA and maps there. Regions of devices that were attached after the domain was
    /// made are found in the table, and never given out from then on.
    #[track_caller]
    fn map_somewhere(&self, page: Phys, size: u64, direction: Direction) -> Result<u64, DmaMapError> {
        loop {
            let taken = self.own.iovas.with(|i| i.alloc(size, self.own.limit));
            let first = taken.map_err(|e| match e {
                NoIova::NoGap => DmaMapError::NoIova { len: size, limit: self.own.limit },
                NoIova::TooMany => DmaMapError::TooMany,
            })?;
            let why = match self.map_at(first, page, size, direction.prot()) {
                Ok(()) => return Ok(first),
                Err(why) => why,
            };
            let foreign = match why {
                MapError::AlreadyMapped { iova, .. } => self.inner.table().and_then(|t| t.lookup(iova)),
                _ => None,
            };
            let noted = self.own.iovas.with(|i| {
                i.free(first);
                foreign.map(|leaf| i.reserve(leaf.start, leaf.start + (leaf.size - 1)))
            });
            match noted {
                Some(Ok(())) => {}
                Some(Err(_)) => return Err(DmaMapError::TooMany),
                None => return Err(DomainMapError::Table(why).into()),
            }
        }
    }

    /// Formats without memory that is only written let it be read too.
    #[track_caller]
    fn map_at(&self, iova: u64, page: Phys, size: u64, prot: Prot) -> Result<(), MapError> {
        match self.inner.map_anywhere(iova, page, size, prot) {
            Err(MapError::Permissions { .. }) if !prot.contains(Prot::READ) => {
                self.inner.map_anywhere(iova, page, size, prot | Prot::READ)
            }
            done => done,
        }
    }

    /// Invalidates everything that any cache may hold of the domain, and frees what mappings left
    /// behind that were dropped: their IOVAs, and table frames. Sleeps.
    ///
    /// # Errors
    /// See [`SyncError`]; nothing was freed then.
    pub fn flush(&self, cx: &Sleep<'_>) -> Result<(), SyncError> {
        let hub = &self.inner.shared.hub;
        block_on(hub, cx, self.flush_all()).map_err(|_| SyncError::Shutdown)?.map_err(SyncError::Lost)
    }

    /// The step form of [`flush`](Self::flush).
    pub fn start_flush(&self) -> Op<'_, Result<(), HwLost>> {
        Op::new(self.flush_all())
    }

    async fn flush_all(&self) -> Result<(), HwLost> {
        // Numbered before the invalidation: what is parked meanwhile waits for the next one.
        let epoch = self.own.iovas.with(Iovas::flush_begins);
        flush(&self.inner).await?;
        self.own.iovas.with(|i| i.flushed(epoch));
        Ok(())
    }
}

/// Memory that a device may reach, made by [`Domain::dma_map`].
///
/// [`unmap`](Mapping::unmap) ends it at once. Dropped instead, it is taken out of the table
/// without waiting; the device may still reach the memory through a cache, and the IOVA is not
/// given out again, until the domain's next [`flush`](Domain::flush) is over.
#[must_use = "memory is mapped until the mapping is dropped"]
pub struct Mapping<P: Platform> {
    domain: Arc<DomainInner<P>>,
    dma: Arc<Dma<P>>,
    /// The IOVA of the first page, and the size of all pages.
    first: u64,
    size: u64,
    offset: u64,
    phys: Phys,
    len: u64,
    direction: Direction,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Mapped,
    /// Out of the table; caches may hold it.
    TakenOut,
    Free,
}

impl<P: Platform> Mapping<P> {
    /// The address to give to the device.
    pub fn iova(&self) -> u64 {
        self.first + self.offset
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: nothing is mapped with zero bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Which way data goes.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Hands the data to the device: what the CPU wrote is in memory when this returns, and no
    /// cache line of it will be written back later. Never waits; any context.
    pub fn sync_for_device(&self) {
        if !self.dma.coherent {
            let platform = &self.domain.shared.hub.platform;
            match self.direction {
                Direction::ToDevice | Direction::Both => platform.clean_data(self.phys, self.len),
                Direction::FromDevice => platform.invalidate_data(self.phys, self.len),
            }
        }
    }

    /// Hands the data to the CPU, which sees what the device has written so far. Never waits; any
    /// context.
    pub fn sync_for_cpu(&self) {
        if !self.dma.coherent && self.direction != Direction::ToDevice {
            self.domain.shared.hub.platform.invalidate_data(self.phys, self.len);
        }
    }

    /// Ends the mapping: the device can reach the memory no more, and the data is the CPU's. Sleeps
    /// for hardware only.
    ///
    /// # Errors
    /// See [`SyncError`]: the memory must be kept, since hardware may still reach it.
    #[track_caller]
    pub fn unmap(self, cx: &Sleep<'_>) -> Result<(), SyncError> {
        let hub = self.domain.shared.hub.clone();
        block_on(&hub, cx, self.run(Location::caller()))
            .map_err(|_| SyncError::Shutdown)?
            .map_err(SyncError::Lost)
    }

    /// The step form of [`unmap`](Mapping::unmap).
    #[track_caller]
    pub fn start_unmap(self) -> Op<'static, Result<(), HwLost>>
    where
        P: 'static,
    {
        Op::new(self.run(Location::caller()))
    }

    async fn run(mut self, by: &'static Location<'static>) -> Result<(), HwLost> {
        let domain = self.domain.clone();
        let mut gone = Unmapping::new(&domain);
        self.take_out(&mut gone, by);
        gone.run().await?;
        self.state = State::Free;
        self.dma.iovas.with(|i| i.free(self.first));
        self.sync_for_cpu();
        Ok(())
    }

    fn take_out(&mut self, gone: &mut Unmapping<'_, P>, by: &'static Location<'static>) {
        // Whole leaves that nobody else maps or unmaps: it cannot be refused.
        let taken = gone.unmap_by(self.first, self.size, by);
        debug_assert_eq!(taken, Ok(()), "a mapping of the DMA API was not there");
        self.state = State::TakenOut;
    }
}

impl<P: Platform> Drop for Mapping<P> {
    fn drop(&mut self) {
        if self.state == State::Mapped {
            let domain = self.domain.clone();
            self.take_out(&mut Unmapping::new(&domain), Location::caller());
            self.sync_for_cpu();
        }
        if self.state == State::TakenOut {
            self.dma.iovas.with(|i| i.park(self.first));
        }
    }
}

impl<P: Platform> fmt::Debug for Mapping<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({:#x}+{:#x} -> {}, {:?})", self.iova(), self.len, self.phys, self.direction)
    }
}
