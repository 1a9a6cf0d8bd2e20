//! I/O page tables: one engine, a format per file.
#![no_std]
extern crate alloc;

pub mod gather;
pub mod mem;
pub mod table;

pub use gather::{Gather, Retired, Synced};
pub use mem::{FRAME_SIZE, Fresh, NoMem, Phys, TableMem, Word};
pub use table::{FormatDesc, FormatId, IoTable, Leaf, MapError, NoAccessedBits, Prot, UnmapError};
