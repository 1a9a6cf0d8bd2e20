//! Groups over random topologies, well-formed and hostile ones.

use std::collections::BTreeMap;

use portcullis::topology::{
    Acs, AcsServices, Address, Buses, Function, Grouping, Hierarchy, Kind, PlatformDevice, Quirk,
};
use portcullis::{DeviceId, InstanceId, SourceId, Upstream};
use proptest::prelude::*;
use proptest::sample::Index;

/// Few streams, so that some are shared; some requests meet no IOMMU.
fn serve(function: &Function, rid: u16) -> Option<(InstanceId, SourceId)> {
    match rid % 11 {
        0 => None,
        n => Some((InstanceId(u32::from(function.at.segment)), SourceId(u32::from(rid) - u32::from(n % 2)))),
    }
}

fn acs() -> impl Strategy<Value = Option<Acs>> {
    let services = prop_oneof![Just(0x1d), Just(0x0c), Just(0), 0..0x80_u16].prop_map(AcsServices);
    proptest::option::weighted(0.7, (services.clone(), services))
        .prop_map(|both| both.map(|(capable, enabled)| Acs { capable, enabled }))
}

fn quirks() -> impl Strategy<Value = Vec<Quirk>> {
    let quirk = prop_oneof![
        any::<u8>().prop_map(Quirk::AlsoUses),
        Just(Quirk::Isolated),
        Just(Quirk::NotIsolated),
        Just(Quirk::TakesOwnership),
    ];
    prop_oneof![4 => Just(vec![]), 1 => proptest::collection::vec(quirk, 1..3)]
}

fn platform() -> impl Strategy<Value = Vec<PlatformDevice>> {
    let sources = proptest::collection::vec((0..0x200_u32).prop_map(SourceId), 0..3);
    let upstreams = proptest::collection::vec(
        (0..2_u32, sources).prop_map(|(i, sources)| Upstream { instance: InstanceId(i), sources }),
        0..3,
    );
    proptest::collection::vec(upstreams, 0..6).prop_map(|all| {
        let device = |(n, upstreams): (u64, _)| PlatformDevice { id: DeviceId(1 << 40 | n), upstreams };
        (0..).zip(all).map(device).collect()
    })
}

/// Anything at all: most of it contradicts itself.
fn hostile() -> impl Strategy<Value = Hierarchy> {
    let address = || {
        (0..2_u16, 0..4_u16, 0..24_u16)
            .prop_map(|(segment, bus, devfn)| Address { segment, rid: bus << 8 | devfn })
    };
    let buses = (0..5_u8, 0..5_u8).prop_map(|(secondary, subordinate)| Buses { secondary, subordinate });
    let kind = prop_oneof![
        (0..2_u8, proptest::option::of(0..12_u8), buses)
            .prop_filter_map("no such kind", |(header, port, buses)| Kind::decode(header, port, buses).ok()),
        address().prop_map(|physical| Kind::Virtual { physical }),
    ];
    let function = (0..40_u64, address(), kind, acs(), 0..5_u8, quirks()).prop_map(
        |(id, at, kind, acs, phantom_bits, quirks)| Function {
            id: DeviceId(id),
            at,
            kind,
            acs,
            phantom_bits,
            quirks,
        },
    );
    let functions = proptest::collection::vec(function, 0..8);
    (functions, platform()).prop_map(|(functions, platform)| Hierarchy { functions, platform })
}

/// What a function will be, before it has a place.
#[derive(Clone, Debug)]
struct Plan {
    bus: Index,
    /// Endpoint, virtual function, or a kind of bridge.
    what: u8,
    acs: Option<Acs>,
    phantom: u8,
    quirks: Vec<Quirk>,
}

/// A tree of bridges whose numbers fit, with functions all over it.
fn well_formed() -> impl Strategy<Value = Hierarchy> {
    let plan = (any::<Index>(), 0..12_u8, acs(), 0..20_u8, quirks())
        .prop_map(|(bus, what, acs, phantom, quirks)| Plan { bus, what, acs, phantom, quirks });
    (proptest::collection::vec(plan, 0..40), platform())
        .prop_map(|(plans, platform)| Hierarchy { functions: place(&plans), platform })
}

fn place(plans: &[Plan]) -> Vec<Function> {
    // The tree first: each bridge goes below an earlier one, or on the root bus.
    let mut children: Vec<Vec<usize>> = vec![vec![]];
    let mut bus_of = vec![];
    for (n, plan) in plans.iter().enumerate() {
        let bus = plan.bus.index(children.len());
        children[bus].push(n);
        bus_of.push(if plan.what >= 4 { Some(children.len()) } else { None });
        if plan.what >= 4 {
            children.push(vec![]);
        }
    }
    let mut functions = vec![];
    number(plans, &children, &bus_of, 0, 0, &mut functions);
    functions
}

