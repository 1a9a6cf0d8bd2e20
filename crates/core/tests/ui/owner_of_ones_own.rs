//! The kinds of owners are the core's.
#![allow(unused_imports)]
use portcullis::Owner;

trait Other {
    type Data;
}

struct Mine;

impl Owner for Mine {
    type Data = ();
}

fn main() {}
