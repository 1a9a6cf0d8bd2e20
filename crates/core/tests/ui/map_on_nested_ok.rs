//! A guest's table is the guest's to write.
#![allow(unused_imports)]
use portcullis::{Domain, External, Nested, Platform, Sleep};
use portcullis_pgtable::{Phys, Prot};

type Owner = External<()>;

fn f<P: Platform>(domain: &Domain<P, Owner>, cx: &Sleep<'_>) {
    let _ = domain.map_range(0x1000, Phys(0x2000), 0x1000, Prot::READ);
    let _ = cx;
}

fn main() {}
