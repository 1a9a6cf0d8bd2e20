//! Mapping: look at the whole range, allocate every table, then write.

use crate::{
    cursor::{Cursor, block_end, block_start, entries, index, low},
    engine::Table,
    format::{Entry, Format},
    mem::{Fresh, Phys, TableMem, Word},
    source::{List, Piece, Segment, Source, Summary, Whole},
    table::{MapError, Prot},
};
use alloc::vec::Vec;

/// One call of map, as positions.
pub(crate) struct Request<F: Format> {
    pos: u64,
    last: u64,
    pub(crate) template: F::Word,
}

impl<F: Format> Request<F> {
    /// Whether a leaf of one entry at `level` can start at `pos`.
    #[inline]
    fn fits(&self, piece: &Piece, level: usize, pos: u64) -> bool {
        let span = low(F::shift(level));
        let end = piece.last.min(self.last);
        piece.sizes & span.wrapping_add(1) != 0 && pos & span == 0 && end - pos >= span
    }

    /// How many entries at `level` from `pos` on can be leaves, up to the end of their table.
    fn run(&self, piece: &Piece, level: usize, pos: u64, table_end: u64) -> usize {
        let end = piece.last.min(self.last).min(table_end);
        let span = low(F::shift(level));
        // The difference, not the number of bytes: that may be 2^64.
        ((end - pos) >> F::shift(level)) as usize + usize::from(end & span == span)
    }

    /// Whether the range has every page of the table at `level` that begins at `start`, and each
    /// can be a leaf of that table.
    #[inline]
    fn fills(&self, piece: &Piece, level: usize, start: u64, end: u64) -> bool {
        let covered = start >= self.pos && end <= self.last;
        covered && (level == 1 || (piece.last >= end && self.fits(piece, level, start)))
    }
}

/// An entry of a table, and the position that it is for.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) table: Phys,
    pub(crate) level: usize,
    pub(crate) index: usize,
    pub(crate) pos: u64,
}

/// Frames for the tables that a map will need.
struct Reserve {
    zeroed: Vec<Fresh>,
    /// For tables that are written whole.
    to_fill: Vec<Fresh>,
}

/// How many of them.
#[derive(Clone, Copy, Default)]
struct Missing {
    zeroed: usize,
    to_fill: usize,
}

impl<F: Format, M: TableMem> Table<F, M> {
    /// Maps any range.
    pub(crate) fn map_any(&self, iova: u64, phys: Phys, len: u64, prot: Prot) -> Result<(), MapError> {
        let granule = 1 << F::GRANULE_BITS;
        if len == 0 {
            return Err(MapError::ZeroLength { iova });
        }
        if (iova | phys.0 | len) & (granule - 1) != 0 {
            return Err(MapError::Unaligned { iova, phys, len, granule });
        }
        let bits = self.input_bits;
        let (pos, last) = self.enter(iova, len).ok_or(MapError::InputRange { iova, len, bits })?;
        let bits = self.output_bits;
        if phys.0.checked_add(len - 1).is_none_or(|p| p > self.output_last) {
            return Err(MapError::OutputRange { phys, len, bits });
        }
        let template = self.format.template(prot).ok_or(MapError::Permissions { iova, prot })?;
        let piece = Piece::new(pos, last, phys, self.page_sizes);
        let request = Request { pos, last, template };
        if let Some(table) = self.leaf_table(pos, last) {
            let first = index::<F>(1, pos);
            let n = ((last - pos) >> F::GRANULE_BITS) as usize + 1;
            if self.empty_run(table, first, n) == n {
                let place = Place { table, level: 1, index: first, pos };
                self.fill(place, n, &request, &mut Whole(piece));
                self.mem.barrier();
                return Ok(());
            }
        }
        self.map_range(&request, &mut Whole(piece))
    }

