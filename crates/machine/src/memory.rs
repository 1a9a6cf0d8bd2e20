//! The memory of a machine: one region that drivers, models and devices share.
//!
//! Frames come out of it for tables (through [`TableMem`]) and for
//! data ([`Ram::page`]). Nothing ever holds a slice of it: entries are atomics of their own width,
//! bytes are copied.
#![allow(unsafe_code, reason = "atomics at the addresses of a mapping; each block says why it may")]

mod tables;

use parking_lot::Mutex;
use portcullis_pgtable::FRAME_SIZE;
#[doc(no_inline)]
pub use portcullis_pgtable::{Fresh, NoMem, Phys, TableMem, Word};
use portcullis_sync::wide::{self, AtomicU128};
use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{self as real, Ordering},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Why memory could not be had or reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// A byte of the access is outside of the memory.
    #[error("no memory at {address:#x}, {len} bytes")]
    OutOfRange {
        /// First byte of the access.
        address: u64,
        /// Its length.
        len: usize,
    },
    /// An access that has to be aligned to its size is not.
    #[error("misaligned access at {0:#x}")]
    Misaligned(u64),
    /// The region cannot be mapped: size zero, not whole frames, over the end of the address
    /// space, or refused by the system.
    #[error("cannot map {size} bytes of memory at {base:#x}")]
    Map {
        /// Guest address of the region.
        base: u64,
        /// Its size.
        size: usize,
    },
    /// 16-byte accesses would take a lock in this build, which hardware does not respect.
    #[error("{0}")]
    NotAtomic(wide::NotAtomic),
}

/// How many frames are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCount {
    /// Frames that hold tables and queues.
    pub tables: usize,
    /// The most there were of them at one time.
    pub tables_peak: usize,
    /// Frames that hold data.
    pub pages: usize,
    /// Frames that are free.
    pub free: usize,
}

/// The memory. A handle: clones name the same memory.
#[derive(Clone)]
pub struct Ram(Arc<Inner>);

struct Inner {
    base: u64,
    region: Arc<MmapRegion>,
    guest: GuestMemoryMmap,
    frames: Mutex<Frames>,
    /// A bit for each frame that may differ from zero.
    dirty: Vec<real::AtomicU64>,
    cleaning: Cleaning,
}

/// What the CPU wrote to tables and has not cleaned: 64 lines of 64 bytes a frame.
struct Cleaning {
    tracked: real::AtomicBool,
    unclean: Vec<real::AtomicU64>,
    /// What memory held of each line when it was cleaned last; empty while no record is kept.
    settled: Mutex<Vec<u64>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Free,
    Table,
    Page,
}

