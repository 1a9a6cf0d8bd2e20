//! The bridges as a tree, or the reason why they are none.

use super::{
    error::TopologyError,
    function::{Address, Function, Kind},
};
use alloc::vec::Vec;

/// Functions in the order of their addresses, each with the bridge that leads to it. Going from
/// parent to parent ends: a bridge's bus number is below those behind it.
pub(super) struct Tree<'a> {
    pub(super) functions: Vec<&'a Function>,
    parents: Vec<Option<u32>>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(described: &'a [Function]) -> Result<Self, TopologyError> {
        let mut functions = Vec::new();
        functions.try_reserve_exact(described.len()).map_err(|_| TopologyError::OutOfMemory)?;
        functions.extend(described);
        functions.sort_unstable_by_key(|f| f.at);
        if let Some(pair) = functions.windows(2).find(|pair| pair[0].at == pair[1].at) {
            return Err(TopologyError::DuplicateAddress(pair[0].at));
        }
        let bridges = Bridges::new(&functions)?;
        let mut parents = Vec::new();
        parents.try_reserve_exact(functions.len()).map_err(|_| TopologyError::OutOfMemory)?;
        for function in &functions {
            parents.push(bridges.leading_to(&functions, function)?);
        }
        Ok(Self { functions, parents })
    }

    pub(super) fn get(&self, i: u32) -> Option<&'a Function> {
        self.functions.get(i as usize).copied()
    }

    pub(super) fn parent(&self, i: u32) -> Option<u32> {
        self.parents.get(i as usize).copied().flatten()
    }

    /// The bridges above a function, from the nearest to the root.
    pub(super) fn above(&self, i: u32) -> impl Iterator<Item = u32> {
        core::iter::successors(self.parent(i), |&bridge| self.parent(bridge))
    }
}

/// The bridges that lead somewhere, in the order of their segments and secondary buses: one comes
/// after those that it stands behind.
struct Bridges(Vec<Bridge>);

struct Bridge {
    segment: u16,
    secondary: u8,
    subordinate: u8,
    function: u32,
    /// Its parent in this list.
    parent: Option<usize>,
}

impl Bridges {
    fn new(functions: &[&Function]) -> Result<Self, TopologyError> {
        let mut list = Vec::new();
        for (i, function) in (0_u32..).zip(functions) {
            // Nobody has given an unused bridge its buses.
            let Some(buses) = function.kind.buses().filter(|b| (b.secondary, b.subordinate) != (0, 0)) else {
                continue;
            };
            if buses.secondary <= function.at.bus() || buses.subordinate < buses.secondary {
                return Err(TopologyError::BadBuses { bridge: function.at, buses });
            }
            let segment = function.at.segment;
            list.try_reserve(1).map_err(|_| TopologyError::OutOfMemory)?;
            let (secondary, subordinate) = (buses.secondary, buses.subordinate);
            list.push(Bridge { segment, secondary, subordinate, function: i, parent: None });
        }
        list.sort_unstable_by_key(|b| (b.segment, b.secondary, b.function));
        let mut bridges = Self(list);
        bridges.nest(functions)?;
        Ok(bridges)
    }

    /// Finds each bridge's parent. Ranges are inside that of the parent, or apart.
    fn nest(&mut self, functions: &[&Function]) -> Result<(), TopologyError> {
        // The bridges whose ranges are open at the one looked at, outermost first: at most one for
        // each bus number, as each begins above the one before.
        let mut open: Vec<usize> = Vec::new();
        open.try_reserve_exact(256).map_err(|_| TopologyError::OutOfMemory)?;
        for i in 0..self.0.len() {
            let (before, rest) = self.0.split_at_mut(i);
            let Some(bridge) = rest.first_mut() else { break };
            let Some(function) = functions.get(bridge.function as usize) else { break };
            let is_open = |&at: &usize| {
                before
                    .get(at)
                    .is_some_and(|b| b.segment == bridge.segment && bridge.secondary <= b.subordinate)
            };
            while open.last().is_some_and(|at| !is_open(at)) {
                open.pop();
            }
            let around = open.last().and_then(|&at| Some((at, before.get(at)?)));
            let bad = |f: &Function| match f.kind.buses() {
                Some(buses) => TopologyError::BadBuses { bridge: f.at, buses },
                None => TopologyError::Unreachable(f.at),
            };
            match around {
                Some((at, parent)) if parent.secondary == function.at.bus() => {
                    if bridge.subordinate > parent.subordinate {
                        return Err(bad(function));
                    }
                    bridge.parent = Some(at);
                }
                Some((_, other)) => {
                    let other = functions.get(other.function as usize).map_or(function.at, |f| f.at);
                    let (first, second) = (other.min(function.at), other.max(function.at));
                    return Err(TopologyError::SharedBus { first, second, bus: bridge.secondary });
                }
                // A parent that forwards other buses only.
                None if before.iter().rev().any(|b| {
                    b.segment == bridge.segment && (b.secondary..=b.subordinate).contains(&function.at.bus())
                }) =>
                {
                    return Err(bad(function));
                }
                None => {}
            }
            open.push(i);
        }
        Ok(())
    }

    /// The bridge whose secondary bus the function is on; `None` on a root bus.
    fn leading_to(&self, all: &[&Function], function: &Function) -> Result<Option<u32>, TopologyError> {
        if let Kind::Virtual { physical } = function.kind {
            // It is below what its physical function is below, on whatever bus its number lies.
            return match find(all, physical) {
                Some(pf)
                    if !matches!(pf.kind, Kind::Virtual { .. }) && pf.at.segment == function.at.segment =>
                {
                    self.leading_to(all, pf)
                }
                _ => Err(TopologyError::NoPhysicalFunction { function: function.at, physical }),
            };
        }
        let (segment, bus) = (function.at.segment, function.at.bus());
        let upto = self.0.partition_point(|b| (b.segment, b.secondary) <= (segment, bus));
        let mut at = upto.checked_sub(1);
        while let Some(bridge) = at.and_then(|at| self.0.get(at)).filter(|b| b.segment == segment) {
            if bridge.secondary == bus {
                return Ok(Some(bridge.function));
            }
            if bus <= bridge.subordinate {
                return Err(TopologyError::Unreachable(function.at));
            }
            at = bridge.parent;
        }
        Ok(None)
    }
}

fn find<'a>(functions: &[&'a Function], at: Address) -> Option<&'a Function> {
    let i = functions.binary_search_by_key(&at, |f| f.at).ok()?;
    functions.get(i).copied()
}
