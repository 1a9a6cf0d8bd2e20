//! A whole machine on real threads: a domain's own calls, and the model's translations.

use crate::Row;
use portcullis::{
    Attachment, Config, Device, DeviceId, DeviceSpec, Domain, DomainOptions, External, InstanceId, Iommu,
    PageGroup, Sleep, SourceId, Upstream, Window,
    driver::{DeviceControl, Start},
};
use portcullis_drivers::vtd::{Options, Vtd};
use portcullis_machine::{
    board::{Board, BusMemory},
    threads::{ThreadPlatform, Threads},
};
use portcullis_models::{
    bus::RequesterId,
    complex::{Complex, Work},
    endpoint::{Endpoint, Idle, Intent},
    log::Silent,
    vtd,
};
use portcullis_pgtable::{Phys, Prot};
use std::{hint::black_box, sync::Arc};

const PAGE: u64 = 4096;
const IOVA: u64 = 0x1_0000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);
/// Accesses begun in one go, so that the cost of a look at the clock is small beside them.
const BURST: u64 = 64;

type NoResolver = fn(&Sleep<'_>, &Arc<()>, PageGroup<'_, ThreadPlatform>);

/// One VT-d in scalable mode with one device that has no ATS, attached to a domain.
pub(crate) struct Bench {
    threads: Threads,
    domain: Domain<ThreadPlatform, External<()>>,
    lone: Domain<ThreadPlatform, External<()>>,
    _device: Device<ThreadPlatform>,
    attachment: Attachment<ThreadPlatform>,
}

struct NoCapabilities;

impl DeviceControl for NoCapabilities {
    fn set_pasid(&self, _: bool) {}
    fn set_ats(&self, _: bool) {}
    fn set_pri(&self, _: Option<u32>) {}
    fn reset(&self) {}
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let mut threads = Threads::new(0x1000_0000, 64 << 20).expect("64 MiB");
        let platform = threads.platform().clone();
        let mut complex = Complex::new(Arc::new(BusMemory(platform.ram().clone())), Box::new(Silent));
        let unit = complex.add_unit(Box::new(vtd::Vtd::new(vtd::Config::default())));
        complex.add_endpoint(Endpoint::new(RequesterId(8), 0, Box::new(Idle)), Some(unit));
        threads.set_hardware(Board::new(complex));
        let cx = Sleep::in_sleepable_context();
        let iommu = Iommu::new(platform.clone(), Config::default()).expect("memory for the core");
        let driver = Vtd::new(platform.clone(), Window(0), Options::default());
        iommu.register(&cx, InstanceId(0), Box::new(driver), Start::Fresh).expect("a unit that starts");
        let upstreams = vec![Upstream { instance: InstanceId(0), sources: vec![SourceId(8)] }];
        let spec = DeviceSpec::new(DeviceId(8), upstreams, Arc::new(NoCapabilities));
        let device = iommu.add_device(&cx, spec).expect("a new device");
        let make = || {
            let options = DomainOptions::default();
            iommu.external_domain(&[&device], options, None::<NoResolver>).expect("a table")
        };
        let (domain, lone) = (make(), make());
        let page = platform.ram().page().expect("a page");
        domain.map_range(IOVA, page, PAGE, RW).expect("an empty domain");
        lone.map_range(IOVA, page, PAGE, RW).expect("an empty domain");
        let attachment = iommu.attach(&cx, &domain, &device, None, Arc::new(())).expect("a free place");
        Bench { threads, domain, lone, _device: device, attachment }
    }

    pub(crate) fn rows(&self) -> Vec<Row> {
        vec![
            ping_pong("domain, nothing attached: 4K", &self.lone, 1),
            ping_pong("domain, nothing attached: 256 x 4K", &self.lone, 256),
            ping_pong("domain, attached, strict: 4K", &self.domain, 1),
            ping_pong("domain, attached, strict: 256 x 4K", &self.domain, 256),
            self.accesses("model: 64-byte read on an IOTLB hit, whole"),
        ]
    }

    pub(crate) fn stop(self) {
        self.attachment.begin_detach(&Sleep::in_sleepable_context()).is_gone();
        self.threads.stop();
    }

    /// Bursts of reads by the endpoint, each begun (the IOMMU decides) and finished (the bytes
    /// move).
    fn accesses(&self, name: &str) -> Row {
        let platform = self.threads.platform().clone();
        let mut work = Vec::new();
        Row::new(name, BURST, move || {
            platform.hardware::<Board, _>(|b| burst(&mut b.complex, &mut work));
        })
    }
}

fn burst(complex: &mut Complex, work: &mut Vec<Work>) {
    for i in 0..BURST {
        if let Some(e) = complex.endpoint_mut(0) {
            e.port_mut().access(IOVA + i * 64 % PAGE, Intent::Read(64));
        }
    }
    complex.run(0, Work::Endpoint(0));
    loop {
        work.clear();
        complex.runnable(0, work);
        if work.is_empty() {
            return;
        }
        for step in &*work {
            black_box(complex.run(0, *step));
        }
    }
}

fn ping_pong(name: &str, domain: &Domain<ThreadPlatform, External<()>>, pages: u64) -> Row {
    let domain = domain.clone();
    let iova = IOVA + PAGE;
    Row::new(format!("{name}, map + unmap + sync"), pages, move || {
        let cx = Sleep::in_sleepable_context();
        domain.map_range(black_box(iova), Phys(0x1000_0000), pages * PAGE, RW).expect("an empty range");
        let mut unmapping = domain.unmapping();
        unmapping.unmap(iova, pages * PAGE).expect("what was mapped");
        unmapping.sync(&cx).expect("hardware that answers");
    })
}
