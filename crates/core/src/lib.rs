//! The IOMMU core: the layer that decides which memory a device may reach, and that serves the
//! page faults devices take.
//!
//! It knows no vendor. Below it stand drivers ([`driver::Driver`]), beside it what the embedder
//! provides ([`Platform`]), above it whoever owns devices: they make a [`Domain`], attach devices
//! or PASIDs to it, map and unmap, and answer page requests in a [`Resolver`]. [`concepts`] has a
//! page for each concept, with examples.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod concepts;
pub mod config;
pub mod driver;
pub mod error;
mod explain;
pub mod fault;
pub mod ids;
pub mod owner;
pub mod platform;
pub mod topology;
pub mod turn;

mod account;
mod assembly;
mod attach;
mod attachment;
mod books;
mod claim;
mod cookies;
mod credits;
mod detach;
mod device;
mod domain;
mod entry;
mod fair;
mod faultlog;
mod features;
mod filed;
mod flight;
mod group;
mod hub;
mod hw;
mod instance;
mod intake;
mod iommu;
mod join;
mod left;
mod links;
mod member;
mod observer;
mod op;
mod pages;
mod park;
mod partials;
mod pins;
mod places;
#[cfg(feature = "planted")]
mod planted;
mod provenance;
mod quell;
mod quota;
mod record;
mod registry;
mod requesters;
mod reserved;
mod resolver;
mod rest;
mod roll;
mod settle;
mod slab;
mod sources;
mod speck;
mod spill;
mod spots;
mod stall;
mod storm;
mod sync;
mod tags;
mod usage;
mod wait;

pub use attach::{Gap, Replaced};
pub use attachment::Attachment;
pub use claim::{Claim, DecidedBy, DefaultChoice, DefaultKind, DriverUse};
pub use config::{Config, DuringReset};
pub use cookies::{Claimant, CookieError, CookieWidth, Cookies};
pub use detach::{Detaching, Waited};
pub use device::{Bus, Device, DeviceCaps, DeviceSpec, GroupInfo, Membership, Upstream};
pub use domain::{Domain, DomainOptions};
pub use explain::{DomainState, Explanation};
pub use fault::{Access, FaultKind, FaultRecord, RawFault, Reason, Stage};
pub use faultlog::FaultCounts;
pub use hub::Load;
pub use ids::{
    At, DeviceId, DomainTag, GroupId, InstanceId, Key, OwnerId, Pasid, SourceId, StallId, VendorBits,
};
pub use iommu::Iommu;
pub use member::DeviceState;
pub use observer::{ImmediateObserver, Observation, Observer, Scope, Subscription, Told};
pub use op::Op;
pub use owner::{
    Attaches, Blocked, Defers, Identity, Maps, Owner, Stalls,
    bond::Bond,
    external::External,
    kernel_dma::{Direction, DmaOptions, KernelDma, Mapping},
    msi::MsiWindow,
    nested::Nested,
    pasids::OwnedPasid,
    source::TableSource,
    sva::{AddressSpace, Faulted, Sva},
    user_object::UserObject,
};
pub use park::Parked;
pub use platform::{Platform, Seen, ShortLock, Sleep, Time, Window, Woken};
pub use provenance::{Call, Gone, MappingHistory, Provenance};
pub use reserved::{RegionKind, ReservedRegion};
pub use resolver::{Deferred, ImmediateResolver, PageGroup, Request, Resolver, Response};
pub use sources::Counters;
pub use stall::{
    ImmediateStallResolver, StallDecider, StallForwarder, StallLimit, StallResolver, StalledAccess, Stalling,
    Verdict,
};
pub use storm::{Rung, Storm, Storms, Thresholds};
pub use sync::Unmapping;
pub use topology::MergedBy;
pub use turn::{Answer, Code, Intake, Resume, Turn};
pub use usage::{InstanceUsage, Usage};

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
