//! What the core calls of the scripted instance: its driver, and a device's own switches.

use super::{Call, Device, Hardware, Sent};
use portcullis::driver::{
    Batch, Caps, Change, DeviceControl, DrainEnd, Driver, Features, HwLost, Incompatible, InvError, InvSeq,
    More, MuteError, Offer, PrepareError, Prepared, QueuePos, StallSwitchError, Start, StartError,
    SubmitError, TableRequest, Taken, Target,
};
use portcullis::{Answer, At, Platform, Resume, SourceId, Turn};
use portcullis_pgtable::{FormatDesc, IoTable, TableMem};
use std::task::Poll;

impl Driver for Hardware {
    fn caps(&self) -> Caps {
        self.state().caps.clone()
    }

    fn start(&self, how: Start<'_>) -> Poll<Result<(), StartError>> {
        let mut s = self.state();
        s.starts += 1;
        if let Some(left) = s.slow_start.checked_sub(1) {
            s.slow_start = left;
            return Poll::Pending;
        }
        Poll::Ready(match how {
            Start::Fresh => Ok(()),
            _ => Err(StartError::Unsupported("adopting tables")),
        })
    }

    fn new_table(&self, request: TableRequest) -> Result<Box<dyn IoTable>, PrepareError> {
        if self.state().fails() {
            return Err(PrepareError::NoMem);
        }
        let vendor = self.state().vendor;
        let marks = self.state().marks;
        vendor.new_table(&self.board, request, marks)
    }

    fn can_walk(&self, desc: &FormatDesc) -> Result<(), Incompatible> {
        self.state().vendor.can_walk(desc)
    }

    fn can_nest(&self, table: &FormatDesc, parent: &FormatDesc) -> Result<(), Incompatible> {
        if !self.state().nests {
            return Err(Incompatible::NoNesting);
        }
        self.can_walk(table).and(self.can_walk(parent))
    }

    fn add_device(&self, source: SourceId, features: Features) -> Result<u8, PrepareError> {
        let mut s = self.state();
        if s.fails() {
            return Err(PrepareError::NoMem);
        }
        s.call(Call::AddDevice(source));
        let new = s.devices.insert(source, Device { features, cut: false, silent: false, muted: false });
        assert!(new.is_none(), "{source} is added twice");
        Ok(features.pasid_bits.min(s.pasid_room))
    }

