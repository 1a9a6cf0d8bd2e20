//! What a scenario says and what is checked after every sentence of it.
//!
//! All data pages come from one yard of memory whose every byte is known: after an access exactly
//! the bytes it was allowed to change have changed, and a fault is on record if and only if it was
//! stopped. Nothing here asks the code under test what it thinks it has mapped.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use portcullis::driver::{DeviceControl, TableRequest};
use portcullis::error::{AddDeviceError, AttachError, DomainError};
use portcullis::{
    Access, Attaches, Attachment, Device, DeviceId, DeviceSpec, Domain, DomainOptions, External, FaultKind,
    FaultRecord, Gap, Identity, PageGroup, Platform, Replaced, ReservedRegion, Resolver, Scope, Sleep,
    Subscription, Upstream, Waited,
};
use portcullis_machine::memory::Ram;
use portcullis_models::bus::RequesterId;
use portcullis_pgtable::{FRAME_SIZE, Phys, Prot, formats::size};

use crate::deviations::{self, Cause, Deviation};
use crate::rig::{Fetched, INSTANCE, Outlet, Rig, Told, Who};

/// IOVAs that scenarios use. On QEMU there is memory at these physical addresses, and it is looked
/// at for writes that were not translated.
pub const IOVA_SPACE: Range<u64> = 0x100_0000..0x200_0000;

/// Where each domain has its outlet.
const OUTLET: u64 = 0x1f0_0000;

/// Bytes of a page.
pub const PAGE: u64 = FRAME_SIZE as u64;

/// Bytes of a large page.
pub const LARGE: u64 = 1 << 21;

/// Bytes of the largest leaf.
pub const GIB: u64 = 1 << 30;

/// The oracle's number for what a device reaches by its direct regions.
const DIRECT: u64 = u64::MAX;

/// How long a fault may take to be told.
const PATIENCE: Duration = Duration::from_millis(100);

/// A mapping that a device may read and write.
pub const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A rig with what a scenario has put on it.
pub struct Stage<R: Rig> {
    /// The rig.
    pub rig: R,
    /// The scenario may sleep.
    pub cx: Sleep<'static>,
    faults: Subscription<R::P>,
    yard: Yard,
}

/// A paging domain with its outlet.
pub struct Space<P: Platform> {
    /// The domain.
    pub domain: Domain<P, External<()>>,
    outlet: Outlet,
}

/// What is attached where.
pub struct Attached<P: Platform> {
    attachment: Attachment<P>,
    who: Who,
    domain: u64,
    outlet: Option<Outlet>,
}

/// A configuration space to which nothing is written.
struct Mute;

impl DeviceControl for Mute {
    fn set_pasid(&self, _: bool) {}
    fn set_ats(&self, _: bool) {}
    fn set_pri(&self, _: Option<u32>) {}
    fn reset(&self) {}
}

/// A domain that can be attached.
pub trait Attachable<P: Platform> {
    /// Its owner.
    type Owner: Attaches<Data = ()>;
    /// The domain.
    fn domain(&self) -> &Domain<P, Self::Owner>;
    /// Its outlet, where it has one.
    fn outlet(&self) -> Option<Outlet>;
}

impl<P: Platform> Attachable<P> for Space<P> {
    type Owner = External<()>;
    fn domain(&self) -> &Domain<P, External<()>> {
        &self.domain
    }
    fn outlet(&self) -> Option<Outlet> {
        Some(self.outlet)
    }
}

impl<P: Platform, O: Attaches<Data = ()>> Attachable<P> for Domain<P, O> {
    type Owner = O;
    fn domain(&self) -> &Domain<P, O> {
        self
    }
    fn outlet(&self) -> Option<Outlet> {
        None
    }
}

impl<R: Rig> Stage<R> {
    pub(crate) fn new(rig: R) -> Self {
        let faults = rig.iommu().observe(Scope::All, 256).expect("memory");
        let yard = Yard::new(rig.ram());
        Stage { rig, cx: Sleep::in_sleepable_context(), faults, yard }
    }

