//! Speck, a small block cipher: a keyed permutation of 32 or 64 bits. Cookies are made with it, so
//! that who has seen some of them can tell nothing about the others. (Beaulieu and others, "The
//! Simon and Speck Families of Lightweight Block Ciphers", 2013.)

/// Bits of what is permuted: two words of half as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Speck32/64.
    Bits32,
    /// Speck64/128.
    Bits64,
}

impl Block {
    pub(crate) const fn bits(self) -> u32 {
        match self {
            Block::Bits32 => 32,
            Block::Bits64 => 64,
        }
    }

    /// The two rotations of a round.
    const fn rotations(self) -> (u32, u32) {
        match self {
            Block::Bits32 => (7, 2),
            Block::Bits64 => (8, 3),
        }
    }

    const fn rounds(self) -> usize {
        match self {
            Block::Bits32 => 22,
            Block::Bits64 => 27,
        }
    }

    const fn mask(self) -> u64 {
        (1 << (self.bits() / 2)) - 1
    }

    fn left(self, x: u64, n: u32) -> u64 {
        (x << n | x >> (self.bits() / 2 - n)) & self.mask()
    }

    fn right(self, x: u64, n: u32) -> u64 {
        self.left(x, self.bits() / 2 - n)
    }

    fn round(self, (x, y): (u64, u64), key: u64) -> (u64, u64) {
        let (a, b) = self.rotations();
        let x = (self.right(x, a).wrapping_add(y) & self.mask()) ^ key;
        (x, self.left(y, b) ^ x)
    }

    fn round_back(self, (x, y): (u64, u64), key: u64) -> (u64, u64) {
        let (a, b) = self.rotations();
        let y = self.right(x ^ y, b);
        (self.left((x ^ key).wrapping_sub(y) & self.mask(), a), y)
    }
}

/// A permutation of the numbers below 2^32 or 2^64.
pub(crate) struct Speck {
    block: Block,
    keys: [u64; Block::Bits64.rounds()],
}

impl Speck {
    /// The permutation under a key of four words, the first round's first. Bits beyond a word are
    /// not used.
    pub(crate) fn new(block: Block, key: [u64; 4]) -> Speck {
        let [mut k, mut l0, mut l1, mut l2] = key.map(|w| w & block.mask());
        let mut keys = [0; Block::Bits64.rounds()];
        for (i, slot) in (0u64..).zip(&mut keys[..block.rounds()]) {
            *slot = k;
            let (l, next) = block.round((l0, k), i);
            (l0, l1, l2, k) = (l1, l2, l, next);
        }
        Speck { block, keys }
    }

    pub(crate) fn block(&self) -> Block {
        self.block
    }

    pub(crate) fn seal(&self, n: u64) -> u64 {
        let keys = &self.keys[..self.block.rounds()];
        self.join(keys.iter().fold(self.split(n), |halves, k| self.block.round(halves, *k)))
    }

    pub(crate) fn open(&self, n: u64) -> u64 {
        let keys = &self.keys[..self.block.rounds()];
        self.join(keys.iter().rev().fold(self.split(n), |halves, k| self.block.round_back(halves, *k)))
    }

    fn split(&self, n: u64) -> (u64, u64) {
        ((n >> (self.block.bits() / 2)) & self.block.mask(), n & self.block.mask())
    }

    fn join(&self, (x, y): (u64, u64)) -> u64 {
        x << (self.block.bits() / 2) | y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of the paper's appendix C.
    #[test]
    fn the_published_vectors() {
        let small = Speck::new(Block::Bits32, [0x0100, 0x0908, 0x1110, 0x1918]);
        assert_eq!(small.seal(0x6574_694c), 0xa868_42f2);
        let large = Speck::new(Block::Bits64, [0x0302_0100, 0x0b0a_0908, 0x1312_1110, 0x1b1a_1918]);
        assert_eq!(large.seal(0x3b72_6574_7475_432d), 0x8c6f_a548_454e_028b);
    }

    #[test]
    fn what_is_sealed_opens_again() {
        for block in [Block::Bits32, Block::Bits64] {
            let speck = Speck::new(block, [3, 5, 7, 9]);
            for n in (0..=u64::MAX >> (64 - block.bits())).step_by(1 << (block.bits() - 8)) {
                assert_eq!(speck.open(speck.seal(n)), n, "{block:?}");
            }
        }
    }
}
