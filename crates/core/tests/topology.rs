//! Groups by topology: each rule, beside a twin where it does not apply, and topologies that
//! cannot be.

use portcullis::topology::{
    Acs, AcsServices, Address, Buses, Function, Grouping, Hierarchy, Kind, MergedBy, PlatformDevice, Quirk,
    TopologyError,
};
use portcullis::{DeviceId, InstanceId, SourceId, Upstream};

const UNIT: InstanceId = InstanceId(3);

fn at(bus: u8, device: u8, function: u8) -> Address {
    Address::new(0, bus, device, function)
}

/// Stable ids are requester ids here.
fn id(at: Address) -> DeviceId {
    DeviceId(at.rid.into())
}

fn function(place: Address, kind: Kind) -> Function {
    Function::new(id(place), place, kind)
}

fn buses(secondary: u8, subordinate: u8) -> Buses {
    Buses { secondary, subordinate }
}

fn acs(capable: AcsServices, enabled: AcsServices) -> Option<Acs> {
    Some(Acs { capable, enabled })
}

const ALL: AcsServices = AcsServices::REQUIRED;
const RR_CR: AcsServices = AcsServices(AcsServices::REQUEST_REDIRECT.0 | AcsServices::COMPLETION_REDIRECT.0);

fn isolating(place: Address, kind: Kind) -> Function {
    Function { acs: acs(ALL, ALL), ..function(place, kind) }
}

fn machine(functions: Vec<Function>) -> Hierarchy {
    Hierarchy { functions, platform: vec![] }
}

fn group(machine: &Hierarchy) -> Result<Grouping, TopologyError> {
    machine.group(|f, rid| Some((UNIT, SourceId(u32::from(f.at.segment) << 16 | u32::from(rid)))))
}

/// That the members are one group, and what merged them.
#[track_caller]
fn together(machine: &Hierarchy, members: &[Address]) -> Vec<MergedBy> {
    let grouping = group(machine).unwrap();
    let found = grouping.group_of(id(members[0])).unwrap();
    let mut expected: Vec<_> = members.iter().map(|&at| id(at)).collect();
    expected.sort();
    assert_eq!(found.members(), expected);
    assert_eq!(found.merges().len(), members.len() - 1);
    found.merges().iter().map(|merge| merge.by).collect()
}

#[track_caller]
fn all_alone(machine: &Hierarchy) {
    let grouping = group(machine).unwrap();
    for group in grouping.groups() {
        assert_eq!(group.members().len(), 1, "{:?}", group.merges());
        assert!(group.merges().is_empty());
    }
}

fn sources(machine: &Hierarchy, of: Address) -> Vec<Address> {
    let grouping = group(machine).unwrap();
    let [upstream] = grouping.upstreams(id(of)).unwrap() else { panic!("one instance") };
    assert_eq!(upstream.instance, UNIT);
    upstream.sources.iter().map(|s| Address { segment: (s.0 >> 16) as u16, rid: s.0 as u16 }).collect()
}

#[test]
fn a_root_port_isolates_with_its_services_on() {
    let below = function(at(1, 0, 0), Kind::Endpoint);
    let port = |acs| Function { acs, ..function(at(0, 1, 0), Kind::RootPort(buses(1, 1))) };
    let with = |acs| machine(vec![port(acs), below.clone()]);
    all_alone(&with(acs(ALL, ALL)));
    // The root complex lets nothing pass between its ports: there is nothing to redirect.
    all_alone(&with(acs(AcsServices::SOURCE_VALIDATION, AcsServices::SOURCE_VALIDATION)));

    let merged = |acs, missing| {
        let by = together(&with(acs), &[at(0, 1, 0), at(1, 0, 0)]);
        assert_eq!(by, [MergedBy::AcsAtRootPort { port: at(0, 1, 0), missing }]);
    };
    merged(None, ALL);
    for bit in [0, 2, 3, 4] {
        let one = AcsServices(1 << bit);
        merged(acs(ALL, ALL.without(one)), one);
    }
    // SV is no choice. A control bit of a service that is not there is nothing.
    merged(acs(ALL.without(AcsServices::SOURCE_VALIDATION), ALL), AcsServices::SOURCE_VALIDATION);
}

