//! Failure turns page requests off for a whole function: no resolver answers it.
use portcullis::{PageGroup, Platform, Response};

fn f<P: Platform>(group: PageGroup<'_, P>) {
    let _ = group.respond(Response::Invalid);
}

fn main() {}
