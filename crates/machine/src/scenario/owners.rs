//! Each kind of owner at work: the DMA API, a user-space object, an address space of the CPU, and
//! the identity. `External` is what all other scenarios are made of; a unit without nesting refuses
//! a guest's table here.

use super::{
    actor::Actor,
    space::{MARK, Mm, Space},
    stage::{Ending, Setting, Stage, perform},
};
use crate::{
    oracle::Place,
    pager::PAGE,
    platform::{AnyPlatform, MachinePlatform},
};
use parking_lot::Mutex;
use portcullis::{
    Deferred, Direction, DmaOptions, Domain, DomainOptions, FaultKind, Iommu, KernelDma, MsiWindow, Nested,
    PageGroup, Pasid, Response, Scope, Sleep, TableSource, UserObject, Waited,
    driver::Incompatible,
    error::{AttachError, BindError, DmaMapError, DomainError, DomainMapError, MsiError},
};
use portcullis_models::endpoint::{Failure, Intent};
use portcullis_pgtable::{FormatDesc, Phys, Prot};
use std::sync::Arc;

const BASE: u64 = 0x4000_0000;
/// Where a write is an interrupt ([V] 3.14).
const INTERRUPTS: u64 = 0xfee0_0000;

fn page(n: u64) -> u64 {
    BASE + n * PAGE
}

fn words<E: std::fmt::Display>(e: E) -> String {
    e.to_string()
}

fn expect(what: &str, so: bool) -> Result<(), String> {
    if so { Ok(()) } else { Err(format!("expected: {what}")) }
}

/// Bytes in memory.
fn bytes(stage: &Stage, at: u64, len: usize) -> Result<Vec<u8>, String> {
    let mut data = vec![0; len];
    stage.platform.ram().read(at, &mut data).map_err(words)?;
    Ok(data)
}

fn pattern(n: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i * 7 + n * 31 + 1) as u8).collect()
}

type Dma = Domain<AnyPlatform, KernelDma>;

/// The DMA API: buffers that begin and end inside pages go to a device and back; what was unmapped is
/// out of reach, and no IOVA is used again before it is.
pub fn kernel_dma(setting: &Setting) -> Ending {
    perform("kernel DMA", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x08, false)?;
        // Room for four pages, so that IOVAs come back soon.
        let options = DmaOptions { limit: 5 * PAGE - 1, ..DmaOptions::default() };
        let domain = stage.iommu.kernel_dma_domain(&[&device.device], options).map_err(words)?;
        let place = device.at(None);
        stage.oracle.attach(place, domain.id());
        let attached = stage.iommu.attach(cx, &domain, &device.device, None, Arc::new(())).map_err(words)?;
        for round in 0..4 {
            to_device(stage, cx, &device, &domain, round)?;
            from_device(stage, cx, &device, &domain, round)?;
        }
        parked(stage, cx, &device, &domain)?;
        let refused = domain.dma_map(Phys(INTERRUPTS), 4, Direction::FromDevice);
        let kept = matches!(refused, Err(DmaMapError::Map(DomainMapError::ReservedOutput { .. })));
        expect("no mapping leads to an interrupt", kept)?;
        let detaching = attached.begin_detach(cx);
        stage.oracle.detached(place, domain.id());
        expect("the detach ends", detaching.wait(cx, None) == Waited::Gone)
    })
}

/// A mapping of a buffer that the oracle knows of.
struct Buffer {
    mapping: portcullis::Mapping<AnyPlatform>,
    frames: Phys,
    page: u64,
}

impl Buffer {
    /// Two pages of memory, of which `len` bytes from `offset` on are mapped.
    fn new(stage: &Stage, domain: &Dma, offset: u64, len: u64, way: Direction) -> Result<Buffer, String> {
        let frames = stage.platform.ram().pages(2).map_err(words)?;
        Buffer::over(stage, domain, frames, offset, len, way)
    }

    fn over(
        stage: &Stage,
        domain: &Dma,
        frames: Phys,
        offset: u64,
        len: u64,
        way: Direction,
    ) -> Result<Buffer, String> {
        let mapping = domain.dma_map(Phys(frames.0 + offset), len, way).map_err(words)?;
        let page = mapping.iova() - offset;
        // Nobody but the device that is told of it later uses the address.
        stage.oracle.map(domain.id(), page, frames.0, 2 * PAGE, way != Direction::ToDevice);
        Ok(Buffer { mapping, frames, page })
    }

