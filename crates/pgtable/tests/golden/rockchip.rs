//! Rockchip's second version. No manual is public: the layout is that of Linux's driver.

use super::*;
use portcullis_pgtable::RockchipV2;

/// An address as both kinds of entries have it: 31:12, then 35:32 in 11:8 and 39:36 in 7:4.
fn address(a: u64) -> Vec<Field> {
    vec![(31, 12, bits(a, 31, 12)), (11, 8, bits(a, 35, 32)), (7, 4, bits(a, 39, 36))]
}

const SHAPE: Shape = Shape {
    page: 12,
    stride: 10,
    more: 0,
    entry: 4,
    next: |w| bits(w, 31, 12) << 12 | bits(w, 11, 8) << 32 | bits(w, 7, 4) << 36,
};

#[test]
fn entries() {
    assert_eq!(sizes::<RockchipV2>(Config::default()), [4 * KIB]);
    assert_eq!(root::<RockchipV2>(Config::default()), (2, 4096));
    for phys in [0, 0x1234_5000, 0xf_8765_4000, 0xab_1234_5000, 0xff_ffff_f000] {
        // Bit 0: valid; bit 1: readable; bit 2: writable.
        for (prot, flags) in [(READ, 0b011), (WRITE, 0b101), (RW, 0b111)] {
            let at = (0xfedc_b000, phys, 4 * KIB, prot);
            // Of an entry of the directory only the valid bit is set.
            let w = leaf::<RockchipV2>(Config::default(), &SHAPE, (1, 0b1), at);
            assert_eq!(w, word(&and(&address(phys), &[(2, 0, flags)])), "{w:#x}");
        }
    }
    let table = RockchipV2::new(&Config::default()).table(2, Phys(0x98_7654_3000));
    assert_eq!(u64::from(table), word(&and(&address(0x98_7654_3000), &[(0, 0, 1)])));
}
