//! A shared CPU address space is mapped by nobody here.
#![allow(unused_imports)]
use portcullis::{AddressSpace, Domain, External, Platform};
use portcullis_pgtable::{Phys, Prot};

type Owner = External<()>;

fn f<P: Platform>(domain: &Domain<P, Owner>) {
    let _ = domain.map_range(0x1000, Phys(0x2000), 0x1000, Prot::READ);
}

fn main() {}