    fn unmap(self, stage: &Stage, cx: &Sleep<'_>, domain: &Dma) -> Result<(), String> {
        self.mapping.unmap(cx).map_err(words)?;
        stage.oracle.unmapped(domain.id(), self.page);
        stage.platform.ram().free_page(self.frames);
        stage.platform.ram().free_page(Phys(self.frames.0 + PAGE));
        Ok(())
    }
}

fn to_device(stage: &Stage, cx: &Sleep<'_>, device: &Actor, domain: &Dma, n: u64) -> Result<(), String> {
    let (offset, len) = (0x234 + 16 * n, PAGE);
    let buffer = Buffer::new(stage, domain, offset, len, Direction::ToDevice)?;
    let data = pattern(n, len as usize);
    stage.platform.ram().write(buffer.frames.0 + offset, &data).map_err(words)?;
    buffer.mapping.sync_for_device();
    let iova = buffer.mapping.iova();
    let mut at = 0;
    while at < len {
        // No access crosses the end of a page.
        let part = 256.min(len - at).min(PAGE - (iova + at) % PAGE);
        let read = device.must(cx, None, iova + at, Intent::Read(part as u32))?;
        expect("the device reads what the CPU wrote", read == data[at as usize..(at + part) as usize])?;
        at += part;
    }
    device.must_not(cx, None, iova, Intent::Write(vec![1; 8]))?;
    buffer.unmap(stage, cx, domain)?;
    device.must_not(cx, None, iova, Intent::Read(8)).map(|_| ())
}

fn from_device(stage: &Stage, cx: &Sleep<'_>, device: &Actor, domain: &Dma, n: u64) -> Result<(), String> {
    let (offset, len) = (0xf00 + n, 512);
    let buffer = Buffer::new(stage, domain, offset, len, Direction::FromDevice)?;
    let data = pattern(n + 100, len as usize);
    // Across the end of a page: two accesses.
    let first = (PAGE - offset) as usize;
    let iova = buffer.mapping.iova();
    device.must(cx, None, iova, Intent::Write(data[..first].to_vec()))?;
    device.must(cx, None, iova + first as u64, Intent::Write(data[first..].to_vec()))?;
    buffer.mapping.sync_for_cpu();
    let found = bytes(stage, buffer.frames.0 + offset, len as usize)?;
    expect("the CPU reads what the device wrote", found == data)?;
    buffer.unmap(stage, cx, domain)?;
    device.must_not(cx, None, iova, Intent::Write(vec![1; 8])).map(|_| ())
}

/// Mappings that are dropped: the device may reach the memory until the flush, and the IOVAs are
/// nobody's.
fn parked(stage: &Stage, cx: &Sleep<'_>, device: &Actor, domain: &Dma) -> Result<(), String> {
    let mut gone = Vec::new();
    for n in 0..2 {
        let buffer = Buffer::new(stage, domain, n + 1, PAGE, Direction::Both)?;
        device.must(cx, None, buffer.mapping.iova(), Intent::Write(vec![3; 16]))?;
        gone.push((buffer.page, buffer.frames));
        drop(buffer.mapping);
    }
    let full = domain.dma_map(gone[0].1, PAGE, Direction::Both);
    expect("no IOVA is used again early", matches!(full, Err(DmaMapError::NoIova { .. })))?;
    domain.flush(cx).map_err(words)?;
    for (page, frames) in gone {
        stage.oracle.unmapped(domain.id(), page);
        device.must_not(cx, None, page, Intent::Read(8))?;
        stage.platform.ram().free_page(frames);
        stage.platform.ram().free_page(Phys(frames.0 + PAGE));
    }
    Buffer::new(stage, domain, 1, PAGE, Direction::Both)?.unmap(stage, cx, domain)
}

/// Page requests on their way to a process.
type Queue = Arc<Mutex<Vec<Deferred<AnyPlatform>>>>;

const WINDOW: MsiWindow = MsiWindow { base: 0x800_0000, len: 2 * PAGE };

