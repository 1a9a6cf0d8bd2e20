//! The DMA API's domains have no MSI window of a caller's choice.
use portcullis::{DmaOptions, DomainOptions, MsiWindow};

fn f(window: Option<MsiWindow>) -> (DomainOptions, DmaOptions) {
    let for_a_caller = DomainOptions { msi_window: window, ..DomainOptions::default() };
    let for_the_dma_api = DmaOptions { limit: window.map_or(u64::MAX, |w| w.base), ..DmaOptions::default() };
    (for_a_caller, for_the_dma_api)
}

fn main() {}
