//! A device that is not trusted and behaves accordingly.

use std::ops::Range;

use super::{Engine, Failure, Port};
use crate::adversary::Adversary;
use crate::bus::{AddressType, Operation, PAGE, Pasid, Prefix, Request, Upstream};

/// What a rogue aims at.
#[derive(Debug, Clone)]
pub struct RogueConfig {
    /// Actions before it falls silent.
    pub budget: u64,
    /// Addresses outside its mappings.
    pub outside: Range<u64>,
    /// Physical addresses for forged translated requests.
    pub physical: Range<u64>,
    /// PASIDs it has no right to.
    pub pasids: Vec<Pasid>,
}

/// The rogue: reads and writes outside its mappings, forges translated requests, asks for pages and
/// translations it has no right to, uses PASIDs of others, writes to the interrupt range and
/// completes invalidations that nobody asked for.
#[derive(Debug)]
pub struct Rogue {
    config: RogueConfig,
    done: u64,
}

impl Rogue {
    /// Actions under way at once.
    const WINDOW: usize = 8;

    /// A rogue with these targets.
    pub fn new(config: RogueConfig) -> Self {
        Rogue { config, done: 0 }
    }

    fn act(&mut self, port: &mut Port) {
        let outside = pick(port, &self.config.outside);
        let physical = pick(port, &self.config.physical);
        let stranger = match self.config.pasids.len() {
            0 => None,
            n => self.config.pasids.get(port.rng().usize(..n)).copied().map(Prefix::user),
        };
        let prefix = stranger.filter(|_| port.rng().bool());
        let source = port.id();
        let mut send = |prefix, at, addr, op| {
            port.raw_request(Request { source, prefix, at, addr, op });
        };
        use AddressType::{Translated, Untranslated};
        match self.done % 11 {
            0 => send(prefix, Untranslated, outside, Operation::Read(64)),
            1 => send(prefix, Untranslated, outside, Operation::Write(vec![0xa5; 64])),
            2 => send(None, Translated, physical, Operation::Read(64)),
            3 => send(prefix, Translated, physical, Operation::Write(vec![0x5a; 64])),
            4 => send(prefix, Untranslated, outside & !(PAGE - 1), Operation::Translate { no_write: false }),
            5 => {
                let interrupt = 0xfee0_0000 | (outside & 0xf_f000);
                send(None, Untranslated, interrupt, Operation::Write(vec![0x41, 0, 0, 0]));
            }
            6 => send(None, Untranslated, 0xfee0_0000, Operation::Write(vec![0; 8])),
            7 => send(None, Untranslated, 0xfee0_1000, Operation::Read(4)),
            8 => port.raw_page_request(prefix, outside, true, true),
            9 => port.raw_page_request(prefix, outside, false, false),
            _ => {
                let itags = 1 << (outside >> 12 & 31);
                port.raw_message(Upstream::InvalidationCompletion { source, itags });
            }
        }
    }
}

/// A random address, aligned to 64 bytes, in a range.
fn pick(port: &mut Port, range: &Range<u64>) -> u64 {
    if range.is_empty() { range.start & !63 } else { port.rng().u64(range.clone()) & !63 }
}

impl Engine for Rogue {
    fn wants(&self, port: &Port) -> bool {
        self.done < self.config.budget && port.outstanding() < Self::WINDOW
    }

    fn step(&mut self, port: &mut Port, _: &mut Adversary, _: usize) {
        if self.wants(port) {
            self.act(port);
            self.done += 1;
        }
    }

    fn ended(&mut self, _: &mut Port, _: u64, _: Result<Vec<u8>, Failure>) {}

    fn reset(&mut self) {}
}
