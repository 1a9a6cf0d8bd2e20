//! Tables in memory, word for word, against what the manuals say of each field.
//!
//! What is expected is written in the manuals' own terms: lists of fields with their bits and the
//! values that a manual gives them. None of it is composed by the formats, and the walk from the root
//! to the word uses the manuals' numbers.

mod amd;
mod arm;
mod riscv;
mod rockchip;
mod x86;

use portcullis_pgtable::{Config, Format, IoTable, Phys, Prot, Table, TableMem, testing::HeapMem};

const READ: Prot = Prot::READ;
const WRITE: Prot = Prot::WRITE;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const RX: Prot = Prot::READ.union(Prot::EXEC);
const RWX: Prot = RW.union(Prot::EXEC);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// A field as a manual's table gives it: its highest bit, its lowest bit, and its value.
type Field = (u32, u32, u64);

/// The word with these fields, and zeros elsewhere.
fn word(fields: &[Field]) -> u64 {
    let (mut w, mut taken) = (0, 0);
    for &(high, low, value) in fields {
        let mask = u64::MAX >> (63 - high) & u64::MAX << low;
        assert_eq!(value << low & !mask, 0, "{value:#x} is too large for bits {high}:{low}");
        assert_eq!(taken & mask, 0, "bits {high}:{low} are in two fields");
        taken |= mask;
        w |= value << low;
    }
    w
}

/// Bits `high` to `low` of an address.
fn bits(address: u64, high: u32, low: u32) -> u64 {
    address << (63 - high) >> (63 - high + low)
}

/// Fields of one list and of another.
fn and(a: &[Field], b: &[Field]) -> Vec<Field> {
    [a, b].concat()
}

/// How an input address is taken apart, by the manual's tables of levels.
struct Shape {
    /// The smallest page has 2^`page` bytes.
    page: u32,
    /// Bits that a table resolves.
    stride: u32,
    /// Bits that the root may resolve besides.
    more: u32,
    /// Bytes of an entry.
    entry: usize,
    /// The address of the table that a word leads to.
    next: fn(u64) -> u64,
}

/// A table with one range mapped.
struct Mapped<F: Format> {
    mem: HeapMem,
    table: Table<F, HeapMem>,
    iova: u64,
}

impl<F: Format> Mapped<F> {
    fn new(config: Config, iova: u64, phys: u64, len: u64, prot: Prot) -> Mapped<F> {
        let mem = HeapMem::new(1024);
        let table = Table::<F, _>::new(mem.clone(), config).unwrap();
        table.map(iova, Phys(phys), len, prot).unwrap();
        Mapped { mem, table, iova }
    }

    /// The words that a walk for the address meets, down to a table of `level`, 1 for the lowest.
    fn walk(&self, shape: &Shape, level: usize) -> Vec<u64> {
        let top = self.table.top();
        let pos = self.iova & u64::MAX >> (64 - self.table.desc().input_bits);
        let mut at = top.root.0;
        let mut words = Vec::new();
        for l in (level..=top.levels).rev() {
            let more = if l == top.levels { shape.more } else { 0 };
            let shift = shape.page + shape.stride * (l as u32 - 1);
            let index = pos.checked_shr(shift).unwrap_or(0) & u64::MAX >> (64 - shape.stride - more);
            let byte = index as usize * shape.entry;
            let frame = Phys(at + (byte & !0xfff) as u64);
            let w: F::Word = self.mem.load(frame, byte % 4096 / shape.entry);
            words.push(w.into());
            at = (shape.next)(w.into());
        }
        words
    }

    /// The word that maps the address, in a table of `level`; all above it are `tables`, but for the
    /// addresses that they lead to.
    fn leaf(&self, shape: &Shape, level: usize, tables: u64) -> u64 {
        let mut words = self.walk(shape, level);
        let leaf = words.pop().unwrap();
        for w in words {
            assert_eq!(w & !(shape.next)(w), tables, "{w:#x}");
        }
        leaf
    }
}

/// The word of a table of `level` that maps `iova` where that alone is mapped to `phys`.
fn leaf<F: Format>(
    config: Config,
    shape: &Shape,
    (level, tables): (usize, u64),
    (iova, phys, len, prot): (u64, u64, u64, Prot),
) -> u64 {
    Mapped::<F>::new(config, iova, phys, len, prot).leaf(shape, level, tables)
}

/// The leaf sizes of a table, which are those of a manual's table and no others.
fn sizes<F: Format>(config: Config) -> Vec<u64> {
    let table = Table::<F, _>::new(HeapMem::new(64), config).unwrap();
    let all = table.desc().page_sizes;
    (0..64).map(|n| 1 << n).filter(|size| all & size != 0).collect()
}

/// Levels of a walk over `input_bits`, and bytes of its root, which is aligned to them.
fn root<F: Format>(config: Config) -> (usize, usize) {
    let mem = HeapMem::new(512);
    let table = Table::<F, _>::new(mem.clone(), config).unwrap();
    let bytes = mem.in_use() * 4096;
    assert_eq!(table.root().0 % bytes as u64, 0, "a root is aligned to its size");
    (table.top().levels, bytes)
}

#[test]
fn fields_are_put_where_they_belong() {
    assert_eq!(word(&[(63, 63, 1), (51, 12, 0x12345), (0, 0, 1)]), 0x8000_0000_1234_5001);
    assert_eq!(word(&[(63, 0, u64::MAX)]), u64::MAX);
    assert_eq!(bits(0xfedc_ba98_7654_3210, 51, 48), 0xc);
    assert_eq!(bits(u64::MAX, 63, 0), u64::MAX);
}
