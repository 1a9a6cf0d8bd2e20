//! What stalls does so as long as one guard lives.
use portcullis::{Device, Platform, Stalling};

fn f<P: Platform>(stalling: &Stalling<P>, device: &Device<P>) {
    let _: (&Stalling<P>, &Device<P>) = (stalling, device);
    let _: Stalling<P> = stalling.clone();
}

fn main() {}
