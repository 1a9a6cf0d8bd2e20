//! QEMU's firmware configuration: files for whatever firmware the machine would run. We are it.

use std::sync::Arc;

use crate::qtest::{Qtest, QtestError};

/// Address register of the DMA interface, upper half; the lower follows, and starts the transfer.
const DMA_PORT: u16 = 0x514;

/// The key of the list of files.
const DIRECTORY: u16 = 0x19;

/// Control word: the transfer failed.
const ERROR: u32 = 1 << 0;
/// Control word: read.
const READ: u32 = 1 << 1;
/// Control word: take the key from the upper half, and begin at its start.
const SELECT: u32 = 1 << 3;

/// Where a request lies in guest memory, and after it what was read: memory that firmware would
/// have, below what a [`Qemu::ram`](super::Qemu::ram) gives out.
const REQUEST: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;

/// The longest file that is read.
const LONGEST: usize = 1 << 20;

/// Access to the files.
#[derive(Clone, Debug)]
pub struct FwCfg {
    qtest: Arc<Qtest>,
}

impl FwCfg {
    pub(super) fn new(qtest: Arc<Qtest>) -> Self {
        Self { qtest }
    }

    /// A file's bytes; `None` if there is no such file, or it is not to be had.
    ///
    /// # Errors
    /// Any [`QtestError`].
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>, QtestError> {
        let Some(head) = self.read(DIRECTORY, 4)? else { return Ok(None) };
        let count = be32(&head) as usize;
        let Some(list) = self.read(DIRECTORY, 4 + count * 64)? else { return Ok(None) };
        for entry in list[4..].chunks_exact(64) {
            let (size, key) = (be32(entry) as usize, u16::from_be_bytes([entry[4], entry[5]]));
            let end = entry[8..].iter().position(|byte| *byte == 0).unwrap_or(56);
            if entry[8..8 + end] == *name.as_bytes() {
                return self.read(key, size);
            }
        }
        Ok(None)
    }

    fn read(&self, key: u16, count: usize) -> Result<Option<Vec<u8>>, QtestError> {
        if count > LONGEST {
            return Ok(None);
        }
        let mut request = Vec::from((u32::from(key) << 16 | SELECT | READ).to_be_bytes());
        request.extend((count as u32).to_be_bytes());
        request.extend(DATA.to_be_bytes());
        self.qtest.write(REQUEST, &request)?;
        // The registers are big-endian, the port is not.
        self.qtest.out32(DMA_PORT, ((REQUEST >> 32) as u32).swap_bytes())?;
        self.qtest.out32(DMA_PORT + 4, (REQUEST as u32).swap_bytes())?;
        let mut control = [0; 4];
        self.qtest.read(REQUEST, &mut control)?;
        if be32(&control) & ERROR != 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; count];
        self.qtest.read(DATA, &mut bytes)?;
        Ok(Some(bytes))
    }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
