//! Table memory inside the machine's memory.

use super::{MemoryError, Ram, Use};
use portcullis_pgtable::{FRAME_SIZE, Fresh, NoMem, Phys, TableMem, Word};
use portcullis_sync::{
    atomic::{Ordering, fence},
    wide::AtomicU128,
};
use std::{any::TypeId, ops::Range, sync::atomic as real};

impl TableMem for Ram {
    fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        let n = 1usize.checked_shl(order).ok_or(NoMem)?;
        let first = self.take(Use::Table, n)?;
        for frame in frames(first, order) {
            self.written(frame, 0..FRAME_SIZE);
        }
        // SAFETY: the frames were free until now, so nothing names them, and `take` zeroed them
        // and aligned the run.
        Ok(unsafe { Fresh::from_raw(first, order) })
    }

    fn release(&self, frames: Fresh) {
        let order = frames.order();
        self.reclaim_frames(frames.publish(), order);
    }

    fn reclaim_frames(&self, first: Phys, order: u32) {
        for frame in frames(first, order) {
            self.give_back(frame, Use::Table);
        }
    }

    fn load<W: Word>(&self, table: Phys, i: usize) -> W {
        W::load(self.entry::<W>(table, i))
    }

    fn store<W: Word>(&self, table: Phys, i: usize, w: W) {
        W::store(self.entry::<W>(table, i), w);
        self.written(table, bytes_of::<W>(i));
    }

    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W> {
        W::cas(self.entry::<W>(table, i), old, new)?;
        self.written(table, bytes_of::<W>(i));
        Ok(())
    }

    fn load128(&self, table: Phys, i: usize) -> u128 {
        self.entry128(table, i).load()
    }

    fn store128(&self, table: Phys, i: usize, w: u128) {
        self.entry128(table, i).store(w);
        self.written(table, bytes_of::<u128>(i));
    }

    fn fill_private<W: Word>(
        &self,
        fresh: &mut Fresh,
        range: Range<usize>,
        mut entry: impl FnMut(usize) -> W,
    ) {
        let per_frame = FRAME_SIZE / size_of::<W>();
        for (n, frame) in frames(fresh.phys(), fresh.order()).enumerate() {
            let first = n * per_frame;
            let start = range.start.max(first);
            let end = range.end.min(first + per_frame);
            if start >= end {
                continue;
            }
            let part = start - first..end - first;
            let p = self.entries::<W>(frame, &part).cast::<W>();
            self.written(frame, part.start * size_of::<W>()..part.end * size_of::<W>());
            for i in start..end {
                // SAFETY: `entries` checked the range and the width. The run is fresh and borrowed
                // mutably: no walker knows it, nothing else accesses it.
                unsafe { p.add(i - start).write(entry(i)) };
            }
        }
    }

    fn run<W: Word>(&self, table: Phys, range: Range<usize>, mut visit: impl FnMut(usize, &W::Atomic)) {
        let p = self.entries::<W>(table, &range).cast::<W::Atomic>();
        for (n, i) in range.enumerate() {
            // SAFETY: `entries` checked that the range is inside the mapping and that W is u32 or
            // u64, whose atomics have the layout of the integer.
            let entry = unsafe { &*p.add(n) };
            if !self.tracks_cleaning() {
                visit(i, entry);
                continue;
            }
            let before = W::load(entry);
            visit(i, entry);
            if W::load(entry) != before {
                self.written(table, bytes_of::<W>(i));
            }
        }
    }

    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }

    /// Walkers that snoop see what the CPU stored at once; others by [`Ram::walk64`].
    fn clean(&self, table: Phys, bytes: Range<usize>) {
        self.table(table);
        assert!(bytes.end <= FRAME_SIZE, "{table}: bytes {bytes:?} are outside of a frame");
        if let Some(unclean) = self.unclean(table) {
            let lines = lines(&bytes);
            unclean.fetch_and(!lines, Ordering::Relaxed);
            self.settle(table, lines);
        }
    }
}

/// The frames of a run.
fn frames(first: Phys, order: u32) -> impl Iterator<Item = Phys> {
    (0..1u64 << order).map(move |n| Phys(first.0 + n * FRAME_SIZE as u64))
}

/// Where entry `i` of width `W` lies in its frame.
fn bytes_of<W>(i: usize) -> Range<usize> {
    i * size_of::<W>()..(i + 1) * size_of::<W>()
}

/// The lines of a frame that a range of its bytes touches, one bit each.
fn lines(bytes: &Range<usize>) -> u64 {
    if bytes.is_empty() {
        return 0;
    }
    let (first, last) = (bytes.start / 64, (bytes.end - 1) / 64);
    (u64::MAX >> (63 - (last - first))) << first
}

