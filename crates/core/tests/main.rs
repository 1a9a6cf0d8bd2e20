//! The core over scripted hardware: one binary, because each links all of it. Apart are only tests that
//! have the process for themselves: `compile_fail`, `exhaustive` (an allocator), `shuttle` (a scheduler).

mod assembly;
mod attach;
mod claims;
mod common;
mod cookies;
mod costs;
mod detach;
mod dirty;
mod explain;
mod failures;
mod groups;
mod hardware_errors;
mod immediate;
mod join;
mod kernel_dma;
mod model;
mod msi_window;
mod nested;
mod observers;
mod page_requests;
mod parking;
mod quotas;
mod replace;
mod stall;
mod steps;
mod storms;
mod sva;
mod topology;
mod topology_properties;
mod transitions;
mod unmap;
mod vendors;
mod workers;