/// Gives the functions of a bus their places, and the bridges there their numbers; returns the last
/// number used.
fn number(
    plans: &[Plan],
    children: &[Vec<usize>],
    bus_of: &[Option<usize>],
    bus: usize,
    number_of_bus: u8,
    functions: &mut Vec<Function>,
) -> u8 {
    let mut last = number_of_bus;
    let mut physical = None;
    for (slot, &n) in children[bus].iter().enumerate() {
        let plan = &plans[n];
        // Pairs of functions.
        let at = Address::new(0, number_of_bus, (slot / 2) as u8, (slot % 2) as u8);
        let kind = match (plan.what, bus_of[n]) {
            (_, Some(behind)) => {
                let secondary = last + 1;
                last = number(plans, children, bus_of, behind, secondary, functions);
                let buses = Buses { secondary, subordinate: last };
                let port = plan.what % 6;
                Kind::decode(1, (port != 0).then_some(port + 3), buses).unwrap()
            }
            (0, None) => physical.map_or(Kind::Endpoint, |physical| Kind::Virtual { physical }),
            (1, None) => Kind::Conventional,
            _ => Kind::Endpoint,
        };
        if matches!(kind, Kind::Endpoint) {
            physical = Some(at);
        }
        let phantom_bits = if plan.phantom < 3 { plan.phantom } else { 0 };
        let (id, acs, quirks) = (DeviceId(n as u64), plan.acs, plan.quirks.clone());
        functions.push(Function { id, at, kind, acs, phantom_bits, quirks });
    }
    last
}

fn check(hierarchy: &Hierarchy, grouping: &Grouping) -> Result<(), TestCaseError> {
    let functions = hierarchy.functions.iter().map(|f| f.id);
    let mut all: Vec<_> = functions.chain(hierarchy.platform.iter().map(|d| d.id)).collect();
    all.sort();

    // A partition: each device is in one group, the one that it is told of.
    let mut grouped: Vec<_> = grouping.groups().iter().flat_map(|g| g.members()).copied().collect();
    grouped.sort();
    prop_assert_eq!(&grouped, &all);
    for group in grouping.groups() {
        for &member in group.members() {
            prop_assert_eq!(grouping.group_of(member), Some(group));
        }
        // The reasons hold it together: a tree over its members.
        prop_assert_eq!(group.merges().len(), group.members().len() - 1);
        let mut reached = vec![group.members()[0]];
        for _ in group.merges() {
            for merge in group.merges() {
                for (from, to) in [(merge.first, merge.second), (merge.second, merge.first)] {
                    if reached.contains(&from) && !reached.contains(&to) {
                        reached.push(to);
                    }
                }
            }
        }
        reached.sort();
        prop_assert_eq!(&reached, group.members());
    }

    // What one id names is together.
    let mut holder = BTreeMap::new();
    for &device in &all {
        for upstream in grouping.upstreams(device).unwrap() {
            for &source in &upstream.sources {
                let first = *holder.entry((upstream.instance, source)).or_insert(device);
                prop_assert_eq!(grouping.group_of(first), grouping.group_of(device));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn hostile_topologies_are_grouped_or_refused(hierarchy in hostile()) {
        if let Ok(grouping) = hierarchy.group(serve) {
            check(&hierarchy, &grouping)?;
        }
    }

    #[test]
    fn grouping_is_an_equivalence_that_order_does_not_change(
        (hierarchy, shuffled) in well_formed()
            .prop_flat_map(|h| (Just(h.clone()), Just(h.functions).prop_shuffle())),
    ) {
        let grouping = hierarchy.group(serve);
        prop_assert!(grouping.is_ok(), "{:?}", grouping);
        let grouping = grouping.unwrap();
        check(&hierarchy, &grouping)?;

        let mut platform = hierarchy.platform.clone();
        platform.reverse();
        let other = Hierarchy { functions: shuffled, platform };
        prop_assert_eq!(other.group(serve), Ok(grouping.clone()));

        // More isolation never merges more.
        let mut vouched = hierarchy;
        for function in &mut vouched.functions {
            function.quirks.retain(|quirk| *quirk != Quirk::NotIsolated);
            function.quirks.push(Quirk::Isolated);
        }
        let finer = vouched.group(serve).unwrap();
        for group in finer.groups() {
            let coarse = grouping.group_of(group.members()[0]).unwrap();
            prop_assert!(group.members().iter().all(|member| coarse.members().contains(member)));
        }
    }
}
