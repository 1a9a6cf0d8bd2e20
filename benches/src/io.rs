//! One I/O of 4 KiB from end to end, through driver and model: map, the device's access, unmap, and
//! sync (strict) or a flush for many (lazy).

use crate::{
    Row,
    inline::{Asked, Inline},
};
use portcullis::{
    Attachment, Config, Device, DeviceId, DeviceSpec, Domain, DomainOptions, External, InstanceId, Iommu,
    PageGroup, Sleep, SourceId, Upstream, Window,
    driver::{DeviceControl, Start},
};
use portcullis_drivers::vtd::{Options, Vtd};
use portcullis_machine::board::{Board, BusMemory};
use portcullis_models::{
    bus::RequesterId,
    complex::Complex,
    endpoint::{Endpoint, Idle, Intent},
    log::Silent,
    vtd,
};
use portcullis_pgtable::{Phys, Prot};
use std::{sync::Arc, thread};

const PAGE: u64 = 4096;
const IOVA: u64 = 0x1_0000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);
/// Unmaps that one flush ends, where they are not ended one by one.
const BATCH: u64 = 256;
/// I/Os of one measurement with two threads.
const TURN: u64 = 2_000;

type NoResolver = fn(&Sleep<'_>, &Arc<()>, PageGroup<'_, Inline>);

struct NoCapabilities;

impl DeviceControl for NoCapabilities {
    fn set_pasid(&self, _: bool) {}
    fn set_ats(&self, _: bool) {}
    fn set_pri(&self, _: Option<u32>) {}
    fn reset(&self) {}
}

/// One VT-d and some devices, each attached to a domain of its own.
struct Io {
    platform: Inline,
    channels: Vec<Channel>,
}

/// A device's domain, and what moves through it.
struct Channel {
    platform: Inline,
    place: usize,
    iova: u64,
    parked: u64,
    page: Phys,
    domain: Domain<Inline, External<()>>,
    _attachment: Attachment<Inline>,
    _device: Device<Inline>,
}

impl Io {
    fn new(devices: u16) -> Io {
        let platform = Inline::new(0x1000_0000, 32 << 20);
        let mut complex = Complex::new(Arc::new(BusMemory(platform.ram().clone())), Box::new(Silent));
        let unit = complex.add_unit(Box::new(vtd::Vtd::new(vtd::Config::default())));
        for n in 0..devices {
            complex.add_endpoint(Endpoint::new(RequesterId(8 * (n + 1)), 0, Box::new(Idle)), Some(unit));
        }
        platform.set_board(Board::new(complex));
        let cx = Sleep::in_sleepable_context();
        let iommu = Iommu::new(platform.clone(), Config::default()).expect("memory for the core");
        let driver = Vtd::new(platform.clone(), Window(0), Options::default());
        iommu.register(&cx, InstanceId(0), Box::new(driver), Start::Fresh).expect("a unit that starts");
        let channels = (0..devices).map(|n| Channel::new(&platform, &iommu, &cx, n)).collect();
        Io { platform, channels }
    }

    /// What one I/O asks of the hardware once all is warm.
    fn counted(&mut self, once: fn(&mut Channel)) -> Asked {
        let channel = &mut self.channels[0];
        (0..2 * BATCH).for_each(|_| once(channel));
        let before = (self.platform.asked(), channel.moved());
        (0..BATCH).for_each(|_| once(channel));
        assert_eq!(channel.moved() - before.1, BATCH * PAGE, "an access did not get through");
        self.platform.asked() - before.0
    }
}

