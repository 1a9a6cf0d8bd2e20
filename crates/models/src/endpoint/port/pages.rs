//! Page requests of an endpoint: groups, credits, responses.

use std::collections::BTreeMap;

use super::{Failure, Port, State, Transfer};
use crate::adversary::{Action, Adversary};
use crate::bus::{
    AddressType, Operation, PAGE, PageRequest, Prefix, PrivateData, Request, Responder, ResponseCode,
    Upstream,
};
use crate::endpoint::Tlp;
use crate::endpoint::caps::Violation;
use crate::endpoint::pri::{Group, Key};
use crate::log::{Journal, Settlement, What};

impl Transfer {
    fn needs_page(&self, now: u64) -> bool {
        matches!(self.state, State::NeedPage { since } if since <= now)
    }
}

impl Port {
    /// Sends a page request that nobody waits for, without regard to credits or capabilities. A
    /// last one opens a group, where an index is free; else it is sent as not the last. So does one
    /// with private data, which is answered by itself.
    pub fn raw_page_request(&mut self, prefix: Option<Prefix>, addr: u64, write: bool, last: bool) {
        let pasid = prefix.map(|p| p.pasid);
        let index = self.groups.free_index(pasid);
        let last = last && index.is_some();
        let private = self.private().filter(|_| index.is_some());
        let answered = last || private.is_some();
        let prgi = index.unwrap_or(0);
        let number = if answered { self.groups.number() } else { 0 };
        self.emit_page_request(prefix, addr, (true, write), last, prgi, number, private);
        if answered {
            self.stats.groups += 1;
            let (awaits, code) = (vec![private], ResponseCode::Success);
            let group = Group { number, tickets: Vec::new(), requests: 1, sent: self.now, awaits, code };
            self.groups.open((pasid, prgi), group);
            self.caps.set_pri_busy(true);
        }
    }

    pub(crate) fn set_pri(&mut self, credits: Option<u32>) -> Result<(), Violation> {
        self.caps.set_pri_busy(!self.groups.is_empty());
        self.caps.set_pri(credits)
    }

    pub(crate) fn pri_has_open_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    pub(crate) fn pri_stopped(&self) -> bool {
        self.caps.pri().is_none() && self.groups.is_empty()
    }

    /// Page requests that may still be sent; `None` where PRI is off.
    pub(super) fn credits(&self) -> Option<u32> {
        self.caps.pri().map(|limit| limit.saturating_sub(self.groups.requests()))
    }

    /// True where a group can be formed. It waits for translations under way, so that pages that
    /// turn out to be missing together are asked for together.
    pub(super) fn may_ask(&self, now: u64) -> bool {
        let mut all = self.transfers.values();
        let under_way = |t: &Transfer| matches!(t.state, State::Translating { .. } | State::Ready);
        all.any(|t| t.needs_page(now))
            && !self.transfers.values().any(under_way)
            && self.credits() != Some(0)
            && !self.groups.is_full()
    }

    /// Forms a group of the pages that are missing, as far as credits and indices go.
    pub(super) fn ask_for_pages(&mut self) {
        while self.may_ask(self.now) {
            let now = self.now;
            let waiting = |t: &Transfer| t.needs_page(now);
            let Some(prefix) = self.transfers.values().find(|t| waiting(t)).map(|t| t.prefix) else {
                return;
            };
            let Some(credits) = self.credits() else {
                return self.fail_where(waiting, Failure::NoPermission);
            };
            let pasid = prefix.map(|p| p.pasid);
            let Some(prgi) = self.groups.free_index(pasid).filter(|_| credits > 0) else {
                return;
            };
            let room = Self::GROUP.min(credits as usize);
            let (mut pages, mut tickets) = (BTreeMap::<u64, bool>::new(), Vec::new());
            for (&ticket, t) in &mut self.transfers {
                let page = t.iova & !(PAGE - 1);
                if !waiting(t) || t.prefix != prefix || (pages.len() >= room && !pages.contains_key(&page)) {
                    continue;
                }
                *pages.entry(page).or_default() |= t.intent.is_write();
                tickets.push(ticket);
                t.state = State::WaitPage;
            }
            let requests = pages.len() as u32;
            let number = self.groups.number();
            let mut awaits = Vec::new();
            for (i, (page, write)) in pages.into_iter().enumerate() {
                let last = i + 1 == requests as usize;
                let private = self.private();
                if last || private.is_some() {
                    awaits.push(private);
                }
                self.emit_page_request(prefix, page, (true, write), last, prgi, number, private);
            }
            self.stats.groups += 1;
            let (sent, code) = (self.now, ResponseCode::Success);
            self.groups.open((pasid, prgi), Group { number, tickets, requests, sent, awaits, code });
            self.caps.set_pri_busy(true);
        }
    }