#[test]
fn direct_translated_traffic_takes_the_redirect_back_unless_it_is_blocked() {
    let direct = AcsServices(ALL.0 | AcsServices::DIRECT_TRANSLATED.0);
    let blocked = AcsServices(direct.0 | AcsServices::TRANSLATION_BLOCKING.0);
    let with = |services| {
        let port =
            Function { acs: acs(services, services), ..function(at(0, 1, 0), Kind::RootPort(buses(1, 1))) };
        machine(vec![port, function(at(1, 0, 0), Kind::Endpoint)])
    };
    let by = together(&with(direct), &[at(0, 1, 0), at(1, 0, 0)]);
    let missing = AcsServices::DIRECT_TRANSLATED;
    assert_eq!(by, [MergedBy::AcsAtRootPort { port: at(0, 1, 0), missing }]);
    assert!(by[0].to_string().ends_with("(ACS DT on)"), "{}", by[0]);
    all_alone(&with(blocked));
}

/// A switch below a root port: upstream port 1:0.0, downstream ports 2:0.0 and 2:1.0, endpoints on
/// buses 3 and 4.
fn switch() -> Vec<Function> {
    vec![
        isolating(at(0, 1, 0), Kind::RootPort(buses(1, 4))),
        function(at(1, 0, 0), Kind::UpstreamPort(buses(2, 4))),
        isolating(at(2, 0, 0), Kind::DownstreamPort(buses(3, 3))),
        isolating(at(2, 1, 0), Kind::DownstreamPort(buses(4, 4))),
        function(at(3, 0, 0), Kind::Endpoint),
        function(at(4, 0, 0), Kind::Endpoint),
    ]
}

#[test]
fn one_switch_port_without_redirect_reaches_every_other() {
    all_alone(&machine(switch()));
    let mut open = switch();
    // A switch port must have all four: what its capability lacks is missing.
    let missing = AcsServices::UPSTREAM_FORWARDING;
    open[2].acs = acs(ALL.without(missing), ALL);
    let behind = [at(2, 0, 0), at(2, 1, 0), at(3, 0, 0), at(4, 0, 0)];
    for by in together(&machine(open), &behind) {
        assert_eq!(by, MergedBy::AcsAtDownstreamPort { port: at(2, 0, 0), missing });
    }
}

#[test]
fn a_root_port_without_acs_merges_the_whole_switch_below_it() {
    let mut open = switch();
    open[0].acs = None;
    let everything: Vec<_> = open.iter().map(|f| f.at).collect();
    for by in together(&machine(open), &everything) {
        assert_eq!(by, MergedBy::AcsAtRootPort { port: at(0, 1, 0), missing: ALL });
    }
}

#[test]
fn a_function_beside_an_upstream_port_reaches_what_is_behind_it() {
    let mut beside = switch();
    beside[1].acs = acs(RR_CR, RR_CR);
    beside.push(Function { acs: acs(RR_CR, RR_CR), ..function(at(1, 0, 1), Kind::Endpoint) });
    all_alone(&machine(beside.clone()));
    beside[6].acs = None;
    let reached = [at(1, 0, 0), at(1, 0, 1), at(2, 0, 0), at(2, 1, 0), at(3, 0, 0), at(4, 0, 0)];
    let by = together(&machine(beside.clone()), &reached);
    let function = at(1, 0, 1);
    let missing = RR_CR;
    let behind = MergedBy::BesideOpenFunction { port: at(1, 0, 0), function, missing };
    assert_eq!(by.iter().filter(|by| **by == behind).count(), 4);
    assert!(by.contains(&MergedBy::MultiFunction { function, missing }));
    // Also where the port lacks the same.
    beside[1].acs = None;
    together(&machine(beside), &reached);
}

