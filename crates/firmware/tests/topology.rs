//! What a table comes to for the devices of a machine.

mod common;

use common::recorded;
use portcullis::topology::{Address, Buses, Function, Hierarchy, Kind};
use portcullis::{DeviceId, InstanceId, RegionKind, SourceId};
use portcullis_firmware::dmar::{
    Atsr, Dmar, Drhd, Rhsa, Rmrr, Satc, Scope, ScopeKind, Sidp, Step, Structure,
};
use portcullis_firmware::{
    Atc, Contradiction, NamespaceDevice, PlatformSource, PlatformSourceKind, Remark, Topology,
};

fn at(bus: u8, device: u8, function: u8) -> Address {
    Address::new(0, bus, device, function)
}

fn scope(kind: ScopeKind, start_bus: u8, path: &[(u8, u8)]) -> Scope {
    let path = path.iter().map(|&(device, function)| Step { device, function }).collect();
    Scope { kind, flags: 0, enumeration_id: 0, start_bus, path }
}

fn unit(base: u64, scopes: Vec<Scope>) -> Structure {
    Structure::Drhd(Drhd { include_all: false, segment: 0, base, pages_log2: 0, scopes })
}

fn the_rest(base: u64) -> Structure {
    Structure::Drhd(Drhd { include_all: true, segment: 0, base, pages_log2: 0, scopes: vec![] })
}

fn table(structures: Vec<Structure>) -> Dmar {
    Dmar { structures, ..Dmar::new(39) }
}

/// Two root ports; behind the first a switch with two ports.
fn bridges(at: Address) -> Option<Buses> {
    let buses = |secondary, subordinate| Some(Buses { secondary, subordinate });
    match (at.segment, at.bus(), at.device(), at.function()) {
        (0, 0, 7, 0) => buses(1, 4),
        (0, 1, 0, 0) => buses(2, 4),
        (0, 2, 0, 0) => buses(3, 3),
        (0, 2, 1, 0) => buses(4, 4),
        (0, 0, 8, 0) => buses(5, 5),
        _ => None,
    }
}

fn topology(structures: Vec<Structure>) -> Topology {
    Topology::from_dmar(&table(structures), &bridges).unwrap()
}

fn parsed(bytes: &[u8], bridges: &dyn portcullis_firmware::Bridges) -> Topology {
    Topology::from_dmar(&Dmar::parse(bytes).unwrap(), bridges).unwrap()
}

fn none(_: Address) -> Option<Buses> {
    None
}

#[test]
fn the_nearest_name_decides() {
    use ScopeKind::{Endpoint, SubHierarchy};
    let machine = topology(vec![
        unit(0x1000, vec![scope(SubHierarchy, 0, &[(7, 0)])]),
        unit(0x2000, vec![scope(SubHierarchy, 0, &[(7, 0), (0, 0), (1, 0)])]),
        unit(
            0x3000,
            vec![scope(Endpoint, 0, &[(4, 0)]), scope(Endpoint, 0, &[(7, 0), (0, 0), (0, 0), (0, 1)])],
        ),
        the_rest(0x4000),
    ]);
    let serves = |at| machine.unit_of(at).map(|unit| unit.registers);
    // The bridge itself and all below it, but for the narrower hierarchy and the endpoint.
    for place in [at(0, 7, 0), at(1, 0, 0), at(2, 0, 0), at(3, 0, 0), at(3, 31, 7)] {
        assert_eq!(serves(place), Some(0x1000), "{place}");
    }
    assert_eq!(serves(at(2, 1, 0)), Some(0x2000));
    assert_eq!(serves(at(4, 0, 0)), Some(0x2000));
    assert_eq!(serves(at(3, 0, 1)), Some(0x3000));
    assert_eq!(serves(at(0, 4, 0)), Some(0x3000));
    for place in [at(0, 4, 1), at(0, 8, 0), at(5, 0, 0), at(0xff, 31, 7)] {
        assert_eq!(serves(place), Some(0x4000), "{place}");
    }
    // Another segment has no unit.
    assert_eq!(serves(Address { segment: 1, ..at(0, 4, 0) }), None);
    let ids: Vec<_> = machine.units().iter().map(|unit| unit.instance.0).collect();
    assert_eq!(ids, [0, 1, 2, 3]);
    assert_eq!(machine.remarks(), []);
}

