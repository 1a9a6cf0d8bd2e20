//! One machine, several vendors: the order in which instances become ready shows nowhere, a domain
//! is open to whoever can walk it, and everybody else is told why not.

use crate::common::{vendors::*, *};
use portcullis::driver::{Incompatible, Start, Target};
use portcullis::error::{AddDeviceError, AttachError, DomainError, NotUp};
use portcullis::{
    At, Config, Device, DeviceCaps, DeviceId, DeviceSpec, DeviceState, DomainOptions, InstanceId, Iommu,
    Membership, PageGroup, ReservedRegion, Sleep, SourceId, Upstream,
};
use portcullis_pgtable::Phys;
use std::sync::Arc;

type Never = fn(&Sleep<'_>, &Arc<Data>, PageGroup<'_, Board>);

/// A machine whose instances are not registered yet: vendor n is instance n.
struct Machine {
    board: Board,
    hardware: Vec<Hardware>,
    iommu: Iommu<Board>,
}

impl Machine {
    fn of(vendors: &[Vendor]) -> Machine {
        let board = Board::new(2048);
        let hardware = vendors.iter().map(|v| Hardware::of(*v, &board, 64)).collect();
        let iommu = Iommu::new(board.clone(), Config::default()).expect("memory");
        Machine { board, hardware, iommu }
    }

    fn register(&self, n: usize) {
        let driver = self.hardware[n].driver();
        self.iommu.register(&cx(), InstanceId(n as u32), driver, Start::Fresh).expect("starts");
    }

    /// Device n * 10 + k stands behind instance n, with that number as its id there.
    fn spec(&self, n: usize, k: u32) -> DeviceSpec {
        let source = SourceId(n as u32 * 10 + k);
        let upstreams = vec![Upstream { instance: InstanceId(n as u32), sources: vec![source] }];
        DeviceSpec {
            trusted: true,
            caps: DeviceCaps { pasid_bits: 20, ats: true, coherent_dma: true, ..DeviceCaps::default() },
            ..DeviceSpec::new(DeviceId(u64::from(source.0)), upstreams, self.hardware[n].control(source))
        }
    }

    fn add(&self, n: usize, k: u32) -> Device<Board> {
        self.iommu.add_device(&cx(), self.spec(n, k)).expect("added")
    }

    fn domain(&self, devices: &[&Device<Board>]) -> Result<Dom, DomainError> {
        self.iommu.external_domain(devices, DomainOptions::default(), None::<Never>)
    }
}

/// What can be seen of a machine when everything is up and everybody is attached to a domain of
/// its own, and one PASID where there are PASIDs.
fn outcome(m: &Machine, devices: &[Device<Board>]) -> Vec<String> {
    let mut seen = Vec::new();
    for d in devices {
        let regions = d.reserved_regions().unwrap();
        seen.push(format!("{:?} {:?} {:?} {:?}", d.id(), d.state(), d.features(), regions));
        if !d.has_iommu() {
            continue;
        }
        let dom = m.domain(&[d]).expect("a table of its own");
        dom.map_range(0x40_0000, Phys(0x40_0000), 1 << 21, RW).expect("mapped");
        let a = m.iommu.attach(&cx(), &dom, d, None, data()).expect("attached");
        let with_pasid = m.iommu.attach(&cx(), &dom, d, pasid(100), data());
        seen.push(format!(
            "{:?} {:?}",
            a.places().collect::<Vec<_>>(),
            with_pasid.as_ref().map(|a| a.at()).map_err(|e| *e)
        ));
        let n = (d.id().0 / 10) as usize;
        for at in a.places() {
            match m.hardware[n].entry(at).expect("translates") {
                Target::Table { desc, tag, .. } => seen.push(format!("{at:?} {desc:?} {tag:?}")),
                other => panic!("{other:?}"),
            }
        }
        drop(with_pasid.map(|a| a.begin_detach(&cx())));
        drop(a.begin_detach(&cx()));
    }
    seen
}