impl Ram {
    /// The host address of entry `range.start` of width `W`, when the whole range lies in `table`.
    fn entries<W: Word>(&self, table: Phys, range: &Range<usize>) -> *mut u8 {
        // Anyone can implement the trait; memory can be reinterpreted as these two only.
        let w = TypeId::of::<W>();
        assert!(w == TypeId::of::<u32>() || w == TypeId::of::<u64>());
        assert!(
            range.start <= range.end && range.end <= FRAME_SIZE / size_of::<W>(),
            "entries {range:?} are outside of a frame"
        );
        let p = self.table(table);
        // SAFETY: the start of the range is inside the frame, which is inside the mapping.
        unsafe { p.add(range.start * size_of::<W>()) }
    }

    fn entry<W: Word>(&self, table: Phys, i: usize) -> &W::Atomic {
        let p = self.entries::<W>(table, &(i..i.saturating_add(1)));
        // SAFETY: inside the mapping, which lives as long as self, and aligned to the entry; W is
        // u32 or u64 (checked in `entries`), whose atomics have the layout of the integer.
        unsafe { &*p.cast::<W::Atomic>() }
    }

    fn entry128(&self, table: Phys, i: usize) -> &AtomicU128 {
        assert!(i < FRAME_SIZE / 16, "entry {i} is outside of a frame");
        let p = self.table(table);
        // SAFETY: inside the frame and so inside the mapping, aligned to 16; hardware and drivers
        // access such entries whole.
        unsafe { AtomicU128::from_ptr(p.cast::<u128>().add(i)) }
    }

    #[inline]
    fn tracks_cleaning(&self) -> bool {
        self.0.cleaning.tracked.load(real::Ordering::Relaxed)
    }

    /// The record of a frame's lines, if one is kept.
    fn unclean(&self, table: Phys) -> Option<&real::AtomicU64> {
        if !self.tracks_cleaning() {
            return None;
        }
        let offset = table.0.checked_sub(self.0.base)?;
        self.0.cleaning.unclean.get(offset as usize / FRAME_SIZE)
    }

    #[inline]
    fn written(&self, table: Phys, bytes: Range<usize>) {
        if let Some(unclean) = self.unclean(table) {
            unclean.fetch_or(lines(&bytes), real::Ordering::Relaxed);
        }
    }

    /// Notes what the lines of a frame hold now.
    fn settle(&self, table: Phys, lines: u64) {
        let mut settled = self.0.cleaning.settled.lock();
        let first = (table.0 - self.0.base) as usize / 8;
        for i in (0..FRAME_SIZE / 8).filter(|i| lines & 1 << (i / 8) != 0) {
            if let (Some(word), Ok(now)) =
                (settled.get_mut(first + i), self.load64_at(table.0 + 8 * i as u64))
            {
                *word = now;
            }
        }
    }

    fn table(&self, table: Phys) -> *mut u8 {
        match self.host(table.0, FRAME_SIZE) {
            Ok(p) => p,
            Err(MemoryError::Misaligned(_)) => panic!("{table} is not the address of a frame"),
            Err(e) => panic!("{table} is no table of this memory: {e}"),
        }
    }
}