    /// Maps a scatter list.
    pub(crate) fn map_segments(&self, iova: u64, segments: &[Segment], prot: Prot) -> Result<(), MapError> {
        let granule = 1 << F::GRANULE_BITS;
        let summary = match self.pages_only(iova, segments) {
            Some(summary) => Some(summary),
            None => self.summary(segments),
        };
        let Some(summary) = summary.filter(|_| iova & (granule - 1) == 0) else {
            return Err(self.wrong_segment(iova, segments));
        };
        let (bits, len) = (self.input_bits, summary.total);
        let (pos, last) = self.enter(iova, len).ok_or(MapError::InputRange { iova, len, bits })?;
        let template = self.format.template(prot).ok_or(MapError::Permissions { iova, prot })?;
        self.map_range(
            &Request { pos, last, template },
            &mut List::new(pos, segments, self.page_sizes, F::GRANULE_BITS, summary),
        )
    }

    /// What there is to know of a list of single pages in their place: most lists are, and then this
    /// is a few instructions for each.
    fn pages_only(&self, iova: u64, pages: &[Segment]) -> Option<Summary> {
        let granule = 1u64 << F::GRANULE_BITS;
        // Aligned addresses below a power of two: one with a bit that none may have is wrong.
        let (mut addresses, mut lengths) = (0, 0);
        for page in pages {
            addresses |= page.phys.0;
            lengths |= page.len ^ granule;
        }
        let good = lengths == 0 && addresses & !(self.output_last & !(granule - 1)) == 0;
        if !good || pages.is_empty() {
            return None;
        }
        // A larger leaf begins where both addresses are aligned to the smallest of its kind.
        let larger = self.page_sizes & !granule;
        let smallest = larger & larger.wrapping_neg();
        let first = (iova.wrapping_neg() & smallest.wrapping_sub(1)) >> F::GRANULE_BITS;
        let step = (smallest >> F::GRANULE_BITS).max(1) as usize;
        let candidates = pages.get(first as usize..).unwrap_or_default().chunks(step);
        let joins = larger != 0
            && candidates.into_iter().any(|run| match run {
                [a, b, ..] => a.phys.0 & (smallest - 1) == 0 && b.phys.0 == a.phys.0 + granule,
                _ => false,
            });
        Some(Summary { total: (pages.len() as u64).checked_mul(granule)?, longest: granule, joins })
    }

    /// What there is to know of any list, if it can be mapped.
    fn summary(&self, segments: &[Segment]) -> Option<Summary> {
        let granule = 1 << F::GRANULE_BITS;
        let (mut summary, mut end) = (Summary::default(), u64::MAX);
        for &Segment { phys, len } in segments {
            let last = phys.0.checked_add(len.checked_sub(1)?)?;
            if (phys.0 | len) & (granule - 1) != 0 || last > self.output_last {
                return None;
            }
            summary.total = summary.total.checked_add(len)?;
            summary.joins |= phys.0 == end;
            summary.longest = summary.longest.max(len);
            end = last.wrapping_add(1);
        }
        Some(summary).filter(|s| s.total > 0)
    }

    /// What is wrong with the first segment that cannot be mapped from `iova` on.
    #[cold]
    fn wrong_segment(&self, iova: u64, segments: &[Segment]) -> MapError {
        let granule = 1 << F::GRANULE_BITS;
        let mut at = iova;
        for &Segment { phys, len } in segments {
            if len == 0 {
                return MapError::ZeroLength { iova: at };
            }
            if (at | phys.0 | len) & (granule - 1) != 0 {
                return MapError::Unaligned { iova: at, phys, len, granule };
            }
            let bits = self.output_bits;
            if phys.0.checked_add(len - 1).is_none_or(|p| p > self.output_last) {
                return MapError::OutputRange { phys, len, bits };
            }
            match at.checked_add(len) {
                Some(next) => at = next,
                None => return MapError::InputRange { iova: at, len, bits: self.input_bits },
            }
        }
        MapError::ZeroLength { iova }
    }

