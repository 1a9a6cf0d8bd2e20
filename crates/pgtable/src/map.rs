//! Mapping: look at the whole range, allocate every table, then write.

use crate::{
    cursor::{Cursor, block_end, block_start, entries, index, low},
    engine::Table,
    format::{Entry, Format},
    mem::{FRAME_SIZE, Fresh, Phys, TableMem, Word},
    table::MapError,
};
use alloc::vec::Vec;

/// One call of map.
struct Request<F: Format> {
    iova: u64,
    last: u64,
    /// Physical address less IOVA, modulo 2^64.
    delta: u64,
    template: F::Word,
    /// Leaf sizes that the table may use and that suit both addresses.
    sizes: u64,
}

impl<F: Format> Request<F> {
    fn phys(&self, iova: u64) -> Phys {
        Phys(iova.wrapping_add(self.delta))
    }

    /// Whether a leaf of one entry at `level` can start at `pos`.
    #[inline]
    fn fits(&self, level: usize, pos: u64) -> bool {
        let span = low(F::shift(level));
        self.sizes & (span + 1) != 0 && pos & span == 0 && self.last - pos >= span
    }

    /// How many entries at `level` from `pos` on can be leaves, up to the end of their table.
    #[inline]
    fn run(&self, level: usize, pos: u64) -> usize {
        let whole = ((self.last - pos) >> F::shift(level)) as usize
            + usize::from(self.last & low(F::shift(level)) == low(F::shift(level)));
        whole.min(entries::<F>(level) - index::<F>(level, pos))
    }

    /// The number of entries, at most `n`, that leaves of one size fill from `pos` on, and that
    /// size.
    fn chunk(&self, level: usize, pos: u64, n: usize) -> (usize, u32) {
        let shift = F::shift(level);
        let mut sizes = self.sizes & low(F::shift(level + 1));
        let mut widest = true;
        loop {
            let bits = sizes.ilog2();
            if bits <= shift {
                // Larger leaves may become possible at the next entry.
                return (if widest { n } else { 1 }, shift);
            }
            let each = 1 << (bits - shift);
            if pos & low(bits) == 0 && n >= each {
                return (if widest { n / each * each } else { each }, bits);
            }
            widest = false;
            sizes &= low(bits);
        }
    }
}

impl<F: Format, M: TableMem> Table<F, M> {
    /// Maps `iova..=last`, which was checked to be aligned and in range.
    pub(crate) fn map_range(
        &self,
        iova: u64,
        last: u64,
        phys: Phys,
        template: F::Word,
    ) -> Result<(), MapError> {
        let delta = phys.0.wrapping_sub(iova);
        let request = Request {
            iova,
            last,
            delta,
            template,
            sizes: self.page_sizes & !(!low(delta.trailing_zeros()) << 1),
        };
        let mut cursor = self.cursor();
        let missing = self.plan(&mut cursor, &request)?;
        let mut reserve = self.reserve(missing).ok_or(MapError::NoMem { iova })?;
        self.write(&mut cursor, &request, &mut reserve);
        for frame in reserve {
            self.mem.release(frame);
        }
        self.mem.barrier();
        Ok(())
    }

    /// Makes sure that nothing is mapped in the range and counts the tables it lacks.
    fn plan(&self, cursor: &mut Cursor<F>, request: &Request<F>) -> Result<usize, MapError> {
        let mut missing = 0;
        let mut pos = request.iova;
        loop {
            cursor.go(pos);
            let level = cursor.level();
            let fits = request.fits(level, pos);
            let end = match self.at(cursor, pos) {
                Some((Entry::Table(child), w)) => {
                    self.descend(cursor, pos, w, child);
                    continue;
                }
                Some((Entry::Leaf { base, size_bits }, _)) => {
                    return Err(MapError::AlreadyMapped {
                        iova: pos,
                        phys: Phys(base.0 | (pos & low(size_bits))),
                    });
                }
                Some((Entry::Empty, _)) | None if !fits => {
                    missing += 1;
                    cursor.enter(None);
                    continue;
                }
                Some((Entry::Empty, _)) => {
                    let n = self.empty_run(cursor, pos, request.run(level, pos));
                    pos + ((n as u64) << F::shift(level)) - 1
                }
                None => pos + ((request.run(level, pos) as u64) << F::shift(level)) - 1,
            };
            if end >= request.last {
                return Ok(missing);
            }
            pos = end + 1;
        }
    }

    /// Frames for `n` tables, or none at all.
    fn reserve(&self, n: usize) -> Option<Vec<Fresh>> {
        let mut frames = Vec::new();
        frames.try_reserve_exact(n).ok()?;
        while frames.len() < n {
            match self.mem.frame() {
                Ok(frame) => frames.push(frame),
                Err(_) => {
                    for frame in frames {
                        self.mem.release(frame);
                    }
                    return None;
                }
            }
        }
        Some(frames)
    }