    /// The end of every scenario: all of the yard is as it should be, and the rig saw nothing amiss.
    pub(crate) fn close(&mut self) {
        self.yard.check(self.rig.ram());
        self.no_fault();
        if let Err(seen) = self.rig.verdict() {
            panic!("isolation: {seen}");
        }
    }

    /// Makes the core know a device: from here on it is blocked.
    pub fn add(&mut self, who: Who) -> Device<R::P> {
        self.try_add(who, Vec::new()).expect("the device is added")
    }

    /// Makes the core know a device that reaches this page at its own address, whatever it is
    /// attached to.
    ///
    /// # Errors
    /// The core's.
    pub fn add_with_direct(&mut self, who: Who, page: Phys) -> Result<Device<R::P>, AddDeviceError> {
        self.rig.oracle().map(DIRECT, page.0, page.0, PAGE, true);
        self.rig.oracle().attach(place(who), DIRECT);
        self.try_add(who, vec![ReservedRegion::direct(page.0, PAGE, RW)])
    }

    /// Makes the core know a device that says it has PASIDs of so many bits. None here sends any.
    pub fn add_with_pasids(&mut self, who: Who, bits: u8) -> Device<R::P> {
        let mut spec = DeviceSpec::new(
            DeviceId(who.source().0.into()),
            vec![Upstream { instance: INSTANCE, sources: vec![who.source()] }],
            Arc::new(Mute),
        );
        spec.caps.pasid_bits = bits;
        self.rig.iommu().add_device(&self.cx, spec).expect("the device is added")
    }

    /// Takes a device away to which nothing is attached.
    pub fn remove(&mut self, device: Device<R::P>) {
        assert!(self.rig.iommu().remove_device(&self.cx, device).is_ok());
    }

    fn try_add(&mut self, who: Who, regions: Vec<ReservedRegion>) -> Result<Device<R::P>, AddDeviceError> {
        let source = who.source();
        let upstreams = vec![Upstream { instance: INSTANCE, sources: vec![source] }];
        let id = DeviceId(u64::from(source.0));
        let spec = DeviceSpec { regions, ..DeviceSpec::new(id, upstreams, self.rig.control(who)) };
        self.rig.iommu().add_device(&self.cx, spec)
    }

    /// A paging domain that the device can walk, with nothing mapped but its outlet.
    pub fn space(&mut self, device: &Device<R::P>) -> Space<R::P> {
        self.space_of(device, u64::MAX)
    }

    /// The same with these leaf sizes only.
    pub fn space_of_small_pages(&mut self, device: &Device<R::P>) -> Space<R::P> {
        self.space_of(device, size::K4)
    }

    /// The same with a table in which the hardware notes writes.
    ///
    /// # Errors
    /// The core's.
    pub fn tracked_space(&mut self, device: &Device<R::P>) -> Result<Space<R::P>, DomainError> {
        self.try_space(device, TableRequest { dirty: true, ..TableRequest::default() })
    }

    fn space_of(&mut self, device: &Device<R::P>, page_sizes: u64) -> Space<R::P> {
        let request = TableRequest { page_sizes, ..TableRequest::default() };
        self.try_space(device, request).expect("a domain")
    }

    fn try_space(
        &mut self,
        device: &Device<R::P>,
        request: TableRequest,
    ) -> Result<Space<R::P>, DomainError> {
        let shape = self.rig.shape();
        let (stage, input_bits) = (shape.form.stage(), shape.input_bits());
        let table = TableRequest { stage, input_bits, ..request };
        let options = DomainOptions { table, ..DomainOptions::default() };
        let domain = self.rig.iommu().external_domain(&[device], options, None::<Nobody>)?;
        assert_eq!(domain.format().map(|f| f.levels), Some(shape.levels));
        let phys = self.rig.ram().page().expect("a page");
        let space = Space { domain, outlet: Outlet { iova: OUTLET, phys } };
        self.map(&space, OUTLET, phys, PAGE, RW);
        Ok(space)
    }

