//! A domain has one owner.
#![allow(unused_imports)]
use portcullis::{Domain, External, KernelDma, Platform};

fn f<P: Platform>(domain: Domain<P, External<()>>) {
    let _: Domain<P, External<()>> = domain;
}

fn main() {}
