//! A context does not move between stacks.
use portcullis::Sleep;

fn f(cx: &Sleep<'_>) {
    std::thread::scope(|s| {
        s.spawn(|| drop(cx));
    });
    let _ = cx;
}

fn main() {}
