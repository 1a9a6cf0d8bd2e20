//! A guest's table leads to no doorbell that the guest did not map.
#![allow(unused_imports)]
use portcullis::{Domain, External, Nested, Platform, Sleep};
use portcullis_pgtable::{Phys, Prot};

type Owner = Nested<()>;

fn f<P: Platform>(domain: &Domain<P, Owner>, cx: &Sleep<'_>) {
    let _ = domain.map_msi(cx, Phys(0x808_0000));
    let _ = cx;
}

fn main() {}
