//! The kinds of owners are the core's.
#![allow(unused_imports)]
use portcullis::Owner;

trait Other {
    type Data;
}

struct Mine;

impl Other for Mine {
    type Data = ();
}

fn main() {}