    fn set_features(&self, source: SourceId, features: Features) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::Features(source, features.pri));
        s.devices.get_mut(&source).expect("known").features = features;
        Ok(s.push(self.board.now(), Vec::new(), false))
    }

    fn cut_off(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::CutOff(source));
        s.devices.get_mut(&source).expect("known").cut = true;
        s.entries.retain(|at, _| at.source != source);
        Ok(s.push(self.board.now(), Vec::new(), false))
    }

    fn restore(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::Restore(source));
        let device = s.devices.get_mut(&source).expect("known");
        (device.cut, device.silent) = (false, false);
        Ok(s.push(self.board.now(), Vec::new(), false))
    }

    fn mute(&self, source: SourceId, on: bool) -> Result<InvSeq, MuteError> {
        let mut s = self.state();
        if !s.can_mute {
            return Err(MuteError::Cannot);
        }
        s.room()?;
        s.call(Call::Mute(source, on));
        s.devices.get_mut(&source).expect("known").muted = on;
        Ok(s.push(self.board.now(), Vec::new(), false))
    }

    fn remove_device(&self, source: SourceId) {
        let mut s = self.state();
        s.call(Call::RemoveDevice(source));
        let gone = s.devices.remove(&source).expect("known");
        assert!(gone.cut, "{source} is removed before it was cut off");
    }

    fn prepare(&self, at: At, to: Target) -> Result<Prepared, PrepareError> {
        // The tables on the way to an entry are made with the first one, and stay.
        if self.state().spare.is_none() {
            let frame = self.board.frame().map_err(|_| PrepareError::NoMem)?;
            self.state().spare = Some(frame.publish());
        }
        let mut s = self.state();
        if s.fails() {
            return Err(PrepareError::NoMem);
        }
        if !s.devices.contains_key(&at.source) {
            return Err(PrepareError::UnknownSource(at.source));
        }
        let occupied = s.entries.contains_key(&at);
        let change = if s.gaps && occupied { Change::ThroughBlocked } else { Change::Hitless };
        let id = s.next;
        s.next += 1;
        s.images.insert(id, to);
        Ok(Prepared { at, change, image: [id, 0, 0, 0, 0, 0, 0, 0] })
    }

    fn commit(&self, prepared: Prepared) -> Result<InvSeq, (Prepared, SubmitError)> {
        let mut s = self.state();
        if let Err(e) = s.room() {
            return Err((prepared, e));
        }
        let at = prepared.at;
        let target = s.images.remove(&prepared.image[0]).expect("prepared once, committed once");
        s.call(Call::Commit(at, target));
        s.entries.insert(at, target);
        let asks = s.asks([at.source].into_iter());
        Ok(s.push(self.board.now(), asks, false))
    }

    fn abandon(&self, prepared: Prepared) {
        let known = self.state().images.remove(&prepared.image[0]);
        assert!(known.is_some(), "abandoned once");
    }

    fn block(&self, at: At) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::Block(at));
        s.entries.remove(&at);
        let asks = s.asks([at.source].into_iter());
        Ok(s.push(self.board.now(), asks, false))
    }

    fn silence(&self, at: At) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::Silence(at));
        s.entries.remove(&at);
        let asks = s.asks([at.source].into_iter());
        Ok(s.push(self.board.now(), asks, false))
    }

    fn submit(&self, b: &Batch<'_>) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.batches.push((b.tags.to_vec(), b.range, b.non_leaf));
        let ats = b.tags.iter().filter(|t| t.ats).count();
        s.call(Call::Submit { range: b.range, tags: b.tags.len(), ats });
        let asks = s.asks(b.tags.iter().filter(|t| t.ats).map(|t| t.at.source));
        Ok(s.push(self.board.now(), asks, false))
    }

    fn done(&self, seq: InvSeq) -> Poll<Result<(), InvError>> {
        let mut s = self.state();
        if s.lost {
            return Poll::Ready(Err(HwLost.into()));
        }
        s.run(self.board.now());
        s.results.get(&seq.0).map_or(Poll::Pending, |r| Poll::Ready(*r))
    }

    fn drain(&self, at: At) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::Drain(at));
        Ok(s.push(self.board.now(), Vec::new(), true))
    }

    fn drain_end(&self, at: At) -> DrainEnd {
        let mut s = self.state();
        s.call(Call::DrainEnd(at));
        if s.drain_again > 0 {
            s.drain_again -= 1;
            return DrainEnd::Again;
        }
        DrainEnd::At(QueuePos(s.head + (s.requests.len() + s.stalls.len()) as u64))
    }

    fn page_response(&self, answer: &Answer<'_>) -> Offer {
        let mut s = self.state();
        if s.lost {
            return Offer::Lost;
        }
        if s.responses_full {
            return Offer::Full;
        }
        assert_eq!(
            answer.last.vendor.0[0],
            u64::from(answer.last.index),
            "the vendor's bits come back with the answer"
        );
        if let Some(code) = answer.take() {
            let (source, pasid, index) = (answer.last.source, answer.last.pasid, answer.last.index);
            s.call(Call::Answer(Sent { source, pasid, index, code }));
        }
        Offer::Done
    }

    fn set_stall(&self, at: At, on: bool) -> Result<InvSeq, StallSwitchError> {
        let mut s = self.state();
        s.room()?;
        if on && s.rigid.contains(&at) {
            return Err(StallSwitchError::Cannot("it has no context of its own"));
        }
        s.call(Call::Stall(at, on));
        match on {
            true => s.stalling.insert(at),
            false => s.stalling.remove(&at),
        };
        Ok(s.push(self.board.now(), Vec::new(), false))
    }

    fn resume(&self, resume: &Resume<'_>) -> Offer {
        let mut s = self.state();
        if s.lost {
            return Offer::Lost;
        }
        if s.resumes_full {
            return Offer::Full;
        }
        if let Some(verdict) = resume.take() {
            let id = resume.id;
            s.call(Call::Resume(id, verdict));
            s.held.remove(&id);
            let records = s.records.entry(id).or_default();
            *records = records.checked_sub(1).expect("resumed more often than it was held");
        }
        Offer::Done
    }

    fn interrupt(&self) -> bool {
        !self.state().requests.is_empty()
    }

    fn service(&self, turn: &mut Turn<'_>) -> More {
        let second = core::mem::replace(&mut self.state().in_turn, true);
        // Elsewhere one thread does everything, and a resolver's panic may have ended a turn.
        assert!(!second || cfg!(not(portcullis_shuttle)), "two service turns of one instance at once");
        let more = self.read_queues(turn);
        self.state().in_turn = false;
        more
    }
}

impl Hardware {
    fn read_queues(&self, turn: &mut Turn<'_>) -> More {
        let overflowed = core::mem::take(&mut self.state().overflowed);
        loop {
            let next = self.state().requests.front().copied();
            let Some((request, wellformed)) = next else { break };
            if !turn.spend() {
                return More::Yes;
            }
            let taken = if wellformed { turn.page_request(request) } else { turn.malformed(request) };
            if taken == Taken::NoRoom {
                return More::Yes;
            }
            let mut s = self.state();
            s.requests.pop_front();
            s.head += 1;
        }
        // Before what was stalled since.
        let ended = core::mem::take(&mut self.state().ended);
        ended.into_iter().for_each(|source| turn.stalls_ended(source));
        loop {
            let next = self.state().stalls.front().copied();
            let Some(stall) = next else { break };
            if !turn.spend() || turn.stalled(stall) == Taken::NoRoom {
                return More::Yes;
            }
            let mut s = self.state();
            s.stalls.pop_front();
            s.head += 1;
        }
        if overflowed {
            turn.overflow();
        }
        let faults = core::mem::take(&mut self.state().faults);
        faults.into_iter().for_each(|f| turn.fault(f));
        turn.passed(QueuePos(self.state().head));
        let completed = core::mem::take(&mut self.state().completed);
        if completed {
            turn.completed();
        }
        More::No
    }
}

pub(super) struct Control {
    pub(super) hw: Hardware,
    pub(super) source: SourceId,
}

impl DeviceControl for Control {
    fn set_pasid(&self, on: bool) {
        self.hw.state().call(Call::Pasid(self.source, on));
    }
    fn set_ats(&self, on: bool) {
        self.hw.state().call(Call::Ats(self.source, on));
    }
    fn set_pri(&self, credits: Option<u32>) {
        self.hw.state().call(Call::Pri(self.source, credits));
    }
    fn reset(&self) {
        self.hw.state().call(Call::Reset(self.source));
    }
}