    /// Private data for the next request.
    fn private(&mut self) -> Option<PrivateData> {
        self.private_data.then(|| [self.rng.u64(..), self.rng.u64(..)])
    }

    #[expect(clippy::too_many_arguments, reason = "every field of the message, from its two callers")]
    fn emit_page_request(
        &mut self,
        prefix: Option<Prefix>,
        addr: u64,
        (read, write): (bool, bool),
        last: bool,
        prgi: u16,
        group: u64,
        private: Option<PrivateData>,
    ) {
        self.stats.page_requests += 1;
        let addr = addr & !(PAGE - 1);
        let request = PageRequest { source: self.id, prefix, addr, read, write, last, prgi, group, private };
        self.out.push(Tlp::Message(Upstream::PageRequest(request)));
    }

    /// The adversary's idea: asks for a page, or a translation, that is there already.
    pub(super) fn spurious(&mut self, adversary: &mut Adversary) {
        if self.caps.ats().is_none() || !adversary.considers(Action::Spurious) {
            return;
        }
        let Some((pasid, page, t)) = self.dtlb.some_page(adversary.below(u64::MAX)) else {
            return;
        };
        adversary.count(Action::Spurious);
        let prefix = pasid.map(Prefix::user);
        if self.credits().is_some_and(|c| c > 0) && adversary.below(2) == 0 {
            self.raw_page_request(prefix, page, t.write, true);
        } else {
            let op = Operation::Translate { no_write: !t.write };
            let at = AddressType::Untranslated;
            self.raw_request(Request { source: self.id, prefix, at, addr: page, op });
        }
    }

    pub(super) fn response(
        &mut self,
        now: u64,
        (pasid, prgi): Key,
        code: ResponseCode,
        by: Responder,
        private: Option<PrivateData>,
        journal: &mut Journal,
    ) {
        let source = self.id;
        let Some((number, ended)) = self.groups.answered((pasid, prgi), private, code) else {
            journal.note(if self.groups.was_void((pasid, prgi), private) {
                What::LateResponse { source, pasid, prgi }
            } else {
                What::UnexpectedResponse { source, pasid, prgi, private }
            });
            return;
        };
        self.caps.set_pri_busy(!self.groups.is_empty());
        *self.stats.responses.entry((by, code)).or_default() += 1;
        let how = match by {
            Responder::Software => Settlement::Software(code),
            Responder::Hardware => Settlement::Hardware(code),
        };
        journal.note(What::Settled { source, pasid, prgi, group: number, private, how });
        if matches!(code, ResponseCode::Failure | ResponseCode::Reserved(_)) {
            self.caps.pri_failure();
        }
        let Some(group) = ended else {
            return;
        };
        let code = group.code;
        self.stats.latency(now.saturating_sub(group.sent));
        for ticket in group.tickets {
            match (code, self.transfers.get_mut(&ticket)) {
                (ResponseCode::Success, Some(t)) => t.state = State::Ready,
                (_, Some(_)) => self.end(ticket, Err(Failure::Denied(code))),
                (_, None) => {}
            }
        }
    }
}