#[test]
fn no_order_of_registration_shows() {
    let vendors = [Vendor::INTEL, Vendor::ARM, Vendor::AMD];
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let mut first = None;
    for order in orders {
        // The devices are added before any instance, between them, and after all.
        for before in 0..=3 {
            let m = Machine::of(&vendors);
            order[..before].iter().for_each(|n| m.register(*n));
            let mut devices: Vec<_> = (0..3).map(|n| m.add(n, 1)).collect();
            // A group of two, the higher id first, and one of them with a direct region.
            for k in [3, 2] {
                let mut spec = m.spec(1, k);
                spec.group = Some(Membership { group: portcullis::GroupId(12), merges: Vec::new() });
                if k == 2 {
                    spec.regions = vec![ReservedRegion::direct(0x80_0000, 0x4000, RW)];
                }
                devices.push(m.iommu.add_device(&cx(), spec).expect("added"));
            }
            // And one without an IOMMU, which is no error.
            let lone = DeviceSpec::new(DeviceId(99), Vec::new(), m.hardware[0].control(SourceId(99)));
            devices.push(m.iommu.add_device(&cx(), lone).expect("added"));
            for d in &devices[..3] {
                let instance = InstanceId((d.id().0 / 10) as u32);
                if !order[..before].contains(&(instance.0 as usize)) {
                    assert_eq!(d.state(), DeviceState::Waiting { instance });
                    let waits = NotUp::Waiting { device: d.id(), instance };
                    assert_eq!(m.domain(&[d]).err(), Some(DomainError::NotUp(waits)));
                }
            }
            order[before..].iter().for_each(|n| m.register(*n));
            devices.sort_by_key(|d| d.id());
            let seen = outcome(&m, &devices);
            assert_eq!(*first.get_or_insert(seen.clone()), seen, "{order:?}, {before} before the devices");
        }
    }
}

#[test]
fn an_attach_to_a_device_that_waits_is_refused_until_its_instance_is_there() {
    let m = Machine::of(&[Vendor::INTEL, Vendor::INTEL]);
    m.register(0);
    let (up, waits) = (m.add(0, 1), m.add(1, 1));
    let dom = m.domain(&[&up]).unwrap();
    let not_yet = NotUp::Waiting { device: waits.id(), instance: InstanceId(1) };
    let why = m.iommu.attach(&cx(), &dom, &waits, None, data()).err();
    assert_eq!(why, Some(AttachError::NotUp(not_yet)));
    assert_eq!(waits.reset(&cx()).err(), Some(AttachError::NotUp(not_yet)));
    m.register(1);
    assert_eq!(waits.state(), DeviceState::Ready { instance: InstanceId(1) });
    drop(m.iommu.attach(&cx(), &dom, &waits, None, data()).unwrap().begin_detach(&cx()));
    // One that waits can be removed, and then does not come up.
    let m = Machine::of(&[Vendor::INTEL]);
    let gone = m.add(0, 1);
    let handle = gone.clone();
    m.iommu.remove_device(&cx(), gone).map_err(|(_, e)| e).unwrap();
    m.register(0);
    assert_eq!(handle.state(), DeviceState::Removed);
    assert!(!m.hardware[0].knows(SourceId(1)));
}

#[test]
fn a_device_that_is_refused_when_its_instance_comes_says_why_and_can_be_tried_again() {
    let m = Machine::of(&[Vendor::INTEL]);
    let (one, two) = (m.add(0, 1), m.add(0, 2));
    m.hardware[0].state().fail_after = Some(1);
    m.register(0);
    assert_eq!(one.state(), DeviceState::Ready { instance: InstanceId(0) });
    let DeviceState::Refused { why, .. } = two.state() else { panic!("{:?}", two.state()) };
    assert!(matches!(why, AddDeviceError::Prepare(_)), "{why:?}");
    let dom = m.domain(&[&one]).unwrap();
    let refused = m.iommu.attach(&cx(), &dom, &two, None, data()).err();
    assert_eq!(refused, Some(AttachError::NotUp(NotUp::Refused(two.id()))));
    m.iommu.retry_device(&cx(), &two).unwrap();
    drop(m.iommu.attach(&cx(), &dom, &two, None, data()).unwrap().begin_detach(&cx()));
}