#[test]
fn without_a_unit_for_the_rest_a_device_has_none() {
    let machine = topology(vec![unit(0x1000, vec![scope(ScopeKind::Endpoint, 0, &[(4, 0)])])]);
    assert_eq!(machine.unit_of(at(0, 5, 0)), None);
}

#[test]
fn a_path_that_leads_nowhere_is_told_and_serves_nobody() {
    let lost = scope(ScopeKind::Endpoint, 0, &[(9, 0), (0, 0)]);
    let machine = topology(vec![unit(0x1000, vec![lost])]);
    let bridge = at(0, 9, 0);
    assert_eq!(machine.remarks(), [Remark::BrokenPath { kind: ScopeKind::Endpoint, bridge }]);
    assert_eq!(machine.unit_of(at(0, 0, 0)), None);
    // A bridge whose number leads back, which a walk must not follow.
    let looping = |_: Address| Some(Buses { secondary: 0, subordinate: 0 });
    let path = [(0, 0); 100];
    let table = table(vec![unit(0x1000, vec![scope(ScopeKind::Endpoint, 0, &path)])]);
    let machine = Topology::from_dmar(&table, &looping).unwrap();
    assert_eq!(machine.remarks().len(), 1);
}

#[test]
fn grouping_takes_its_ids_from_here() {
    let machine =
        topology(vec![unit(0x1000, vec![scope(ScopeKind::SubHierarchy, 0, &[(7, 0)])]), the_rest(0x2000)]);
    let vf = Kind::Virtual { physical: at(3, 0, 0) };
    let mut bridge = Function::new(
        DeviceId(5),
        at(0, 8, 0),
        Kind::ConventionalBridge(Buses { secondary: 5, subordinate: 5 }),
    );
    bridge.acs = None;
    let hierarchy = Hierarchy {
        functions: vec![
            Function::new(DeviceId(0), at(0, 7, 0), Kind::RootPort(Buses { secondary: 1, subordinate: 4 })),
            Function::new(
                DeviceId(1),
                at(1, 0, 0),
                Kind::UpstreamPort(Buses { secondary: 2, subordinate: 4 }),
            ),
            Function::new(
                DeviceId(2),
                at(2, 0, 0),
                Kind::DownstreamPort(Buses { secondary: 3, subordinate: 3 }),
            ),
            Function::new(DeviceId(3), at(3, 0, 0), Kind::Endpoint),
            // Its number is outside of the unit's buses.
            Function::new(DeviceId(4), at(0x40, 0, 1), vf),
            bridge,
            Function::new(DeviceId(6), at(5, 2, 0), Kind::Conventional),
        ],
        platform: vec![],
    };
    let grouping = hierarchy.group(|f, rid| machine.serve(f, rid)).unwrap();
    let ids = |device| {
        let [upstream] = grouping.upstreams(DeviceId(device)).unwrap() else { panic!("one unit") };
        (upstream.instance, upstream.sources.clone())
    };
    assert_eq!(ids(3), (InstanceId(0), vec![SourceId(0x300)]));
    assert_eq!(ids(4), (InstanceId(0), vec![SourceId(0x4001)]));
    assert_eq!(ids(6), (InstanceId(1), vec![SourceId(0x510), SourceId(0x40)]));
}

#[test]
fn reserved_memory_belongs_to_its_devices() {
    let machine = parsed(&recorded("laptop_lg"), &none);
    let regions = |place, class| machine.reserved_of(place, class).collect::<Vec<_>>();
    let [graphics] = regions(at(0, 2, 0), 0x03_0000)[..] else { panic!("one region") };
    assert_eq!((graphics.start, graphics.last()), (0x7900_0000, 0x7b7f_ffff));
    // Drivers of graphics and USB controllers do not need what firmware reserved for itself.
    assert_eq!(graphics.kind, RegionKind::DirectRelaxable);
    let [usb] = regions(at(0, 0x14, 0), 0x0c_0330)[..] else { panic!("one region") };
    assert_eq!((usb.start, usb.len, usb.kind), (0x6f8a_5000, 0x2_0000, RegionKind::DirectRelaxable));
    let [disk] = regions(at(0, 0x14, 0), 0x01_0601)[..] else { panic!("one region") };
    assert_eq!(disk.kind, RegionKind::Direct);
    assert_eq!(regions(at(0, 0x14, 1), 0x01_0601), []);
    // Of its two units each serves its own.
    assert_eq!(machine.unit_of(at(0, 2, 0)).unwrap().registers, 0xfed9_0000);
    assert_eq!(machine.unit_of(at(0, 0x14, 0)).unwrap().registers, 0xfed9_1000);
    assert_eq!(machine.host_address_width(), 39);
}

