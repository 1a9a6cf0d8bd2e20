//! The VT-d driver on units of many kinds: what the capability registers choose, what an earlier
//! owner left, and faults that come in numbers or beside other errors.
#![cfg(feature = "sim")]

use parking_lot::Mutex;
use portcullis::error::AttachError;
use portcullis::{
    Config, DeviceSpec, DomainOptions, FaultKind, FaultRecord, Gap, InstanceId, Iommu, PageGroup, Pasid,
    Platform, Resolver, Scope, Sleep, Storms, Window, Woken,
    driver::{Stage, Start, TableRequest},
};
use portcullis_drivers::vtd::{Msi, Options, Vtd};
use portcullis_machine::{
    board::{Board, BusMemory},
    machine::plug,
    memory::Ram,
    platform::MachinePlatform,
    sim::{Sim, SimConfig, SimPlatform},
};
use portcullis_models::{
    adversary::Adversary,
    bus::{AddressType, Operation, Prefix, Request, RequesterId, Upstream},
    complex::Complex,
    endpoint::{Endpoint, Engine, Failure, Intent, Port},
    log::Silent,
    vtd as model,
};
use portcullis_pgtable::{Prot, TableMem};
use portcullis_spec::vtd::regs::offset;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const INSTANCE: InstanceId = InstanceId(0);
const DEVICE: RequesterId = RequesterId(0x80);
const IOVA: u64 = 0x4020_0000;
const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;

/// Ends of accesses, by ticket.
type Ends = Arc<Mutex<BTreeMap<u64, Result<Vec<u8>, Failure>>>>;

/// An engine without a will.
struct Puppet(Ends);

impl Engine for Puppet {
    fn wants(&self, _: &Port) -> bool {
        false
    }
    fn step(&mut self, _: &mut Port, _: &mut Adversary, _: usize) {}
    fn ended(&mut self, _: &mut Port, ticket: u64, result: Result<Vec<u8>, Failure>) {
        self.0.lock().insert(ticket, result);
    }
    fn reset(&mut self) {}
}

struct Nobody;

impl<P: Platform> Resolver<P, ()> for Nobody {
    fn resolve(&self, _: &Sleep<'_>, _: &Arc<()>, _: PageGroup<'_, P>) {}
}

/// What a test's task has in its hands.
struct Hands {
    platform: SimPlatform,
    iommu: Iommu<SimPlatform>,
    cx: Sleep<'static>,
    ends: Ends,
}

impl Hands {
    fn start(&self, options: Options) {
        let vtd = Vtd::new(self.platform.clone(), Window(0), options);
        self.iommu.register(&self.cx, INSTANCE, Box::new(vtd), Start::Fresh).expect("the unit starts");
    }

    fn plug(&self, trusted: bool) -> DeviceSpec {
        let endpoint = Endpoint::new(DEVICE, 1, Box::new(Puppet(self.ends.clone())));
        plug(&self.platform, endpoint, trusted).1
    }

    fn ram(&self) -> &Ram {
        self.platform.ram()
    }

    fn port<R>(&self, f: impl FnOnce(&mut Port) -> R) -> R {
        let on_board = |b: &mut Board| b.complex.endpoint_mut(0).map(|e| f(e.port_mut()));
        self.platform.hardware(on_board).flatten().expect("the endpoint is plugged in")
    }

    fn rest(&self) {
        assert_ne!(self.platform.sleep(&self.cx, 100_000), Woken::Shutdown);
    }

    /// A write of the device; whether it was let through.
    fn writes(&self, iova: u64) -> bool {
        self.ends_well(|p| p.access(iova, Intent::Write(vec![0x5a; 8])))
    }

    /// The same with a PASID, which the device is not held to any width of.
    fn writes_with(&self, pasid: u32, addr: u64) -> bool {
        let prefix = portcullis_models::bus::Pasid::new(pasid).map(Prefix::user);
        assert!(prefix.is_some());
        let (at, op) = (AddressType::Untranslated, Operation::Write(vec![0x5a; 8]));
        self.ends_well(|p| p.raw_request(Request { source: DEVICE, prefix, at, addr, op }))
    }

