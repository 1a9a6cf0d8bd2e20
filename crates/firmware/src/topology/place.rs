//! Where a device scope leads.

use super::remark::Remark;
use crate::dmar::{Scope, ScopeKind};
use portcullis::topology::{Address, Buses};

/// Access to the bus numbers of bridges, which a path through them is followed by.
pub trait Bridges {
    /// The Secondary and Subordinate Bus Number of a bridge; `None` if nothing is there, or what is
    /// there is no bridge.
    fn buses(&self, bridge: Address) -> Option<Buses>;
}

impl<F: Fn(Address) -> Option<Buses>> Bridges for F {
    fn buses(&self, bridge: Address) -> Option<Buses> {
        self(bridge)
    }
}

/// A set of functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Function(Address),
    /// A bridge and what is behind it.
    Below(Address, Buses),
}

impl Place {
    /// The functions that a scope of a segment names.
    pub(super) fn of(scope: &Scope, segment: u16, bridges: &dyn Bridges) -> Result<Place, Remark> {
        let at = follow(scope, segment, bridges)?;
        match (scope.kind, bridges.buses(at)) {
            // A bridge without buses has nothing behind it yet.
            (ScopeKind::SubHierarchy, Some(buses)) if buses.secondary > at.bus() => {
                Ok(Place::Below(at, buses))
            }
            _ => Ok(Place::Function(at)),
        }
    }

    pub(super) fn contains(&self, function: Address) -> bool {
        self.distance(function).is_some()
    }

    /// How near the name is to the function: a narrower hierarchy is nearer.
    pub(super) fn distance(&self, function: Address) -> Option<u8> {
        match *self {
            Place::Function(at) => (at == function).then_some(0),
            Place::Below(bridge, _) if bridge == function => Some(0),
            Place::Below(bridge, buses) => (bridge.segment == function.segment
                && buses.contain(function.bus()))
            .then(|| (buses.subordinate - buses.secondary).saturating_add(1)),
        }
    }

    pub(super) fn address(&self) -> Address {
        match *self {
            Place::Function(at) | Place::Below(at, _) => at,
        }
    }
}

/// The device at the end of a path (`[V]` 8.3.1): each step but the last is a bridge.
pub(super) fn follow(scope: &Scope, segment: u16, bridges: &dyn Bridges) -> Result<Address, Remark> {
    let mut bus = scope.start_bus;
    let mut at = None;
    for step in &scope.path {
        if let Some(bridge) = at {
            let broken = Remark::BrokenPath { kind: scope.kind, bridge };
            let buses = bridges.buses(bridge).filter(|buses| buses.secondary > bus).ok_or(broken)?;
            bus = buses.secondary;
        }
        at = Some(Address::new(segment, bus, step.device, step.function));
    }
    at.ok_or(Remark::NoPath { kind: scope.kind, segment })
}