struct Frames {
    /// Number of the first frame, counted from address 0.
    base_frame: u64,
    uses: Vec<Use>,
    /// Frames given back, the last one first; a frame beyond `fresh` was never handed out.
    returned: Vec<usize>,
    fresh: usize,
    count: FrameCount,
    asked: u64,
    fail_at: Option<u64>,
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ram")
            .field("base", &format_args!("{:#x}", self.0.base))
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl Ram {
    /// Zeroed memory of `size` bytes from guest address `base`; both whole frames.
    ///
    /// # Errors
    /// [`MemoryError::Map`], or [`MemoryError::NotAtomic`] where 16-byte accesses would take a
    /// lock.
    pub fn new(base: u64, size: usize) -> Result<Ram, MemoryError> {
        let refused = MemoryError::Map { base, size };
        if size == 0 {
            return Err(refused);
        }
        let region = MmapRegion::new(size).map_err(|_| refused)?;
        Ram::build(base, Arc::new(region), 0)
    }

    /// The memory of a mapping that somebody else shares, with guest address `base`; whole frames.
    /// What it holds now counts as used before.
    ///
    /// # Errors
    /// As [`Ram::new`].
    pub fn over(base: u64, region: Arc<MmapRegion>) -> Result<Ram, MemoryError> {
        Ram::build(base, region, u64::MAX)
    }

    fn build(base: u64, region: Arc<MmapRegion>, dirty: u64) -> Result<Ram, MemoryError> {
        wide::check().map_err(MemoryError::NotAtomic)?;
        let size = region.size();
        let refused = MemoryError::Map { base, size };
        if !size.is_multiple_of(FRAME_SIZE) || !base.is_multiple_of(FRAME_SIZE as u64) {
            return Err(refused);
        }
        let mapped = GuestRegionMmap::with_arc(region.clone(), GuestAddress(base)).ok_or(refused)?;
        let guest = GuestMemoryMmap::from_regions(vec![mapped]).map_err(|_| refused)?;
        let n = size / FRAME_SIZE;
        Ok(Ram(Arc::new(Inner {
            base,
            region,
            guest,
            frames: Mutex::new(Frames::new(base, n)),
            dirty: (0..n.div_ceil(64)).map(|_| real::AtomicU64::new(dirty)).collect(),
            cleaning: Cleaning {
                tracked: real::AtomicBool::new(false),
                unclean: (0..n).map(|_| real::AtomicU64::new(0)).collect(),
                settled: Mutex::default(),
            },
        })))
    }

    /// Guest address of the first byte.
    pub fn base(&self) -> u64 {
        self.0.base
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.0.region.size()
    }

    /// A zeroed frame for data.
    ///
    /// # Errors
    /// [`NoMem`] when none is left.
    pub fn page(&self) -> Result<Phys, NoMem> {
        self.take(Use::Page, 1)
    }

    /// `n` zeroed frames for data with addresses in a row, given back one by one.
    ///
    /// # Errors
    /// [`NoMem`] when the part of memory that was never handed out is not large enough.
    pub fn pages(&self, n: usize) -> Result<Phys, NoMem> {
        self.take(Use::Page, n)
    }

    /// Takes a frame back that came from [`Ram::page`] or [`Ram::pages`].
    ///
    /// # Panics
    /// If it did not, or was given back before.
    pub fn free_page(&self, page: Phys) {
        self.give_back(page, Use::Page);
    }

    /// How many frames are in use.
    pub fn count(&self) -> FrameCount {
        self.0.frames.lock().count
    }

    /// Whether `address` lies in a frame that holds a table now.
    pub fn is_table(&self, address: u64) -> bool {
        self.use_of(address) == Some(Use::Table)
    }

    /// Whether `address` lies in a frame that is in use, for a table or for data.
    pub fn is_live(&self, address: u64) -> bool {
        matches!(self.use_of(address), Some(Use::Table | Use::Page))
    }

    /// Lets the `n`th request for a table frame from now on fail, once (0 is the next one); `None`
    /// takes that back.
    pub fn fail_frame(&self, n: Option<u64>) {
        let mut frames = self.0.frames.lock();
        frames.fail_at = n.map(|n| frames.asked.saturating_add(n));
    }

    /// How often a table frame was asked for, since the memory was made.
    pub fn frames_asked(&self) -> u64 {
        self.0.frames.lock().asked
    }

    /// Begins or ends to keep a record of what software writes to table memory and does not
    /// [clean](portcullis_pgtable::TableMem::clean), for drivers of walkers that do not snoop.
    pub fn track_cleaning(&self, on: bool) {
        let cleaning = &self.0.cleaning;
        for frame in &cleaning.unclean {
            frame.store(0, Ordering::Relaxed);
        }
        *cleaning.settled.lock() = if on { vec![0; self.size() / 8] } else { Vec::new() };
        cleaning.tracked.store(on, Ordering::Relaxed);
    }

    /// Addresses of the 64-byte lines of table frames in use that were written, or zeroed for
    /// their new use, since the record began, and not cleaned after. A walker that does not snoop
    /// may read something else there.
    pub fn unclean_lines(&self) -> Vec<u64> {
        let frames = self.0.frames.lock();
        let tables = (0..frames.uses.len()).filter(|&i| frames.uses[i] == Use::Table);
        tables
            .flat_map(|i| {
                let lines = self.0.cleaning.unclean[i].load(Ordering::Relaxed);
                let base = self.0.base + (i * FRAME_SIZE) as u64;
                (0..64u64).filter(move |line| lines & 1 << line != 0).map(move |line| base + line * 64)
            })
            .collect()
    }

    /// Reads eight aligned bytes as a walker does that does not snoop, while the record of cleaning
    /// is kept: from a line that was not cleaned comes what it held when it was cleaned last.
    ///
    /// # Errors
    /// Outside of the memory, or misaligned.
    pub fn walk64(&self, address: u64) -> Result<u64, MemoryError> {
        let now = self.load64_at(address)?;
        Ok(self.settled(address).unwrap_or(now))
    }

    /// Reads sixteen aligned bytes, as [`walk64`](Ram::walk64) does eight.
    ///
    /// # Errors
    /// Outside of the memory, or misaligned.
    pub fn walk128(&self, address: u64) -> Result<u128, MemoryError> {
        let now = self.load128_at(address)?;
        let halves = (self.settled(address), self.settled(address + 8));
        Ok(match halves {
            (Some(low), Some(high)) => u128::from(high) << 64 | u128::from(low),
            _ => now,
        })
    }

    /// The word of memory at `address` where the CPU's cache holds something else.
    fn settled(&self, address: u64) -> Option<u64> {
        let offset = self.offset(address, 8).ok()?;
        let lines = self.0.cleaning.unclean[offset / FRAME_SIZE].load(Ordering::Relaxed);
        if lines & 1 << (offset % FRAME_SIZE / 64) == 0 || !self.is_table(address) {
            return None;
        }
        self.0.cleaning.settled.lock().get(offset / 8).copied()
    }

    /// Copies memory at `address` into `buf`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; then nothing is promised about `buf`.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.offset(address, buf.len())?;
        self.0
            .guest
            .read_slice(buf, GuestAddress(address))
            .map_err(|_| MemoryError::OutOfRange { address, len: buf.len() })
    }

