//! Why a topology cannot be.

use super::function::{Address, Buses};
use crate::ids::DeviceId;

/// A description that contradicts itself. Whoever made it up (firmware, a device that answers
/// configuration reads with garbage) gets no groups from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// Two functions at one place.
    #[error("two functions are described at {0}")]
    DuplicateAddress(Address),
    /// One stable id for two devices.
    #[error("{0} is described twice")]
    DuplicateDevice(DeviceId),
    /// A bridge leads to buses that are not below it: its secondary number is not above its own
    /// bus, or its subordinate number is below its secondary. A loop of bridges has such a one.
    #[error("the bridge at {bridge} cannot lead to buses {:#04x} to {:#04x}", buses.secondary, buses.subordinate)]
    BadBuses {
        /// The bridge.
        bridge: Address,
        /// What its registers say.
        buses: Buses,
    },
    /// Two bridges lead to the same bus, and neither stands behind the other.
    #[error("the bridges at {first} and {second} both lead to bus {bus:#04x}")]
    SharedBus {
        /// The one with the lower address.
        first: Address,
        /// The other.
        second: Address,
        /// A bus behind both.
        bus: u8,
    },
    /// The function's bus is inside a bridge's range, but no bridge leads to it.
    #[error("nothing leads to {0}, whose bus is behind a bridge")]
    Unreachable(Address),
    /// A virtual function without its physical one.
    #[error("the virtual function at {function} names {physical}, where there is no physical function")]
    NoPhysicalFunction {
        /// The virtual function.
        function: Address,
        /// The place it names.
        physical: Address,
    },
    /// More bits of the function number than there are, or a function that has such a bit set.
    #[error("the function at {function} cannot claim {bits} bits of its number for phantom functions")]
    PhantomBits {
        /// The function.
        function: Address,
        /// Bits claimed.
        bits: u8,
    },
    /// No memory for the calculation.
    #[error("out of memory")]
    OutOfMemory,
}
