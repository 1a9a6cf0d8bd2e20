//! A machine for tests of the core: one thread, a virtual clock, a driver that does what its
//! script says and writes down what it was asked.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod board;
pub mod devices;
pub mod hardware;
pub mod requests;
pub mod tables;
pub mod vendors;

pub use board::Board;
#[allow(unused_imports, reason = "each test file uses its part")]
pub use devices::{IOMMU, soc, spec, stall};
#[allow(unused_imports, reason = "each test file uses its part")]
pub use hardware::{Call, Hardware};
#[allow(unused_imports, reason = "each test file uses its part")]
pub use requests::{Sent, first, last, pasid, sent};
#[allow(unused_imports, reason = "each test file uses its part")]
pub use tables::{Mm, foreign};
#[allow(unused_imports, reason = "each test file uses its part")]
pub use vendors::Vendor;

use portcullis::driver::{PageRequest, Start};
use portcullis::{
    Attachment, Config, Device, DeviceSpec, Domain, DomainOptions, External, Iommu, PageGroup, Platform,
    ReservedRegion, Response, Sleep, SourceId,
};
use portcullis_pgtable::{Phys, Prot};
/// The locks of the scripted driver: the standard library's here, a scheduler's elsewhere.
pub use std::sync::{Mutex, MutexGuard};
use std::{sync::Arc, time::Duration};

/// What tests hang on attachments.
pub type Data = Mutex<Vec<String>>;
pub type Dom = Domain<Board, External<Data>>;
pub type Att = Attachment<Board>;
pub type Dev = Device<Board>;

pub const RW: Prot = Prot::READ.union(Prot::WRITE);

/// The one sleepable context of the test's thread.
pub fn cx() -> Sleep<'static> {
    Sleep::in_sleepable_context()
}

pub fn data() -> Arc<Data> {
    Arc::default()
}

/// An `Iommu` over one scripted instance.
pub struct World {
    pub board: Board,
    pub hw: Hardware,
    pub iommu: Iommu<Board>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.board.on_timer(None);
        self.board.on_wait(None);
    }
}

impl World {
    pub fn new() -> World {
        World::with(Config::default())
    }

    pub fn with(config: Config) -> World {
        World::made(config, 64)
    }

    /// `queue` is the number of page requests that the hardware's queue holds.
    pub fn made(config: Config, queue: u32) -> World {
        World::on(Board::new(512), config, queue)
    }

    /// The same on a board with memory of the caller's choice.
    pub fn on(board: Board, config: Config, queue: u32) -> World {
        let hw = Hardware::new(&board, queue);
        let iommu = Iommu::new(board.clone(), config).expect("memory");
        iommu.register(&cx(), IOMMU, hw.driver(), Start::Fresh).expect("starts");
        let ticked = iommu.clone();
        board.on_timer(Some(Box::new(move || ticked.tick())));
        World { board, hw, iommu }
    }

    pub fn spec(&self, n: u32) -> DeviceSpec {
        spec(n, self.hw.control(SourceId(n)))
    }

    pub fn device(&self, n: u32) -> Dev {
        self.iommu.add_device(&cx(), self.spec(n)).expect("added")
    }

    /// A device that needs memory at `start` whatever it is attached to.
    pub fn device_with_direct(&self, n: u32, start: u64) -> Dev {
        let mut spec = self.spec(n);
        spec.regions = vec![ReservedRegion::direct(start, 0x2000, RW)];
        self.iommu.add_device(&cx(), spec).expect("added")
    }

    /// A domain without a resolver.
    pub fn plain(&self, device: &Dev) -> Dom {
        self.plain_for(&[device])
    }

    /// The same for several.
    pub fn plain_for(&self, devices: &[&Dev]) -> Dom {
        type Never = fn(&Sleep<'_>, &Arc<Data>, PageGroup<'_, Board>);
        self.iommu.external_domain(devices, DomainOptions::default(), None::<Never>).expect("made")
    }

    pub fn resolved_by<F>(&self, device: &Dev, f: F) -> Dom
    where
        F: Fn(&Sleep<'_>, &Arc<Data>, PageGroup<'_, Board>) + Send + Sync + 'static,
    {
        self.iommu.external_domain(&[device], DomainOptions::default(), Some(f)).expect("made")
    }

    /// A domain whose resolver answers Success and writes down the first address.
    pub fn served(&self, device: &Dev) -> Dom {
        self.resolved_by(device, |_, data, group| {
            let seen = group.requests().map(|r| format!("{:x}", r.address)).collect::<Vec<_>>();
            data.lock().unwrap().push(seen.join(","));
            group.respond(Response::Success).expect("not answered yet");
        })
    }

    pub fn attach(&self, domain: &Dom, device: &Dev) -> Att {
        self.iommu.attach(&cx(), domain, device, None, data()).expect("attached")
    }

    /// The device sends requests; a service turn reads them.
    pub fn sends(&self, requests: &[PageRequest]) {
        self.hw.sends(requests);
        self.iommu.service(IOMMU);
    }

    /// Runs the workers until they have nothing left to do.
    pub fn work(&self) {
        while self.iommu.run_one(&cx()) {}
    }

    /// Time passes, and the timer fires where it was asked to.
    pub fn pass(&self, d: Duration) {
        self.board.advance(self.board.now() + d);
    }

    /// Maps a page and returns its IOVA.
    pub fn map(&self, domain: &Dom, iova: u64) -> u64 {
        domain.map_range(iova, Phys(0x10_0000 + iova), 0x1000, RW).expect("mapped");
        iova
    }
}
