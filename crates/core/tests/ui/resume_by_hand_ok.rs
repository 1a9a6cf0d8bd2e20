//! The core resumes what stalls, by the verdict that is returned: nothing in a decider's hands does.
use portcullis::{Platform, Response, Sleep, StallResolver, StalledAccess, Verdict};
use std::sync::Arc;

struct Pager;

impl<P: Platform> StallResolver<P, ()> for Pager {
    fn resolve(&self, _: &Sleep<'_>, _: &Arc<()>, stalled: &StalledAccess) -> Verdict {
        let _ = (stalled.address, Response::Success);
        let _ = stalled.id;
        Verdict::Retry
    }
}

fn main() {}
