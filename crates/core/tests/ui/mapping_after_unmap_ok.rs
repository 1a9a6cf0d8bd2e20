//! An unmap takes the mapping.
use portcullis::{Mapping, Platform, Sleep};

fn f<P: Platform>(mapping: Mapping<P>, cx: &Sleep<'_>) {
    let _ = mapping.iova();
    let gone = mapping.unmap(cx);
    drop(gone);
}

fn main() {}
