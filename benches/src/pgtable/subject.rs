//! What is measured: our tables, through the object that a domain holds, and the peers, each by the
//! calls that its documentation gives. Their tables, too, come from the [`arena`].

use crate::arena::{Arena, Frames, arena};
use aarch64_paging::{
    descriptor::{PagingAttributes, PhysicalAddress, Stage2Attributes},
    paging::{Constraints, MemoryRegion, PageTable as ArmTable, RootTable, Stage2, Translation},
};
use memory_addr::{PhysAddr as MaPhys, VirtAddr as MaVirt};
use page_table_entry::x86_64::X64PTE;
use page_table_multiarch::{MappingFlags, PageSize, PageTable64, PagingHandler, PagingMetaData};
use portcullis_pgtable::{Config, Format, Gather, IoTable, Phys, Prot, Reader, Segment, Synced, Table, Word};
use std::{marker::PhantomData, ptr::NonNull};
use x86_64::{
    PhysAddr, VirtAddr,
    structures::paging::{
        FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size2MiB,
        Size4KiB, Translate,
    },
};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const LARGE: u64 = 512 * PAGE;

/// Which leaves a table may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// The smallest page only.
    Small,
    /// The smallest page, and a leaf one level higher.
    Both,
}

/// One page-table library at work. What a library does not offer for a whole range is done page by
/// page, as its users have to.
pub(crate) trait Subject: Sized {
    /// Bytes of the smallest page.
    const PAGE: u64 = PAGE;
    /// Bytes of a leaf one level higher; 0 where the format has none.
    const LARGE: u64 = LARGE;
    /// Where mappings begin: no table of the smallest pages is covered in part.
    const BASE: u64 = 0x12_4000_0000;
    /// Whether an unmap of a whole range looks at every entry; where it does not, it takes whole
    /// tables out as they are.
    const CHECKS: bool = true;
    /// An empty table of four levels, or as many as 47 bits take.
    fn new(leaves: Leaves) -> Self;
    fn map(&mut self, iova: u64, phys: u64);
    fn unmap(&mut self, iova: u64);
    fn map_large(&mut self, iova: u64, phys: u64);
    fn unmap_large(&mut self, iova: u64);
    /// Frees what unmaps took out, as after an invalidation. Not timed.
    fn retire(&mut self) {}
    /// Where `iova` leads to.
    fn translate(&self, iova: u64) -> u64;
    /// Calls `f` with what translates many addresses.
    fn translating<R>(&self, f: impl FnOnce(&dyn Fn(u64) -> u64) -> R) -> R {
        f(&|iova| self.translate(iova))
    }
    /// Maps pages one after the other.
    fn map_range(&mut self, iova: u64, phys: u64, pages: u64) {
        (0..pages).for_each(|n| self.map(iova + n * Self::PAGE, phys + n * Self::PAGE));
    }
    fn unmap_range(&mut self, iova: u64, pages: u64) {
        (0..pages).for_each(|n| self.unmap(iova + n * Self::PAGE));
    }
    fn map_large_range(&mut self, iova: u64, phys: u64, leaves: u64) {
        (0..leaves).for_each(|n| self.map_large(iova + n * Self::LARGE, phys + n * Self::LARGE));
    }
    fn unmap_large_range(&mut self, iova: u64, leaves: u64) {
        (0..leaves).for_each(|n| self.unmap_large(iova + n * Self::LARGE));
    }
    /// Maps single pages, wherever they are.
    fn map_list(&mut self, iova: u64, pages: &[Segment]) {
        for (n, page) in pages.iter().enumerate() {
            self.map(iova + n as u64 * Self::PAGE, page.phys.0);
        }
    }
}

/// One of our formats.
pub(crate) struct Ours<F> {
    table: Box<dyn IoTable>,
    gather: Gather,
    format: PhantomData<F>,
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

impl<F: Format> Ours<F> {
    /// For a second thread.
    pub(crate) fn table(&self) -> &dyn IoTable {
        &*self.table
    }
}

impl<F: Format> Subject for Ours<F> {
    const PAGE: u64 = 1 << F::GRANULE_BITS;
    const LARGE: u64 =
        F::LEAF_SIZES & 1 << (F::GRANULE_BITS + F::TABLE_BITS - <F::Word as Word>::BYTES.ilog2());
    const BASE: u64 = if F::INPUT_BITS > 32 { X86Crate::BASE } else { 0x4000_0000 };