    /// Maps what was checked to be aligned and in range.
    fn map_range<S: Source>(&self, request: &Request<F>, source: &mut S) -> Result<(), MapError> {
        let no_mem = MapError::NoMem { iova: self.iova(request.pos) };
        loop {
            let old = self.load_top();
            let Some(growth) = self.growth(old, request.last) else {
                return Err(no_mem);
            };
            let top = growth.top();
            let mut cursor = Cursor::at(top);
            source.rewind();
            let reserve = match self.plan(&mut cursor, request, source) {
                Ok(missing) => self.reserve(missing).ok_or(no_mem),
                Err(taken) => Err(taken),
            };
            let mut reserve = match reserve {
                Ok(reserve) => reserve,
                Err(e) => {
                    growth.abandon(self);
                    return Err(e);
                }
            };
            let grown = growth.commit(self);
            if grown {
                source.rewind();
                self.write(&mut Cursor::at(top), request, source, &mut reserve);
            }
            for frame in reserve.zeroed.into_iter().chain(reserve.to_fill) {
                self.mem.release(frame);
            }
            self.mem.barrier();
            if grown {
                return Ok(());
            }
        }
    }

    /// Makes sure that nothing is mapped in the range and counts the tables it lacks.
    fn plan<S: Source>(
        &self,
        cursor: &mut Cursor<F>,
        request: &Request<F>,
        source: &mut S,
    ) -> Result<Missing, MapError> {
        let mut missing = Missing::default();
        let mut pos = request.pos;
        loop {
            cursor.go(pos);
            let level = cursor.level();
            let end = match self.look(cursor, pos) {
                Some((Entry::Table(child), w)) => {
                    self.descend(cursor, pos, w, child);
                    continue;
                }
                Some((Entry::Leaf { base, size_bits }, _)) => {
                    return Err(MapError::AlreadyMapped {
                        iova: self.iova(pos),
                        phys: Phys(base.0 | (pos & low(size_bits))),
                    });
                }
                Some((Entry::Empty, _)) | None if level == 1 => {
                    // Whatever the pieces: what counts is that the entries are empty.
                    let end = request.last.min(cursor.table_end(pos));
                    let n = ((end - pos) >> F::GRANULE_BITS) as usize + 1;
                    let n = cursor.table().map_or(n, |t| self.empty_run(t, cursor.index(pos), n));
                    pos + (((n as u64) << F::GRANULE_BITS) - 1)
                }
                Some((Entry::Empty, _)) | None => {
                    let piece = if source.is_small(F::shift(2)) { Piece::SMALL } else { source.piece(pos) };
                    let (start, end) = (block_start(pos, F::shift(level)), block_end(pos, F::shift(level)));
                    if !request.fits(&piece, level, pos) {
                        match request.fills(&piece, level - 1, start, end) {
                            true => missing.to_fill += 1,
                            false => missing.zeroed += 1,
                        }
                        cursor.enter(None);
                        continue;
                    }
                    let n = request.run(&piece, level, pos, cursor.table_end(pos));
                    let n = cursor.table().map_or(n, |t| self.empty_run(t, cursor.index(pos), n));
                    pos + (((n as u64) << F::shift(level)) - 1)
                }
            };
            if end >= request.last {
                return Ok(missing);
            }
            pos = end + 1;
        }
    }

    /// Frames for the tables that are missing, or none at all.
    fn reserve(&self, missing: Missing) -> Option<Reserve> {
        let mut reserve = Reserve { zeroed: Vec::new(), to_fill: Vec::new() };
        let mut take = || -> Option<()> {
            reserve.zeroed.try_reserve_exact(missing.zeroed).ok()?;
            reserve.to_fill.try_reserve_exact(missing.to_fill).ok()?;
            for _ in 0..missing.zeroed {
                reserve.zeroed.push(self.mem.frames(Self::TABLE_ORDER).ok()?);
            }
            for _ in 0..missing.to_fill {
                reserve.to_fill.push(self.mem.frames_to_fill(Self::TABLE_ORDER).ok()?);
            }
            Some(())
        };
        if take().is_some() {
            return Some(reserve);
        }
        for frame in reserve.zeroed.into_iter().chain(reserve.to_fill) {
            self.mem.release(frame);
        }
        None
    }

