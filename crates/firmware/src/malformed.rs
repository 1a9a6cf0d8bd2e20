//! What is wrong with a table, and where.

use core::fmt;

/// A table that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} at offset {offset:#x}: {why}", Signature(*table))]
pub struct Malformed {
    /// The table's signature.
    pub table: [u8; 4],
    /// Bytes from its beginning.
    pub offset: usize,
    /// The reason.
    #[source]
    pub why: Why,
}

/// Why a table cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// It ends inside something.
    #[error("{needed} bytes are needed and {left} are left")]
    Truncated {
        /// Bytes of what begins here.
        needed: usize,
        /// Bytes that there are.
        left: usize,
    },
    /// It is another table.
    #[error("the signature is {}", Signature(*found))]
    Signature {
        /// What is there.
        found: [u8; 4],
    },
    /// The length it gives itself is less than its header, or more than there is.
    #[error("a table cannot have {length} bytes here")]
    TableLength {
        /// What it says.
        length: u32,
    },
    /// Its bytes do not add up to 0.
    #[error("the bytes add up to {sum:#04x}")]
    Checksum {
        /// Their sum, modulo 256.
        sum: u8,
    },
    /// A structure inside is shorter than its fixed part, or longer than what is left.
    #[error("a structure of type {kind} cannot have {length} bytes here")]
    StructureLength {
        /// Its type.
        kind: u16,
        /// The length it gives itself.
        length: u16,
    },
    /// A device scope entry without a path, with half a step, or longer than its structure.
    #[error("a device scope entry cannot have {length} bytes here")]
    ScopeLength {
        /// The length it gives itself.
        length: u8,
    },
    /// A path names a device above 31 or a function above 7.
    #[error("there is no device {device:#x} function {function:#x}")]
    Path {
        /// Device number.
        device: u8,
        /// Function number.
        function: u8,
    },
    /// An address width that no address has.
    #[error("host addresses cannot have {bits} bits")]
    AddressWidth {
        /// Bits.
        bits: u16,
    },
    /// Registers at 0, or not aligned to their size.
    #[error("registers of {bytes:#x} bytes cannot be at {base:#x}")]
    Registers {
        /// Where they begin.
        base: u64,
        /// Their size.
        bytes: u64,
    },
    /// A reserved memory region that does not consist of pages.
    #[error("memory from {base:#x} to {limit:#x} does not consist of pages")]
    Memory {
        /// First address.
        base: u64,
        /// Last address.
        limit: u64,
    },
    /// The name of an ACPI object is no text that ends with a NUL.
    #[error("the object's name is no ASCII text that ends with NUL")]
    Name,
    /// A root table that is no list of addresses.
    #[error("{bytes} bytes are no list of addresses")]
    Addresses {
        /// Bytes after its header.
        bytes: usize,
    },
    /// No memory for what was read.
    #[error("out of memory")]
    OutOfMemory,
}

/// A signature as text.
struct Signature([u8; 4]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}