    /// The identity domain.
    pub fn identity(&mut self) -> Domain<R::P, Identity> {
        let domain = self.rig.iommu().identity_domain().expect("memory");
        let ram = self.rig.ram();
        self.rig.oracle().map(domain.id(), ram.base(), ram.base(), ram.size() as u64, true);
        domain
    }

    /// A page of the yard.
    pub fn page(&mut self) -> Phys {
        self.yard.small()
    }

    /// A large page of the yard.
    pub fn large(&mut self) -> Phys {
        self.yard.large()
    }

    /// Maps.
    pub fn map(&self, space: &Space<R::P>, iova: u64, phys: Phys, len: u64, prot: Prot) {
        let write = prot.contains(Prot::WRITE);
        // By page: an unmap may take a part of it out again.
        for offset in (0..len).step_by(FRAME_SIZE) {
            self.rig.oracle().map(space.domain.id(), iova + offset, phys.0 + offset, PAGE, write);
        }
        space.domain.map_range(iova, phys, len, prot).expect("it can be mapped");
    }

    /// Maps all of memory by one leaf of 1 GiB at `iova`, where there is much that is not memory
    /// beside it. Returns the address at which `phys` is then.
    pub fn map_all_by_one_leaf(&self, space: &Space<R::P>, iova: u64) -> impl Fn(Phys) -> u64 + use<R> {
        let first = self.yard.base & !(GIB - 1);
        assert!(first + GIB >= self.yard.end(), "the yard lies in one GiB");
        space.domain.map_range(iova, Phys(first), GIB, RW).expect("it can be mapped");
        let at = move |phys: Phys| iova + (phys.0 - first);
        // The oracle is told of what the scenarios use, and no more.
        for phys in (self.yard.base..self.yard.end()).step_by(FRAME_SIZE) {
            self.rig.oracle().map(space.domain.id(), at(Phys(phys)), phys, PAGE, true);
        }
        at
    }

    /// Unmaps that leaf and syncs.
    pub fn unmap_leaf_of_all(&self, space: &Space<R::P>, iova: u64) {
        let mut unmapping = space.domain.unmapping();
        unmapping.unmap(iova, GIB).expect("it is mapped");
        unmapping.sync(&self.cx).expect("the hardware answers");
        let start = iova + (self.yard.base & (GIB - 1));
        self.unmapped(space, start, self.yard.end() - self.yard.base);
    }

    /// An address far from the others, which all tables of this depth translate.
    pub fn far(&self) -> u64 {
        1 << (self.rig.shape().input_bits() - 2)
    }

    /// Unmaps and syncs.
    pub fn unmap(&self, space: &Space<R::P>, iova: u64, len: u64) {
        let mut unmapping = space.domain.unmapping();
        unmapping.unmap(iova, len).expect("it is mapped");
        unmapping.sync(&self.cx).expect("the hardware answers");
        self.unmapped(space, iova, len);
    }

    /// An unmap was synced.
    pub fn unmapped(&self, space: &Space<R::P>, iova: u64, len: u64) {
        for offset in (0..len).step_by(FRAME_SIZE) {
            self.rig.oracle().unmapped(space.domain.id(), iova + offset);
        }
    }

    /// Attaches a device.
    pub fn attach<A: Attachable<R::P>>(&self, device: &Device<R::P>, to: &A) -> Attached<R::P> {
        self.try_attach(device, to).expect("the device is attached")
    }

