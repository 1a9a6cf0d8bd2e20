//! Which requester ids a function's requests may carry, and why.

use super::{
    error::TopologyError,
    function::{Address, Function, Kind, Quirk},
    merge::MergedBy,
    tree::Tree,
};
use alloc::vec::Vec;

/// An id that a function's requests may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Requester {
    pub(super) id: Address,
    /// What makes it an alias; `None` for the function's own.
    pub(super) alias: Option<MergedBy>,
}

/// All ids of a function, each once: its own first, then aliases from the function upwards.
pub(super) fn of(tree: &Tree<'_>, i: u32) -> Result<Vec<Requester>, TopologyError> {
    let mut ids = Ids(Vec::new());
    let Some(function) = tree.get(i) else { return Ok(ids.0) };
    ids.add(function.at, None)?;
    ids.phantoms(function)?;
    ids.quirks(function)?;
    for bridge in tree.above(i).filter_map(|above| tree.get(above)) {
        let by = Some(MergedBy::BridgeAlias { bridge: bridge.at });
        match bridge.kind {
            Kind::PcieToPci(buses) => ids.add(first_on(bridge, buses.secondary), by)?,
            Kind::ConventionalBridge(buses) if bridge.quirks.contains(&Quirk::TakesOwnership) => {
                ids.add(first_on(bridge, buses.secondary), by)?;
            }
            Kind::PciToPcie(_) | Kind::ConventionalBridge(_) => {
                ids.add(bridge.at, by)?;
                ids.quirks(bridge)?;
            }
            _ => {}
        }
    }
    Ok(ids.0)
}

struct Ids(Vec<Requester>);

impl Ids {
    fn add(&mut self, id: Address, alias: Option<MergedBy>) -> Result<(), TopologyError> {
        if self.0.iter().all(|known| known.id != id) {
            self.0.try_reserve(1).map_err(|_| TopologyError::OutOfMemory)?;
            self.0.push(Requester { id, alias });
        }
        Ok(())
    }

    /// The bits that are claimed are the upper ones of the function number's three (PCIe 2.2.6.2).
    fn phantoms(&mut self, function: &Function) -> Result<(), TopologyError> {
        let (at, bits) = (function.at, function.phantom_bits);
        let refused = TopologyError::PhantomBits { function: at, bits };
        let kept = 3_u8.checked_sub(bits).ok_or(refused)?;
        if bits > 0 && at.function() >> kept != 0 {
            return Err(refused);
        }
        for number in 1..1_u16 << bits {
            let phantom = Address { rid: at.rid | number << kept, ..at };
            self.add(phantom, Some(MergedBy::PhantomFunction { of: at }))?;
        }
        Ok(())
    }

    fn quirks(&mut self, function: &Function) -> Result<(), TopologyError> {
        for quirk in &function.quirks {
            if let Quirk::AlsoUses(devfn) = *quirk {
                let alias = Address { rid: function.at.rid & 0xff00 | u16::from(devfn), ..function.at };
                self.add(alias, Some(MergedBy::QuirkAlias { alias }))?;
            }
        }
        Ok(())
    }
}

/// Device 0, function 0 of a bus (`[V]` 3.12.1).
fn first_on(bridge: &Function, bus: u8) -> Address {
    Address { rid: u16::from(bus) << 8, ..bridge.at }
}
