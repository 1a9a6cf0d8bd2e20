//! I/O page tables: one engine, a format per file.
#![no_std]
extern crate alloc;
#[cfg(all(feature = "testing", not(any(portcullis_loom, portcullis_shuttle))))]
extern crate std;

mod access;
mod chain;
mod change;
mod cursor;
pub mod dump;
pub mod engine;
mod fill;
pub mod format;
pub mod formats;
pub mod gather;
mod grow;
mod hints;
mod limbo;
mod map;
pub mod mem;
mod read;
mod single;
pub mod source;
pub mod table;
#[cfg(all(feature = "testing", not(any(portcullis_loom, portcullis_shuttle))))]
pub mod testing;
mod unmap;

pub use engine::Table;
pub use format::{AccessBits, Config, Entry, Format, Hitless, InPlace};
pub use formats::{
    AMD_V1, AMD_V2, ARM_MAIR, AmdV1, AmdV1Mock, AmdV2, ArmStage1, ArmStage2, RISCV_FIRST_STAGE,
    RISCV_SECOND_STAGE, ROCKCHIP_V2, RiscvFirstStage, RiscvSecondStage, RockchipV2, VTD_SECOND_STAGE,
    VtdSecondStage, X86_FIRST_STAGE, X86FirstStage,
};
pub use gather::{Gather, Retired, Synced};
pub use mem::{FRAME_SIZE, Fresh, NoMem, Phys, TableMem, Word};
pub use source::Segment;
pub use table::{
    ChangeError, DirtyError, FormatDesc, FormatId, IoTable, Leaf, MapError, NoAccessedBits, Prot, Reader,
    Space, Top, UnmapError,
};