#[test]
fn functions_of_one_device_need_redirects() {
    let with = |first, second| {
        machine(vec![
            isolating(at(0, 1, 0), Kind::RootPort(buses(1, 1))),
            Function { acs: first, ..function(at(1, 0, 0), Kind::Endpoint) },
            Function { acs: second, ..function(at(1, 0, 1), Kind::Endpoint) },
        ])
    };
    let both = [at(1, 0, 0), at(1, 0, 1)];
    all_alone(&with(acs(RR_CR, RR_CR), acs(RR_CR, RR_CR)));
    // The capability without redirects: they have no way to each other.
    all_alone(&with(acs(AcsServices::NONE, AcsServices::NONE), acs(RR_CR, RR_CR)));
    let rule = |function, missing| [MergedBy::MultiFunction { function, missing }];
    assert_eq!(together(&with(None, None), &both), rule(at(1, 0, 0), RR_CR));
    // One that does not redirect reaches the one that does.
    assert_eq!(together(&with(acs(RR_CR, RR_CR), None), &both), rule(at(1, 0, 1), RR_CR));
    let missing = AcsServices::COMPLETION_REDIRECT;
    let half = acs(RR_CR, AcsServices::REQUEST_REDIRECT);
    assert_eq!(together(&with(acs(RR_CR, RR_CR), half), &both), rule(at(1, 0, 1), missing));
}

#[test]
fn devices_of_one_bus_are_not_functions_of_one_device() {
    let integrated = |device, number| function(at(0, device, number), Kind::Integrated);
    all_alone(&machine(vec![integrated(4, 0), integrated(5, 0)]));
    let by = together(&machine(vec![integrated(4, 0), integrated(4, 1)]), &[at(0, 4, 0), at(0, 4, 1)]);
    assert_eq!(by, [MergedBy::MultiFunction { function: at(0, 4, 0), missing: RR_CR }]);
    // Behind a link there is one device: with ARI its function 8 looks like device 1.
    let ari = machine(vec![
        isolating(at(0, 1, 0), Kind::RootPort(buses(1, 1))),
        function(at(1, 0, 0), Kind::Endpoint),
        function(at(1, 1, 0), Kind::Endpoint),
    ]);
    together(&ari, &[at(1, 0, 0), at(1, 1, 0)]);
}

#[test]
fn functions_without_a_pcie_capability_never_isolate_from_one_another() {
    let conventional =
        |number| Function { acs: acs(RR_CR, RR_CR), ..function(at(0, 0x1f, number), Kind::Conventional) };
    together(&machine(vec![conventional(0), conventional(3)]), &[at(0, 0x1f, 0), at(0, 0x1f, 3)]);
    // Alone at its place, one in the root complex has an id of its own ([V] 3.12.4).
    let alone = machine(vec![conventional(0)]);
    all_alone(&alone);
    assert_eq!(sources(&alone, at(0, 0x1f, 0)), [at(0, 0x1f, 0)]);
}

#[test]
fn virtual_functions_are_apart_unless_their_device_can_join_them_and_does() {
    let vf = |number: u16| {
        let place = Address { segment: 0, rid: 0x0100 + number };
        function(place, Kind::Virtual { physical: at(1, 0, 0) })
    };
    // The last one has a number on a bus that no bridge leads to.
    let with = |pf_acs| {
        machine(vec![
            isolating(at(0, 1, 0), Kind::RootPort(buses(1, 2))),
            Function { acs: pf_acs, ..function(at(1, 0, 0), Kind::Endpoint) },
            vf(0x10),
            vf(0x11),
            vf(0x100),
        ])
    };
    all_alone(&with(None));
    all_alone(&with(acs(RR_CR, RR_CR)));
    let device = [at(1, 0, 0), vf(0x10).at, vf(0x11).at, vf(0x100).at];
    for by in together(&with(acs(RR_CR, AcsServices::NONE)), &device) {
        assert_eq!(by, MergedBy::MultiFunction { function: at(1, 0, 0), missing: RR_CR });
    }
    // They are below what their physical function is below.
    let mut open = with(None);
    open.functions[0].acs = None;
    let all: Vec<_> = open.functions.iter().map(|f| f.at).collect();
    together(&open, &all);
}