#[test]
fn a_domain_is_open_to_all_who_can_walk_it_and_the_others_are_told_why_not() {
    use Incompatible::*;
    let vendors = [Vendor::INTEL, Vendor::NARROW, Vendor::SMALL, Vendor::STALE, Vendor::AMD, Vendor::ARM];
    let m = Machine::of(&vendors);
    (0..vendors.len()).for_each(|n| m.register(n));
    let devices: Vec<_> = (0..vendors.len()).map(|n| m.add(n, 1)).collect();
    let wide = Err(InputWidth { table: 48, walker: 39 });
    let large = Err(PageSizes { table: K4 | M2, walker: K4 });
    let other = Err(NoCommonFormat);
    let cached = Err(NotCoherent);
    // Whose table, and what the others say to it.
    let table = [
        [Ok(()), wide, large, cached, other, other],
        [Ok(()), Ok(()), large, cached, other, other],
        [Ok(()), wide, Ok(()), cached, other, other],
        [Ok(()), wide, large, Ok(()), other, other],
        [other, other, other, other, Ok(()), other],
        [other, other, other, other, other, Ok(())],
    ];
    for (owner, row) in devices.iter().zip(table) {
        let dom = m.domain(&[owner]).unwrap();
        for (d, expected) in devices.iter().zip(row) {
            let pair = format!("{} to a domain of {}", d.id(), owner.id());
            let attached = m.iommu.attach(&cx(), &dom, d, None, data());
            let at = At { source: d.sources()[0], pasid: None };
            match (attached, expected) {
                (Ok(a), Ok(())) => drop(a.begin_detach(&cx())),
                (Err(e), Err(why)) => {
                    assert_eq!(e, AttachError::Incompatible { device: d.id(), at, why }, "{pair}");
                }
                (got, _) => panic!("{pair}: {:?}", got.map(|a| a.at())),
            }
            // The same reason when it is made for both, unless a narrower table or one of smaller pages
            // does.
            let both = m.domain(&[owner, d]);
            match expected {
                Ok(()) | Err(InputWidth { .. } | PageSizes { .. }) => {
                    let dom = both.expect(&pair);
                    drop(m.iommu.attach(&cx(), &dom, d, None, data()).unwrap().begin_detach(&cx()));
                }
                Err(why) => {
                    let refused = DomainError::Incompatible { device: d.id(), why };
                    assert_eq!(both.err(), Some(refused), "{pair}");
                }
            }
        }
        assert!(dom.is_unused());
    }
    let identity = m.iommu.identity_domain().unwrap();
    let arm = m.iommu.attach(&cx(), &identity, &devices[5], None, Arc::new(())).err();
    assert!(matches!(arm, Some(AttachError::Incompatible { why: NoIdentity, .. })), "{arm:?}");
    assert!(m.board.frames() > 0);
}

#[test]
fn an_owner_that_needs_coherent_dma_gets_it_or_the_reason_why_not() {
    let m = Machine::of(&[Vendor::INTEL, Vendor::ARM]);
    (0..2).for_each(|n| m.register(n));
    let (good, arm) = (m.add(0, 1), m.add(1, 1));
    let mut spec = m.spec(0, 2);
    spec.caps.coherent_dma = false;
    let past = m.iommu.add_device(&cx(), spec).unwrap();
    let options = DomainOptions { coherent: true, ..DomainOptions::default() };
    let made = |d: &Device<Board>| m.iommu.external_domain(&[d], options, None::<Never>).map(|_: Dom| ());
    assert_eq!(made(&good), Ok(()));
    let why = Incompatible::NotCoherentDma;
    assert_eq!(made(&past), Err(DomainError::Incompatible { device: past.id(), why }));
    let why = Incompatible::NotCoherent;
    assert_eq!(made(&arm), Err(DomainError::Incompatible { device: arm.id(), why }));
    // Also when it is attached later; without the requirement it is served.
    let dom: Dom = m.iommu.external_domain(&[&good], options, None::<Never>).unwrap();
    let (at, why) = (At { source: SourceId(2), pasid: None }, Incompatible::NotCoherentDma);
    let refused = m.iommu.attach(&cx(), &dom, &past, None, data()).err();
    assert_eq!(refused, Some(AttachError::Incompatible { device: past.id(), at, why }));
    let any = m.domain(&[&arm]).unwrap();
    drop(m.iommu.attach(&cx(), &any, &arm, None, data()).unwrap().begin_detach(&cx()));
}
