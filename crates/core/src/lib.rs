//! The IOMMU core.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod driver;
pub mod fault;
pub mod ids;
pub mod platform;
pub mod turn;

pub use fault::{Access, FaultKind, FaultRecord, RawFault, Reason};
pub use ids::{At, DeviceId, DomainTag, InstanceId, Key, Pasid, SourceId, VendorBits};
pub use platform::{Platform, Seen, ShortLock, Sleep, Time, Window, Woken};
pub use turn::{Answer, Code, Intake, Turn};
