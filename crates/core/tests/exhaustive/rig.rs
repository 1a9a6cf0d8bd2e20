//! A small machine with a driver that can be made to fail, and all that can be seen of its state.

use crate::{
    allocator::aside,
    common::*,
    faulty::{Aside, Faulty, Trouble},
};
use portcullis::driver::{Start, Target};
use portcullis::{
    Config, DeviceSpec, DeviceState, Domain, DomainOptions, DuringReset, External, GroupId, Iommu,
    Membership, Scope, SourceId, Subscription,
};
use portcullis_pgtable::{Phys, TableMem};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, atomic::AtomicU64},
};

pub struct Rig {
    pub board: Board,
    pub hw: Hardware,
    pub iommu: Iommu<Board>,
    pub trouble: Arc<Trouble>,
    /// Looked at with the rest of the state.
    pub devices: RefCell<Vec<Dev>>,
    seen: Subscription<Board>,
}

/// What outlives a rig: what the hardware writes down is not watched, nor freed in a life that is.
pub struct Base {
    board: Board,
    hw: Hardware,
}

impl Base {
    pub fn new() -> Base {
        let board = Board::new(64);
        let hw = Hardware::new(&board, 32);
        hw.state().marks = true;
        hw.state().nests = true;
        Base { board, hw }
    }

    pub fn frames(&self) -> usize {
        self.board.frames() - self.hw.own_frames()
    }

    /// Every table that an entry leads to is there, though whoever used it is gone.
    pub fn nothing_is_walked_that_is_free(&self) {
        let state = self.hw.state();
        for target in state.entries.values() {
            let root = match target {
                Target::Identity { .. } => continue,
                Target::Table { root, .. } => *root,
                Target::Nested { parent, .. } => parent.root,
            };
            // A frame that is not handed out panics.
            let _: u64 = self.board.load(root, 0);
        }
        assert!(state.images.is_empty(), "entries are neither shown nor given up");
    }
}

impl Rig {
    /// A machine whose instance is not there yet.
    pub fn bare(base: &Base) -> Rig {
        // Small, so that what is lost is soon missed.
        let config = Config {
            devices: 6,
            attachments: 6,
            attachments_per_device: 4,
            credits_per_device: 8,
            observers: 3,
            provenance: 16,
            during_reset: DuringReset::Refuse,
            ..Config::default()
        };
        let (board, hw) = (base.board.clone(), base.hw.clone());
        let iommu = Iommu::new(board.clone(), config).expect("memory");
        let seen = iommu.observe(Scope::All, 8).expect("memory");
        Rig { board, hw, iommu, trouble: Arc::default(), devices: RefCell::default(), seen }
    }

    pub fn new(base: &Base) -> Rig {
        let rig = Rig::bare(base);
        rig.register().expect("it starts");
        rig
    }

    pub fn register(&self) -> Result<(), String> {
        let (hw, trouble) = (self.hw.clone(), self.trouble.clone());
        let driver = Box::new(Faulty { hw, trouble, asked: AtomicU64::new(0) });
        said(self.iommu.register(&cx(), IOMMU, driver, Start::Fresh)).map(drop)
    }

    pub fn spec(&self, n: u32) -> DeviceSpec {
        spec(n, self.control(n))
    }

    fn control(&self, n: u32) -> Arc<Aside> {
        Arc::new(Aside(self.hw.control(SourceId(n))))
    }

    /// A member of a group of two, with an alias that is its own. Behind a bridge there is no ATS.
    pub fn member(&self, n: u32) -> DeviceSpec {
        let mut spec = self.spec(n);
        spec.trusted = false;
        spec.group = Some(Membership { group: GroupId(1), merges: Vec::new() });
        spec.upstreams[0].sources.push(SourceId(n + 100));
        spec
    }

    /// Adds a device.
    pub fn add(&self, spec: DeviceSpec) -> Result<Dev, String> {
        said(self.iommu.add_device(&cx(), spec)).inspect(|d| self.devices.borrow_mut().push(d.clone()))
    }

    pub fn device(&self, n: u32) -> Dev {
        self.add(self.spec(n)).expect("added")
    }

    /// A device that is on no PCIe, and bears stalls.
    pub fn soc_device(&self, n: u32) -> Dev {
        self.add(self.soc_spec(n)).expect("added")
    }

    pub fn soc_spec(&self, n: u32) -> DeviceSpec {
        soc(n, self.control(n))
    }

    /// A domain whose resolver answers Success.
    pub fn served(&self, device: &Dev) -> Dom {
        said(self.iommu.external_domain(&[device], DomainOptions::default(), Some(succeeds as Resolves)))
            .expect("made")
    }

