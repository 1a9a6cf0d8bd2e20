//! A sync ends the unmap.
use portcullis::{Platform, Sleep, Unmapping};

fn f<P: Platform>(mut gone: Unmapping<'_, P>, cx: &Sleep<'_>) {
    let _ = gone.unmap(0x1000, 0x1000);
    let _ = gone.sync(cx);
    let _ = cx;
}

fn main() {}
