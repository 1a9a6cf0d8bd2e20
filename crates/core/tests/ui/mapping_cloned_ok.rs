//! A mapping is in one hand.
use portcullis::{Domain, KernelDma, Mapping, Platform};

fn f<P: Platform>(mapping: &Mapping<P>, domain: &Domain<P, KernelDma>) {
    let _: Domain<P, KernelDma> = domain.clone();
    let _ = mapping;
}

fn main() {}