#[test]
fn devices_behind_a_bridge_to_pci_share_its_ids() {
    let with = |bridge| {
        machine(vec![
            isolating(at(0, 1, 0), Kind::RootPort(buses(1, 2))),
            function(at(1, 0, 0), bridge),
            function(at(2, 3, 0), Kind::Conventional),
            function(at(2, 4, 0), Kind::Conventional),
        ])
    };
    let members = [at(1, 0, 0), at(2, 3, 0), at(2, 4, 0)];
    let rule = MergedBy::BridgeAlias { bridge: at(1, 0, 0) };

    // [V] 3.12.1: the secondary bus, device and function 0.
    let express = with(Kind::PcieToPci(buses(2, 2)));
    assert_eq!(together(&express, &members), [rule; 2]);
    assert_eq!(sources(&express, at(2, 3, 0)), [at(2, 3, 0), at(2, 0, 0)]);
    assert_eq!(sources(&express, at(1, 0, 0)), [at(1, 0, 0)]);

    // [V] 3.12.2: the bridge's own.
    let mut conventional = with(Kind::ConventionalBridge(buses(2, 2)));
    assert_eq!(together(&conventional, &members), [rule; 2]);
    assert_eq!(sources(&conventional, at(2, 4, 0)), [at(2, 4, 0), at(1, 0, 0)]);
    conventional.functions[1].quirks.push(Quirk::TakesOwnership);
    assert_eq!(sources(&conventional, at(2, 4, 0)), [at(2, 4, 0), at(2, 0, 0)]);

    let reverse = with(Kind::PciToPcie(buses(2, 2)));
    assert_eq!(together(&reverse, &members), [rule; 2]);
    assert_eq!(sources(&reverse, at(2, 3, 0)), [at(2, 3, 0), at(1, 0, 0)]);

    // The twin: a switch in its place.
    let apart = machine(switch());
    all_alone(&apart);
    assert_eq!(sources(&apart, at(3, 0, 0)), [at(3, 0, 0)]);
}

#[test]
fn aliases_add_up_through_nested_bridges() {
    let nested = machine(vec![
        isolating(at(0, 1, 0), Kind::RootPort(buses(1, 3))),
        function(at(1, 0, 0), Kind::PcieToPci(buses(2, 3))),
        function(at(2, 7, 0), Kind::ConventionalBridge(buses(3, 3))),
        function(at(3, 5, 0), Kind::Conventional),
    ]);
    assert_eq!(sources(&nested, at(3, 5, 0)), [at(3, 5, 0), at(2, 7, 0), at(2, 0, 0)]);
    together(&nested, &[at(1, 0, 0), at(2, 7, 0), at(3, 5, 0)]);
}

#[test]
fn phantom_functions_are_ids_of_their_function() {
    let with = |bits| {
        let claiming = Function { phantom_bits: bits, ..function(at(0, 2, 1), Kind::Integrated) };
        let taken = Function { quirks: vec![Quirk::Isolated], ..function(at(0, 2, 5), Kind::Integrated) };
        let claiming = Function { quirks: vec![Quirk::Isolated], ..claiming };
        machine(vec![claiming, taken])
    };
    all_alone(&with(0));
    assert_eq!(sources(&with(0), at(0, 2, 1)), [at(0, 2, 1)]);
    let two = with(2);
    assert_eq!(sources(&two, at(0, 2, 1)), [1, 3, 5, 7].map(|f| at(0, 2, f)));
    let by = together(&two, &[at(0, 2, 1), at(0, 2, 5)]);
    assert_eq!(by, [MergedBy::PhantomFunction { of: at(0, 2, 1) }]);
    // Function 1 cannot claim the bit that it has itself.
    for bits in [3, 4, 255] {
        let refused = group(&with(bits)).unwrap_err();
        assert_eq!(refused, TopologyError::PhantomBits { function: at(0, 2, 1), bits });
    }
}

#[test]
fn quirks_are_data() {
    let with = |quirk: Option<Quirk>| {
        let quirky = Function {
            quirks: quirk.into_iter().chain([Quirk::Isolated]).collect(),
            ..function(at(0, 2, 0), Kind::Integrated)
        };
        let beside = Function { quirks: vec![Quirk::Isolated], ..function(at(0, 2, 1), Kind::Integrated) };
        machine(vec![quirky, beside])
    };
    all_alone(&with(None));
    let by = together(&with(Some(Quirk::AlsoUses(0x11))), &[at(0, 2, 0), at(0, 2, 1)]);
    assert_eq!(by, [MergedBy::QuirkAlias { alias: at(0, 2, 1) }]);
    assert_eq!(sources(&with(Some(Quirk::AlsoUses(0x11))), at(0, 2, 0)), [at(0, 2, 0), at(0, 2, 1)]);

    let mut vouched = switch();
    vouched[2].acs = None;
    vouched[2].quirks.push(Quirk::Isolated);
    all_alone(&machine(vouched));
    let mut broken = switch();
    broken[2].quirks.push(Quirk::NotIsolated);
    together(&machine(broken), &[at(2, 0, 0), at(2, 1, 0), at(3, 0, 0), at(4, 0, 0)]);
}

