//! The DMA API gives out the IOVAs itself: nobody maps at one of his own choice.
#![allow(unused_imports)]
use portcullis::{Domain, External, KernelDma, Platform, Sleep};
use portcullis_pgtable::{Phys, Prot};

type Owner = KernelDma;

fn f<P: Platform>(domain: &Domain<P, Owner>, cx: &Sleep<'_>) {
    let _ = domain.map_range(0x1000, Phys(0x2000), 0x1000, Prot::READ);
    let _ = cx;
}

fn main() {}