    fn new(leaves: Leaves) -> Self {
        let page_sizes = if leaves == Leaves::Small { Self::PAGE } else { Self::PAGE | Self::LARGE };
        let levels = if F::GROWS { 4 } else { 0 };
        let config = Config { input_bits: 47, output_bits: 46, levels, page_sizes, ..Config::default() };
        let table = Table::<F, _>::new(Frames::new(), config).expect("frames for a root");
        Ours { table: Box::new(table), gather: Gather::new(), format: PhantomData }
    }

    #[inline]
    fn map(&mut self, iova: u64, phys: u64) {
        self.table.map(iova, Phys(phys), Self::PAGE, RW).expect("an empty page");
    }

    #[inline]
    fn unmap(&mut self, iova: u64) {
        self.table.unmap(iova, Self::PAGE, &mut self.gather).expect("a mapped page");
    }

    fn map_large(&mut self, iova: u64, phys: u64) {
        self.table.map(iova, Phys(phys), Self::LARGE, RW).expect("an empty range");
    }

    fn unmap_large(&mut self, iova: u64) {
        self.table.unmap(iova, Self::LARGE, &mut self.gather).expect("a mapped leaf");
    }

    fn retire(&mut self) {
        let gather = std::mem::take(&mut self.gather);
        self.table.retire(gather.into_retired(), Synced::after_completed_invalidation());
    }

    #[inline]
    fn translate(&self, iova: u64) -> u64 {
        self.table.lookup(iova).expect("a mapped page").phys.0
    }

    fn translating<R>(&self, f: impl FnOnce(&dyn Fn(u64) -> u64) -> R) -> R {
        let reader: Reader<'_> = self.table.reader();
        f(&|iova| reader.translate(iova).expect("a mapped page").0)
    }

    fn map_range(&mut self, iova: u64, phys: u64, pages: u64) {
        self.table.map(iova, Phys(phys), pages * Self::PAGE, RW).expect("an empty range");
    }

    fn unmap_range(&mut self, iova: u64, pages: u64) {
        self.table.unmap(iova, pages * Self::PAGE, &mut self.gather).expect("a mapped range");
    }

    fn map_large_range(&mut self, iova: u64, phys: u64, leaves: u64) {
        self.table.map(iova, Phys(phys), leaves * Self::LARGE, RW).expect("an empty range");
    }

    fn unmap_large_range(&mut self, iova: u64, leaves: u64) {
        self.table.unmap(iova, leaves * Self::LARGE, &mut self.gather).expect("a mapped range");
    }

    fn map_list(&mut self, iova: u64, pages: &[Segment]) {
        self.table.map_sg(iova, pages, RW).expect("an empty range");
    }
}

/// The `x86_64` crate's mapper.
pub(crate) struct X86Crate {
    mapper: OffsetPageTable<'static>,
    frames: Taking,
}

/// Remembers what was taken, to give it back.
struct Taking(Vec<u64>);

// SAFETY: the arena hands out each frame once.
#[expect(unsafe_code, reason = "the peer's interface")]
unsafe impl FrameAllocator<Size4KiB> for Taking {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let phys = arena().take(0, false)?;
        self.0.push(phys);
        PhysFrame::from_start_address(PhysAddr::new(phys)).ok()
    }
}

impl Drop for X86Crate {
    fn drop(&mut self) {
        self.frames.0.iter().for_each(|f| arena().give(*f, 0));
    }
}

const FLAGS: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE);

impl X86Crate {
    fn page<S: x86_64::structures::paging::PageSize>(iova: u64) -> Page<S> {
        Page::from_start_address(VirtAddr::new_truncate(iova)).expect("aligned")
    }
}

impl Subject for X86Crate {
    fn new(_: Leaves) -> Self {
        let arena: &'static Arena = arena();
        let root = arena.take(0, true).expect("a frame");
        // SAFETY: the root is a zeroed frame of its own, and all of the arena is at this offset.
        #[expect(unsafe_code, reason = "the peer's interface")]
        let mapper = unsafe {
            let table = &mut *arena.pointer(root).cast::<PageTable>();
            OffsetPageTable::new(table, VirtAddr::new(arena.offset()))
        };
        X86Crate { mapper, frames: Taking(vec![root]) }
    }

