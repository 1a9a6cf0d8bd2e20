//! The scripted driver, of which one call goes wrong: each that can, in turn.

use crate::{allocator::aside, common::Hardware};
use portcullis::driver::{
    Batch, Caps, DeviceControl, DrainEnd, Driver, Features, HwLost, Incompatible, InvError, InvSeq, More,
    MuteError, Offer, PrepareError, Prepared, StallSwitchError, Start, StartError, SubmitError, TableRequest,
    Target,
};
use portcullis::{Answer, At, Resume, SourceId, Turn};
use portcullis_pgtable::{FormatDesc, IoTable};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The call fails as a driver may at any time: no memory, a queue that is full, an invalidation
    /// that another one's error dropped, a table of a form that the unit does not walk.
    Refused,
    /// The hardware is gone from there on.
    Lost,
}

/// When it goes wrong.
#[derive(Default)]
pub struct Trouble {
    /// Calls until then, the one that fails included; 0 where none will.
    left: AtomicUsize,
    lost: AtomicBool,
}

impl Trouble {
    /// The call with number `n` from here goes wrong.
    pub fn arm(&self, n: usize, kind: Kind) {
        self.lost.store(kind == Kind::Lost, SeqCst);
        self.left.store(n + 1, SeqCst);
    }

    /// None goes wrong any more. True if one did.
    pub fn disarm(&self) -> bool {
        self.left.swap(0, SeqCst) == 0
    }

    fn strikes(&self) -> Option<Kind> {
        let left = self.left.load(SeqCst);
        self.left.store(left.saturating_sub(1), SeqCst);
        let kind = if self.lost.load(SeqCst) { Kind::Lost } else { Kind::Refused };
        (left == 1).then_some(kind)
    }
}

/// What the scripted driver allocates is not watched, but for the tables of the engine.
pub struct Faulty {
    pub hw: Hardware,
    pub trouble: Arc<Trouble>,
    /// The last that was asked for. The hardware takes its time, so that every step is waited for.
    pub asked: AtomicU64,
}

impl Faulty {
    fn strikes(&self) -> Option<Kind> {
        let kind = self.trouble.strikes();
        if kind == Some(Kind::Lost) {
            self.hw.state().lost = true;
        }
        kind
    }

    /// For calls that may find no memory, or that the hardware is gone.
    fn prepares(&self) -> Result<(), PrepareError> {
        match self.strikes() {
            Some(Kind::Refused) => return Err(PrepareError::NoMem),
            Some(Kind::Lost) => {}
            None if !self.hw.state().lost => return Ok(()),
            None => {}
        }
        Err(HwLost.into())
    }

    /// For calls that may find the queue full.
    fn submits(&self) -> Result<(), SubmitError> {
        match self.strikes() {
            Some(Kind::Refused) => Err(SubmitError::Full),
            _ => Ok(()),
        }
    }
}

impl Driver for Faulty {
    fn caps(&self) -> Caps {
        aside(|| self.hw.caps())
    }

    fn start(&self, how: Start<'_>) -> Poll<Result<(), StartError>> {
        match self.strikes() {
            Some(Kind::Refused) => Poll::Ready(Err(StartError::NoMem)),
            Some(Kind::Lost) => Poll::Ready(Err(StartError::Lost)),
            None => aside(|| self.hw.start(how)),
        }
    }

    fn new_table(&self, request: TableRequest) -> Result<Box<dyn IoTable>, PrepareError> {
        self.prepares()?;
        self.hw.new_table(request)
    }

    fn can_walk(&self, desc: &FormatDesc) -> Result<(), Incompatible> {
        match self.strikes() {
            Some(Kind::Refused) => Err(Incompatible::NoCommonFormat),
            _ => self.hw.can_walk(desc),
        }
    }

    fn can_nest(&self, table: &FormatDesc, parent: &FormatDesc) -> Result<(), Incompatible> {
        match self.strikes() {
            Some(Kind::Refused) => Err(Incompatible::NoNesting),
            _ => self.hw.can_nest(table, parent),
        }
    }

