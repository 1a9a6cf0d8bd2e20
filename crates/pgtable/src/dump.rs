//! Reading a table out of an image of memory: what it maps, and what is wrong with it.
//!
//! Nothing here trusts the image. Every table is read once, so that tables which lead to each other
//! end, and what lies outside of the image is a finding.

use crate::{
    cursor::{entries, low},
    format::{Config, Entry, Format},
    mem::{Phys, Word},
    table::{Prot, Top},
};
use alloc::{collections::BTreeSet, vec::Vec};
use core::fmt;

/// Memory that was saved, such as QEMU's `pmemsave` writes.
pub trait Image {
    /// The `bytes` (4 or 8) at an address, little-endian; `None` outside of the image.
    fn load(&self, address: u64, bytes: usize) -> Option<u64>;
}

/// An image that begins at an address.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a> {
    /// Physical address of the first byte.
    pub base: u64,
    /// What was saved.
    pub bytes: &'a [u8],
}

impl Image for Bytes<'_> {
    fn load(&self, address: u64, bytes: usize) -> Option<u64> {
        let start = usize::try_from(address.checked_sub(self.base)?).ok()?;
        let word = self.bytes.get(start..start.checked_add(bytes)?)?;
        let mut all = [0; 8];
        all.get_mut(..bytes)?.copy_from_slice(word);
        Some(u64::from_le_bytes(all))
    }
}

/// Leaves of the same size and permissions that continue one another on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// First position: an IOVA's low bits.
    pub first: u64,
    /// Last position.
    pub last: u64,
    /// What the first one translates to.
    pub phys: Phys,
    /// Bytes of each leaf.
    pub leaf_size: u64,
    /// What they allow.
    pub prot: Prot,
}

impl fmt::Display for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mapped { first, last, phys, leaf_size, prot } = self;
        write!(f, "{first:#014x}-{last:#014x} -> {phys} leaves of {leaf_size:#x} {prot:?}")
    }
}

impl Mapped {
    /// One JSON object; numbers are strings in hexadecimal, since they have up to 64 bits.
    pub fn json(&self) -> impl fmt::Display + '_ {
        struct Json<'a>(&'a Mapped);
        impl fmt::Display for Json<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Mapped { first, last, phys, leaf_size, prot } = self.0;
                write!(f, r#"{{"first":"{first:#x}","last":"{last:#x}","phys":"{phys}","#)?;
                write!(f, r#""leaf_size":"{leaf_size:#x}","prot":{}}}"#, prot.bits())
            }
        }
        Json(self)
    }
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// The entry itself is not in the image.
    #[error("outside of the image")]
    Outside,
    /// The table that it leads to was reached before.
    #[error("leads to {0}, which is in the tree already")]
    Again(Phys),
    /// It has bits that the format would not write for what it means: reserved ones, address bits
    /// below the size of the leaf, or those of other software.
    #[error("has unexpected bits {0:#x}")]
    Bits(u64),
    /// It is present, and means nothing at this level.
    #[error("means nothing at this level")]
    Reserved,
    /// The format has no leaf of this size.
    #[error("is a leaf of {0:#x} bytes, which the format does not have")]
    Size(u64),
    /// It is part of a leaf of several entries, and others of them say something else.
    #[error("is part of a leaf of {0:#x} bytes that its neighbours are not part of")]
    Torn(u64),
}

/// Something wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Address of the entry.
    pub entry: Phys,
    /// Level of its table, 1 for the smallest pages.
    pub level: usize,
    /// First position that it is for.
    pub pos: u64,
    /// Its bits.
    pub word: u64,
    /// What is wrong.
    pub what: Wrong,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { entry, level, pos, word, what } = self;
        write!(f, "{pos:#014x}: level {level} entry {word:#x} at {entry} {what}")
    }
}

impl Finding {
    /// One JSON object; see [`Mapped::json`].
    pub fn json(&self) -> impl fmt::Display + '_ {
        struct Json<'a>(&'a Finding);
        impl fmt::Display for Json<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Finding { entry, level, pos, word, what } = self.0;
                write!(f, r#"{{"entry":"{entry}","level":{level},"first":"{pos:#x}","#)?;
                write!(f, r#""word":"{word:#x}","wrong":"{what}"}}"#)
            }
        }
        Json(self)
    }
}