    #[inline]
    fn map(&mut self, iova: u64, phys: u64) {
        let frame = PhysFrame::<Size4KiB>::from_start_address(PhysAddr::new(phys)).expect("aligned");
        // SAFETY: nothing walks this table.
        #[expect(unsafe_code, reason = "the peer's interface")]
        let done = unsafe { self.mapper.map_to(Self::page(iova), frame, FLAGS, &mut self.frames) };
        done.expect("an empty page").ignore();
    }

    #[inline]
    fn unmap(&mut self, iova: u64) {
        self.mapper.unmap(Self::page::<Size4KiB>(iova)).expect("a mapped page").1.ignore();
    }

    fn map_large(&mut self, iova: u64, phys: u64) {
        let frame = PhysFrame::<Size2MiB>::from_start_address(PhysAddr::new(phys)).expect("aligned");
        // SAFETY: nothing walks this table.
        #[expect(unsafe_code, reason = "the peer's interface")]
        let done = unsafe { self.mapper.map_to(Self::page(iova), frame, FLAGS, &mut self.frames) };
        done.expect("an empty range").ignore();
    }

    fn unmap_large(&mut self, iova: u64) {
        self.mapper.unmap(Self::page::<Size2MiB>(iova)).expect("a mapped leaf").1.ignore();
    }

    #[inline]
    fn translate(&self, iova: u64) -> u64 {
        self.mapper.translate_addr(VirtAddr::new_truncate(iova)).expect("a mapped page").as_u64()
    }
}

/// The `page_table_multiarch` crate with x86-64 entries.
pub(crate) struct Multiarch(PageTable64<NoTlb, X64PTE, MultiarchFrames>);

/// Its metadata without the privileged instruction that flushes a TLB.
struct NoTlb;

impl PagingMetaData for NoTlb {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = MaVirt;
    fn flush_tlb(_: Option<MaVirt>) {}
}

struct MultiarchFrames;

impl PagingHandler for MultiarchFrames {
    fn alloc_frames(num: usize, _: usize) -> Option<MaPhys> {
        // It zeroes what it takes.
        arena().take(num.next_power_of_two().ilog2(), false).map(|p| MaPhys::from(p as usize))
    }

    fn dealloc_frames(paddr: MaPhys, num: usize) {
        arena().give(paddr.as_usize() as u64, num.next_power_of_two().ilog2());
    }

    fn phys_to_virt(paddr: MaPhys) -> MaVirt {
        MaVirt::from((paddr.as_usize() as u64).wrapping_add(arena().offset()) as usize)
    }
}

const MULTIARCH_FLAGS: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

impl Multiarch {
    fn add(&mut self, iova: u64, phys: u64, size: PageSize) {
        let phys = MaPhys::from(phys as usize);
        let done = self.0.cursor().map(MaVirt::from(iova as usize), phys, size, MULTIARCH_FLAGS);
        done.expect("an empty page");
    }

    fn region(&mut self, iova: u64, phys: u64, len: u64, large: bool) {
        let at = |v: MaVirt| MaPhys::from((v.as_usize() as u64 - iova + phys) as usize);
        let done =
            self.0.cursor().map_region(MaVirt::from(iova as usize), at, len as usize, MULTIARCH_FLAGS, large);
        done.expect("an empty range");
    }
}

impl Subject for Multiarch {
    fn new(_: Leaves) -> Self {
        Multiarch(PageTable64::try_new().expect("a frame"))
    }

    #[inline]
    fn map(&mut self, iova: u64, phys: u64) {
        self.add(iova, phys, PageSize::Size4K);
    }

    #[inline]
    fn unmap(&mut self, iova: u64) {
        self.0.cursor().unmap(MaVirt::from(iova as usize)).expect("a mapped page");
    }

    fn map_large(&mut self, iova: u64, phys: u64) {
        self.add(iova, phys, PageSize::Size2M);
    }

    fn unmap_large(&mut self, iova: u64) {
        self.0.cursor().unmap(MaVirt::from(iova as usize)).expect("a mapped leaf");
    }

    #[inline]
    fn translate(&self, iova: u64) -> u64 {
        self.0.query(MaVirt::from(iova as usize)).expect("a mapped page").0.as_usize() as u64
    }

    fn map_range(&mut self, iova: u64, phys: u64, pages: u64) {
        self.region(iova, phys, pages * PAGE, false);
    }

