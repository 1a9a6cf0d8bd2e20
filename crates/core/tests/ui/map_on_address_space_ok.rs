//! Nobody maps in an address space of the CPU but the CPU's own memory management.
#![allow(unused_imports)]
use portcullis::{AddressSpace, Domain, External, Platform, Sleep, Sva};
use portcullis_pgtable::{Phys, Prot};

type Owner<A> = External<A>;

fn f<P: Platform, A: AddressSpace>(domain: &Domain<P, Owner<A>>, cx: &Sleep<'_>) {
    let _ = domain.map_range(0x1000, Phys(0x2000), 0x1000, Prot::READ);
    let _ = cx;
}

fn main() {}
