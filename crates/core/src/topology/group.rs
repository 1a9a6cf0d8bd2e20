//! The rules, applied: groups, and every device's ids.

use super::{
    acs,
    error::TopologyError,
    function::{Address, Function, Hierarchy, Kind, Quirk},
    merge::{Merge, MergedBy},
    requesters::{self, Requester},
    tree::Tree,
    union::Union,
};
use crate::{
    device::Upstream,
    ids::{DeviceId, InstanceId, SourceId},
};
use alloc::vec::Vec;

/// What a topology comes to: groups, and every device's ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// In the order of their first members.
    groups: Vec<Group>,
    /// In the order of ids.
    devices: Vec<Member>,
}

/// Devices that no IOMMU keeps apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    members: Vec<DeviceId>,
    merges: Vec<Merge>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    id: DeviceId,
    group: usize,
    upstreams: Vec<Upstream>,
}

impl Grouping {
    /// All groups, in the order of their first members.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The group of a device.
    pub fn group_of(&self, device: DeviceId) -> Option<&Group> {
        self.groups.get(self.member(device)?.group)
    }

    /// The instances that a device stands behind with all its ids there, its own id first: what
    /// [`DeviceSpec::upstreams`](crate::DeviceSpec::upstreams) asks for. Empty without an IOMMU.
    pub fn upstreams(&self, device: DeviceId) -> Option<&[Upstream]> {
        Some(&self.member(device)?.upstreams)
    }

    fn member(&self, device: DeviceId) -> Option<&Member> {
        let i = self.devices.binary_search_by_key(&device, |m| m.id).ok()?;
        self.devices.get(i)
    }
}

impl Group {
    /// Its members in the order of their ids, ports and bridges included.
    pub fn members(&self) -> &[DeviceId] {
        &self.members
    }

    /// Why they are together: with each of these one more device came in, so there is one fewer
    /// than there are members, and a device that stands alone has none.
    pub fn merges(&self) -> &[Merge] {
        &self.merges
    }
}

impl Hierarchy {
    /// Applies the rules. `serve` tells which instance sees a requester id of a function, and by
    /// which number it knows it; `None` where no IOMMU does. The result depends on what is
    /// described and on `serve` only, not on the order.
    ///
    /// # Errors
    /// [`TopologyError`] for a description that contradicts itself.
    pub fn group(
        &self,
        mut serve: impl FnMut(&Function, u16) -> Option<(InstanceId, SourceId)>,
    ) -> Result<Grouping, TopologyError> {
        let tree = Tree::new(&self.functions)?;
        let mut nodes = Vec::new();
        for function in &tree.functions {
            push(&mut nodes, Node { id: function.id, ids: Vec::new(), upstreams: Vec::new() })?;
        }
        let mut platform = Vec::new();
        for device in &self.platform {
            push(&mut platform, device)?;
        }
        platform.sort_unstable_by_key(|device| device.id);
        for device in platform {
            let mut upstreams = Vec::new();
            for upstream in &device.upstreams {
                let mut sources = Vec::new();
                sources.try_reserve_exact(upstream.sources.len()).map_err(|_| TopologyError::OutOfMemory)?;
                sources.extend_from_slice(&upstream.sources);
                push(&mut upstreams, Upstream { instance: upstream.instance, sources })?;
            }
            push(&mut nodes, Node { id: device.id, ids: Vec::new(), upstreams })?;
        }
        unique(&nodes)?;

        for (i, function) in (0_u32..).zip(&tree.functions) {
            let ids = requesters::of(&tree, i)?;
            let Some(node) = nodes.get_mut(i as usize) else { break };
            for requester in &ids {
                if let Some((instance, source)) = serve(function, requester.id.rid) {
                    add_source(&mut node.upstreams, instance, source)?;
                }
            }
            node.ids = ids;
        }

        let count = u32::try_from(nodes.len()).map_err(|_| TopologyError::OutOfMemory)?;
        let mut union = Union::new(count)?;
        merge_below_bridges(&tree, &mut union)?;
        merge_functions(&tree, &mut union)?;
        merge_shared_ids(&nodes, &mut union)?;
        merge_shared_streams(&nodes, &mut union)?;
        collect(nodes, union)
    }
}

/// A device on its way into a group: functions first, in the order of the tree.
struct Node {
    id: DeviceId,
    ids: Vec<Requester>,
    upstreams: Vec<Upstream>,
}