/// A user-space object: page requests wait for its process, a doorbell is reached through the window,
/// and neither the window nor the interrupt range is anybody's to map.
pub fn user_object(setting: &Setting) -> Ending {
    perform("user object", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x08, true)?;
        let queue = Queue::default();
        let to = queue.clone();
        let defer = move |_: &Arc<u64>, group: PageGroup<'_, AnyPlatform>| to.lock().push(group.defer());
        let options = DomainOptions { msi_window: Some(WINDOW), ..DomainOptions::default() };
        let made = stage.iommu.user_object_domain_immediate(&[&device.device], options, defer);
        let domain: Domain<AnyPlatform, UserObject<u64>> = made.map_err(words)?;
        ranges_are_refused(stage, cx, &domain)?;
        nesting_is_refused(stage, &device, &domain)?;
        let place = device.at(None);
        stage.oracle.attach(place, domain.id());
        let number = Arc::new(stage.number());
        let attached = stage.iommu.attach(cx, &domain, &device.device, None, number).map_err(words)?;
        // The doorbell stands in memory, where a test can look at it.
        let doorbell = stage.platform.ram().page().map_err(words)?;
        stage.oracle.map(domain.id(), WINDOW.base, doorbell.0, PAGE, true);
        let iova = domain.map_msi(cx, Phys(doorbell.0 + 0x40)).map_err(words)?;
        expect("the doorbell is in the window", iova == WINDOW.base + 0x40)?;
        device.must(cx, None, iova, Intent::Write(0x51u32.to_le_bytes().to_vec()))?;
        expect("the message arrives", bytes(stage, doorbell.0 + 0x40, 4)? == 0x51u32.to_le_bytes())?;
        for n in 0..4 {
            faults_in(stage, cx, &device, &domain, &queue, page(n))?;
        }
        let before = stage.tally().settled_by("software: Success");
        if stage.is_calm() {
            expect("the process answered", before >= 4)?;
        }
        let left = device.begin(None, page(9), Intent::Read(8));
        stage.until(cx, "a request that nobody answers", || !queue.lock().is_empty())?;
        let detaching = attached.begin_detach(cx);
        stage.oracle.detached(place, domain.id());
        expect("its access fails", device.end(cx, left)?.is_err())?;
        let late = queue.lock().drain(..).all(|group| group.respond(Response::Success).is_err());
        expect("a process that is late is told so", late)?;
        expect("the detach ends", detaching.wait(cx, None) == Waited::Gone)
    })
}

fn ranges_are_refused(
    stage: &Stage,
    cx: &Sleep<'_>,
    domain: &Domain<AnyPlatform, UserObject<u64>>,
) -> Result<(), String> {
    let rw = Prot::READ | Prot::WRITE;
    let frame = stage.platform.ram().page().map_err(words)?;
    for iova in [WINDOW.base, WINDOW.base + PAGE, INTERRUPTS, INTERRUPTS + 0xf_f000] {
        let refused = domain.map_range(iova, frame, PAGE, rw);
        expect("a reserved range", matches!(refused, Err(DomainMapError::ReservedInput { .. })))?;
    }
    let refused = domain.map_range(BASE, Phys(INTERRUPTS), PAGE, rw);
    expect("no way to an interrupt", matches!(refused, Err(DomainMapError::ReservedOutput { .. })))?;
    let refused = domain.map_msi(cx, Phys(INTERRUPTS));
    let kept = matches!(refused, Err(MsiError::Map(DomainMapError::ReservedOutput { .. })));
    expect("nor through the window", kept)?;
    stage.platform.ram().free_page(frame);
    Ok(())
}

/// This unit walks no table through another.
fn nesting_is_refused(
    stage: &Stage,
    device: &Actor,
    domain: &Domain<AnyPlatform, UserObject<u64>>,
) -> Result<(), String> {
    let table: Arc<dyn TableSource> = Arc::new(GuestTable(domain.format().ok_or("it has a table")?));
    type Nobody = fn(&Sleep<'_>, &Arc<()>, PageGroup<'_, AnyPlatform>);
    let made: Result<Domain<AnyPlatform, Nested<()>>, _> =
        stage.iommu.nested_domain(domain, &[&device.device], table, None::<Nobody>);
    let so = matches!(made, Err(DomainError::Incompatible { why: Incompatible::NoNesting, .. }));
    expect("a guest's table is refused with the reason", so)
}

/// A table that a guest would write.
struct GuestTable(FormatDesc);

impl TableSource for GuestTable {
    fn desc(&self) -> FormatDesc {
        self.0
    }
    fn root(&self) -> Phys {
        Phys(0)
    }
}

