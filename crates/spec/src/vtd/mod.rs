//! Intel VT-d, `[V]` revision 5.10.

#[macro_use]
mod encoding;
mod field;

pub mod context;
pub mod fault;
pub mod page_req;
pub mod pasid;
pub mod private_data;
pub mod qi;
pub mod regs;
pub mod root;

/// First address of the interrupt address range 0xFEEx_xxxx (`[V]` 3.15).
pub const INTERRUPT_RANGE_START: u64 = 0xFEE0_0000;
/// Last address of the interrupt address range, inclusive (`[V]` 3.15).
pub const INTERRUPT_RANGE_LAST: u64 = 0xFEEF_FFFF;

/// Whether `address` lies in the interrupt address range (`[V]` 3.15).
#[must_use]
pub const fn in_interrupt_range(address: u64) -> bool {
    address >= INTERRUPT_RANGE_START && address <= INTERRUPT_RANGE_LAST
}

encoding! {
    /// Adjusted guest address width of a second-stage table, as the AW fields of the context entry
    /// and of the PASID table entry encode it (`[V]` 9.3, 9.6). The code is also the number of the
    /// bit that announces it in CAP.SAGAW (`[V]` 11.4.2).
    Agaw {
        /// 39 bits, 3 levels.
        Bits39 = 1,
        /// 48 bits, 4 levels.
        Bits48 = 2,
        /// 57 bits, 5 levels.
        Bits57 = 3,
    }
}

impl Agaw {
    /// Width of the input address in bits.
    #[must_use]
    pub const fn width(self) -> u32 {
        30 + 9 * self.bits() as u32
    }

    /// Levels of the page table.
    #[must_use]
    pub const fn levels(self) -> u32 {
        2 + self.bits() as u32
    }
}

/// A 128-bit value of two quadwords.
#[must_use]
pub const fn join(low: u64, high: u64) -> u128 {
    (high as u128) << 64 | low as u128
}

/// The two quadwords of a 128-bit value, low one first.
#[must_use]
pub const fn split(value: u128) -> [u64; 2] {
    [value as u64, (value >> 64) as u64]
}