/// Reads the table of format `F` that begins at `top`, for walkers as `config` says: calls `mapped`
/// with what it maps, in order, and `wrong` with what is wrong. Allocates a little for each table.
pub fn read<F: Format>(
    image: &dyn Image,
    top: Top,
    config: &Config,
    mapped: &mut dyn FnMut(Mapped),
    wrong: &mut dyn FnMut(Finding),
) {
    let levels = top.levels.clamp(F::MIN_LEVELS, F::MAX_LEVELS);
    let input_bits =
        u32::from(config.input_bits.min(F::INPUT_BITS)).min(F::shift(levels + 1) + F::ROOT_EXTRA_BITS);
    let index_bits = input_bits.saturating_sub(F::shift(levels));
    let mut walk = Reading::<F> {
        image,
        format: F::new(&Config { input_bits: input_bits as u8, ..*config }),
        seen: BTreeSet::from([top.root]),
        run: None,
        mapped,
        wrong,
    };
    walk.table(
        top.root,
        levels,
        0,
        1 << index_bits.min(F::TABLE_BITS + F::ROOT_EXTRA_BITS - F::Word::BYTES.ilog2()),
    );
    if let Some(run) = walk.run.take() {
        (walk.mapped)(run);
    }
}

struct Reading<'a, F> {
    image: &'a dyn Image,
    format: F,
    seen: BTreeSet<Phys>,
    /// What was found last and may go on.
    run: Option<Mapped>,
    mapped: &'a mut dyn FnMut(Mapped),
    wrong: &'a mut dyn FnMut(Finding),
}

impl<F: Format> Reading<'_, F> {
    /// Reads `n` entries of a table. The depth is that of the walk.
    fn table(&mut self, table: Phys, level: usize, base: u64, n: usize) {
        let address = |i: usize| Phys(table.0.wrapping_add((i * F::Word::BYTES) as u64));
        let words: Vec<Option<F::Word>> =
            (0..n).map(|i| self.image.load(address(i).0, F::Word::BYTES).map(F::Word::from_bits)).collect();
        let mut i = 0;
        while i < n {
            let pos = base | (i as u64) << F::shift(level);
            let entry = address(i);
            let Some(w) = words[i] else {
                // The rest of the table is outside too, or the image has a hole: say it once.
                (self.wrong)(Finding { entry, level, pos, word: 0, what: Wrong::Outside });
                return;
            };
            let word: u64 = w.into();
            let finding = |what| Finding { entry, level, pos, word, what };
            i += 1;
            match self.format.decode(level, w) {
                Entry::Empty if w & F::PRESENT != F::Word::default() => {
                    (self.wrong)(finding(Wrong::Reserved))
                }
                Entry::Empty => {}
                Entry::Table(child) => {
                    let ours = self.format.table(level, child);
                    let ours: u64 = self.format.settle(ours).into();
                    let odd = word & !ours;
                    if odd != 0 {
                        (self.wrong)(finding(Wrong::Bits(odd)));
                    }
                    if self.seen.insert(child) {
                        self.table(child, level - 1, pos, entries::<F>());
                    } else {
                        (self.wrong)(finding(Wrong::Again(child)));
                    }
                }
                Entry::Leaf { base: phys, size_bits } => {
                    let shift = F::shift(level);
                    let count = 1usize << (size_bits - shift);
                    if self.format.leaf_sizes() & 1 << size_bits == 0 {
                        (self.wrong)(finding(Wrong::Size(1 << size_bits)));
                    }
                    // The first entry of the leaf, and all of them.
                    let first = i - 1;
                    let same = |n: usize| {
                        let w = words.get(first + n).copied().flatten()?;
                        let like = self.format.decode(level, w) == self.format.decode(level, words[first]?);
                        (like && self.format.prot(w) == self.format.prot(words[first]?)).then_some(())
                    };
                    if first % count != 0 || (0..count).any(|n| same(n).is_none()) {
                        (self.wrong)(finding(Wrong::Torn(1 << size_bits)));
                        continue;
                    }
                    for n in 0..count {
                        let Some(w) = words[first + n] else { continue };
                        let phys = Phys(phys.0 | (n as u64) << shift);
                        let ours = self.format.leaf(self.format.attributes(level, w), level, phys, size_bits);
                        let odd: u64 = w.into() ^ ours.into();
                        if odd != 0 {
                            let pos = pos + ((n as u64) << shift);
                            let entry = address(first + n);
                            let word = w.into();
                            (self.wrong)(Finding { entry, level, pos, word, what: Wrong::Bits(odd) });
                        }
                    }
                    i = first + count;
                    let last = pos | low(size_bits);
                    self.found(Mapped {
                        first: pos,
                        last,
                        phys,
                        leaf_size: 1 << size_bits,
                        prot: self.format.prot(w),
                    });
                }
            }
        }
    }

    /// Adds a leaf to what goes on, or begins anew.
    fn found(&mut self, leaf: Mapped) {
        if let Some(run) = &mut self.run {
            let more = run.last.wrapping_sub(run.first).wrapping_add(1);
            let goes_on = run.last.checked_add(1) == Some(leaf.first)
                && run.phys.0.wrapping_add(more) == leaf.phys.0
                && (run.leaf_size, run.prot) == (leaf.leaf_size, leaf.prot);
            if goes_on {
                run.last = leaf.last;
                return;
            }
            (self.mapped)(*run);
        }
        self.run = Some(leaf);
    }
}
