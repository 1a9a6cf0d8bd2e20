//! What VMSAv8-64 leaves say at stage 1 and at stage 2 (Arm DDI 0487 issue M.a, D8.3.1.2, D8.4,
//! D8.6).

use crate::table::Prot;

/// SH: shareability (tables D8-52 and D8-53), address bits 51:50 where DS is set.
pub(super) const SH: u64 = 3 << 8;
/// Inner shareable, for cacheable memory (D8.6.2, table D8-102).
const SH_INNER: u64 = 3 << 8;
/// Outer shareable, which non-cacheable and device memory is in any case (D8.6.2, D8.6.7).
const SH_OUTER: u64 = 2 << 8;
/// DBM: Dirty bit modifier: a walker may make the entry writable (D8.5.2.1).
pub(super) const DBM: u64 = 1 << 51;

/// What differs between the stages.
pub trait Stage: Copy + Send + Sync + 'static {
    /// Whether it is the second.
    const SECOND: bool;
    /// Memory type: an index, or the attributes themselves.
    const TYPE: u64;
    /// Everything that says who may do what.
    const PERMISSIONS: u64;
    /// Other bits of a leaf that are neither address nor ours.
    const OTHER: u64;
    /// The bits of a leaf; with `dirty` writable ones begin clean.
    fn template(prot: Prot, dirty: bool) -> Option<u64>;
    /// What a leaf allows.
    fn prot(w: u64) -> Prot;
    /// Whether a leaf can be written through now, DBM aside.
    fn is_writable(w: u64) -> bool;
    /// A leaf that can or cannot be written through now.
    fn set_writable(w: u64, on: bool) -> u64;
}

/// The first stage. Read permission cannot be taken away, so write-only is refused.
#[derive(Clone, Copy, Debug)]
pub struct Stage1;

impl Stage1 {
    /// AttrIndx (table D8-52).
    const ATTR_INDEX: u64 = 7 << 2;
    const NON_CACHEABLE: u64 = 0 << 2;
    const WRITE_BACK: u64 = 1 << 2;
    const DEVICE: u64 = 2 << 2;
    /// AP[1]: unprivileged accesses too (table D8-63).
    const AP_UNPRIVILEGED: u64 = 1 << 6;
    /// AP[2]: read-only (table D8-63).
    const AP_READ_ONLY: u64 = 1 << 7;
    /// nG: not global, so that an ASID's invalidation finds it (D8.16.3.1).
    const NG: u64 = 1 << 11;
    /// PXN and UXN: no instruction fetches (D8.4.1.2.3, table D8-65).
    const PXN: u64 = 1 << 53;
    const UXN: u64 = 1 << 54;
}

impl Stage for Stage1 {
    const SECOND: bool = false;
    const TYPE: u64 = Self::ATTR_INDEX;
    const PERMISSIONS: u64 = Self::AP_UNPRIVILEGED | Self::AP_READ_ONLY | Self::PXN | Self::UXN | DBM;
    const OTHER: u64 = Self::NG;

    #[inline]
    fn template(prot: Prot, dirty: bool) -> Option<u64> {
        const KNOWN: Prot = Prot::READ
            .union(Prot::WRITE)
            .union(Prot::EXEC)
            .union(Prot::PRIV)
            .union(Prot::MMIO)
            .union(Prot::UNCACHED);
        if !prot.contains(Prot::READ) || !KNOWN.contains(prot) {
            return None;
        }
        let kind = if prot.contains(Prot::MMIO) {
            Self::DEVICE | SH_OUTER
        } else if prot.contains(Prot::UNCACHED) {
            Self::NON_CACHEABLE | SH_OUTER
        } else {
            Self::WRITE_BACK | SH_INNER
        };
        let write = match (prot.contains(Prot::WRITE), dirty) {
            (true, true) => Self::AP_READ_ONLY | DBM,
            (true, false) => 0,
            (false, _) => Self::AP_READ_ONLY,
        };
        let privilege = if prot.contains(Prot::PRIV) { 0 } else { Self::AP_UNPRIVILEGED };
        let execute = match (prot.contains(Prot::EXEC), prot.contains(Prot::PRIV)) {
            (false, _) => Self::PXN | Self::UXN,
            (true, true) => Self::UXN,
            (true, false) => 0,
        };
        Some(kind | write | privilege | execute | Self::NG)
    }

