//! How ACPI tables are found: the root pointer leads to a root table, that one to all others
//! (ACPI specification 6.5, 5.2.5 to 5.2.8).
//!
//! Reading memory is the caller's: first the pointer's bytes, then for each address the header's
//! [`Header::BYTES`], whose [`length`](Header::length) says how much more to read.

use crate::{
    malformed::{Malformed, Why},
    reader::Reader,
};

/// The Root System Description Pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rsdp {
    /// Where the root table is.
    pub root: RootTable,
}

/// Which root table there is, by its physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootTable {
    /// The RSDT, whose addresses have 32 bits.
    Rsdt(u32),
    /// The XSDT, whose addresses have 64 bits. It counts where there is one.
    Xsdt(u64),
}

impl RootTable {
    /// The table's address.
    pub const fn address(self) -> u64 {
        match self {
            RootTable::Rsdt(at) => at as u64,
            RootTable::Xsdt(at) => at,
        }
    }
}

impl Rsdp {
    /// What it begins with.
    pub const SIGNATURE: [u8; 8] = *b"RSD PTR ";
    /// Where it begins, if it has to be searched for: at a multiple of this.
    pub const ALIGNMENT: usize = 16;
    /// The most bytes of one.
    pub const BYTES: usize = 36;
    /// Bytes of one of ACPI 1.0.
    const OLD_BYTES: usize = 20;
    /// Where errors say they are.
    const TABLE: [u8; 4] = *b"RSDP";

    /// Reads the pointer. More bytes than it has do not matter.
    ///
    /// # Errors
    /// [`Malformed`] if there is none, or its checksum is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(Self::TABLE, bytes);
        let start = reader;
        let signature: [u8; 8] = reader.array()?;
        if signature != Self::SIGNATURE {
            let [a, b, c, d, ..] = signature;
            return Err(start.error(Why::Signature { found: [a, b, c, d] }));
        }
        add_up(start, Self::OLD_BYTES)?;
        reader.take(1 + 6)?; // Checksum, OEM ID.
        let revision = reader.u8()?;
        let rsdt = reader.u32()?;
        if revision < 2 {
            return Ok(Self { root: RootTable::Rsdt(rsdt) });
        }
        let length_at = reader;
        let length = reader.u32()?;
        let xsdt = reader.u64()?;
        match usize::try_from(length) {
            Ok(count) if count >= Self::BYTES => add_up(start, count)?,
            _ => return Err(length_at.error(Why::TableLength { length })),
        }
        let root = if xsdt == 0 { RootTable::Rsdt(rsdt) } else { RootTable::Xsdt(xsdt) };
        Ok(Self { root })
    }
}

/// What every table but the pointer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which table it is.
    pub signature: [u8; 4],
    /// Bytes of the whole table.
    pub length: u32,
    /// Its revision.
    pub revision: u8,
    /// Who made it.
    pub oem_id: [u8; 6],
    /// Its maker's name for it.
    pub oem_table_id: [u8; 8],
    /// Its maker's revision.
    pub oem_revision: u32,
    /// The tool that made it.
    pub creator_id: [u8; 4],
    /// That tool's revision.
    pub creator_revision: u32,
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = 36;

    /// Reads a header, which says nothing about the rest of the table.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes end before it does, or it has a length that no table has.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let signature = bytes.first_chunk().copied().unwrap_or(*b"ACPI");
        Self::read(&mut Reader::new(signature, bytes))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let signature = reader.array()?;
        let length_at = *reader;
        let length = reader.u32()?;
        if usize::try_from(length).is_ok_and(|length| length < Self::BYTES) {
            return Err(length_at.error(Why::TableLength { length }));
        }
        let revision = reader.u8()?;
        let _checksum = reader.u8()?;
        Ok(Self {
            signature,
            length,
            revision,
            oem_id: reader.array()?,
            oem_table_id: reader.array()?,
            oem_revision: reader.u32()?,
            creator_id: reader.array()?,
            creator_revision: reader.u32()?,
        })
    }
}

/// The addresses that a root table leads to.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    addresses: Reader<'a>,
    wide: bool,
}

impl<'a> Tables<'a> {
    /// Reads a root table, whole: `bytes` begins with it.
    ///
    /// # Errors
    /// [`Malformed`] if it is not the table that the pointer promised, or damaged.
    pub fn parse(root: RootTable, bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (signature, wide) = match root {
            RootTable::Rsdt(_) => (*b"RSDT", false),
            RootTable::Xsdt(_) => (*b"XSDT", true),
        };
        let (_, addresses) = open(signature, bytes, u32::MAX)?;
        if addresses.left() % (if wide { 8 } else { 4 }) != 0 {
            return Err(addresses.error(Why::Addresses { bytes: addresses.left() }));
        }
        Ok(Self { addresses, wide })
    }
}

impl Iterator for Tables<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.wide { self.addresses.u64().ok() } else { self.addresses.u32().ok().map(u64::from) }
    }
}

/// Checks a table's header, length and checksum, and gives what follows the header.
pub(crate) fn open(signature: [u8; 4], bytes: &[u8], most: u32) -> Result<(Header, Reader<'_>), Malformed> {
    let all = Reader::new(signature, bytes);
    let header = Header::read(&mut { all })?;
    if header.signature != signature {
        return Err(all.error(Why::Signature { found: header.signature }));
    }
    let mut at = all;
    at.take(4)?;
    let count = usize::try_from(header.length.min(most)).ok();
    let count = count.filter(|&count| header.length <= most && count <= all.left());
    let Some(count) = count else { return Err(at.error(Why::TableLength { length: header.length })) };
    add_up(all, count)?;
    let mut table = { all }.take(count)?;
    table.take(Header::BYTES)?;
    Ok((header, table))
}

/// Whether the next `count` bytes add up to 0.
fn add_up(mut from: Reader<'_>, count: usize) -> Result<(), Malformed> {
    let start = from;
    let sum = from.take(count)?.rest().iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if sum == 0 { Ok(()) } else { Err(start.error(Why::Checksum { sum })) }
}
