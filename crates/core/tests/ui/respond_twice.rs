//! A group is answered once.
use portcullis::{PageGroup, Platform, Response};

fn f<P: Platform>(group: PageGroup<'_, P>) {
    let _ = group.respond(Response::Success);
    let _ = group.respond(Response::Invalid);
}

fn main() {}
