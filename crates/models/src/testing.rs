//! Small helpers for tests of the models: memory and a log.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::log::{AccessLog, Event};
use crate::memory::{MemError, Memory};

/// A block of memory from address 0, behind one lock.
#[derive(Debug)]
pub struct Ram(Mutex<Vec<u8>>);

impl Ram {
    /// `size` zeroed bytes.
    pub fn new(size: usize) -> Self {
        Ram(Mutex::new(vec![0; size]))
    }

    /// Stores a 64-bit word. For building tables; outside the memory nothing happens.
    pub fn put64(&self, addr: u64, value: u64) {
        let _ = self.write(addr, &value.to_le_bytes());
    }

    /// Stores a 16-byte entry. For building tables; outside the memory nothing happens.
    pub fn put128(&self, addr: u64, value: u128) {
        let _ = self.write(addr, &value.to_le_bytes());
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn span(addr: u64, len: usize, size: usize) -> Result<std::ops::Range<usize>, MemError> {
    let out = MemError::OutOfRange { addr, len };
    let start = usize::try_from(addr).map_err(|_| out)?;
    let end = start.checked_add(len).ok_or(out)?;
    if end > size { Err(out) } else { Ok(start..end) }
}

fn aligned(addr: u64, to: u64) -> Result<(), MemError> {
    if addr.is_multiple_of(to) { Ok(()) } else { Err(MemError::Misaligned { addr }) }
}

impl Memory for Ram {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), MemError> {
        let bytes = self.bytes();
        buf.copy_from_slice(&bytes[span(addr, buf.len(), bytes.len())?]);
        Ok(())
    }

    fn write(&self, addr: u64, data: &[u8]) -> Result<(), MemError> {
        let mut bytes = self.bytes();
        let range = span(addr, data.len(), bytes.len())?;
        bytes[range].copy_from_slice(data);
        Ok(())
    }

    fn load64(&self, addr: u64) -> Result<u64, MemError> {
        aligned(addr, 8)?;
        let mut b = [0; 8];
        self.read(addr, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    fn load128(&self, addr: u64) -> Result<u128, MemError> {
        aligned(addr, 16)?;
        let mut b = [0; 16];
        self.read(addr, &mut b)?;
        Ok(u128::from_le_bytes(b))
    }

    fn cas64(&self, addr: u64, old: u64, new: u64) -> Result<u64, MemError> {
        aligned(addr, 8)?;
        let mut bytes = self.bytes();
        let range = span(addr, 8, bytes.len())?;
        let mut b = [0; 8];
        b.copy_from_slice(&bytes[range.clone()]);
        let seen = u64::from_le_bytes(b);
        if seen == old {
            bytes[range].copy_from_slice(&new.to_le_bytes());
        }
        Ok(seen)
    }
}

/// A log that keeps every event, shared between the test and the complex.
#[derive(Debug, Default, Clone)]
pub struct Events(std::sync::Arc<Mutex<Vec<Event>>>);

impl Events {
    /// Everything logged so far, in order.
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl AccessLog for Events {
    fn event(&mut self, event: &Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
    }
}