    #[inline]
    fn prot(w: u64) -> Prot {
        let mut prot = Prot::READ;
        prot.set(Prot::WRITE, w & Self::AP_READ_ONLY == 0 || w & DBM != 0);
        prot.set(Prot::PRIV, w & Self::AP_UNPRIVILEGED == 0);
        prot.set(Prot::EXEC, w & Self::PXN == 0);
        prot.set(Prot::MMIO, w & Self::ATTR_INDEX == Self::DEVICE);
        prot.set(Prot::UNCACHED, w & Self::ATTR_INDEX == Self::NON_CACHEABLE);
        prot
    }

    #[inline]
    fn is_writable(w: u64) -> bool {
        w & Self::AP_READ_ONLY == 0
    }

    #[inline]
    fn set_writable(w: u64, on: bool) -> u64 {
        if on { w & !Self::AP_READ_ONLY } else { w | Self::AP_READ_ONLY }
    }
}

/// The second stage. It has no privilege, so [`Prot::PRIV`] is refused; nor can it force a device's
/// accesses to snoop.
#[derive(Clone, Copy, Debug)]
pub struct Stage2;

impl Stage2 {
    /// MemAttr, with FEAT_S2FWB not in use (table D8-96).
    const MEM_ATTR: u64 = 15 << 2;
    const NON_CACHEABLE: u64 = 0b0101 << 2;
    const WRITE_BACK: u64 = 0b1111 << 2;
    const DEVICE: u64 = 0b0001 << 2;
    /// S2AP (table D8-76).
    const S2AP_READ: u64 = 1 << 6;
    const S2AP_WRITE: u64 = 1 << 7;
    /// XN[1], with XN[0] (bit 53) clear: no instruction fetches, with FEAT_XNX or without (tables
    /// D8-77 and D8-78).
    const XN: u64 = 1 << 54;
}

impl Stage for Stage2 {
    const SECOND: bool = true;
    const TYPE: u64 = Self::MEM_ATTR;
    const PERMISSIONS: u64 = Self::S2AP_READ | Self::S2AP_WRITE | Self::XN | DBM;
    const OTHER: u64 = 0;

    #[inline]
    fn template(prot: Prot, dirty: bool) -> Option<u64> {
        const RW: Prot = Prot::READ.union(Prot::WRITE);
        const KNOWN: Prot = RW.union(Prot::EXEC).union(Prot::MMIO).union(Prot::UNCACHED);
        if !prot.intersects(RW) || !KNOWN.contains(prot) {
            return None;
        }
        let kind = if prot.contains(Prot::MMIO) {
            Self::DEVICE | SH_OUTER
        } else if prot.contains(Prot::UNCACHED) {
            Self::NON_CACHEABLE | SH_OUTER
        } else {
            Self::WRITE_BACK | SH_INNER
        };
        let read = if prot.contains(Prot::READ) { Self::S2AP_READ } else { 0 };
        let write = match (prot.contains(Prot::WRITE), dirty) {
            (true, true) => DBM,
            (true, false) => Self::S2AP_WRITE,
            (false, _) => 0,
        };
        let execute = if prot.contains(Prot::EXEC) { 0 } else { Self::XN };
        Some(kind | read | write | execute)
    }

    #[inline]
    fn prot(w: u64) -> Prot {
        let mut prot = Prot::empty();
        prot.set(Prot::READ, w & Self::S2AP_READ != 0);
        prot.set(Prot::WRITE, w & (Self::S2AP_WRITE | DBM) != 0);
        prot.set(Prot::EXEC, w & Self::XN == 0);
        prot.set(Prot::MMIO, w & Self::MEM_ATTR == Self::DEVICE);
        prot.set(Prot::UNCACHED, w & Self::MEM_ATTR == Self::NON_CACHEABLE);
        prot
    }

    #[inline]
    fn is_writable(w: u64) -> bool {
        w & Self::S2AP_WRITE != 0
    }

    #[inline]
    fn set_writable(w: u64, on: bool) -> u64 {
        if on { w | Self::S2AP_WRITE } else { w & !Self::S2AP_WRITE }
    }
}