    fn ends_well(&self, begin: impl FnOnce(&mut Port) -> u64) -> bool {
        let ticket = self.port(begin);
        for _ in 0..1000 {
            if let Some(end) = self.ends.lock().remove(&ticket) {
                return end.is_ok();
            }
            self.rest();
        }
        panic!("the access does not end");
    }
}

/// Runs a task on a machine with such a unit and one untrusted device, which is plugged in.
fn on_unit(unit: model::Config, options: Options, task: impl FnOnce(Hands) + Send + 'static) {
    on_fresh_unit(unit, move |h| {
        h.start(options);
        task(h);
    });
}

/// The same with the driver not started yet.
fn on_fresh_unit(unit: model::Config, task: impl FnOnce(Hands) + Send + 'static) {
    let mut sim = Sim::new(SimConfig::new(1)).unwrap();
    let memory = BusMemory(sim.platform().ram().clone());
    let mut complex = Complex::new(Arc::new(memory), Box::new(Silent));
    complex.add_unit(Box::new(model::Vtd::new(unit)));
    sim.set_hardware(Board::new(complex));
    // What these tests make fault is looked at record by record.
    let config = Config { storms: Storms::NEVER, ..Config::default() };
    let iommu = Iommu::new(sim.platform().clone(), config).unwrap();
    let core = iommu.clone();
    sim.on_interrupt(move |_, _| {
        if core.interrupt(INSTANCE) {
            core.service(INSTANCE);
        }
    });
    let core = iommu.clone();
    sim.on_timer(move |_| core.tick());
    let core = iommu.clone();
    sim.workers(1, move |_| core.run_one(&Sleep::in_sleepable_context()));
    sim.spawn("task", move |p| {
        let cx = Sleep::in_sleepable_context();
        task(Hands { platform: p.clone(), iommu, cx, ends: Ends::default() });
    });
    sim.run().and_then(|()| sim.settle()).unwrap();
    sim.finish().unwrap();
}

fn events() -> Options {
    let msi = |data| Some(Msi { address: 0xfee0_0000, data });
    Options {
        fault_event: msi(0x30),
        invalidation_event: msi(0x31),
        page_request_event: msi(0x32),
        ..Options::default()
    }
}

fn plug_in(h: &Hands, trusted: bool) -> portcullis::Device<SimPlatform> {
    h.iommu.add_device(&h.cx, h.plug(trusted)).unwrap()
}

/// The life of two domains: mapped, used, changed, replaced, left. Nothing stale may answer.
fn two_domains(h: &Hands, stage: Stage) {
    let device = plug_in(h, false);
    let rw = Prot::READ | Prot::WRITE;
    let table = TableRequest { stage, ..TableRequest::default() };
    let options = DomainOptions { table, ..DomainOptions::default() };
    let domain = || h.iommu.external_domain(&[&device], options, None::<Nobody>).unwrap();
    let (one, two) = (domain(), domain());
    let pages = h.ram().pages(2).unwrap();
    one.map_range(IOVA, pages, 2 * PAGE, rw).unwrap();
    two.map_range(IOVA + LARGE, pages, PAGE, rw).unwrap();
    assert!(!h.writes(IOVA), "blocked at first");

    let attached = h.iommu.attach(&h.cx, &one, &device, None, Arc::new(())).unwrap();
    assert!(h.writes(IOVA) && h.writes(IOVA + PAGE));
    assert!(!h.writes(IOVA + LARGE));
    // The second page goes, and a new table comes where the walk has just met none.
    let mut unmapping = one.unmapping();
    unmapping.unmap(IOVA + PAGE, PAGE).unwrap();
    unmapping.sync(&h.cx).unwrap();
    one.map_range(IOVA + LARGE, pages, PAGE, rw).unwrap();
    assert!(h.writes(IOVA) && !h.writes(IOVA + PAGE) && h.writes(IOVA + LARGE));

    let (attached, old, _) =
        h.iommu.replace(&h.cx, attached, &two, Arc::new(()), Gap::Allowed).map_err(|_| ()).unwrap();
    old.wait(&h.cx, None);
    assert!(!h.writes(IOVA) && h.writes(IOVA + LARGE));
    attached.begin_detach(&h.cx).wait(&h.cx, None);
    assert!(!h.writes(IOVA + LARGE));
    h.iommu.remove_device(&h.cx, device).map_err(|_| ()).unwrap();
}

