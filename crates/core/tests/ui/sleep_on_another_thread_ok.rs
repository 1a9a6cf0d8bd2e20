//! A context does not move between stacks.
use portcullis::Sleep;

fn f(cx: &Sleep<'_>) {
    std::thread::scope(|s| {
        s.spawn(|| drop(Sleep::in_sleepable_context()));
    });
    let _ = cx;
}

fn main() {}
