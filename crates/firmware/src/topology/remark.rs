//! What is odd about a table.

use crate::dmar::ScopeKind;
use portcullis::topology::Address;

/// Something in a table that is of no use, or could not be used. The rest is not touched by it: a
/// device that no unit could be found for stays without one, and is not trusted to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Remark {
    /// A structure of a type that is not known was skipped.
    #[error("a structure of type {kind} was skipped")]
    UnknownStructure {
        /// Its type.
        kind: u16,
    },
    /// A scope entry of a type that is not known, or that has no place in its structure, was
    /// skipped.
    #[error("a scope entry of type {} was skipped", kind.to_type())]
    UselessScope {
        /// What it is.
        kind: ScopeKind,
    },
    /// A path leads through something that is no bridge, or a bridge that leads nowhere.
    #[error("a path leads through {bridge}, which leads nowhere")]
    BrokenPath {
        /// What the scope names.
        kind: ScopeKind,
        /// Where the path ends.
        bridge: Address,
    },
    /// A scope entry without a path.
    #[error("a scope entry in segment {segment} has no path")]
    NoPath {
        /// What the scope names.
        kind: ScopeKind,
        /// Its segment.
        segment: u16,
    },
    /// A unit is described more than once. It is one unit, which serves all that was said.
    #[error("the unit at {registers:#x} is described more than once")]
    RepeatedUnit {
        /// Its registers.
        registers: u64,
    },
    /// Two units name the same place; the first serves it.
    #[error("the units at {first:#x} and {second:#x} both name {place}")]
    TwoUnits {
        /// Registers of the first.
        first: u64,
        /// Registers of the second.
        second: u64,
        /// What both name.
        place: Address,
    },
    /// A unit's affinity is given, and there is no such unit.
    #[error("there is no unit at {registers:#x}")]
    NoSuchUnit {
        /// Its registers.
        registers: u64,
    },
    /// Memory is reserved for nobody.
    #[error("the memory at {base:#x} is reserved for no device")]
    ReservedForNobody {
        /// Its first address.
        base: u64,
    },
}

/// Statements of a table that cannot both be true, and that isolation depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Contradiction {
    /// One unit in two segments, or with two sizes.
    #[error("the unit at {registers:#x} is described in two ways")]
    Unit {
        /// Its registers.
        registers: u64,
    },
    /// The registers of two units overlap.
    #[error("the registers of the units at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// One unit's registers.
        first: u64,
        /// The other's.
        second: u64,
    },
    /// Two units serve all the rest of a segment.
    #[error("the units at {first:#x} and {second:#x} both serve the rest of segment {segment}")]
    IncludeAll {
        /// The segment.
        segment: u16,
        /// One unit's registers.
        first: u64,
        /// The other's.
        second: u64,
    },
    /// More units than there are numbers, or no memory for what was read.
    #[error("out of memory")]
    OutOfMemory,
}
