//! How an address range is put into an invalidation.

/// Most low page-number bits that a range can mask: the whole address space.
const MAX_PAGES_LOG2: u8 = 52;

/// The smallest address mask (AM) whose aligned region holds every page from the one of `first` to
/// the one of `last` (`[V]` table 22). At most 52; hardware takes at most CAP.MAMV for the second
/// stage.
#[must_use]
pub const fn address_mask(first: u64, last: u64) -> u8 {
    (u64::BITS - ((first ^ last) >> 12).leading_zeros()) as u8
}

/// First address of the aligned region of 2^`am` pages that holds `address` (`[V]` table 22).
#[must_use]
pub const fn masked_base(address: u64, am: u8) -> u64 {
    if am >= MAX_PAGES_LOG2 { 0 } else { address >> (12 + am) << (12 + am) }
}

/// The ADDR and S fields that name the aligned region of 2^`pages_log2` pages holding `address`, for
/// a device-TLB invalidation (`[V]` 6.5.2.5, PCI Express ATS). S set means more than one page; the
/// lowest zero bit of the page number then gives the size. 52 or more names the whole address space,
/// which is ADDR 0x7FFF_FFFF_FFFF_F000 with S (`[V]` 6.5.3.3).
#[must_use]
pub const fn dev_tlb_range(address: u64, pages_log2: u8) -> (u64, bool) {
    let log2 = if pages_log2 > MAX_PAGES_LOG2 { MAX_PAGES_LOG2 } else { pages_log2 };
    if log2 == 0 {
        return (address >> 12 << 12, false);
    }
    let ones = (1u64 << (log2 - 1)) - 1;
    (masked_base(address, log2) | ones << 12, true)
}

/// The base address and the size, as a power of two of pages, that ADDR and S name: the inverse of
/// [`dev_tlb_range`]. A page number of all ones, which names no size, is read as the whole address
/// space.
#[must_use]
pub const fn dev_tlb_size(address: u64, s: bool) -> (u64, u8) {
    if !s {
        return (address >> 12 << 12, 0);
    }
    let ones = (address >> 12).trailing_ones() as u8;
    let log2 = if ones >= MAX_PAGES_LOG2 { MAX_PAGES_LOG2 } else { ones + 1 };
    (masked_base(address, log2), log2)
}