    fn unmap_range(&mut self, iova: u64, pages: u64) {
        let done = self.0.cursor().unmap_region(MaVirt::from(iova as usize), (pages * PAGE) as usize);
        done.expect("a mapped range");
    }

    fn map_large_range(&mut self, iova: u64, phys: u64, leaves: u64) {
        self.region(iova, phys, leaves * LARGE, true);
    }

    fn unmap_large_range(&mut self, iova: u64, leaves: u64) {
        self.unmap_range(iova, leaves * 512);
    }
}

/// The `aarch64-paging` crate, stage 2.
pub(crate) struct Aarch64(RootTable<Stage2, ArmFrames>, Constraints);

struct ArmFrames;

impl<A: PagingAttributes> Translation<A> for ArmFrames {
    fn allocate_table(&mut self) -> (NonNull<ArmTable<A>>, PhysicalAddress) {
        let phys = arena().take(0, true).expect("a frame");
        let table = NonNull::new(arena().pointer(phys)).expect("not null");
        (table.cast(), PhysicalAddress(phys as usize))
    }

    #[expect(unsafe_code, reason = "the peer's interface")]
    unsafe fn deallocate_table(&mut self, table: NonNull<ArmTable<A>>) {
        arena().give((table.as_ptr() as u64).wrapping_sub(arena().offset()), 0);
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<ArmTable<A>> {
        NonNull::new(arena().pointer(pa.0 as u64)).expect("not null").cast()
    }
}

const S2_RW: Stage2Attributes = Stage2Attributes::VALID
    .union(Stage2Attributes::S2AP_ACCESS_RW)
    .union(Stage2Attributes::ACCESS_FLAG)
    .union(Stage2Attributes::MEMATTR_NORMAL_INNER_WB)
    .union(Stage2Attributes::MEMATTR_NORMAL_OUTER_WB);

impl Aarch64 {
    fn set(&mut self, iova: u64, phys: u64, len: u64, flags: Stage2Attributes) {
        let region = MemoryRegion::new(iova as usize, (iova + len) as usize);
        let done = self.0.map_range(&region, PhysicalAddress(phys as usize), flags, self.1);
        done.expect("in range");
    }
}

impl Subject for Aarch64 {
    const CHECKS: bool = false;

    fn new(leaves: Leaves) -> Self {
        let constraints = match leaves {
            Leaves::Small => Constraints::NO_BLOCK_MAPPINGS | Constraints::NO_CONTIGUOUS_HINT,
            Leaves::Both => Constraints::NO_CONTIGUOUS_HINT,
        };
        Aarch64(RootTable::new(ArmFrames, 0, Stage2), constraints)
    }

    #[inline]
    fn map(&mut self, iova: u64, phys: u64) {
        self.set(iova, phys, PAGE, S2_RW);
    }

    #[inline]
    fn unmap(&mut self, iova: u64) {
        self.set(iova, 0, PAGE, Stage2Attributes::empty());
    }

    fn map_large(&mut self, iova: u64, phys: u64) {
        self.set(iova, phys, LARGE, S2_RW);
    }

    fn unmap_large(&mut self, iova: u64) {
        self.set(iova, 0, LARGE, Stage2Attributes::empty());
    }

    #[inline]
    fn translate(&self, iova: u64) -> u64 {
        let region = MemoryRegion::new(iova as usize, (iova + 1) as usize);
        let mut phys = None;
        let done = self.0.walk_range(&region, &mut |range, descriptor, level| {
            let span = PAGE << (9 * (3 - level));
            phys = Some(descriptor.output_address().0 as u64 | (range.start().0 as u64 & (span - 1)));
            Ok(())
        });
        done.expect("in range");
        phys.expect("a mapped page") | (iova & (PAGE - 1))
    }

    fn map_range(&mut self, iova: u64, phys: u64, pages: u64) {
        self.set(iova, phys, pages * PAGE, S2_RW);
    }

    fn unmap_range(&mut self, iova: u64, pages: u64) {
        self.set(iova, 0, pages * PAGE, Stage2Attributes::empty());
    }

    fn map_large_range(&mut self, iova: u64, phys: u64, leaves: u64) {
        self.set(iova, phys, leaves * LARGE, S2_RW);
    }

    fn unmap_large_range(&mut self, iova: u64, leaves: u64) {
        self.set(iova, 0, leaves * LARGE, Stage2Attributes::empty());
    }
}