impl Channel {
    fn new(platform: &Inline, iommu: &Iommu<Inline>, cx: &Sleep<'_>, n: u16) -> Channel {
        let source = SourceId(8 * (u32::from(n) + 1));
        let upstreams = vec![Upstream { instance: InstanceId(0), sources: vec![source] }];
        let spec = DeviceSpec::new(DeviceId(source.0.into()), upstreams, Arc::new(NoCapabilities));
        let device = iommu.add_device(cx, spec).expect("a new device");
        let domain =
            iommu.external_domain(&[&device], DomainOptions::default(), None::<NoResolver>).expect("a table");
        let page = platform.ram().page().expect("a page");
        // A neighbour that stays, so that tables do not come and go with the page.
        domain.map_range(IOVA - PAGE, page, PAGE, RW).expect("an empty domain");
        domain.map_range(IOVA + BATCH * PAGE, page, PAGE, RW).expect("an empty domain");
        let attachment = iommu.attach(cx, &domain, &device, None, Arc::new(())).expect("a free place");
        Channel {
            platform: platform.clone(),
            place: n.into(),
            iova: 0,
            parked: 0,
            page,
            domain,
            _attachment: attachment,
            _device: device,
        }
    }

    /// Bytes that the device has written.
    fn moved(&self) -> u64 {
        self.platform.board(|b| b.complex.endpoint(self.place).map_or(0, |e| e.statistics().bytes_written))
    }

    fn moves(&self, iova: u64) {
        self.domain.map_range(iova, self.page, PAGE, RW).expect("an empty range");
        self.platform.board(|b| {
            if let Some(e) = b.complex.endpoint_mut(self.place) {
                e.port_mut().access(iova, Intent::Write(vec![0xa5; PAGE as usize]));
            }
        });
    }

    /// The page is nobody's any more when this returns.
    fn strict(&mut self) {
        self.moves(IOVA);
        let mut unmapping = self.domain.unmapping();
        unmapping.unmap(IOVA, PAGE).expect("what was mapped");
        unmapping.sync(&Sleep::in_sleepable_context()).expect("hardware that answers");
    }

    /// The device may reach the page until the next flush.
    fn lazy(&mut self) {
        let iova = IOVA + self.iova % BATCH * PAGE;
        self.iova += 1;
        self.moves(iova);
        let mut unmapping = self.domain.unmapping();
        unmapping.unmap(iova, PAGE).expect("what was mapped");
        drop(unmapping);
        self.parked += 1;
        if self.parked == BATCH {
            self.parked = 0;
            self.domain.flush(&Sleep::in_sleepable_context()).expect("hardware that answers");
        }
    }
}

/// The same on one thread and on two, each with a device of its own.
pub(crate) fn rows() -> Vec<Row> {
    let one = |name: &str, once: fn(&mut Channel)| {
        let mut io = Io::new(1);
        Row::new(format!("I/O of 4 KiB, {name}: map, access, unmap"), 1, move || once(&mut io.channels[0]))
    };
    let two = |name: &str, once: fn(&mut Channel)| {
        let mut io = Io::new(2);
        Row::new(format!("I/O of 4 KiB, {name}, two threads"), 2 * TURN, move || {
            thread::scope(|s| {
                for channel in &mut io.channels {
                    s.spawn(move || (0..TURN).for_each(|_| once(channel)));
                }
            });
        })
    };
    vec![
        one("strict", Channel::strict),
        one("lazy", Channel::lazy),
        two("strict", Channel::strict),
        two("lazy", Channel::lazy),
    ]
}

/// What the I/Os ask of the hardware, a line each.
pub(crate) fn counts() -> String {
    let line = |name: &str, once: fn(&mut Channel)| {
        let Asked { descriptors, fences, waits, reads, writes } = Io::new(1).counted(once);
        format!(
            "{name}, {BATCH} of them: {descriptors} descriptors, {fences} of them waits, {writes} register writes, {reads} register reads, a thread waits {waits} times\n"
        )
    };
    let head =
        "What I/Os of 4 KiB ask of the hardware: map, access, unmap, and sync or a share of a flush.\n";
    format!("{head}{}{}", line("strict", Channel::strict), line("lazy", Channel::lazy))
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_io_asks_no_more_of_the_hardware_than_before() {
        let kept = include_str!("../io-counts.txt");
        assert_eq!(super::counts(), kept, "put the new counts into benches/io-counts.txt if they are meant");
    }
}
