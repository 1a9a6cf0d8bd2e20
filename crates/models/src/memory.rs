//! The memory behind the bus, as a model sees it.

use thiserror::Error;

/// Why an access to physical memory failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MemError {
    /// Nothing answers at this address.
    #[error("no memory at {addr:#x}, {len} bytes")]
    OutOfRange {
        /// First byte of the access.
        addr: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// The access must be aligned to its own size and is not.
    #[error("misaligned access at {addr:#x}")]
    Misaligned {
        /// First byte of the access.
        addr: u64,
    },
    /// This memory holds data and cannot hold tables: its bytes can be copied, but nothing in it
    /// can be compared and swapped or read as a whole.
    #[error("memory at {addr:#x} holds data only, no tables")]
    NoAtomics {
        /// First byte of the access.
        addr: u64,
    },
}

/// Physical memory as hardware reaches it. All methods work from a shared reference: the software
/// under test writes the same memory at the same time.
///
/// A model asks for atomic accesses only where its manual does: whole 16-byte entries and updates
/// of accessed and dirty bits. Memory that lives in another process can be copied to and from, but
/// nothing in it can be compared and swapped; such a memory answers [`MemError::NoAtomics`] to
/// [`load128`](Self::load128) and [`cas64`](Self::cas64), and the model reports what its manual
/// says for a table it cannot access. It can still hold data.
pub trait Memory: Send + Sync {
    /// Copies memory at `addr` into `buf`.
    ///
    /// # Errors
    /// Where a byte of the range does not exist; then nothing is promised about `buf`.
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), MemError>;

    /// Copies `data` to memory at `addr`. An aligned write of 4 or 8 bytes appears whole.
    ///
    /// # Errors
    /// Where a byte of the range does not exist; then nothing has been written.
    fn write(&self, addr: u64, data: &[u8]) -> Result<(), MemError>;

    /// Reads 8 aligned bytes, little-endian, as one access.
    ///
    /// # Errors
    /// Misaligned, absent, or not for tables.
    fn load64(&self, addr: u64) -> Result<u64, MemError>;

    /// Reads 16 aligned bytes, little-endian, as one access that no 16-byte store can tear.
    ///
    /// # Errors
    /// Misaligned, absent, or not for tables.
    fn load128(&self, addr: u64) -> Result<u128, MemError>;

    /// Stores `new` at `addr` if it holds `old`, as one access, and returns what it held.
    ///
    /// # Errors
    /// Misaligned, absent, or not for tables.
    fn cas64(&self, addr: u64, old: u64, new: u64) -> Result<u64, MemError>;
}
