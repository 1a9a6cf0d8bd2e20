//! Only an owner whose decider lives elsewhere leaves a stalled transaction to be decided later.
#![allow(unused_imports)]
use portcullis::{Defers, External, UserObject};

fn elsewhere<O: Defers>() {}

fn f() {
    let _ = elsewhere::<External<()>>;
}

fn main() {}