    fn add_device(&self, source: SourceId, features: Features) -> Result<u8, PrepareError> {
        self.prepares()?;
        aside(|| self.hw.add_device(source, features))
    }

    fn set_features(&self, source: SourceId, features: Features) -> Result<InvSeq, SubmitError> {
        self.submits()?;
        aside(|| self.hw.set_features(source, features))
    }

    fn cut_off(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        self.submits()?;
        aside(|| self.hw.cut_off(source))
    }

    fn restore(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        self.submits()?;
        aside(|| self.hw.restore(source))
    }

    fn mute(&self, source: SourceId, on: bool) -> Result<InvSeq, MuteError> {
        self.submits()?;
        aside(|| self.hw.mute(source, on))
    }

    fn remove_device(&self, source: SourceId) {
        aside(|| self.hw.remove_device(source));
    }

    fn prepare(&self, at: At, to: Target) -> Result<Prepared, PrepareError> {
        self.prepares()?;
        aside(|| self.hw.prepare(at, to))
    }

    fn commit(&self, prepared: Prepared) -> Result<InvSeq, (Prepared, SubmitError)> {
        match self.submits() {
            Ok(()) => aside(|| self.hw.commit(prepared)),
            Err(e) => Err((prepared, e)),
        }
    }

    fn abandon(&self, prepared: Prepared) {
        aside(|| self.hw.abandon(prepared));
    }

    fn block(&self, at: At) -> Result<InvSeq, SubmitError> {
        self.submits()?;
        aside(|| self.hw.block(at))
    }

    fn silence(&self, at: At) -> Result<InvSeq, SubmitError> {
        self.submits()?;
        aside(|| self.hw.silence(at))
    }

    fn submit(&self, batch: &Batch<'_>) -> Result<InvSeq, SubmitError> {
        self.submits()?;
        aside(|| self.hw.submit(batch))
    }

    fn done(&self, seq: InvSeq) -> Poll<Result<(), InvError>> {
        match self.strikes() {
            // What is asked for after an abort never completed.
            Some(Kind::Refused) => Poll::Ready(Err(InvError::Aborted)),
            _ if self.asked.fetch_max(seq.0, SeqCst) < seq.0 => Poll::Pending,
            _ => aside(|| self.hw.done(seq)),
        }
    }

    fn drain(&self, at: At) -> Result<InvSeq, SubmitError> {
        self.submits()?;
        aside(|| self.hw.drain(at))
    }

    fn drain_end(&self, at: At) -> DrainEnd {
        match self.strikes() {
            Some(Kind::Refused) => DrainEnd::Again,
            _ => aside(|| self.hw.drain_end(at)),
        }
    }

    fn page_response(&self, answer: &Answer<'_>) -> Offer {
        match self.strikes() {
            Some(Kind::Refused) => Offer::Full,
            _ => aside(|| self.hw.page_response(answer)),
        }
    }

    fn set_stall(&self, at: At, on: bool) -> Result<InvSeq, StallSwitchError> {
        self.submits()?;
        aside(|| self.hw.set_stall(at, on))
    }

    fn resume(&self, resume: &Resume<'_>) -> Offer {
        match self.strikes() {
            Some(Kind::Refused) => Offer::Full,
            _ => aside(|| self.hw.resume(resume)),
        }
    }

    fn interrupt(&self) -> bool {
        self.hw.interrupt()
    }

    fn service(&self, turn: &mut Turn<'_>) -> More {
        self.hw.service(turn)
    }
}

/// A device's switches, which write down what was asked of them.
pub struct Aside(pub Arc<dyn DeviceControl>);

impl DeviceControl for Aside {
    fn set_pasid(&self, on: bool) {
        aside(|| self.0.set_pasid(on));
    }
    fn set_ats(&self, on: bool) {
        aside(|| self.0.set_ats(on));
    }
    fn set_pri(&self, credits: Option<u32>) {
        aside(|| self.0.set_pri(credits));
    }
    fn reset(&self) {
        aside(|| self.0.reset());
    }
}