    /// Copies `data` to memory at `address`. Four and eight bytes that are aligned to their size
    /// appear whole.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; then nothing was written.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.offset(address, data.len())?;
        self.mark_dirty(address, data.len());
        if let Ok(bytes) = data.try_into()
            && let Ok(word) = self.real64(address)
        {
            word.store(u64::from_le_bytes(bytes).to_le(), Ordering::Release);
            return Ok(());
        }
        if let Ok(bytes) = data.try_into()
            && let Ok(word) = self.real32(address)
        {
            word.store(u32::from_le_bytes(bytes).to_le(), Ordering::Release);
            return Ok(());
        }
        self.0
            .guest
            .write_slice(data, GuestAddress(address))
            .map_err(|_| MemoryError::OutOfRange { address, len: data.len() })
    }

    /// Reads four aligned bytes, little-endian, in one access.
    ///
    /// # Errors
    /// Outside of the memory, or misaligned.
    pub fn load32_at(&self, address: u64) -> Result<u32, MemoryError> {
        Ok(u32::from_le(self.real32(address)?.load(Ordering::Acquire)))
    }

    /// Reads eight aligned bytes, little-endian, in one access.
    ///
    /// # Errors
    /// Outside of the memory, or misaligned.
    pub fn load64_at(&self, address: u64) -> Result<u64, MemoryError> {
        Ok(u64::from_le(self.real64(address)?.load(Ordering::Acquire)))
    }

    /// Reads sixteen aligned bytes, little-endian, in one access that no 16-byte store can tear.
    ///
    /// # Errors
    /// Outside of the memory, or misaligned.
    pub fn load128_at(&self, address: u64) -> Result<u128, MemoryError> {
        Ok(u128::from_le(self.wide(address)?.load()))
    }

    /// Stores `new` at `address` if it holds `old`, in one access, and returns what it held.
    ///
    /// # Errors
    /// Outside of the memory, or misaligned.
    pub fn cas64_at(&self, address: u64, old: u64, new: u64) -> Result<u64, MemoryError> {
        let word = self.real64(address)?;
        self.mark_dirty(address, 8);
        let found = word.compare_exchange(old.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire);
        Ok(u64::from_le(found.unwrap_or_else(|now| now)))
    }

    /// Makes the memory as new, if this is the only handle to it.
    #[cfg(any(feature = "sim", test))]
    pub(crate) fn renew(&mut self) -> bool {
        if Arc::get_mut(&mut self.0).is_none() {
            return false;
        }
        let n = self.size() / FRAME_SIZE;
        for i in 0..n {
            self.zero(i);
        }
        *self.0.frames.lock() = Frames::new(self.base(), n);
        self.track_cleaning(false);
        true
    }

    fn take(&self, r#use: Use, n: usize) -> Result<Phys, NoMem> {
        let first = {
            let mut frames = self.0.frames.lock();
            let first = frames.find(r#use, n)?;
            frames.mark(first..first + n, r#use);
            first
        };
        for i in first..first + n {
            self.zero(i);
            // Whoever has the frame writes to it without telling.
            self.0.dirty[i / 64].fetch_or(1 << (i % 64), Ordering::Relaxed);
        }
        Ok(Phys(self.0.base + (first * FRAME_SIZE) as u64))
    }

    fn give_back(&self, frame: Phys, r#use: Use) {
        let i = self.offset(frame.0, FRAME_SIZE).map(|offset| offset / FRAME_SIZE);
        let mut frames = self.0.frames.lock();
        let held = i.ok().filter(|&i| frames.uses[i] == r#use);
        let Some(i) = held.filter(|_| frame.0.is_multiple_of(FRAME_SIZE as u64)) else {
            panic!("{frame} is given back, but it is not a {use:?} frame in use");
        };
        frames.uses[i] = Use::Free;
        frames.returned.push(i);
        match r#use {
            Use::Table => frames.count.tables -= 1,
            _ => frames.count.pages -= 1,
        }
        frames.count.free += 1;
    }

    fn use_of(&self, address: u64) -> Option<Use> {
        let offset = self.offset(address, 1).ok()?;
        self.0.frames.lock().uses.get(offset / FRAME_SIZE).copied()
    }

    /// Zeroes frame `i` if it may differ from zero.
    fn zero(&self, i: usize) {
        let bit = 1 << (i % 64);
        if self.0.dirty[i / 64].fetch_and(!bit, Ordering::Relaxed) & bit == 0 {
            return;
        }
        let frame = self.0.base + (i * FRAME_SIZE) as u64;
        let Ok(p) = self.host(frame, FRAME_SIZE) else {
            return;
        };
        for word in 0..FRAME_SIZE / 8 {
            // SAFETY: the word is inside the frame, which `host` found inside the mapping; stores
            // are atomic since a device that kept a stale address may write here meanwhile.
            let word = unsafe { real::AtomicU64::from_ptr(p.cast::<u64>().add(word)) };
            word.store(0, Ordering::Relaxed);
        }
    }

    fn mark_dirty(&self, address: u64, len: usize) {
        let Some(last) = len.checked_sub(1) else {
            return;
        };
        let first = (address - self.0.base) as usize;
        for i in first / FRAME_SIZE..=(first + last) / FRAME_SIZE {
            let word = &self.0.dirty[i / 64];
            if word.load(Ordering::Relaxed) & 1 << (i % 64) == 0 {
                word.fetch_or(1 << (i % 64), Ordering::Relaxed);
            }
        }
    }

    /// Offset of `address` in the region, if `len` bytes from there lie inside.
    fn offset(&self, address: u64, len: usize) -> Result<usize, MemoryError> {
        let out = MemoryError::OutOfRange { address, len };
        let offset = address.checked_sub(self.0.base).ok_or(out)?;
        let offset = usize::try_from(offset).map_err(|_| out)?;
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(offset),
            _ => Err(out),
        }
    }

    /// The host address of `len` bytes at a guest address aligned to `len`.
    fn host(&self, address: u64, len: usize) -> Result<*mut u8, MemoryError> {
        let offset = self.offset(address, len)?;
        if !address.is_multiple_of(len as u64) {
            return Err(MemoryError::Misaligned(address));
        }
        // SAFETY: offset + len is inside the mapping of `region.size()` bytes, just checked.
        Ok(unsafe { self.0.region.as_ptr().add(offset) })
    }

    fn real32(&self, address: u64) -> Result<&real::AtomicU32, MemoryError> {
        let p = self.host(address, 4)?;
        // SAFETY: inside the mapping, which lives as long as self; aligned, since base and mapping
        // are aligned to a page; whoever accesses it meanwhile does so atomically or by vm-memory's
        // volatile copies, which stand for the bytes of a device.
        Ok(unsafe { real::AtomicU32::from_ptr(p.cast()) })
    }

    fn real64(&self, address: u64) -> Result<&real::AtomicU64, MemoryError> {
        let p = self.host(address, 8)?;
        // SAFETY: as in `real32`.
        Ok(unsafe { real::AtomicU64::from_ptr(p.cast()) })
    }

    fn wide(&self, address: u64) -> Result<&AtomicU128, MemoryError> {
        let p = self.host(address, 16)?;
        // SAFETY: as in `real32`; `new` made sure that it is an access and not a lock.
        Ok(unsafe { AtomicU128::from_ptr(p.cast()) })
    }
}