/// One page that is not there: the device asks, the process maps it and answers.
fn faults_in(
    stage: &Stage,
    cx: &Sleep<'_>,
    device: &Actor,
    domain: &Domain<AnyPlatform, UserObject<u64>>,
    queue: &Queue,
    iova: u64,
) -> Result<(), String> {
    let mark = pattern(iova / PAGE, 16);
    let mut there = false;
    // The adversary may have the hardware answer in the process's place: the device asks again.
    for _ in 0..64 {
        let ticket = device.begin(None, iova, Intent::Read(16));
        let result = loop {
            let group = queue.lock().pop();
            if let Some(group) = group {
                let ours = group.requests().all(|r| r.address & !(PAGE - 1) == iova);
                if ours && !there {
                    let frame = stage.platform.ram().page().map_err(words)?;
                    stage.platform.ram().write(frame.0, &mark).map_err(words)?;
                    stage.oracle.map(domain.id(), iova, frame.0, PAGE, false);
                    domain.map_range(iova, frame, PAGE, Prot::READ).map_err(words)?;
                    there = true;
                }
                let _ = group.respond(if ours { Response::Success } else { Response::Invalid });
            }
            if let Some(result) = device.ended(ticket) {
                break result;
            }
            stage.sleep(cx, 2_000)?;
        };
        match result {
            Ok(data) => return expect("the device reads what the process put there", data == mark),
            Err(failure) if stage.is_calm() && !stage.on_threads() => return Err(format!("{failure:?}")),
            Err(_) => {}
        }
    }
    Err(format!("{iova:#x} was asked for in vain"))
}

/// Pages that an address space can have.
const PAGES: u64 = 16;

/// An address space of the CPU: two devices use it under its PASID, fault in what is not there, lose
/// what is taken away, and are stopped in the middle of their DMA when it exits.
pub fn address_space(setting: &Setting) -> Ending {
    let coherent = setting.unit.walks_coherent;
    perform("address space", setting, move |stage, cx| {
        stage.start(cx)?;
        let devices = [stage.device(cx, 0x08, true)?, stage.device(cx, 0x10, true)?];
        // All its handlers are entered in the books under the place of the first.
        let space = Mm::share(stage, BASE..page(PAGES), devices[0].id)?;
        let mm = space.address_space();
        if !coherent {
            let refused = space.bind(cx, &devices[0].device);
            let why = Incompatible::NotCoherent;
            let so = matches!(refused, Err(BindError::Attach(AttachError::Incompatible { why: w, .. })) if w == why);
            return expect("a walker that does not snoop the CPU reads no table of it", so);
        }
        let pasid = space.pasid();
        let places = devices.each_ref().map(|d| d.at(Some(pasid.get())));
        places.iter().for_each(|place| stage.oracle.attach(*place, space.id()));
        let bonds = bind_twice(cx, &space, &devices)?;
        for device in &devices {
            uses(stage, cx, device, mm, pasid)?;
        }
        loses(cx, &devices[0], mm, &space, pasid)?;
        exits(stage, cx, &devices, mm, &space, pasid)?;
        frees(stage, cx, mm, &space, &places, bonds)
    })
}

type Bonds = Vec<portcullis::Bond<AnyPlatform>>;

fn bind_twice(cx: &Sleep<'_>, space: &Space, devices: &[Actor]) -> Result<Bonds, String> {
    let mut bonds = Vec::new();
    for device in devices {
        bonds.push(space.bind(cx, &device.device).map_err(words)?);
    }
    let again = space.bind(cx, &devices[0].device).map_err(words)?;
    expect("the device is still bound", again.unbind(cx).is_none())?;
    Ok(bonds)
}

/// Reads and writes pages that come in on the way.
fn uses(stage: &Stage, cx: &Sleep<'_>, device: &Actor, mm: &Mm, pasid: Pasid) -> Result<(), String> {
    let p = Some(pasid.get());
    for n in 0..PAGES {
        let read = device.must(cx, p, page(n), Intent::Read(MARK as u32))?;
        expect("the device reads what the process has there", read == mm.mark(page(n)))?;
        let data = pattern(n + u64::from(device.id.0), 64);
        device.must(cx, p, page(n) + 256, Intent::Write(data.clone()))?;
        let (frame, _) = mm.frame(page(n)).ok_or("the page is not there")?;
        expect("the process reads what the device wrote", bytes(stage, frame.0 + 256, 64)? == data)?;
    }
    device.must_not(cx, p, page(PAGES), Intent::Read(8)).map(|_| ())
}

