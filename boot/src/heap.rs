//! The allocator: blocks of a power of two, cut from one region and kept in a free list per size.
//!
//! A block is aligned to its size, so a page is a block of 4096.

use alloc::vec;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;

const BYTES: usize = 16 << 20;

/// The smallest block is 2^4 bytes: it holds the link of its free list.
const SMALLEST: usize = 4;
const SIZES: usize = usize::BITS as usize - SMALLEST;

#[global_allocator]
static HEAP: Heap = Heap {
    region: Region(UnsafeCell::new([0; BYTES])),
    state: UnsafeCell::new(State { used: 0, free: [ptr::null_mut(); SIZES] }),
};

/// The address of this many pages in a row, for good.
pub fn pages(count: usize) -> usize {
    #[derive(Clone)]
    #[repr(align(4096))]
    struct Page(#[expect(dead_code, reason = "reached by its address")] [u8; 4096]);
    vec![Page([0; 4096]); count].leak().as_mut_ptr().expose_provenance()
}

struct Heap {
    region: Region,
    state: UnsafeCell<State>,
}

/// Aligned so that every block size up to a 2 MiB page is.
#[repr(align(0x20_0000))]
struct Region(UnsafeCell<[u8; BYTES]>);

struct State {
    /// Bytes of the region that were ever given out.
    used: usize,
    /// Free blocks of 2^(SMALLEST + index) bytes.
    free: [*mut Link; SIZES],
}

struct Link {
    next: *mut Link,
}

// SAFETY: the image runs on one CPU, and no interrupt is ever enabled: nothing runs beside an
// allocation.
unsafe impl Sync for Heap {}

// SAFETY: a block given out is within the region, aligned to its size, and in no free list; two
// blocks are apart, since `used` only grows and a block enters its free list only when given back.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((index, bytes)) = block(layout) else {
            return ptr::null_mut();
        };
        // SAFETY: nothing else holds a reference, see `Sync`.
        let state = unsafe { &mut *self.state.get() };
        let first = state.free[index];
        if !first.is_null() {
            // SAFETY: what is in a free list was linked by `dealloc` and not given out since.
            state.free[index] = unsafe { (*first).next };
            return first.cast();
        }
        let start = state.used.next_multiple_of(bytes);
        match start.checked_add(bytes) {
            Some(end) if end <= BYTES => {
                state.used = end;
                // SAFETY: `start` is within the region.
                unsafe { self.region.0.get().cast::<u8>().add(start) }
            }
            _ => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block_: *mut u8, layout: Layout) {
        let Some((index, _)) = block(layout) else {
            return;
        };
        // SAFETY: nothing else holds a reference, see `Sync`.
        let state = unsafe { &mut *self.state.get() };
        let link = block_.cast::<Link>();
        // SAFETY: the block is ours again, at least 16 bytes, aligned to 16.
        unsafe {
            link.write(Link { next: state.free[index] });
        }
        state.free[index] = link;
    }
}

/// The free list and the size of the blocks for `layout`; `None` if there is no such block.
fn block(layout: Layout) -> Option<(usize, usize)> {
    let bytes = layout.size().max(layout.align()).max(1 << SMALLEST).checked_next_power_of_two()?;
    (bytes <= BYTES && layout.align() <= align_of::<Region>())
        .then_some((bytes.trailing_zeros() as usize - SMALLEST, bytes))
}