fn unique(nodes: &[Node]) -> Result<(), TopologyError> {
    let mut ids = Vec::new();
    for node in nodes {
        push(&mut ids, node.id)?;
    }
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(TopologyError::DuplicateDevice(pair[0])),
        None => Ok(()),
    }
}

/// What a bridge or port does to everything behind it.
fn merge_below_bridges(tree: &Tree<'_>, union: &mut Union) -> Result<(), TopologyError> {
    let count = tree.functions.len() as u32;
    // For each bridge: the function that all behind it are joined with, and why.
    let mut open: Vec<Option<(u32, MergedBy)>> = Vec::new();
    for (i, function) in (0_u32..).zip(&tree.functions) {
        let at = function.at;
        let rule = match function.kind {
            Kind::PcieToPci(_) | Kind::PciToPcie(_) | Kind::ConventionalBridge(_) => {
                Some((i, MergedBy::BridgeAlias { bridge: at }))
            }
            Kind::RootPort(_) => acs::missing_at_port(function)
                .map(|missing| (i, MergedBy::AcsAtRootPort { port: at, missing })),
            Kind::DownstreamPort(_) => acs::missing_at_port(function)
                .map(|missing| (i, MergedBy::AcsAtDownstreamPort { port: at, missing })),
            _ => None,
        };
        push(&mut open, rule)?;
    }
    // A downstream port opens its whole switch: its requests reach every other port of it.
    for i in 0..count {
        let is_downstream = |f: &&Function| matches!(f.kind, Kind::DownstreamPort(_));
        if tree.get(i).filter(is_downstream).is_some()
            && let Some(rule) = open.get(i as usize).copied().flatten()
            && let Some(upstream) = tree.parent(i).and_then(|parent| open.get_mut(parent as usize))
        {
            upstream.get_or_insert(rule);
        }
    }
    for i in 0..count {
        for above in tree.above(i) {
            if let Some((with, by)) = open.get(above as usize).copied().flatten() {
                union.join(with, i, by);
            }
        }
    }
    Ok(())
}

/// What the functions of one device do to one another, and to what is behind those that are ports.
fn merge_functions(tree: &Tree<'_>, union: &mut Union) -> Result<(), TopologyError> {
    let mut list = Vec::new();
    for (i, function) in (0_u32..).zip(&tree.functions) {
        let physical = match function.kind {
            Kind::Virtual { physical } => physical,
            _ => function.at,
        };
        push(&mut list, (device_of(tree, i, physical), i))?;
    }
    list.sort_unstable();
    // For each port, the function beside it that reaches through it.
    let mut open: Vec<Option<MergedBy>> = Vec::new();
    open.try_reserve_exact(tree.functions.len()).map_err(|_| TopologyError::OutOfMemory)?;
    open.resize(tree.functions.len(), None);
    for device in list.chunk_by(|a, b| a.0 == b.0) {
        let functions = || device.iter().filter_map(|&(_, i)| Some((i, tree.get(i)?)));
        let lacking = || functions().filter_map(|(i, f)| Some((i, f, acs::missing_at_function(f)?)));
        // One that reaches all peers joins all; of two that lack, each is beside the other.
        let widest = lacking().find(|(_, function, _)| reaches_virtual(function));
        for (i, function, missing) in widest.into_iter().chain(lacking().take(2)) {
            for (j, peer) in functions() {
                let is_virtual = matches!(peer.kind, Kind::Virtual { .. });
                if i == j || is_virtual && !reaches_virtual(function) {
                    continue;
                }
                union.join(i, j, MergedBy::MultiFunction { function: function.at, missing });
                let by = MergedBy::BesideOpenFunction { port: peer.at, function: function.at, missing };
                if let Some(port) = open.get_mut(j as usize) {
                    port.get_or_insert(by);
                }
            }
        }
    }
    for i in 0..tree.functions.len() as u32 {
        for above in tree.above(i) {
            if let Some(by) = open.get(above as usize).copied().flatten() {
                union.join(above, i, by);
            }
        }
    }
    Ok(())
}

/// Whether a function that lacks ACS may have a way to virtual functions of its device. SR-IOV is
/// younger than ACS: only if it has the capability, with the redirect off, or a quirk says so.
fn reaches_virtual(function: &Function) -> bool {
    function.acs.is_some() || function.quirks.contains(&Quirk::NotIsolated)
}