#[test]
fn memory_may_be_reserved_for_all_behind_a_bridge_or_for_nobody() {
    let region = |base, scopes| Structure::Rmrr(Rmrr { segment: 0, base, limit: base + 0xfff, scopes });
    let machine = topology(vec![
        region(0x1000, vec![scope(ScopeKind::SubHierarchy, 0, &[(7, 0)])]),
        region(0x2000, vec![]),
        region(0x3000, vec![scope(ScopeKind::Hpet, 0, &[(7, 0)])]),
    ]);
    assert_eq!(machine.reserved_of(at(4, 3, 0), 0).count(), 1);
    assert_eq!(machine.reserved_of(at(5, 0, 0), 0).count(), 0);
    assert_eq!(
        machine.remarks(),
        [
            Remark::ReservedForNobody { base: 0x2000 },
            Remark::UselessScope { kind: ScopeKind::Hpet },
            Remark::ReservedForNobody { base: 0x3000 },
        ]
    );
}

#[test]
fn a_repeated_unit_is_one_unit() {
    let machine = parsed(&recorded("imac_pro"), &none);
    let registers: Vec<_> = machine.units().iter().map(|unit| unit.registers).collect();
    assert_eq!(registers, [0x8fff_c000, 0xdfff_c000, 0xfbff_c000, 0x7fff_c000]);
    let repeated = machine.remarks().iter().filter(|r| matches!(r, Remark::RepeatedUnit { .. }));
    assert_eq!((repeated.count(), machine.remarks().len()), (4, 4));
    assert_eq!(machine.unit_of(at(5, 2, 0)).unwrap().registers, 0xdfff_c000);
    assert_eq!(machine.unit_of(at(0, 0x14, 0)).unwrap().registers, 0x7fff_c000);
    assert_eq!(machine.reserved_of(at(0, 0x14, 0), 0).count(), 2);
    // An I/O APIC that is told of twice is one.
    assert_eq!(machine.platform_sources().len(), 6);
    assert!(machine.ats_behind(at(0xf0, 0, 0)));
    assert!(!machine.ats_behind(at(0, 0x1c, 0)));
}

#[test]
fn devices_that_are_not_pci_have_a_unit_and_an_id() {
    let machine = parsed(&recorded("tablet_microsoft"), &none);
    let source =
        |kind, number, rid| PlatformSource { kind, number, instance: InstanceId(1), source: SourceId(rid) };
    assert_eq!(
        machine.platform_sources(),
        [
            source(PlatformSourceKind::IoApic, 2, 0xf0f8),
            source(PlatformSourceKind::Hpet, 0, 0x00f8),
            source(PlatformSourceKind::Namespace, 1, 0x00a8),
            source(PlatformSourceKind::Namespace, 2, 0x00a9),
            source(PlatformSourceKind::Namespace, 9, 0x00f0),
        ]
    );
    let first = NamespaceDevice { number: 1, name: r"\_SB.PCI0.I2C0".into() };
    assert_eq!(machine.namespace_devices()[0], first);
}

