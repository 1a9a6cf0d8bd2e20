//! A bond is given back once.
use portcullis::{AddressSpace, Bond, Domain, Platform, Sva};

fn f<P: Platform, A: AddressSpace>(bond: &Bond<P>, domain: &Domain<P, Sva<A>>) {
    let _: Domain<P, Sva<A>> = domain.clone();
    let _ = bond;
}

fn main() {}