    /// Writes what was planned. Another mapper may have installed tables since, which only leaves
    /// frames over. Where the caller does not own the range after all, entries of others stay as
    /// they are.
    fn write<S: Source>(
        &self,
        cursor: &mut Cursor<F>,
        request: &Request<F>,
        source: &mut S,
        reserve: &mut Reserve,
    ) {
        let mut pos = request.pos;
        loop {
            cursor.go(pos);
            let level = cursor.level();
            let Some(table) = cursor.table() else {
                // Unreachable: only tables that are there are entered.
                return;
            };
            let place = Place { table, level, index: cursor.index(pos), pos };
            let end = if level == 1 {
                let end = request.last.min(cursor.table_end(pos));
                self.fill(place, ((end - pos) >> F::GRANULE_BITS) as usize + 1, request, source);
                end
            } else {
                let w = self.load(table, place.index);
                match self.format.decode(level, w) {
                    Entry::Table(child) => {
                        self.descend(cursor, pos, w, child);
                        continue;
                    }
                    Entry::Leaf { size_bits, .. } => block_end(pos, size_bits),
                    Entry::Empty => {
                        let piece = source.piece(pos);
                        if request.fits(&piece, level, pos) {
                            let n = request.run(&piece, level, pos, cursor.table_end(pos));
                            let n = self.empty_run(table, place.index, n);
                            self.fill(place, n, request, &mut Whole(piece));
                            pos + (((n as u64) << F::shift(level)) - 1)
                        } else {
                            match self.install(place, w, request, source, reserve) {
                                Some(end) => end,
                                None => continue,
                            }
                        }
                    }
                }
            };
            if end >= request.last {
                return;
            }
            pos = end + 1;
        }
    }

    /// Puts a table into the empty entry for `pos`. A table that the range fills is filled before
    /// any walker sees it: then what was mapped ends at the position returned. Otherwise the entry
    /// is to be looked at again.
    fn install<S: Source>(
        &self,
        place: Place,
        empty: F::Word,
        request: &Request<F>,
        source: &mut S,
        reserve: &mut Reserve,
    ) -> Option<u64> {
        let Place { table, level, index, pos } = place;
        let (start, end) = (block_start(pos, F::shift(level)), block_end(pos, F::shift(level)));
        let full = request.fills(&source.piece(pos), level - 1, start, end);
        let frame = if full { reserve.to_fill.pop() } else { reserve.zeroed.pop() };
        let Some(mut frame) = frame else {
            return Some(end);
        };
        let child = frame.phys();
        if full {
            self.fill_private(&mut frame, level - 1, start, request, source);
        }
        self.clean(child, 0..entries::<F>());
        self.clean_barrier();
        let w = self.format.table(level, child);
        match self.cas(table, index, empty, w) {
            Ok(()) => {
                frame.publish();
                self.settle(table, index, w);
                full.then_some(end)
            }
            // Not our range: what was taken from the source is lost.
            Err(_) if full => {
                self.mem.release(frame);
                Some(end)
            }
            Err(_) => {
                reserve.zeroed.push(frame);
                None
            }
        }
    }

    /// How many of the `n` entries from `first` on are empty, up to the first that is not.
    #[inline]
    fn empty_run(&self, table: Phys, first: usize, n: usize) -> usize {
        let mut any = F::Word::default();
        self.run(table, first..first + n, |_, a| any = any | F::Word::load(a));
        if !Self::is_present(any) {
            return n;
        }
        let mut empty = n;
        self.run(table, first..first + n, |i, a| {
            if i - first < empty && Self::is_present(F::Word::load(a)) {
                empty = i - first;
            }
        });
        empty
    }

    /// Goes down into `child`, found in the entry `w` for `pos`.
    fn descend(&self, cursor: &mut Cursor<F>, pos: u64, w: F::Word, child: Phys) {
        if let Some(table) = cursor.table() {
            self.settle(table, cursor.index(pos), w);
        }
        cursor.enter(Some(child));
    }
}
