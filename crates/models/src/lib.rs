//! The hardware side of each IOMMU, the bus in front of it and the endpoints behind it.
//!
//! Everything here is a state machine without threads and without a clock: time is passed in as
//! nanoseconds, a step is taken when the caller says so, and two runs with equal seeds and equal
//! steps are equal to the last byte. [`complex::Complex`] owns the parts and says which steps are
//! possible; the caller (a simulation, a test, a real thread) decides which one comes next.
//!
//! What a manual lets hardware keep, the models keep: an invalidation removes exactly what the
//! manual obliges it to, so that a missing or too narrow one is visible. What a manual lets go
//! wrong, the [`adversary`] does, by seed.
//!
//! ```
//! use std::sync::Arc;
//! use portcullis_models::bus::RequesterId;
//! use portcullis_models::complex::Complex;
//! use portcullis_models::endpoint::{CopyEngine, Endpoint, Job, JobEnd};
//! use portcullis_models::memory::Memory;
//! use portcullis_models::testing::{Events, Ram};
//! use portcullis_models::vtd::{Config, Vtd};
//!
//! let ram = Arc::new(Ram::new(1 << 20));
//! ram.write(0x1000, b"through the fabric")?;
//! let mut complex = Complex::new(ram.clone(), Box::new(Events::default()));
//! let unit = complex.add_unit(Box::new(Vtd::new(Config::default())));
//! let engine = Box::new(CopyEngine::new(4, 0));
//! let copier = complex.add_endpoint(Endpoint::new(RequesterId(8), 0, engine), Some(unit));
//!
//! // Translation is off after reset, so addresses are physical ones.
//! let job = Job { source: 0x1000, destination: 0x2000, len: 18 };
//! complex.endpoint_mut(copier).unwrap().submit(job)?;
//! let mut works = Vec::new();
//! loop {
//!     works.clear();
//!     complex.runnable(0, &mut works);
//!     let Some(&next) = works.first() else { break };
//!     complex.run(0, next);
//! }
//! assert_eq!(complex.endpoint(copier).unwrap().job_end(), Some(JobEnd::Done));
//! let mut copy = [0; 18];
//! ram.read(0x2000, &mut copy)?;
//! assert_eq!(&copy, b"through the fabric");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod access;
pub mod adversary;
pub mod bus;
pub mod complex;
pub mod endpoint;
pub mod fabric;
mod hash;
pub mod iommu;
pub mod iotlb;
pub mod log;
pub mod memory;
pub mod mutation;
pub mod testing;
pub mod vtd;
