//! The bar that shows how far a run is. On a terminal; elsewhere it is silent.

use indicatif::{ProgressBar, ProgressStyle};
use portcullis_machine::scenario::copy::Progress;
use std::sync::Arc;

/// A bar on stderr over so many bytes.
pub fn bar(bytes: u64) -> ProgressBar {
    let style = "  [{bar:40}] {bytes} of {total_bytes} written";
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// What tells a run's progress to the bar.
pub fn teller(bar: &ProgressBar) -> Progress {
    let bar = bar.clone();
    Arc::new(move |written| bar.set_position(written))
}
