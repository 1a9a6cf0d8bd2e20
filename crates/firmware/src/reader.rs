//! Bytes of a table, read in order, with the offset for errors.

use crate::malformed::{Malformed, Why};
use alloc::vec::Vec;

/// What is left of a table, or of a part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    table: [u8; 4],
    /// Where the next byte stands in the table.
    offset: usize,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(table: [u8; 4], bytes: &'a [u8]) -> Self {
        Self { table, offset: 0, bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len()
    }

    /// An error about the next byte.
    pub(crate) fn error(&self, why: Why) -> Malformed {
        Malformed { table: self.table, offset: self.offset, why }
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<Reader<'a>, Malformed> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or_else(|| self.error(Why::Truncated { needed: count, left: self.left() }))?;
        let taken = Reader { bytes: taken, ..*self };
        self.bytes = rest;
        self.offset += count;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let error = self.error(Why::Truncated { needed: N, left: self.left() });
        self.take(N)?.bytes.try_into().map_err(|_| error)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = self.bytes;
        self.offset += rest.len();
        self.bytes = &[];
        rest
    }
}

/// Adds to a list, or says that there is no memory for it.
pub(crate) fn push<T>(list: &mut Vec<T>, value: T) -> Result<(), Why> {
    list.try_reserve(1).map_err(|_| Why::OutOfMemory)?;
    list.push(value);
    Ok(())
}
