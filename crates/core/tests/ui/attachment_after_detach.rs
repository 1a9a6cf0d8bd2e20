//! A detach takes the attachment.
use portcullis::{Attachment, Platform, Sleep};

fn f<P: Platform>(attachment: Attachment<P>, cx: &Sleep<'_>) {
    let key = attachment.key();
    let gone = attachment.begin_detach(cx);
    let _ = (key, gone.is_gone(), attachment.key());
}

fn main() {}
