//! Conversions between a field's bits and the value that callers use. What does not fit is dropped,
//! as a register would drop it, so no value can panic here.

/// Page frame bits of a `u64` structure to a byte address.
pub(super) const fn address_from_u64(frame: u64) -> u64 {
    frame << 12
}

/// Byte address to page frame bits of a `u64` structure.
pub(super) const fn address_to_u64(address: u64) -> u64 {
    address >> 12
}

/// Page frame bits of a `u128` structure to a byte address.
pub(super) const fn address_from_u128(frame: u128) -> u64 {
    (frame as u64) << 12
}

/// Byte address to page frame bits of a `u128` structure.
pub(super) const fn address_to_u128(address: u64) -> u128 {
    (address >> 12) as u128
}

/// 20 bits of a PASID.
pub(super) const fn pasid_from_u128(bits: u128) -> u32 {
    bits as u32
}

/// A PASID to its 20 bits.
pub(super) const fn pasid_to_u128(pasid: u32) -> u128 {
    (pasid & 0xF_FFFF) as u128
}

/// 9 bits of a page request group index.
pub(super) const fn prgi_from_u128(bits: u128) -> u16 {
    bits as u16
}

/// A page request group index to its 9 bits.
pub(super) const fn prgi_to_u128(index: u16) -> u128 {
    (index & 0x1FF) as u128
}

/// Aligned DWORD address bits of a `u128` structure to a byte address.
pub(super) const fn dword_from_u128(bits: u128) -> u64 {
    (bits as u64) << 2
}

/// Byte address to aligned DWORD address bits of a `u128` structure.
pub(super) const fn dword_to_u128(address: u64) -> u128 {
    (address >> 2) as u128
}

/// Aligned DWORD address bits of a `u32` register to a byte address.
pub(super) const fn dword_from_u32(bits: u32) -> u32 {
    bits << 2
}

/// Byte address to aligned DWORD address bits of a `u32` register.
pub(super) const fn dword_to_u32(address: u32) -> u32 {
    address >> 2
}

/// Queue offset in units of 16 bytes to a byte offset.
pub(super) const fn offset16_from_u64(bits: u64) -> u64 {
    bits << 4
}

/// Byte offset to queue offset in units of 16 bytes; 15 bits.
pub(super) const fn offset16_to_u64(offset: u64) -> u64 {
    (offset >> 4) & 0x7FFF
}

/// Queue offset in units of 32 bytes to a byte offset.
pub(super) const fn offset32_from_u64(bits: u64) -> u64 {
    bits << 5
}

/// Byte offset to queue offset in units of 32 bytes; 14 bits.
pub(super) const fn offset32_to_u64(offset: u64) -> u64 {
    (offset >> 5) & 0x3FFF
}