    /// A domain without a resolver, with a page mapped.
    pub fn plain(&self, device: &Dev) -> Dom {
        let made = self.iommu.external_domain(&[device], DomainOptions::default(), None::<Resolves>);
        let domain: Domain<Board, External<Data>> = said(made).expect("made");
        domain.map_range(0x1000, Phys(0x10_1000), 0x1000, RW).expect("mapped");
        domain
    }

    pub fn attach(&self, domain: &Dom, device: &Dev) -> Att {
        said(self.iommu.attach(&cx(), domain, device, None, data())).expect("attached")
    }

    /// The platform ends at the wait with number `n` from here.
    pub fn end_at_wait(&self, n: usize) {
        let (board, mut left) = (self.board.clone(), n);
        self.board.shut_down(n == 0);
        aside(|| {
            self.board.on_wait(Some(Box::new(move || {
                left = left.saturating_sub(1);
                board.shut_down(left == 0);
            })));
        });
    }

    /// It does not end after all. True if it had.
    pub fn goes_on(&self) -> bool {
        aside(|| self.board.on_wait(None));
        self.board.shut_down(false)
    }

    /// Runs the workers until they have nothing left to do.
    pub fn work(&self) {
        self.board.spared(|| while self.iommu.run_one(&cx()) {});
    }

    /// Table frames that are in use.
    pub fn frames(&self) -> usize {
        self.board.frames() - self.hw.own_frames()
    }

    /// Everything that can be seen of the state, but for table frames: an empty table that an undone
    /// map leaves in a larger one is used again, and goes with it.
    pub fn state(&self) -> String {
        aside(|| self.describe().expect("a string takes it all"))
    }

    fn describe(&self) -> Result<String, std::fmt::Error> {
        let mut s = String::new();
        writeln!(s, "{:?}", self.iommu.usage())?;
        writeln!(s, "{:?}", self.iommu.instance_usage(IOMMU))?;
        writeln!(s, "{:?}", self.iommu.load())?;
        for d in self.devices.borrow().iter() {
            let state = match d.state() {
                DeviceState::Refused { .. } => "refused, whyever".to_owned(),
                state => format!("{state:?}"),
            };
            writeln!(s, "device {}: {state}", d.id().0)?;
            writeln!(s, "  {:?}, quarantined: {}", d.features(), d.is_quarantined())?;
            writeln!(s, "  {:?}", d.counters())?;
            writeln!(s, "  {:?}", d.group())?;
            writeln!(s, "  {:?}", d.reserved_regions())?;
        }
        for (id, features, cut, muted) in self.hw.devices() {
            writeln!(s, "driver: {id}: {features:?}, cut off: {cut}, muted: {muted}")?;
        }
        let stalling: Vec<_> = self.hw.state().stalling.iter().copied().collect();
        writeln!(s, "stalling: {stalling:?}, held: {}", self.hw.state().held.len())?;
        for (at, target) in &self.hw.state().entries {
            writeln!(s, "entry: {at:?}: {}", shape(target))?;
        }
        writeln!(s, "{} entries neither shown nor given up", self.hw.state().images.len())?;
        let mut switches = BTreeMap::new();
        for call in &self.hw.state().log {
            match *call {
                Call::Pasid(id, on) => switches.insert((id, "PASID"), format!("{on}")),
                Call::Ats(id, on) => switches.insert((id, "ATS"), format!("{on}")),
                Call::Pri(id, credits) => switches.insert((id, "PRI"), format!("{credits:?}")),
                _ => None,
            };
        }
        // Off is what they are before anybody switches them.
        switches.retain(|_, to| to != "false" && to != "None");
        writeln!(s, "switched on: {switches:?}")?;
        // Groups are answered in no order.
        let mut answers = self.hw.answers();
        answers.sort_by_key(|sent| (sent.source, sent.pasid, sent.index));
        writeln!(s, "told: {}, answers: {answers:?}", self.seen.lost())?;
        while let Some(told) = self.seen.try_next() {
            writeln!(s, "told: {told}")?;
        }
        Ok(s)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.devices.borrow_mut().clear();
        self.work();
    }
}

/// What an error says, which is not watched.
pub fn said<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|e| aside(|| e.to_string()))
}

/// A target without the address of its root, which depends on which frames were free.
fn shape(target: &Target) -> String {
    match target {
        Target::Identity { tag } => format!("identity, {tag:?}"),
        Target::Table { desc, tag, .. } => format!("table {:?}, {tag:?}", desc.id),
        Target::Nested { desc, tag, .. } => format!("nested {:?}, {tag:?}", desc.id),
    }
}

pub type Resolves = fn(&portcullis::Sleep<'_>, &Arc<Data>, portcullis::PageGroup<'_, Board>);

pub fn succeeds(_: &portcullis::Sleep<'_>, _: &Arc<Data>, group: portcullis::PageGroup<'_, Board>) {
    group.respond(portcullis::Response::Success).expect("not answered yet");
}
