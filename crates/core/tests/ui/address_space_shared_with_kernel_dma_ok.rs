//! A domain that an address space owns has no second owner.
#![allow(unused_imports)]
use portcullis::{AddressSpace, Domain, KernelDma, Platform, Sva};

fn f<P: Platform, A: AddressSpace>(domain: Domain<P, Sva<A>>) {
    let _: Domain<P, Sva<A>> = domain;
}

fn main() {}