fn platform(number: u64, instance: InstanceId, sources: &[u32]) -> PlatformDevice {
    let sources = sources.iter().copied().map(SourceId).collect();
    PlatformDevice { id: DeviceId(number), upstreams: vec![Upstream { instance, sources }] }
}

#[test]
fn one_stream_id_is_one_group() {
    let with = |instance, stream| Hierarchy {
        functions: vec![],
        platform: vec![platform(1, UNIT, &[7, 8]), platform(2, instance, &[9, stream])],
    };
    let shared = group(&with(UNIT, 8)).unwrap();
    let [both] = shared.groups() else { panic!("{shared:?}") };
    assert_eq!(both.members(), [DeviceId(1), DeviceId(2)]);
    let by = MergedBy::SharedStreamId { instance: UNIT, source: SourceId(8) };
    assert_eq!(both.merges()[0].by, by);
    assert_eq!(by.to_string(), "iommu3 knows both as stream 0x8");
    assert_eq!(shared.upstreams(DeviceId(1)).unwrap()[0].sources, [SourceId(7), SourceId(8)]);
    assert_eq!(group(&with(UNIT, 10)).unwrap().groups().len(), 2);
    assert_eq!(group(&with(InstanceId(4), 8)).unwrap().groups().len(), 2);
}

#[test]
fn pci_functions_share_streams_where_the_instance_sees_them_so() {
    let two = machine(vec![function(at(0, 4, 0), Kind::Integrated), function(at(0, 5, 0), Kind::Integrated)]);
    // A mapping that gives a whole bus one stream id.
    let folded = two.group(|f, _| Some((UNIT, SourceId(f.at.bus().into())))).unwrap();
    let [both] = folded.groups() else { panic!("{folded:?}") };
    assert_eq!(both.merges()[0].by, MergedBy::SharedStreamId { instance: UNIT, source: SourceId(0) });
    all_alone(&two);
    // Without an IOMMU there are groups, and no ids.
    let none = two.group(|_, _| None).unwrap();
    assert_eq!(none.groups().len(), 2);
    assert_eq!(none.upstreams(id(at(0, 4, 0))).unwrap(), []);
}

#[test]
fn segments_are_worlds_of_their_own() {
    let other = |place: Address| Address { segment: 1, ..place };
    let mut both = machine(vec![
        isolating(at(0, 1, 0), Kind::RootPort(buses(1, 1))),
        function(at(1, 0, 0), Kind::Endpoint),
    ]);
    for (n, f) in both.functions.clone().into_iter().enumerate() {
        both.functions.push(Function { id: DeviceId(0x1_0000 + n as u64), at: other(f.at), acs: None, ..f });
    }
    let grouping = group(&both).unwrap();
    assert_eq!(grouping.groups().len(), 3);
    assert_eq!(grouping.group_of(DeviceId(0x1_0000)).unwrap().members().len(), 2);
}

#[test]
fn rules_have_words() {
    let mut open = switch();
    open[2].acs = acs(ALL, ALL.without(AcsServices::REQUEST_REDIRECT));
    let grouping = group(&machine(open)).unwrap();
    let merge = grouping.group_of(id(at(4, 0, 0))).unwrap().merges()[0];
    assert_eq!(
        merge.to_string(),
        "device 0x200 and device 0x208: \
         the switch port at 0000:02:00.0 lets requests pass to the other ports (ACS RR off)"
    );
}

#[test]
fn registers_make_kinds() {
    let b = buses(1, 2);
    assert_eq!(Kind::decode(0x80, None, b), Ok(Kind::Conventional));
    assert_eq!(Kind::decode(0, Some(1), b), Ok(Kind::Endpoint));
    assert_eq!(Kind::decode(0x81, Some(4), b), Ok(Kind::RootPort(b)));
    assert_eq!(Kind::decode(1, Some(7), b), Ok(Kind::PcieToPci(b)));
    for (header, port) in [(0, Some(4)), (1, Some(0)), (2, None), (0x7f, None), (0, Some(15))] {
        assert!(Kind::decode(header, port, b).is_err(), "{header} {port:?}");
    }
}

