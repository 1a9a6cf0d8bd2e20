//! The formats, one a file.

pub mod vtd_second_stage;
pub mod x86_first_stage;

pub use vtd_second_stage::{VTD_SECOND_STAGE, VtdSecondStage};
pub use x86_first_stage::{X86_FIRST_STAGE, X86FirstStage};

/// Leaf sizes of formats with 4 KiB tables of 64-bit entries, for [`crate::Config::page_sizes`].
pub mod size {
    /// 4 KiB.
    pub const K4: u64 = 1 << 12;
    /// 2 MiB.
    pub const M2: u64 = 1 << 21;
    /// 1 GiB.
    pub const G1: u64 = 1 << 30;
}
