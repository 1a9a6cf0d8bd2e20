//! The dirty bits of an address space are the CPU's own memory management's.
#![allow(unused_imports)]
use portcullis::{AddressSpace, Domain, External, Platform, Sleep, Sva};
use portcullis_pgtable::{Phys, Prot};

type Owner<A> = Sva<A>;

fn f<P: Platform, A: AddressSpace>(domain: &Domain<P, Owner<A>>, cx: &Sleep<'_>) {
    let _ = domain.set_dirty_tracking(cx, true);
    let _ = cx;
}

fn main() {}
