//! No doorbell is mapped into an address space of the CPU.
#![allow(unused_imports)]
use portcullis::{AddressSpace, Domain, External, Platform, Sleep, Sva};
use portcullis_pgtable::{Phys, Prot};

type Owner<A> = External<A>;

fn f<P: Platform, A: AddressSpace>(domain: &Domain<P, Owner<A>>, cx: &Sleep<'_>) {
    let _ = domain.map_msi(cx, Phys(0x808_0000));
    let _ = cx;
}

fn main() {}
