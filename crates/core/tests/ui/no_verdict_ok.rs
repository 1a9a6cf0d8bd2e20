//! A decider decides: it cannot return without a verdict.
use portcullis::{External, Platform, Sleep, StallDecider, StalledAccess, Verdict};
use std::sync::Arc;

fn f<P: Platform>() -> StallDecider<P, External<()>> {
    let decide = |_: &Sleep<'_>, _: &Arc<()>, _: &StalledAccess| {
        let _ = Verdict::Retry;
        Verdict::Terminate
    };
    StallDecider::sleeping(decide)
}

fn main() {}
