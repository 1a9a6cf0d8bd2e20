//! A trusted device with ATS that forges no address and floods the page request interface.

use std::ops::Range;

use super::{Engine, Failure, Port};
use crate::adversary::{Action, Adversary};
use crate::bus::{AddressType, Operation, PAGE, Request};

/// How it floods.
#[derive(Debug, Clone)]
pub struct FloodConfig {
    /// Page requests before it falls silent.
    pub budget: u64,
    /// The pages it asks for.
    pub pages: Range<u64>,
}

/// The flood: page requests without regard to credits, each of them several times, none of them
/// the last of its group, with a translation request in between.
#[derive(Debug)]
pub struct Flood {
    config: FloodConfig,
    sent: u64,
}

impl Flood {
    /// A flood over these pages.
    pub fn new(config: FloodConfig) -> Self {
        Flood { config, sent: 0 }
    }

    fn page(&self, port: &mut Port) -> u64 {
        let r = &self.config.pages;
        let addr = if r.is_empty() { r.start } else { port.rng().u64(r.clone()) };
        addr & !(PAGE - 1)
    }
}

impl Engine for Flood {
    fn wants(&self, port: &Port) -> bool {
        self.sent < self.config.budget && port.capabilities().pri().is_some()
    }

    fn step(&mut self, port: &mut Port, adversary: &mut Adversary, page_queue_entries: usize) {
        if !self.wants(port) {
            return;
        }
        let page = self.page(port);
        // More than the queue holds: it overflows unless software reads it meanwhile.
        let burst = page_queue_entries > 0 && adversary.strikes(Action::Overflow);
        let repeats = if burst { page_queue_entries as u64 + 16 } else { 3 };
        for _ in 0..repeats {
            let prefix = port.prefix();
            port.raw_page_request(prefix, page, true, false);
        }
        self.sent += repeats;
        if port.outstanding() == 0 {
            let (source, prefix, at) = (port.id(), port.prefix(), AddressType::Untranslated);
            let op = Operation::Translate { no_write: false };
            port.raw_request(Request { source, prefix, at, addr: page, op });
        }
    }

    fn ended(&mut self, _: &mut Port, _: u64, _: Result<Vec<u8>, Failure>) {}

    fn reset(&mut self) {}
}