type Choice = (&'static str, model::Config);

#[test]
fn every_choice_of_capabilities_is_served() {
    let base = model::Config::default;
    let legacy = model::Config::legacy;
    let choices: [Choice; 15] = [
        ("scalable", base()),
        ("legacy", legacy()),
        ("ESRTPS=0", model::Config { esrtps: false, ..base() }),
        ("PSI=0", model::Config { page_selective: false, ..base() }),
        ("legacy, PSI=0", model::Config { page_selective: false, ..legacy() }),
        ("MAMV=0", model::Config { max_address_mask: 0, ..base() }),
        (
            "legacy, no large pages",
            model::Config { second_stage_2m: false, second_stage_1g: false, ..legacy() },
        ),
        ("ND=0: 16 domains", model::Config { domain_id_bits: 4, ..base() }),
        ("SC=0", model::Config { snoop_control: false, ..base() }),
        ("PT=0", model::Config { pass_through: false, ..base() }),
        ("first stage only", model::Config { second_stage: false, ..base() }),
        ("second stage only", model::Config { first_stage: false, ..base() }),
        ("C=1, SMPWCS=0", model::Config { walks_coherent: false, ..base() }),
        (
            "no PASID, no ATS",
            model::Config {
                pasid_bits: 0,
                rid_pasid: false,
                device_tlb: false,
                page_requests: false,
                page_request_drain: false,
                stop_markers: false,
                no_write_flag: false,
                ..base()
            },
        ),
        (
            "waits overtake, no names",
            model::Config { waits_in_order: false, names_suspects: false, ..base() },
        ),
    ];
    for (_, unit) in choices {
        on_unit(unit, events(), |h| two_domains(&h, Stage::Any));
    }
}

/// Every record is delivered, however many registers there are beside what a turn hands over.
#[test]
fn a_turn_that_ends_early_leaves_no_fault_record_behind() {
    let unit = model::Config { fault_records: 256, collapse_faults: false, ..model::Config::default() };
    on_unit(unit, events(), |h| {
        let _device = plug_in(&h, false);
        let seen = h.iommu.observe(Scope::All, 512).unwrap();
        for n in 0..200 {
            h.port(|p| p.access(IOVA + n * PAGE, Intent::Read(8)));
        }
        for _ in 0..200 {
            h.rest();
        }
        let told: Vec<FaultRecord> = std::iter::from_fn(|| seen.try_next()).map(|t| t.record).collect();
        let mut pages: Vec<_> = told.iter().filter_map(|f| f.address).collect();
        pages.sort_unstable();
        assert_eq!(pages, (0..200).map(|n| IOVA + n * PAGE).collect::<Vec<_>>());
    });
}

/// An invalidation that nobody submitted is completed while the queue is empty: the error it leaves
/// would keep every later fault from having an event.
#[test]
fn an_unasked_completion_does_not_silence_the_fault_event() {
    on_unit(model::Config::default(), events(), |h| {
        let _device = plug_in(&h, false);
        let seen = h.iommu.observe(Scope::All, 64).unwrap();
        h.port(|p| p.raw_message(Upstream::InvalidationCompletion { source: DEVICE, itags: 0x10 }));
        h.rest();
        let request = Request {
            source: DEVICE,
            prefix: None,
            at: AddressType::Translated,
            addr: IOVA,
            op: Operation::Read(8),
        };
        h.port(|p| p.raw_request(request));
        for _ in 0..20 {
            h.rest();
        }
        let told: Vec<FaultRecord> = std::iter::from_fn(|| seen.try_next()).map(|t| t.record).collect();
        let kinds: Vec<FaultKind> = told.iter().map(|f| f.kind).collect();
        assert_eq!(kinds, [FaultKind::Configuration, FaultKind::Dma]);
    });
}

/// What an earlier owner of the unit has put into its caches does not outlive the new root table.
#[test]
fn nothing_of_an_earlier_root_table_is_left() {
    for esrtps in [false, true] {
        on_fresh_unit(model::Config { esrtps, ..model::Config::legacy() }, |h| {
            let _spec = h.plug(false);
            let p = &h.platform;
            let [root, contexts] = [(); 2].map(|()| p.frame().unwrap().publish());
            // 00:10.0 passes through: P and TT 10b; AW 010b and domain 1.
            p.store128(root, 0, u128::from(contexts.0 | 1));
            p.store128(contexts, 0x80, 0x102 << 64 | 0b1001);
            p.write64(Window(0), offset::RTADDR, root.0);
            for command in [1 << 30, 1 << 31] {
                p.write32(Window(0), offset::GCMD, command);
                h.rest();
            }
            let page = h.ram().pages(1).unwrap();
            assert!(h.writes(page.0), "the earlier owner's device");
            h.start(events());
            assert!(!h.writes(page.0));
        });
    }
}

/// More drains of one device than the driver has places for: each gets its turn.
#[test]
fn many_pasids_of_a_device_are_detached_at_once() {
    on_unit(model::Config::default(), events(), |h| {
        let device = plug_in(&h, true);
        let table = TableRequest { stage: Stage::First, ..TableRequest::default() };
        let options = DomainOptions { table, pasid_only: true, ..DomainOptions::default() };
        let domain = h.iommu.external_domain(&[&device], options, Some(Nobody)).unwrap();
        let attached = (1..=12).map(|n| {
            let pasid = Pasid::new(n);
            h.iommu.attach(&h.cx, &domain, &device, pasid, Arc::new(())).unwrap()
        });
        let mut detaches: Vec<_> =
            attached.collect::<Vec<_>>().into_iter().map(|a| a.start_detach()).collect();
        let since = h.platform.now();
        while !detaches.is_empty() {
            detaches.retain_mut(|op| op.step().is_pending());
            assert_ne!(h.platform.sleep(&h.cx, 1000), Woken::Shutdown);
            let taken = h.platform.now().since(since);
            assert!(taken < Duration::from_millis(10), "{} go on after {taken:?}", detaches.len());
        }
        h.iommu.remove_device(&h.cx, device).map_err(|_| ()).unwrap();
    });
}

/// The last PASID of every width that a unit can have, and the first beyond.
#[test]
fn pasids_reach_as_far_as_the_unit_s() {
    const SCT_7: u32 = 0x46;
    const SGN_10: u32 = 0x89;
    for bits in [1, 8, 12, 13, 14, 15, 16, 17, 18, 19, 20] {
        on_unit(model::Config { pasid_bits: bits, ..model::Config::default() }, events(), move |h| {
            let device = plug_in(&h, false);
            assert_eq!(device.features().pasid_bits, bits, "the device has 20");
            let domain =
                h.iommu.external_domain(&[&device], DomainOptions::default(), None::<Nobody>).unwrap();
            let page = h.ram().pages(1).unwrap();
            domain.map_range(IOVA, page, PAGE, Prot::READ | Prot::WRITE).unwrap();
            let last = (1 << bits) - 1;
            assert!(!h.writes_with(last, IOVA), "nothing is attached");
            let attach = |n| h.iommu.attach(&h.cx, &domain, &device, Pasid::new(n), Arc::new(()));
            let attached = attach(last).unwrap();
            assert!(h.writes_with(last, IOVA));
            if bits < 20 {
                let beyond = Pasid::new(last + 1).unwrap();
                assert_eq!(attach(last + 1).err(), Some(AttachError::Pasid(device.id(), beyond)));
                let seen = h.iommu.observe(Scope::All, 4).unwrap();
                assert!(!h.writes_with(last + 1, IOVA));
                h.rest();
                let fault = seen.try_next().map(|told| told.record);
                let why = if bits < 13 { SGN_10 } else { SCT_7 };
                assert_eq!(fault.map(|f| (f.pasid, f.code)), Some((Some(beyond), why)), "{bits} bits");
            }
            assert!(attached.begin_detach(&h.cx).is_gone());
            assert!(!h.writes_with(last, IOVA));
            h.iommu.remove_device(&h.cx, device).map_err(|_| ()).unwrap();
        });
    }
}