    /// Attaches a device, if that is possible.
    ///
    /// # Errors
    /// The core's.
    pub fn try_attach<A: Attachable<R::P>>(
        &self,
        device: &Device<R::P>,
        to: &A,
    ) -> Result<Attached<R::P>, AttachError> {
        let (who, domain) = (who(device), to.domain());
        self.rig.oracle().attach(place(who), domain.id());
        match self.rig.iommu().attach(&self.cx, domain, device, None, Arc::new(())) {
            Ok(attachment) => Ok(Attached { attachment, who, domain: domain.id(), outlet: to.outlet() }),
            Err(error) => {
                self.rig.oracle().detached(place(who), domain.id());
                Err(error)
            }
        }
    }

    /// Replaces an attachment, and tells whether the device could have seen a gap.
    pub fn replace<A: Attachable<R::P>>(&self, old: Attached<R::P>, to: &A) -> (Attached<R::P>, Replaced) {
        let domain = to.domain();
        self.rig.oracle().attach(place(old.who), domain.id());
        let replaced = self.rig.iommu().replace(&self.cx, old.attachment, domain, Arc::new(()), Gap::Allowed);
        let (attachment, detaching, how) = match replaced {
            Ok(done) => done,
            Err((_, error)) => panic!("not replaced: {error}"),
        };
        assert!(!detaching.lost(), "the hardware was lost");
        assert_eq!(detaching.wait(&self.cx, None), Waited::Gone);
        self.rig.oracle().detached(place(old.who), old.domain);
        (Attached { attachment, who: old.who, domain: domain.id(), outlet: to.outlet() }, how)
    }

    /// Detaches, and waits until it is over.
    pub fn detach(&self, attached: Attached<R::P>) {
        let detaching = attached.attachment.begin_detach(&self.cx);
        assert!(!detaching.lost(), "the hardware was lost");
        assert_eq!(detaching.wait(&self.cx, None), Waited::Gone);
        self.rig.oracle().detached(place(attached.who), attached.domain);
    }

    /// A write of the device at `iova` lands in these parts of memory, and nowhere else.
    pub fn lands(&mut self, who: Who, iova: u64, parts: &[(Phys, usize)]) {
        self.yard.renew(self.rig.ram(), parts);
        let len = parts.iter().map(|p| p.1).sum();
        let sent = self.rig.write(who, iova, len);
        assert_ne!(
            sent.told,
            Told::Blocked,
            "a write of {who:?} at {iova:#x} was stopped: {:?}",
            self.drain()
        );
        self.yard.expect(parts, &sent.bytes);
        self.yard.check(self.rig.ram());
        self.no_fault();
    }

    /// A read of the attached device at `iova` gets the bytes of this part of memory.
    pub fn fetches(&mut self, by: &Attached<R::P>, iova: u64, from: Phys, len: usize) {
        self.yard.renew(self.rig.ram(), &[(from, len)]);
        let fetched = self.rig.read(by.who, iova, len, by.outlet);
        let wanted = Fetched::Bytes(self.yard.bytes(from, len).to_vec());
        assert!(fetched == wanted, "{:?} read something else at {iova:#x}: {:?}", by.who, self.drain());
        self.yard.check(self.rig.ram());
        self.no_fault();
    }

    /// A write at `iova` is stopped: memory is untouched, and one fault is on record.
    pub fn write_stopped(&mut self, who: Who, iova: u64, len: usize, cause: Cause) {
        let sent = self.rig.write(who, iova, len);
        assert_ne!(sent.told, Told::Done, "a write of {who:?} at {iova:#x} was let through");
        self.yard.check(self.rig.ram());
        self.one_fault(who, iova, Access::Write, cause);
    }

    /// A write at `iova` is stopped, and nobody is told.
    pub fn write_stopped_silently(&mut self, who: Who, iova: u64, len: usize) {
        let sent = self.rig.write(who, iova, len);
        assert_ne!(sent.told, Told::Done, "a write of {who:?} at {iova:#x} was let through");
        self.yard.check(self.rig.ram());
        self.no_fault();
    }

