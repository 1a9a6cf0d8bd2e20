//! Writing leaves: into a table that is walked, or into one that is not linked yet.

use crate::{
    cursor::{block_end, entries, low},
    engine::Table,
    format::Format,
    map::{Place, Request},
    mem::{Fresh, Phys, TableMem, Word},
    source::Source,
};

impl<F: Format, M: TableMem> Table<F, M> {
    /// Writes `n` entries from `place` on.
    #[inline]
    pub(crate) fn fill<S: Source>(&self, place: Place, n: usize, request: &Request<F>, source: &mut S) {
        let Place { table, level, index: first, pos } = place;
        let step = F::shift(level);
        if S::SCATTERED {
            let last = pos + (((n as u64) << step) - 1);
            if let Some(pages) = source.pages(pos, n) {
                let mut pages = pages.iter();
                self.run(table, first..first + n, |_, a| {
                    if let Some(page) = pages.next() {
                        let w = self.format.leaf(request.template, 1, page.phys, F::GRANULE_BITS);
                        F::Word::store(a, w);
                    }
                });
            } else {
                let mut words = Words::new(self, request.template, source, pos, last);
                self.run(table, first..first + n, |_, a| F::Word::store(a, words.next()));
            }
        } else {
            let piece = source.piece(pos);
            let mut done = 0;
            while done < n {
                let at = pos + ((done as u64) << step);
                let (count, size_bits) = chunk::<F>(piece.sizes, level, at, n - done);
                let start = first + done;
                let phys = piece.phys(at).0;
                let leaf = |i: usize| {
                    let phys = Phys(phys + (((i - start) as u64) << step));
                    self.format.leaf(request.template, level, phys, size_bits)
                };
                let count = if size_bits == step { self.linear_run(phys, step, count) } else { count };
                if count == 1 {
                    self.store(table, start, leaf(start));
                } else if size_bits == step {
                    let mut w = leaf(start);
                    let more = leaf(start + 1).minus(w);
                    self.run(table, start..start + count, |_, a| {
                        F::Word::store(a, w);
                        w = w.plus(more);
                    });
                } else {
                    self.run(table, start..start + count, |i, a| F::Word::store(a, leaf(i)));
                }
                done += count;
            }
        }
        self.clean(table, first..first + n);
    }

    /// Fills a whole table at `level` from `start` on.
    pub(crate) fn fill_private<S: Source>(
        &self,
        frame: &mut Fresh,
        level: usize,
        start: u64,
        request: &Request<F>,
        source: &mut S,
    ) {
        let step = F::shift(level);
        let n = entries::<F>();
        if S::SCATTERED && level == 1 {
            if let Some(pages) = source.pages(start, n) {
                let leaf = |i: usize| {
                    let phys = pages.get(i).map_or(Phys(0), |page| page.phys);
                    self.format.leaf(request.template, 1, phys, F::GRANULE_BITS)
                };
                self.mem.fill_private(frame, 0..n, leaf);
            } else {
                let last = start + (((n as u64) << step) - 1);
                let mut words = Words::new(self, request.template, source, start, last);
                self.mem.fill_private(frame, 0..n, |_| words.next());
            }
            return;
        }
        // Above pages, one piece holds the whole table.
        let piece = source.piece(start);
        let mut done = 0;
        while done < n {
            let at = start + ((done as u64) << step);
            let (count, size_bits) = chunk::<F>(piece.sizes, level, at, n - done);
            let phys = piece.phys(at).0;
            let leaf = |i: usize| {
                let phys = Phys(phys + (((i - done) as u64) << step));
                self.format.leaf(request.template, level, phys, size_bits)
            };
            let count = if size_bits == step { self.linear_run(phys, step, count) } else { count };
            if size_bits == step && count > 1 {
                let mut w = leaf(done);
                let more = leaf(done + 1).minus(w);
                self.mem.fill_private(frame, done..done + count, |_| {
                    let now = w;
                    w = w.plus(more);
                    now
                });
            } else {
                self.mem.fill_private(frame, done..done + count, leaf);
            }
            done += count;
        }
    }
}

impl<F: Format, M: TableMem> Table<F, M> {
    /// How many of `n` leaves of 2^`step` bytes from `phys` on differ by the same number.
    #[inline]
    fn linear_run(&self, phys: u64, step: u32, n: usize) -> usize {
        let left = block_end(phys, self.format.linear_bits()) - phys;
        n.min((left >> step) as usize + 1)
    }
}

/// Entries of a table of pages for one position after the other, out of a scattered source.
struct Words<'a, F: Format, S: Source> {
    format: &'a F,
    template: F::Word,
    source: &'a mut S,
    pos: u64,
    last: u64,
    /// Entries left of leaves of the same size, and the address of the next.
    left: usize,
    phys: u64,
    size_bits: u32,
}

impl<'a, F: Format, S: Source> Words<'a, F, S> {
    fn new<M: TableMem>(
        table: &'a Table<F, M>,
        template: F::Word,
        source: &'a mut S,
        pos: u64,
        last: u64,
    ) -> Words<'a, F, S> {
        Words { format: &table.format, template, source, pos, last, left: 0, phys: 0, size_bits: 0 }
    }

    #[inline]
    fn next(&mut self) -> F::Word {
        if self.left == 0 {
            let piece = self.source.piece(self.pos);
            let n = ((piece.last.min(self.last) - self.pos) >> F::GRANULE_BITS) as usize + 1;
            (self.left, self.size_bits) = chunk::<F>(piece.sizes, 1, self.pos, n);
            self.phys = piece.phys(self.pos).0;
        }
        let w = self.format.leaf(self.template, 1, Phys(self.phys), self.size_bits);
        self.left -= 1;
        self.phys = self.phys.wrapping_add(1 << F::GRANULE_BITS);
        self.pos = self.pos.wrapping_add(1 << F::GRANULE_BITS);
        w
    }
}

/// The number of entries, at most `n`, that leaves of one of `sizes` fill from `pos` on, and that
/// size.
#[inline]
fn chunk<F: Format>(sizes: u64, level: usize, pos: u64, n: usize) -> (usize, u32) {
    let shift = F::shift(level);
    let mut sizes = sizes & low(F::shift(level + 1)) & !low(shift + 1);
    // Larger leaves may become possible at the next entry.
    let mut count = n;
    while let Some(bits) = sizes.checked_ilog2() {
        let each = 1 << (bits - shift);
        if pos & low(bits) == 0 && n >= each {
            return (if count == n { n / each * each } else { each }, bits);
        }
        count = 1;
        sizes &= low(bits);
    }
    (count, shift)
}
