//! The rules that put devices together, and their words.

use super::{acs::AcsServices, function::Address};
use crate::ids::{DeviceId, InstanceId, SourceId};
use core::fmt;

/// Which rule put two devices into one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum MergedBy {
    /// They are behind a bridge to or from conventional PCI, or are that bridge: it may send
    /// requests on with a requester id of its own (`[V]` 3.12.1, 3.12.2).
    BridgeAlias {
        /// The bridge.
        bridge: Address,
    },
    /// Their requests may carry the same requester id, which a quirk tells of.
    QuirkAlias {
        /// The id, as a place.
        alias: Address,
    },
    /// One claims the other's function number for its phantom functions (`[V]` 3.12.5).
    PhantomFunction {
        /// The function that claims.
        of: Address,
    },
    /// They are functions of one device, of which this one does not keep its requests from the
    /// others (PCIe 6.12.1.2).
    MultiFunction {
        /// The function.
        function: Address,
        /// What it lacks.
        missing: AcsServices,
    },
    /// They are below a root port that does not send their requests through the IOMMU, or does not
    /// check who sends them; or one is that port (PCIe 6.12.1.1).
    AcsAtRootPort {
        /// The port.
        port: Address,
        /// What it lacks.
        missing: AcsServices,
    },
    /// They are behind one switch, of which this downstream port lets requests pass to the others.
    AcsAtDownstreamPort {
        /// The port.
        port: Address,
        /// What it lacks.
        missing: AcsServices,
    },
    /// They are behind this port or are it, and another function of its device, which does not keep
    /// its requests to itself, reaches them through it.
    BesideOpenFunction {
        /// The port.
        port: Address,
        /// The other function.
        function: Address,
        /// What that one lacks.
        missing: AcsServices,
    },
    /// An IOMMU instance knows both by one id.
    SharedStreamId {
        /// The instance.
        instance: InstanceId,
        /// The id.
        source: SourceId,
    },
}

impl fmt::Display for MergedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MergedBy::BridgeAlias { bridge } => {
                write!(f, "the bridge to conventional PCI at {bridge} sends requests on under its own id")
            }
            MergedBy::QuirkAlias { alias } => write!(f, "both may send requests as {alias}"),
            MergedBy::PhantomFunction { of } => {
                write!(f, "phantom functions of {of} use a function number that is taken")
            }
            MergedBy::MultiFunction { function, missing } => {
                write!(f, "{function} can reach the other functions of its device ({})", Lack(missing))
            }
            MergedBy::AcsAtRootPort { port, missing } => {
                write!(f, "the root port at {port} does not isolate what is below it ({})", Lack(missing))
            }
            MergedBy::AcsAtDownstreamPort { port, missing } => {
                write!(
                    f,
                    "the switch port at {port} lets requests pass to the other ports ({})",
                    Lack(missing)
                )
            }
            MergedBy::BesideOpenFunction { port, function, missing } => {
                write!(
                    f,
                    "{function} can reach what is behind {port}, a function of the same device ({})",
                    Lack(missing)
                )
            }
            MergedBy::SharedStreamId { instance, source } => {
                write!(f, "{instance} knows both as stream {:#x}", source.0)
            }
        }
    }
}

/// What is missing, in words.
struct Lack(AcsServices);

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = self.0.and(AcsServices::DIRECT_TRANSLATED);
        let off = self.0.without(direct);
        if !off.is_empty() {
            write!(f, "ACS {off} off")?;
        }
        if !direct.is_empty() {
            write!(f, "{}ACS DT on", if off.is_empty() { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Two devices of one group, and the rule that put them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Merge {
    /// One device.
    pub first: DeviceId,
    /// The other.
    pub second: DeviceId,
    /// The rule.
    pub by: MergedBy,
}

impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {}: {}", self.first, self.second, self.by)
    }
}