/// What functions of one device have in common: behind a link there is one device only, whatever
/// the numbers of its functions (with ARI all eight bits are the function's).
fn device_of(tree: &Tree<'_>, i: u32, at: Address) -> Address {
    let parent = tree.parent(i).and_then(|parent| tree.get(parent));
    let link = parent.is_some_and(|p| matches!(p.kind, Kind::RootPort(_) | Kind::DownstreamPort(_)));
    Address { rid: at.rid & if link { 0xff00 } else { 0xfff8 }, ..at }
}

fn merge_shared_ids(nodes: &[Node], union: &mut Union) -> Result<(), TopologyError> {
    let mut list = Vec::new();
    for (i, node) in (0_u32..).zip(nodes) {
        for requester in &node.ids {
            // Whose own it is comes first.
            push(&mut list, (requester.id, requester.alias, i))?;
        }
    }
    list.sort_unstable();
    for shared in list.chunk_by(|a, b| a.0 == b.0) {
        let Some(&(_, _, first)) = shared.first() else { continue };
        for &(_, alias, i) in shared {
            if let Some(by) = alias {
                union.join(first, i, by);
            }
        }
    }
    Ok(())
}

fn merge_shared_streams(nodes: &[Node], union: &mut Union) -> Result<(), TopologyError> {
    let mut list = Vec::new();
    for (i, node) in (0_u32..).zip(nodes) {
        for upstream in &node.upstreams {
            for &source in &upstream.sources {
                push(&mut list, (upstream.instance, source, i))?;
            }
        }
    }
    list.sort_unstable();
    for pair in list.windows(2) {
        let [(instance, source, a), (other, same, b)] = pair else { continue };
        if (instance, source) == (other, same) {
            union.join(*a, *b, MergedBy::SharedStreamId { instance: *instance, source: *source });
        }
    }
    Ok(())
}

fn collect(nodes: Vec<Node>, mut union: Union) -> Result<Grouping, TopologyError> {
    // By group, then by id; a group is named by its member with the lowest id.
    let mut order: Vec<(u32, usize)> = Vec::new();
    for i in 0..nodes.len() {
        push(&mut order, (union.find(i as u32), i))?;
    }
    let id = |i: usize| nodes.get(i).map(|node| node.id);
    order.sort_unstable_by_key(|&(root, i)| (root, id(i)));
    let mut merges = Vec::new();
    for &(a, b, by) in &union.joined {
        if let (Some(a), Some(b)) = (id(a as usize), id(b as usize)) {
            push(&mut merges, (a.min(b), Merge { first: a.min(b), second: a.max(b), by }))?;
        }
    }

    let mut groups = Vec::new();
    for set in order.chunk_by(|a, b| a.0 == b.0) {
        let mut members = Vec::new();
        for member in set.iter().filter_map(|&(_, i)| id(i)) {
            push(&mut members, member)?;
        }
        push(&mut groups, Group { members, merges: Vec::new() })?;
    }
    groups.sort_unstable_by(|a, b| a.members.first().cmp(&b.members.first()));

    let mut devices = Vec::new();
    for node in nodes {
        push(&mut devices, Member { id: node.id, group: usize::MAX, upstreams: node.upstreams })?;
    }
    devices.sort_unstable_by_key(|m| m.id);
    for (g, group) in groups.iter().enumerate() {
        for member in &group.members {
            if let Ok(i) = devices.binary_search_by_key(member, |m| m.id)
                && let Some(device) = devices.get_mut(i)
            {
                device.group = g;
            }
        }
    }
    let mut grouping = Grouping { groups, devices };
    for (of, merge) in merges {
        let group = grouping.member(of).map(|m| m.group);
        if let Some(group) = group.and_then(|g| grouping.groups.get_mut(g)) {
            push(&mut group.merges, merge)?;
        }
    }
    for group in &mut grouping.groups {
        group.merges.sort_unstable();
    }
    Ok(grouping)
}

fn add_source(
    upstreams: &mut Vec<Upstream>,
    instance: InstanceId,
    source: SourceId,
) -> Result<(), TopologyError> {
    let at = match upstreams.iter().position(|u| u.instance == instance) {
        Some(at) => at,
        None => {
            push(upstreams, Upstream { instance, sources: Vec::new() })?;
            upstreams.len() - 1
        }
    };
    match upstreams.get_mut(at) {
        Some(upstream) if !upstream.sources.contains(&source) => push(&mut upstream.sources, source),
        _ => Ok(()),
    }
}

fn push<T>(list: &mut Vec<T>, value: T) -> Result<(), TopologyError> {
    list.try_reserve(1).map_err(|_| TopologyError::OutOfMemory)?;
    list.push(value);
    Ok(())
}