/// Table memory of a platform that has its [`Ram`](crate::memory::Ram) in `self.0.ram` and adds
/// nothing of its own.
#[macro_export]
macro_rules! table_mem_of_ram {
    ($platform:ty) => {
        impl $crate::memory::TableMem for $platform {
            fn frames(&self, order: u32) -> Result<$crate::memory::Fresh, $crate::memory::NoMem> {
                self.0.ram.frames(order)
            }
            fn release(&self, frames: $crate::memory::Fresh) {
                self.0.ram.release(frames);
            }
            fn reclaim_frames(&self, first: $crate::memory::Phys, order: u32) {
                self.0.ram.reclaim_frames(first, order);
            }
            fn load<W: $crate::memory::Word>(&self, table: $crate::memory::Phys, i: usize) -> W {
                self.0.ram.load(table, i)
            }
            fn store<W: $crate::memory::Word>(&self, table: $crate::memory::Phys, i: usize, w: W) {
                self.0.ram.store(table, i, w);
            }
            fn cas<W: $crate::memory::Word>(
                &self,
                table: $crate::memory::Phys,
                i: usize,
                old: W,
                new: W,
            ) -> Result<(), W> {
                self.0.ram.cas(table, i, old, new)
            }
            fn load128(&self, table: $crate::memory::Phys, i: usize) -> u128 {
                self.0.ram.load128(table, i)
            }
            fn store128(&self, table: $crate::memory::Phys, i: usize, w: u128) {
                self.0.ram.store128(table, i, w);
            }
            fn fill_private<W: $crate::memory::Word>(
                &self,
                frame: &mut $crate::memory::Fresh,
                range: std::ops::Range<usize>,
                entry: impl FnMut(usize) -> W,
            ) {
                self.0.ram.fill_private(frame, range, entry);
            }
            fn run<W: $crate::memory::Word>(
                &self,
                table: $crate::memory::Phys,
                range: std::ops::Range<usize>,
                visit: impl FnMut(usize, &W::Atomic),
            ) {
                self.0.ram.run::<W>(table, range, visit);
            }
            fn barrier(&self) {
                self.0.ram.barrier();
            }
            fn clean(&self, table: $crate::memory::Phys, bytes: std::ops::Range<usize>) {
                self.0.ram.clean(table, bytes);
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1000_0000;

    fn ram(frames: usize) -> Ram {
        Ram::new(BASE, frames * FRAME_SIZE).unwrap()
    }

    #[test]
    fn frames_come_zeroed_and_are_counted() {
        let ram = ram(2);
        let a = ram.frame().unwrap().publish();
        let page = ram.page().unwrap();
        assert_eq!(ram.frame().unwrap_err(), NoMem);
        ram.store::<u64>(a, 511, 7);
        ram.write(page.0 + 1, &[1, 2, 3]).unwrap();
        assert!(ram.is_table(a.0 + 9) && !ram.is_table(page.0) && ram.is_live(page.0));
        ram.reclaim(a);
        assert!(!ram.is_live(a.0));
        assert_eq!(ram.load64_at(a.0 + 8 * 511), Ok(7), "stale until it is used again");
        let again = ram.page().unwrap();
        assert_eq!(again, a);
        assert_eq!(ram.load64_at(a.0 + 8 * 511), Ok(0));
        let count = ram.count();
        assert_eq!((count.tables, count.tables_peak, count.pages, count.free), (0, 1, 2, 0));
    }

    #[test]
    fn runs_are_aligned_and_come_from_what_was_given_back() {
        let ram = ram(16);
        let page = ram.page().unwrap();
        let mut run = ram.frames(2).unwrap();
        assert_eq!((run.phys().0 % (4 * FRAME_SIZE as u64), run.order()), (0, 2));
        ram.fill_private::<u64>(&mut run, 510..514, |i| i as u64);
        let first = run.publish();
        let second = Phys(first.0 + FRAME_SIZE as u64);
        assert_eq!((ram.load::<u64>(first, 511), ram.load::<u64>(second, 1)), (511, 513));
        assert_eq!(ram.count().tables, 4);
        // What was left over for the sake of alignment is used by others.
        let singles: Vec<Phys> = (0..11).map(|_| ram.frame().unwrap().publish()).collect();
        assert_eq!(ram.frames(0).unwrap_err(), NoMem);
        for frame in singles {
            ram.reclaim(frame);
        }
        let large = ram.frames(3).unwrap();
        assert_eq!(large.phys().0 % (8 * FRAME_SIZE as u64), 0);
        assert_eq!(ram.frames(3).unwrap_err(), NoMem);
        assert_eq!(ram.frames(200).unwrap_err(), NoMem);
        ram.release(large);
        ram.reclaim_frames(first, 2);
        ram.free_page(page);
        let again = ram.frames(4).unwrap();
        assert!((0..512).all(|i| ram.load::<u64>(second, i) == 0), "zeroed again");
        ram.release(again);
        assert_eq!(ram.count().free, 16);
    }

    #[test]
    fn the_nth_frame_fails_once() {
        let ram = ram(8);
        ram.fail_frame(Some(1));
        let first = ram.frame().unwrap();
        assert_eq!(ram.frame().unwrap_err(), NoMem);
        ram.release(ram.frame().unwrap());
        ram.release(first);
        assert_eq!(ram.frames_asked(), 3);
        assert_eq!(ram.count().tables, 0);
    }

    #[test]
    #[should_panic(expected = "given back")]
    fn a_frame_given_back_twice_is_noticed() {
        let ram = ram(8);
        let a = ram.frame().unwrap().publish();
        ram.reclaim(a);
        ram.reclaim(a);
    }

    #[test]
    fn entries_of_every_width_share_the_bytes() {
        let ram = ram(1);
        let mut fresh = ram.frame().unwrap();
        ram.fill_private::<u64>(&mut fresh, 2..4, |i| i as u64 * 0x11);
        let t = fresh.publish();
        assert_eq!(ram.load128(t, 1), 0x33 << 64 | 0x22);
        ram.store128(t, 1, 5 << 64 | 6);
        assert_eq!(ram.load::<u64>(t, 3), 5);
        assert_eq!(ram.load::<u32>(t, 4), 6);
        assert_eq!(ram.cas::<u64>(t, 3, 4, 1), Err(5));
        assert_eq!(ram.cas::<u64>(t, 3, 5, 1), Ok(()));
        let mut seen = Vec::new();
        ram.run::<u64>(t, 2..4, |i, a| seen.push((i, <u64 as Word>::load(a))));
        assert_eq!(seen, [(2, 6), (3, 1)]);
        assert_eq!(ram.load128_at(t.0 + 16), Ok(1 << 64 | 6));
        assert_eq!(ram.cas64_at(t.0 + 16, 6, 8), Ok(6));
        assert_eq!(ram.load32_at(t.0 + 16), Ok(8));
    }

    #[test]
    fn lines_written_are_unclean_until_cleaned() {
        let ram = ram(4);
        let before = ram.frame().unwrap().publish();
        ram.track_cleaning(true);
        ram.store::<u64>(before, 9, 0);
        ram.store128(before, 255, 1);
        assert_eq!(ram.cas::<u64>(before, 16, 5, 6), Err(0));
        ram.run::<u64>(before, 24..40, |i, a| {
            if i == 32 {
                <u64 as Word>::store(a, 1);
            }
        });
        let line = |n: u64| before.0 + 64 * n;
        assert_eq!(ram.unclean_lines(), [line(1), line(4), line(63)]);
        ram.clean(before, 72..256);
        assert_eq!(ram.unclean_lines(), [line(4), line(63)]);
        ram.clean(before, 0..FRAME_SIZE);
        assert!(ram.unclean_lines().is_empty());

        let mut fresh = ram.frame().unwrap();
        assert_eq!(ram.unclean_lines().len(), 64, "it was zeroed");
        ram.clean(fresh.phys(), 0..FRAME_SIZE);
        ram.fill_private::<u64>(&mut fresh, 7..9, |_| 1);
        assert_eq!(ram.unclean_lines().len(), 2);
        ram.release(fresh);
        assert!(ram.unclean_lines().is_empty());
    }

    #[test]
    fn a_walker_that_does_not_snoop_reads_what_was_cleaned() {
        let ram = ram(2);
        let t = ram.frame().unwrap().publish();
        ram.track_cleaning(true);
        ram.store128(t, 0, 2 << 64 | 1);
        assert_eq!((ram.walk64(t.0 + 8), ram.walk128(t.0)), (Ok(0), Ok(0)));
        ram.clean(t, 0..16);
        assert_eq!((ram.walk64(t.0 + 8), ram.walk128(t.0)), (Ok(2), Ok(2 << 64 | 1)));
        ram.store::<u64>(t, 7, 5);
        assert_eq!((ram.walk64(t.0 + 8), ram.walk64(t.0 + 56)), (Ok(2), Ok(0)));
        ram.track_cleaning(false);
        assert_eq!(ram.walk64(t.0 + 56), Ok(5));
    }

    #[test]
    fn what_is_outside_is_refused() {
        let ram = ram(1);
        let end = BASE + FRAME_SIZE as u64;
        let mut two = [0; 2];
        assert!(ram.read(end - 2, &mut two).is_ok());
        let outside = |address| MemoryError::OutOfRange { address, len: 2 };
        assert_eq!(ram.read(end - 1, &mut two), Err(outside(end - 1)));
        assert_eq!(ram.write(u64::MAX, &two), Err(outside(u64::MAX)));
        assert_eq!(ram.write(BASE - 1, &two), Err(outside(BASE - 1)));
        assert_eq!(ram.load64_at(BASE + 4), Err(MemoryError::Misaligned(BASE + 4)));
        assert!(Ram::new(1, FRAME_SIZE).is_err() && Ram::new(0, 1).is_err());
    }

    #[test]
    fn renewed_memory_is_as_new() {
        let mut ram = ram(4);
        let t = ram.frame().unwrap().publish();
        ram.store::<u64>(t, 0, 1);
        ram.write(BASE + 3 * FRAME_SIZE as u64, &[1; 8]).unwrap();
        let second = ram.clone();
        assert!(!ram.renew(), "somebody else holds it");
        drop(second);
        assert!(ram.renew());
        assert_eq!(ram.count().free, 4);
        for i in 0..4 * FRAME_SIZE as u64 / 8 {
            assert_eq!(ram.load64_at(BASE + 8 * i), Ok(0));
        }
    }
}