impl Frames {
    fn new(base: u64, n: usize) -> Frames {
        Frames {
            base_frame: base / FRAME_SIZE as u64,
            uses: vec![Use::Free; n],
            returned: Vec::new(),
            fresh: 0,
            count: FrameCount { free: n, ..FrameCount::default() },
            asked: 0,
            fail_at: None,
        }
    }

    fn find(&mut self, r#use: Use, n: usize) -> Result<usize, NoMem> {
        if r#use == Use::Table {
            let this = self.asked;
            self.asked += 1;
            if self.fail_at == Some(this) {
                self.fail_at = None;
                return Err(NoMem);
            }
        }
        if n == 1
            && let Some(i) = self.returned.pop()
        {
            return Ok(i);
        }
        if r#use == Use::Table {
            return self.find_aligned(n);
        }
        if n == 0 || n > self.uses.len() - self.fresh {
            return Err(NoMem);
        }
        let first = self.fresh;
        self.fresh += n;
        Ok(first)
    }

    /// The first free run of `n` frames, a power of two, that is aligned to its size.
    fn find_aligned(&mut self, n: usize) -> Result<usize, NoMem> {
        let free = |first: &usize| {
            self.uses.get(*first..*first + n).is_some_and(|run| run.iter().all(|u| *u == Use::Free))
        };
        let skip = self.base_frame.next_multiple_of(n as u64) - self.base_frame;
        let skip = usize::try_from(skip).map_err(|_| NoMem)?;
        let first = (skip..self.uses.len()).step_by(n).find(free).ok_or(NoMem)?;
        let run = first..first + n;
        self.returned.retain(|i| !run.contains(i));
        // What was passed over is as if it had been handed out and given back.
        self.returned.extend(self.fresh..first);
        self.fresh = self.fresh.max(run.end);
        Ok(first)
    }

    fn mark(&mut self, frames: Range<usize>, r#use: Use) {
        let n = frames.len();
        self.uses[frames].fill(r#use);
        self.count.free -= n;
        match r#use {
            Use::Table => {
                self.count.tables += n;
                self.count.tables_peak = self.count.tables_peak.max(self.count.tables);
            }
            _ => self.count.pages += n,
        }
    }
}