    /// Writes what was planned. Another mapper may have installed tables since, which only leaves
    /// frames over. Where the caller does not own the range after all, entries of others stay as
    /// they are.
    fn write(&self, cursor: &mut Cursor<F>, request: &Request<F>, reserve: &mut Vec<Fresh>) {
        let mut pos = request.iova;
        loop {
            cursor.go(pos);
            let level = cursor.level();
            let Some(table) = cursor.table() else {
                // Planned, not written yet: go back to the part of the path that exists.
                cursor.leave();
                continue;
            };
            let i = index::<F>(level, pos);
            let fits = request.fits(level, pos);
            let end = if level == 1 {
                self.fill(table, level, pos, request.run(level, pos), request)
            } else {
                let w = self.mem.load(table, i);
                match self.format.decode(level, w) {
                    Entry::Table(child) => {
                        self.descend(cursor, pos, w, child);
                        continue;
                    }
                    Entry::Leaf { size_bits, .. } => block_end(pos, size_bits),
                    Entry::Empty if fits => {
                        let n = self.empty_run(cursor, pos, request.run(level, pos));
                        self.fill(table, level, pos, n, request)
                    }
                    Entry::Empty => match self.install(table, level, pos, w, request, reserve) {
                        Some(end) => end,
                        None => continue,
                    },
                }
            };
            if end >= request.last {
                return;
            }
            pos = end + 1;
        }
    }

    /// Puts a table into the empty entry for `pos`. A table that the range fills is filled before
    /// any walker sees it: then what was mapped ends at the address returned. Otherwise the entry
    /// is to be looked at again.
    fn install(
        &self,
        table: Phys,
        level: usize,
        pos: u64,
        empty: F::Word,
        request: &Request<F>,
        reserve: &mut Vec<Fresh>,
    ) -> Option<u64> {
        let start = block_start(pos, F::shift(level));
        let end = block_end(pos, F::shift(level));
        let Some(mut frame) = reserve.pop() else {
            return Some(end);
        };
        let child = frame.phys();
        let full = start >= request.iova && end <= request.last && request.fits(level - 1, start);
        if full {
            self.fill_private(&mut frame, level - 1, start, request);
        }
        self.clean(child, 0..FRAME_SIZE / F::Word::BYTES);
        self.clean_barrier();
        let i = index::<F>(level, pos);
        let w = self.format.table(child);
        match self.mem.cas(table, i, empty, w) {
            Ok(()) => {
                frame.publish();
                self.settle(table, i, w);
                full.then_some(end)
            }
            Err(_) if full => {
                // Not our range: the frame is not zeroed any more.
                self.mem.release(frame);
                None
            }
            Err(_) => {
                reserve.push(frame);
                None
            }
        }
    }

    /// Writes `n` entries from `pos` on and returns the last address they map.
    fn fill(&self, table: Phys, level: usize, pos: u64, n: usize, request: &Request<F>) -> u64 {
        let first = index::<F>(level, pos);
        let shift = F::shift(level);
        let mut done = 0;
        while done < n {
            let at = pos + ((done as u64) << shift);
            let (count, size_bits) = request.chunk(level, at, n - done);
            let range = first + done..first + done + count;
            let phys = request.phys(at).0;
            let leaf = |i: usize| {
                let offset = ((i - first - done) as u64) << shift;
                self.format
                    .leaf(request.template, level, Phys(phys + offset), size_bits)
            };
            match count {
                1 => self.mem.store(table, range.start, leaf(range.start)),
                _ => self
                    .mem
                    .run::<F::Word>(table, range, |i, a| F::Word::store(a, leaf(i))),
            }
            done += count;
        }
        self.clean(table, first..first + n);
        pos + ((n as u64) << shift) - 1
    }

    /// Fills a whole table from `start` on.
    fn fill_private(&self, frame: &mut Fresh, level: usize, start: u64, request: &Request<F>) {
        let shift = F::shift(level);
        let n = entries::<F>(level);
        let mut done = 0;
        while done < n {
            let at = start + ((done as u64) << shift);
            let (count, size_bits) = request.chunk(level, at, n - done);
            let phys = request.phys(at).0;
            self.mem.fill_private(frame, done..done + count, |i| {
                let offset = ((i - done) as u64) << shift;
                self.format
                    .leaf(request.template, level, Phys(phys + offset), size_bits)
            });
            done += count;
        }
    }

    /// How many of the `n` entries from `pos` on are empty, up to the first that is not.
    fn empty_run(&self, cursor: &Cursor<F>, pos: u64, n: usize) -> usize {
        let (Some(table), level) = (cursor.table(), cursor.level()) else {
            return n;
        };
        if n == 1 {
            return 1;
        }
        let first = index::<F>(level, pos);
        let mut empty = n;
        self.mem.run::<F::Word>(table, first..first + n, |i, a| {
            if i - first < empty && self.format.decode(level, F::Word::load(a)) != Entry::Empty {
                empty = i - first;
            }
        });
        empty
    }

    /// Goes down into `child`, found in the entry `w` for `pos`.
    fn descend(&self, cursor: &mut Cursor<F>, pos: u64, w: F::Word, child: Phys) {
        if let Some(table) = cursor.table() {
            self.settle(table, index::<F>(cursor.level(), pos), w);
        }
        cursor.enter(Some(child));
    }
}
