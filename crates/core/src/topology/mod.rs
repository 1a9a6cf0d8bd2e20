//! Which devices can be isolated from one another, as the topology says.
//!
//! A [`Hierarchy`] describes PCI functions, ports and bridges, and devices that are not PCI, in
//! plain numbers; [`Hierarchy::group`] gives every device its requester ids, aliases included, and
//! puts together what no IOMMU can keep apart. Each [`Group`] can say which rule ([`MergedBy`])
//! merged whom. Nothing here touches hardware: it is a calculation, for any context that may
//! allocate.
//!
//! ```
//! use portcullis::topology::{Acs, AcsServices, Address, Buses, Function, Hierarchy, Kind};
//! use portcullis::{DeviceId, InstanceId, SourceId};
//!
//! let port = |device: u8, bus: u8| Function {
//!     kind: Kind::RootPort(Buses { secondary: bus, subordinate: bus }),
//!     acs: Some(Acs { capable: AcsServices::REQUIRED, enabled: AcsServices::REQUIRED }),
//!     ..Function::new(DeviceId(device.into()), Address::new(0, 0, device, 0), Kind::Integrated)
//! };
//! let endpoint = |bus: u8| {
//!     let at = Address::new(0, bus, 0, 0);
//!     Function::new(DeviceId(0x100 + u64::from(bus)), at, Kind::Endpoint)
//! };
//! let mut machine = Hierarchy {
//!     functions: vec![port(1, 1), port(2, 2), endpoint(1), endpoint(2)],
//!     platform: vec![],
//! };
//! // One unit serves the segment; stream ids are requester ids there.
//! let serve = |_: &Function, rid: u16| Some((InstanceId(0), SourceId(rid.into())));
//! assert_eq!(machine.group(serve)?.groups().len(), 4);
//!
//! // A port that does not check who sends a request cannot isolate what is below it.
//! machine.functions[0].acs = None;
//! let grouping = machine.group(serve)?;
//! let group = grouping.group_of(DeviceId(0x101)).expect("it was described");
//! assert_eq!(group.members(), [DeviceId(1), DeviceId(0x101)]);
//! println!("{}", group.merges()[0]);
//! # Ok::<(), portcullis::topology::TopologyError>(())
//! ```

mod acs;
mod error;
mod function;
mod group;
mod merge;
mod requesters;
mod tree;
mod union;

pub use acs::{Acs, AcsServices};
pub use error::TopologyError;
pub use function::{Address, Buses, Function, Hierarchy, Kind, PlatformDevice, Quirk, UnknownKind};
pub use group::{Group, Grouping};
pub use merge::{Merge, MergedBy};