    /// A read at `iova` is stopped: the attached device has nothing, and one fault is on record.
    pub fn read_stopped(&mut self, by: &Attached<R::P>, iova: u64, len: usize, cause: Cause) {
        let fetched = self.rig.read(by.who, iova, len, by.outlet);
        let wanted = match self.deviates(&deviations::REFUSED_READ) {
            false => Fetched::Nothing,
            true => Fetched::Bytes(vec![0; len]),
        };
        assert_eq!(fetched, wanted, "a read of {:?} at {iova:#x}", by.who);
        self.yard.check(self.rig.ram());
        self.one_fault(by.who, iova, Access::Read, cause);
    }

    /// A read of a device that is attached to nothing is stopped.
    pub fn idle_read_stopped(&mut self, who: Who, iova: u64, len: usize, cause: Cause) {
        let fetched = self.rig.read(who, iova, len, None);
        assert!(!matches!(fetched, Fetched::Bytes(_)), "{who:?} read at {iova:#x}");
        self.one_fault(who, iova, Access::Read, cause);
    }

    /// Whether the hardware does here otherwise than the manual.
    pub fn deviates(&self, deviation: &Deviation) -> bool {
        deviation.shows(self.rig.kind(), self.rig.shape().form)
    }

    /// A write of which these parts land, and the rest is stopped. The fault is at the first page
    /// that is not mapped.
    pub fn lands_partly(
        &mut self,
        who: Who,
        iova: u64,
        len: usize,
        parts: &[(Range<usize>, Phys)],
        stopped: u64,
    ) {
        let places: Vec<_> = parts.iter().map(|(r, p)| (*p, r.len())).collect();
        self.yard.renew(self.rig.ram(), &places);
        let sent = self.rig.write(who, iova, len);
        assert_ne!(sent.told, Told::Done, "a write of {who:?} at {iova:#x} was let through");
        for (range, phys) in parts {
            self.yard.expect(&[(*phys, range.len())], &sent.bytes[range.clone()]);
        }
        self.yard.check(self.rig.ram());
        self.one_fault(who, stopped, Access::Write, Cause::NotMapped);
    }

    /// The records of all faults so far that nobody has looked at, once no more come.
    pub fn all_faults(&mut self) -> Vec<FaultRecord> {
        self.rig.settle();
        let mut found = Vec::new();
        loop {
            let until = self.rig.platform().now() + PATIENCE;
            match self.faults.next(&self.cx, Some(until)) {
                Some(told) => found.push(told.record),
                None => return found,
            }
        }
    }

    /// The records that came since the last look.
    fn drain(&mut self) -> Vec<FaultRecord> {
        self.rig.settle();
        std::iter::from_fn(|| self.faults.try_next()).map(|t| t.record).collect()
    }

    fn no_fault(&mut self) {
        let found = self.drain();
        assert!(found.is_empty(), "faults are on record: {found:?}");
    }

    fn one_fault(&mut self, who: Who, iova: u64, access: Access, cause: Cause) {
        self.rig.settle();
        // A service turn that was already running elsewhere may still be at it.
        let until = self.rig.platform().now() + PATIENCE;
        let Some(fault) = self.faults.next(&self.cx, Some(until)) else {
            panic!("an access of {who:?} at {iova:#x} was stopped, and no fault is on record");
        };
        let others = self.drain();
        assert!(others.is_empty(), "one fault should be on record: {fault}; and there are: {others:?}");
        assert_eq!(fault.instance, INSTANCE);
        assert_eq!(fault.source, Some(who.source()));
        assert_eq!(fault.pasid, None);
        assert_eq!(fault.access, access, "{fault}");
        // [V] 11.4.7.6: FI is the page.
        assert_eq!(fault.address, Some(iova & !(PAGE - 1)), "{fault}");
        let (kind, form) = (self.rig.kind(), self.rig.shape().form);
        if let Some(other) = deviations::recorded_instead(kind, form, cause, access) {
            assert_eq!(fault.code, u32::from(other.bits()), "{fault}, {kind} deviates no more");
            return;
        }
        assert_eq!(fault.code, u32::from(cause.manual(form, access).bits()), "{fault}");
        assert_eq!(fault.reason, cause.reason(form), "{fault}");
        assert_eq!(fault.kind, FaultKind::Dma, "{fault}");
    }
}