fn bridge(place: Address, secondary: u8, subordinate: u8) -> Function {
    function(place, Kind::ConventionalBridge(buses(secondary, subordinate)))
}

#[test]
fn what_cannot_be_is_refused_with_the_place() {
    let refused = |functions: Vec<Function>| group(&machine(functions)).unwrap_err();
    let plain = |place| function(place, Kind::Conventional);

    assert_eq!(
        refused(vec![plain(at(0, 1, 0)), plain(at(0, 1, 0))]),
        TopologyError::DuplicateAddress(at(0, 1, 0))
    );
    let twice = Function { id: DeviceId(8), ..plain(at(0, 2, 0)) };
    assert_eq!(refused(vec![plain(at(0, 1, 0)), twice]), TopologyError::DuplicateDevice(DeviceId(8)));

    let bad = |bridge: &Function| TopologyError::BadBuses {
        bridge: bridge.at,
        buses: bridge.kind.buses().unwrap(),
    };
    // Two bridges that lead to each other's bus; one that leads to its own; one that ends before
    // it begins; one that leads further than the bridge above it.
    let back = bridge(at(2, 0, 0), 1, 2);
    assert_eq!(refused(vec![bridge(at(1, 0, 0), 2, 2), back.clone()]), bad(&back));
    let own = bridge(at(3, 0, 0), 3, 4);
    assert_eq!(refused(vec![own.clone()]), bad(&own));
    let reversed = bridge(at(0, 0, 0), 5, 4);
    assert_eq!(refused(vec![reversed.clone()]), bad(&reversed));
    let wide = bridge(at(1, 0, 0), 2, 9);
    assert_eq!(refused(vec![bridge(at(0, 0, 0), 1, 4), wide.clone()]), bad(&wide));
    let outside = bridge(at(1, 0, 0), 7, 7);
    assert_eq!(refused(vec![bridge(at(0, 0, 0), 1, 4), outside.clone()]), bad(&outside));

    let shared = |bus| TopologyError::SharedBus { first: at(0, 1, 0), second: at(0, 2, 0), bus };
    assert_eq!(refused(vec![bridge(at(0, 1, 0), 1, 4), bridge(at(0, 2, 0), 1, 4)]), shared(1));
    assert_eq!(refused(vec![bridge(at(0, 1, 0), 1, 4), bridge(at(0, 2, 0), 4, 6)]), shared(4));

    assert_eq!(
        refused(vec![bridge(at(0, 1, 0), 1, 4), plain(at(3, 0, 0))]),
        TopologyError::Unreachable(at(3, 0, 0))
    );
    // A bridge that nobody has configured leads nowhere.
    assert_eq!(group(&machine(vec![bridge(at(0, 1, 0), 0, 0)])).unwrap().groups().len(), 1);

    let physical = at(0, 9, 0);
    let vf = function(at(0, 9, 1), Kind::Virtual { physical });
    let lost = TopologyError::NoPhysicalFunction { function: at(0, 9, 1), physical };
    assert_eq!(refused(vec![vf.clone()]), lost);
    // Virtual functions that name each other.
    let other = function(physical, Kind::Virtual { physical: vf.at });
    assert!(matches!(refused(vec![vf, other]), TopologyError::NoPhysicalFunction { .. }));
}

#[test]
fn the_deepest_and_the_widest_machines_are_grouped() {
    let chain: Vec<_> = (0..255).map(|bus| bridge(at(bus, 0, 0), bus + 1, 255)).collect();
    let grouping = group(&machine(chain)).unwrap();
    assert_eq!(grouping.groups()[0].members().len(), 255);
    let last = grouping.upstreams(id(at(254, 0, 0))).unwrap();
    assert_eq!(last[0].sources.len(), 255);

    let pf = Function { acs: acs(RR_CR, AcsServices::NONE), ..function(at(0, 0, 0), Kind::Integrated) };
    let vf = |rid| function(Address { segment: 0, rid }, Kind::Virtual { physical: pf.at });
    let mut wide = vec![pf.clone()];
    wide.extend((1..=u16::MAX).map(vf));
    assert_eq!(group(&machine(wide)).unwrap().groups()[0].members().len(), 0x1_0000);
}