#[test]
fn device_tlbs_are_wanted_by_sidp_else_by_satc() {
    let scopes = vec![scope(ScopeKind::Endpoint, 0, &[(5, 0)])];
    let satc = Structure::Satc(Satc { required: true, segment: 0, scopes: scopes.clone() });
    let machine = topology(vec![satc.clone()]);
    assert_eq!(machine.atc_of(at(0, 5, 0)), Atc { hardened: true, required: true, ..Atc::default() });
    assert_eq!(machine.atc_of(at(0, 6, 0)), Atc::default());

    let flags = Scope::ATC_HARDENED | Scope::PWSNP_NOT_ALLOWED;
    let scopes = scopes.into_iter().map(|scope| Scope { flags, ..scope }).collect();
    let machine = topology(vec![satc, Structure::Sidp(Sidp { segment: 0, scopes })]);
    let said = Atc { hardened: true, no_walk_snoop: true, ..Atc::default() };
    assert_eq!(machine.atc_of(at(0, 5, 0)), said);

    let machine = parsed(&recorded("client_intel_edk2"), &none);
    let all =
        Atc { hardened: true, required: true, no_nesting: true, no_walk_snoop: true, no_page_snoop: true };
    assert_eq!(machine.atc_of(at(0, 2, 0)), all);
    assert_eq!(machine.atc_of(at(0, 0xb, 0)), Atc { no_nesting: false, no_walk_snoop: false, ..all });
    assert_eq!(machine.atc_of(at(0, 0xa, 0)), Atc::default());
}

#[test]
fn ats_ports_and_affinity() {
    let atsr = |all_ports, segment, scopes| Structure::Atsr(Atsr { all_ports, segment, scopes });
    let one = topology(vec![
        Structure::Rhsa(Rhsa { base: 0x1000, proximity: 3 }),
        Structure::Rhsa(Rhsa { base: 0x9000, proximity: 1 }),
        unit(0x1000, vec![]),
        atsr(false, 0, vec![scope(ScopeKind::SubHierarchy, 0, &[(7, 0)])]),
        atsr(true, 2, vec![]),
    ]);
    assert!(one.ats_behind(at(0, 7, 0)) && !one.ats_behind(at(0, 8, 0)));
    assert!(one.ats_behind(Address { segment: 2, rid: 0x40 }));
    assert_eq!(one.units()[0].proximity, Some(3));
    assert_eq!(one.remarks(), [Remark::NoSuchUnit { registers: 0x9000 }]);

    let server = parsed(&recorded("server_ami"), &none);
    assert_eq!(server.unit_of(at(0x80, 4, 3)).unwrap().registers, 0xd37f_c000);
    assert_eq!(server.unit_of(at(0, 0x14, 0)), None);
    assert!(server.ats_behind(at(0x17, 0, 0)));
    assert_eq!(server.remarks().len(), 2);
}

#[test]
fn what_cannot_both_be_is_refused() {
    let refused = |structures| Topology::from_dmar(&table(structures), &bridges).unwrap_err();
    let other_segment = |base, pages_log2| {
        Structure::Drhd(Drhd { include_all: true, segment: 1, base, pages_log2, scopes: vec![] })
    };
    assert_eq!(
        refused(vec![the_rest(0x1000), the_rest(0x2000)]),
        Contradiction::IncludeAll { segment: 0, first: 0x1000, second: 0x2000 }
    );
    topology(vec![the_rest(0x1000), other_segment(0x2000, 0)]);
    assert_eq!(
        refused(vec![the_rest(0x1000), other_segment(0x1000, 0)]),
        Contradiction::Unit { registers: 0x1000 }
    );
    let overlap = |first, second| Contradiction::Overlap { first, second };
    assert_eq!(refused(vec![the_rest(0x3000), other_segment(0x2000, 1)]), overlap(0x3000, 0x2000));
    assert_eq!(refused(vec![other_segment(0x2000, 1), the_rest(0x3000)]), overlap(0x2000, 0x3000));
    topology(vec![other_segment(0x2000, 1), the_rest(0x4000)]);
}

#[test]
fn of_two_units_that_name_a_device_the_first_serves_it() {
    let named = || vec![scope(ScopeKind::Endpoint, 0, &[(4, 0)])];
    let machine = topology(vec![unit(0x1000, named()), unit(0x2000, named())]);
    assert_eq!(machine.unit_of(at(0, 4, 0)).unwrap().registers, 0x1000);
    let place = at(0, 4, 0);
    assert_eq!(machine.remarks(), [Remark::TwoUnits { first: 0x1000, second: 0x2000, place }]);
}