fn who<P: Platform>(device: &Device<P>) -> Who {
    let known = Who::ALL.into_iter().find(|w| device.sources() == [w.source()]);
    known.expect("a device of the rig")
}

fn place(who: Who) -> portcullis_machine::oracle::Place {
    (RequesterId(who.source().0 as u16), None)
}

/// No resolver: none of these devices requests pages.
struct Nobody;

impl<P: Platform> Resolver<P, ()> for Nobody {
    fn resolve(&self, _: &Sleep<'_>, _: &Arc<()>, _: PageGroup<'_, P>) {}
}

/// Memory of which every byte is known.
struct Yard {
    base: u64,
    known: Vec<u8>,
    small: u64,
    large: u64,
    salt: u64,
}

impl Yard {
    /// A third of it is for small pages.
    const BYTES: u64 = 3 * LARGE;

    fn new(ram: &Ram) -> Self {
        let frames = (Self::BYTES + LARGE) as usize / FRAME_SIZE;
        let start = ram.pages(frames).expect("memory").0;
        let base = start.next_multiple_of(LARGE);
        let mut yard =
            Yard { base, known: vec![0; Self::BYTES as usize], small: base, large: base + LARGE, salt: 1 };
        yard.renew(ram, &[(Phys(base), Self::BYTES as usize)]);
        yard
    }

    fn end(&self) -> u64 {
        self.base + Self::BYTES
    }

    /// A page with an untouched one on either side.
    fn small(&mut self) -> Phys {
        self.small += 2 * PAGE;
        assert!(self.small + PAGE < self.base + LARGE, "the yard is used up");
        Phys(self.small - PAGE)
    }

    fn large(&mut self) -> Phys {
        self.large += LARGE;
        assert!(self.large <= self.base + Self::BYTES, "the yard is used up");
        Phys(self.large - LARGE)
    }

    /// New bytes, so that old ones are not taken for what was just written.
    fn renew(&mut self, ram: &Ram, parts: &[(Phys, usize)]) {
        for &(phys, len) in parts {
            self.salt = self.salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut x = self.salt;
            let range = self.range(phys, len);
            for byte in &mut self.known[range.clone()] {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                *byte = x as u8;
            }
            ram.write(phys.0, &self.known[range]).expect("the yard is memory");
        }
    }

    fn expect(&mut self, parts: &[(Phys, usize)], mut bytes: &[u8]) {
        for &(phys, len) in parts {
            let range = self.range(phys, len);
            let (now, later) = bytes.split_at(len);
            self.known[range].copy_from_slice(now);
            bytes = later;
        }
        assert!(bytes.is_empty(), "more bytes than places");
    }

    fn bytes(&self, phys: Phys, len: usize) -> &[u8] {
        &self.known[self.range(phys, len)]
    }

    fn range(&self, phys: Phys, len: usize) -> Range<usize> {
        let start = (phys.0 - self.base) as usize;
        start..start + len
    }

    fn check(&self, ram: &Ram) {
        let mut page = [0; FRAME_SIZE];
        for (i, known) in self.known.chunks_exact(FRAME_SIZE).enumerate() {
            let at = self.base + (i * FRAME_SIZE) as u64;
            ram.read(at, &mut page).expect("the yard is memory");
            if page != *known {
                let offset = (0..FRAME_SIZE).find(|&b| page[b] != known[b]).unwrap_or(0);
                panic!("isolation: memory at {:#x} is not what it should be", at + offset as u64);
            }
        }
    }
}
