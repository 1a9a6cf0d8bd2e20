//! Only an owner whose decider lives elsewhere has stalled transactions passed on.
#![allow(unused_imports)]
use portcullis::{Deferred, External, Platform, StallDecider, UserObject};
use std::sync::Arc;

fn f<P: Platform>() -> StallDecider<P, External<()>> {
    StallDecider::elsewhere(|_: &Arc<()>, stalled: Deferred<P>| drop(stalled))
}

fn main() {}