/// Pages that are taken away are out of reach when the invalidation is over, and come back when asked
/// for, empty of what was there.
fn loses(cx: &Sleep<'_>, device: &Actor, mm: &Mm, space: &Space, pasid: Pasid) -> Result<(), String> {
    for (from, to) in [(2, 3), (4, 9), (0, PAGES)] {
        let gone: Vec<u64> = (from..to).map(page).collect();
        mm.take_out(&gone, || space.invalidate(cx, page(from)..page(to)).map_err(words))?;
        let faults = mm.faults();
        for iova in gone {
            let read = device.must(cx, Some(pasid.get()), iova, Intent::Read(MARK as u32))?;
            expect("the page is new", read == mm.mark(iova))?;
        }
        expect("it was asked for again", mm.faults() > faults)?;
    }
    Ok(())
}

/// The exit, in the middle of it all.
fn exits(
    stage: &Stage,
    cx: &Sleep<'_>,
    devices: &[Actor],
    mm: &Mm,
    space: &Space,
    pasid: Pasid,
) -> Result<(), String> {
    let p = Some(pasid.get());
    let seen = stage.iommu.observe(Scope::All, 256).map_err(words)?;
    let running: Vec<(usize, u64)> = (0..8)
        .map(|n| (n % 2, devices[n % 2].begin(p, page(n as u64), Intent::Write(vec![n as u8; 64]))))
        .collect();
    mm.exits(cx, space)?;
    for (device, ticket) in running {
        // Some were through before.
        let _: Result<Vec<u8>, Failure> = devices[device].end(cx, ticket)?;
    }
    while seen.try_next().is_some() {}
    for n in 0..64 {
        devices[n % 2].must_not(cx, p, page(n as u64 % PAGES), Intent::Write(vec![9; 16]))?;
    }
    let mut records = 0;
    while let Some(record) = seen.try_next() {
        records += u32::from(record.kind == FaultKind::Dma);
    }
    expect("a device that goes on makes no storm of records", records == 0)?;
    let refused = space.bind(cx, &devices[0].device);
    expect("nobody is bound any more", matches!(refused, Err(BindError::Exited)))
}

/// The unbinds, after which the PASID is free.
fn frees(
    stage: &Stage,
    cx: &Sleep<'_>,
    mm: &Mm,
    space: &Space,
    places: &[Place],
    bonds: Bonds,
) -> Result<(), String> {
    for (bond, place) in bonds.into_iter().zip(places) {
        let detaching = bond.unbind(cx).ok_or("it was the last")?;
        stage.oracle.detached(*place, space.id());
        expect("the detach ends", detaching.wait(cx, None) == Waited::Gone)?;
    }
    mm.is_gone();
    expect("nothing is bound", space.is_unused())
}

/// The identity: a device reaches memory at its own address, until it is detached.
pub fn identity(setting: &Setting) -> Ending {
    perform("identity", setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x08, false)?;
        let domain = Iommu::identity_domain(&stage.iommu).map_err(words)?;
        let frame = stage.platform.ram().page().map_err(words)?;
        let place = device.at(None);
        stage.oracle.map(domain.id(), frame.0, frame.0, PAGE, true);
        stage.oracle.attach(place, domain.id());
        let attached = stage.iommu.attach(cx, &domain, &device.device, None, Arc::new(())).map_err(words)?;
        let data = pattern(5, 128);
        device.must(cx, None, frame.0 + 64, Intent::Write(data.clone()))?;
        expect("the bytes are there", bytes(stage, frame.0 + 64, 128)? == data)?;
        let read = device.must(cx, None, frame.0 + 64, Intent::Read(128))?;
        expect("and come back", read == data)?;
        let before = device.endpoint(|e| e.statistics().accesses);
        // A message is an interrupt all the same.
        device.must(cx, None, INTERRUPTS, Intent::Write(0x61u32.to_le_bytes().to_vec()))?;
        expect("the device sent it", device.endpoint(|e| e.statistics().accesses) >= before)?;
        let detaching = attached.begin_detach(cx);
        stage.oracle.detached(place, domain.id());
        device.must_not(cx, None, frame.0 + 64, Intent::Read(8))?;
        expect("the detach ends", detaching.wait(cx, None) == Waited::Gone)
    })
}
