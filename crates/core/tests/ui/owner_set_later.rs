//! The owner and the resolver are those that the domain was built with.
use portcullis::{Domain, External, Platform};

fn f<P: Platform>(domain: Domain<P, External<()>>) {
    let _ = Domain { bind: None, ..domain };
}

fn main() {}
