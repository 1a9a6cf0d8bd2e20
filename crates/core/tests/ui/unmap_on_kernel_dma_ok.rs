//! What the DMA API mapped ends with its mapping.
#![allow(unused_imports)]
use portcullis::{Domain, External, KernelDma, Platform, Sleep};
use portcullis_pgtable::{Phys, Prot};

type Owner = External<()>;

fn f<P: Platform>(domain: &Domain<P, Owner>, cx: &Sleep<'_>) {
    let _ = domain.unmapping();
    let _ = cx;
}

fn main() {}
