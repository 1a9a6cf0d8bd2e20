//! An attachment is in one hand.
use portcullis::{Attachment, Domain, External, Platform};

fn f<P: Platform>(attachment: &Attachment<P>, domain: &Domain<P, External<()>>) {
    let _: Domain<P, External<()>> = domain.clone();
    let _: Attachment<P> = attachment.clone();
}

fn main() {}
