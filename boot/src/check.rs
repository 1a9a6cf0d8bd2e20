//! What the image shows: the life of one device behind VT-d, from its first translation to its
//! last blocked request. Every step is compared with what must come out.

use alloc::{boxed::Box, string::String, sync::Arc, vec};
use core::error::Error;
use core::fmt;

use portcullis::driver::Start;
use portcullis::topology::Address;
use portcullis::{
    Access, Config, Device, DeviceId, DeviceSpec, Domain, DomainOptions, External, FaultKind, InstanceId,
    Iommu, PageGroup, Reason, Scope, Sleep, SourceId, Subscription, Upstream, Waited,
};
use portcullis_drivers::vtd::{Options, Vtd};
use portcullis_pgtable::{Phys, Prot, X86_FIRST_STAGE};

use crate::clock::Clock;
use crate::edu::Edu;
use crate::firmware;
use crate::page::Page;
use crate::platform::{BareMetal, VTD};
use crate::port::{Verdict, say};

/// Why the image does not succeed.
pub enum Failure {
    /// The device did not copy what it was told to.
    BytesDiffer,
    /// Anything else.
    Other(String),
}

impl Failure {
    pub fn verdict(&self) -> Verdict {
        match self {
            Failure::BytesDiffer => Verdict::BytesDiffer,
            Failure::Other(_) => Verdict::Failed,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::BytesDiffer => f.write_str("the device did not copy the page"),
            Failure::Other(why) => f.write_str(why),
        }
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Other(alloc::format!("{error}"))
    }
}

/// `Err` with the text where the condition does not hold.
macro_rules! must {
    ($holds:expr, $($text:tt)*) => {
        if !$holds {
            return Err(Failure::Other(alloc::format!($($text)*)));
        }
    };
}

const DEVICE: DeviceId = DeviceId(1);

/// IOVAs beyond the machine's 256 MiB, so that nothing passes untranslated by chance, and below
/// 2^29, where a first stage ends for QEMU: it takes the width from AW, which the manual reserves
/// for the second stage (`[V]` 9.6).
const SOURCE: u64 = 0x1234_5000;
const DESTINATION: u64 = 0x1abc_d000;
/// Not mapped, in the same table as the source's page.
const UNMAPPED: u64 = SOURCE + Page::BYTES as u64;

/// Two patterns of bytes.
const SENT: u8 = 0x11;
const OTHER: u8 = 0x22;

/// A request that is to be blocked: QEMU cuts a longer one into pieces that fault one by one.
const ONE_WORD: usize = 4;

/// What the parts of the check share.
struct Bench {
    instance: InstanceId,
    platform: BareMetal,
    scalable: bool,
    iommu: Iommu<BareMetal>,
    edu: Arc<Edu>,
    device: Device<BareMetal>,
    faults: Subscription<BareMetal>,
}

type Mapped = Domain<BareMetal, External<()>>;

/// The device makes no page requests, so its domain has no resolver; a type must be named though.
type NoResolver = fn(&Sleep<'_>, &Arc<()>, PageGroup<'_, BareMetal>);

/// `information` is what the loader left.
pub fn run(information: u64) -> Result<(), Failure> {
    let cx = &Sleep::in_sleepable_context();
    let bench = Bench::set_up(cx, information)?;
    let frames = bench.platform.free_frames();
    bench.translate_and_block(cx)?;
    bench.platform.run_pending(&bench.iommu, cx);
    let left = bench.platform.free_frames();
    must!(left == frames, "of {frames} frames {left} came back from the domain");
    bench.take_down(cx)
}

impl Bench {
    /// Finds the unit that serves the device, brings it up, then takes the device in, which is
    /// blocked from there on. Only now it may start requests.
    fn set_up(cx: &Sleep<'_>, information: u64) -> Result<Self, Failure> {
        let other = |why: &str| Failure::Other(why.into());
        let clock = Clock::start().ok_or_else(|| other("there is no HPET"))?;
        let edu = Arc::new(Edu::find(clock).ok_or_else(|| other("there is no edu device"))?);
        let source = SourceId(edu.function().0.into());
        say!("edu is {source}");

        let topology = firmware::topology(information).map_err(other)?;
        let at = Address { segment: 0, rid: edu.function().0 };
        let unit = topology.unit_of(at).ok_or_else(|| other("no unit serves the edu device"))?;
        say!("DMAR: {source} is served by the unit at {:#x}", unit.registers);
        must!(topology.remarks().is_empty(), "odd about the DMAR: {:?}", topology.remarks());
        let registers = firmware::registers(unit).ok_or_else(|| other("the unit is out of reach"))?;
        let platform = BareMetal::new(clock, registers).map_err(other)?;

        let iommu = Iommu::new(platform.clone(), Config::default())?;
        let driver = Vtd::new(platform.clone(), VTD, Options::default());
        let scalable = driver.is_scalable();
        iommu.register(cx, unit.instance, Box::new(driver), Start::Fresh)?;
        say!("VT-d runs in {} mode", if scalable { "scalable" } else { "legacy" });

        let faults = iommu.observe(Scope::Device(DEVICE), 8)?;
        let upstreams = vec![Upstream { instance: unit.instance, sources: vec![source] }];
        let device = iommu.add_device(cx, DeviceSpec::new(DEVICE, upstreams, edu.clone()))?;
        edu.let_master_the_bus();
        Ok(Self { instance: unit.instance, platform, scalable, iommu, edu, device, faults })
    }

