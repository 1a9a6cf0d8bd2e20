//! The register file (`[V]` chapter 11).

mod capability;
mod event;
mod fault;
mod global;
mod invalidation;
pub mod offset;
mod page_request;

pub use capability::{Cap, Ecap, Ver};
pub use event::{EventAddress, EventControl, EventData};
pub use fault::{AddressType, FRCD_SIZE, Frcd, FrcdType, Fsts};
pub use global::{Gcmd, Gsts, Irta, Pmen, Rtaddr, Ttm};
pub use invalidation::{Ccmd, Ics, IotlbReg, Iqa, Iqei, Iqercd, Iqh, Iqt, Iva};
pub use page_request::{Pqa, Pqh, Pqt, Prs};