    fn translate_and_block(&self, cx: &Sleep<'_>) -> Result<(), Failure> {
        let (source, mut destination) = (Page::new(SENT), Page::new(OTHER));
        let domain = self.domain()?;
        let attachment = self.iommu.attach(cx, &domain, &self.device, None, Arc::new(()))?;
        if let Some(format) = domain.format() {
            say!("attached to a table of format {:?}", format.id);
        }
        // A first stage says when nothing is there; to a second stage, nothing is an entry without
        // permissions ([V] table 30: SFS.2; LGN.2 and LGN.3).
        let first_stage = domain.format().is_some_and(|format| format.id == X86_FIRST_STAGE);
        let unmapped = (FaultKind::Dma, if first_stage { Reason::NotMapped } else { Reason::Permission });
        // LCT.2 is the manual's. For SPT.2 QEMU has SPT.4: it does not look at P again, and the
        // type of a blocked entry is none ([V] 9.6).
        let detached = match self.scalable {
            false => (FaultKind::Dma, Reason::Blocked),
            true => (FaultKind::Configuration, Reason::BadEntry),
        };

        if cfg!(feature = "mapping") {
            let len = Page::BYTES as u64;
            domain.map_range(SOURCE, Phys(source.address()), len, Prot::READ)?;
            domain.map_range(DESTINATION, Phys(destination.address()), len, Prot::READ | Prot::WRITE)?;
        }
        self.edu.fetch(SOURCE, Page::BYTES)?;
        self.edu.store(DESTINATION, Page::BYTES)?;
        if !destination.holds(SENT) {
            return Err(Failure::BytesDiffer);
        }
        self.expect_no_fault()?;
        say!("{} bytes are identical", Page::BYTES);

        self.edu.fetch(UNMAPPED, ONE_WORD)?;
        self.expect_fault(Access::Read, UNMAPPED, unmapped)?;

        // The unit has cached the translation: it is the sync that makes it forget.
        let mut unmapping = domain.unmapping();
        unmapping.unmap(DESTINATION, Page::BYTES as u64)?;
        unmapping.sync(cx)?;
        destination.fill(OTHER);
        self.edu.store(DESTINATION, ONE_WORD)?;
        must!(destination.holds(OTHER), "the device writes a page after its unmap");
        self.expect_fault(Access::Write, DESTINATION, unmapped)?;

        self.edu.fetch(SOURCE, ONE_WORD)?;
        self.expect_no_fault()?;
        let detaching = attachment.begin_detach(cx);
        let waited = detaching.wait(cx, None);
        must!(waited == Waited::Gone && !detaching.lost(), "the detach ends as {waited:?}");
        self.edu.fetch(SOURCE, ONE_WORD)?;
        self.expect_fault(Access::Read, SOURCE, detached)?;

        let mut unmapping = domain.unmapping();
        unmapping.unmap(SOURCE, Page::BYTES as u64)?;
        unmapping.sync(cx)?;
        Ok(())
    }

    fn domain(&self) -> Result<Mapped, Failure> {
        let options = DomainOptions::default();
        Ok(self.iommu.external_domain(&[&self.device], options, None::<NoResolver>)?)
    }

    /// Reads the unit's fault records, which an interrupt would ask for, and compares.
    fn expect_fault(
        &self,
        access: Access,
        address: u64,
        (kind, reason): (FaultKind, Reason),
    ) -> Result<(), Failure> {
        self.iommu.service(self.instance);
        let missing = || Failure::Other(alloc::format!("no record of the {access:?} at {address:#x}"));
        let record = self.faults.try_next().ok_or_else(missing)?;
        say!("{record}");
        let same = record.instance == self.instance
            && record.source == self.device.sources().first().copied()
            && record.device == Some(DEVICE)
            && record.pasid.is_none()
            && record.kind == kind
            && record.access == access
            && record.address == Some(address)
            && record.reason == reason;
        must!(same, "expected {access:?} at {address:#x}, {kind:?}, {reason:?}, and got {record:?}");
        self.expect_no_fault()
    }

    fn expect_no_fault(&self) -> Result<(), Failure> {
        self.iommu.service(self.instance);
        let record = self.faults.try_next();
        must!(record.is_none(), "a fault that nothing should have caused: {record:?}");
        must!(self.faults.lost() == 0, "records were lost");
        Ok(())
    }

    fn take_down(self, cx: &Sleep<'_>) -> Result<(), Failure> {
        self.iommu.remove_device(cx, self.device).map_err(|(_, why)| why)?;
        Ok(())
    }
}
