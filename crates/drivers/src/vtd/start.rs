//! Bringing a unit up, a step a call (`[V]` 6.5.2, 6.6, 11.4.4.1).
//!
//! Translation that firmware left on is switched off first. Where firmware protects memory by the
//! protected regions, these stay on until translation is on again, with every requester blocked.

use super::{
    Vtd, faults,
    invalidate::Items,
    queue::{End, Ring},
    regs::Event,
};
use core::task::Poll;
use portcullis::{
    Platform, ShortLock,
    driver::{InvError, InvSeq, Start, StartError},
};
use portcullis_pgtable::{Fresh, NoMem};
use portcullis_spec::vtd::{
    qi::CcInv,
    regs::{Gcmd, Gsts, Rtaddr, Ttm},
};

/// How far the start has come. Each step has asked something of the hardware and looks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Untouched,
    TranslationOff,
    InterruptRemappingOff,
    QueueEmpty,
    QueueOff,
    QueueOn,
    RootSet,
    Invalidated(InvSeq),
    TranslationOn,
    RegionsOff,
    Running,
}

/// What a start needs of table memory.
#[derive(Default)]
struct Frames {
    root: Option<Fresh>,
    queue: Option<Fresh>,
    status: Option<Fresh>,
    requests: Option<Fresh>,
}

impl<P: Platform> Vtd<P> {
    pub(super) fn start_steps(&self, how: Start<'_>) -> Poll<Result<(), StartError>> {
        match how {
            Start::Fresh => {}
            Start::Adopt(_) => {
                return Poll::Ready(Err(StartError::Unsupported("adopting the tables of an earlier kernel")));
            }
            _ => return Poll::Ready(Err(StartError::Unsupported("this way to start"))),
        }
        loop {
            // The core starts an instance once, and alone; the lock only keeps the step.
            let step = self.step.with(|s| *s);
            match self.advance(step) {
                Ok(Some(Step::Running)) => {
                    self.step.with(|s| *s = Step::Running);
                    return Poll::Ready(Ok(()));
                }
                Ok(Some(next)) => self.step.with(|s| *s = next),
                Ok(None) => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// The next step if this one is done.
    fn advance(&self, step: Step) -> Result<Option<Step>, StartError> {
        let gsts = self.regs.gsts();
        if step != Step::Untouched && gsts.into_bits() == u32::MAX {
            return Err(StartError::Lost);
        }
        let done = match step {
            Step::Untouched => {
                self.unit.check()?;
                self.mask_events();
                self.switch_off(gsts.tes(), |c| c.with_te(false));
                true
            }
            Step::TranslationOff => !gsts.tes(),
            Step::InterruptRemappingOff => !gsts.ires(),
            Step::QueueEmpty => !gsts.qies() || self.quiesced(),
            Step::QueueOff => !gsts.qies(),
            Step::QueueOn => gsts.qies(),
            Step::RootSet => gsts.rtps(),
            Step::Invalidated(seq) => match self.queue.done(seq) {
                Poll::Pending => false,
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(InvError::Lost(_))) => return Err(StartError::Lost),
                Poll::Ready(Err(_)) => {
                    return Err(StartError::Hardware("it refused a global invalidation"));
                }
            },
            Step::TranslationOn => gsts.tes(),
            Step::RegionsOff => !self.regs.pmen().prs(),
            Step::Running => true,
        };
        if !done {
            return Ok(None);
        }
        self.enter_next(step, gsts).map(Some)
    }

    /// Asks for the next step.
    fn enter_next(&self, step: Step, gsts: Gsts) -> Result<Step, StartError> {
        Ok(match step {
            Step::Untouched => Step::TranslationOff,
            Step::TranslationOff => {
                self.switch_off(gsts.ires(), |c| c.with_ire(false));
                Step::InterruptRemappingOff
            }
            // A queue goes off only when it is empty ([V] 6.5.2).
            Step::InterruptRemappingOff => Step::QueueEmpty,
            Step::QueueEmpty => {
                self.switch_off(gsts.qies(), |c| c.with_qie(false));
                Step::QueueOff
            }
            Step::QueueOff => {
                faults::clear(&self.regs, &self.unit);
                self.allocate()?;
                self.regs.command(|c| c.with_qie(true));
                Step::QueueOn
            }
            Step::QueueOn => {
                self.set_root();
                Step::RootSet
            }
            Step::RootSet => Step::Invalidated(self.invalidate_all()?),
            Step::Invalidated(_) => {
                self.regs.command(|c| c.with_te(true));
                Step::TranslationOn
            }
            Step::TranslationOn => {
                let regions = self.unit.cap.plmr() || self.unit.cap.phmr();
                let pmen = self.regs.pmen();
                if regions && pmen.prs() {
                    self.regs.set_pmen(pmen.with_epm(false));
                    Step::RegionsOff
                } else {
                    self.unmask_events();
                    Step::Running
                }
            }
            Step::RegionsOff => {
                self.unmask_events();
                Step::Running
            }
            Step::Running => Step::Running,
        })
    }

    fn switch_off(&self, on: bool, change: impl FnOnce(Gcmd) -> Gcmd) {
        if on {
            self.regs.command(change);
        }
    }

    /// Whether the queue that an earlier owner left fetches nothing more: it is empty, or an error
    /// that nobody will clear any more has stopped it ([V] 6.5.2.11).
    fn quiesced(&self) -> bool {
        let fsts = self.regs.fsts();
        fsts.iqe() || fsts.ite() || self.regs.iqh().qh() == self.regs.iqt().qt()
    }

    /// Root table and queues. All or nothing.
    fn allocate(&self) -> Result<(), StartError> {
        let mut frames = Frames::default();
        let ring = match self.allocate_into(&mut frames) {
            Ok(ring) => ring,
            Err(NoMem) => {
                let Frames { root, queue, status, requests } = frames;
                [root, queue, status, requests].into_iter().flatten().for_each(|f| self.mem.release(f));
                return Err(StartError::NoMem);
            }
        };
        if let (Some(queue), Some(status)) = (frames.queue, frames.status) {
            self.queue.set_up(ring, queue.publish(), status.publish());
        }
        if let Some(requests) = frames.requests {
            self.requests.set_up(requests);
        }
        self.root.with(|r| *r = frames.root.map(Fresh::publish));
        Ok(())
    }

    /// The books of the invalidation queue, and all frames.
    fn allocate_into(&self, frames: &mut Frames) -> Result<Ring, NoMem> {
        frames.root = Some(self.tables.frame()?);
        let order = self.allocate_queue(frames)?;
        if self.unit.page_requests() {
            let order = self.options.page_request_queue.order();
            frames.requests = Some(self.tables.largest_run(order)?);
        }
        self.queue.ring(order)
    }

    /// The invalidation queue, as large as asked for or as there are frames for with its status words.
    /// Returns the order of its frames.
    fn allocate_queue(&self, frames: &mut Frames) -> Result<u32, NoMem> {
        let wanted = self.options.invalidation_queue.order();
        let fits = |order: &u32| {
            frames.queue = self.tables.frames(*order).ok();
            frames.status = self.tables.frames(self.queue.status_order(*order)).ok();
            let fits = frames.queue.is_some() && frames.status.is_some();
            if !fits {
                [frames.queue.take(), frames.status.take()]
                    .into_iter()
                    .flatten()
                    .for_each(|f| self.mem.release(f));
            }
            fits
        };
        (0..=wanted).rev().find(fits).ok_or(NoMem)
    }

    fn set_root(&self) {
        let mode = if self.unit.scalable { Ttm::Scalable } else { Ttm::Legacy };
        if let Some(root) = self.root.with(|r| *r) {
            let rtaddr = Rtaddr::new().with_ttm(mode.bits()).with_rta(root.0);
            self.regs.set_rtaddr(rtaddr);
            self.regs.command(|c| c.with_srtp(true));
        }
    }

    /// Global invalidation, unless hardware did it with the root table pointer (`[V]` 6.6).
    fn invalidate_all(&self) -> Result<InvSeq, StartError> {
        if self.unit.cap.esrtps() {
            return Ok(InvSeq(0));
        }
        let mut items = Items::new();
        items.all_below_context(&self.unit, CcInv::global());
        self.queue.submit(&items, End::default(), || ()).map_err(|_| StartError::Lost)
    }

    fn mask_events(&self) {
        self.regs.set_event(Event::Fault, None);
        if self.unit.ecap.qi() {
            self.regs.set_event(Event::Invalidation, None);
        }
        if self.unit.ecap.prs() {
            self.regs.set_event(Event::PageRequest, None);
        }
    }

    fn unmask_events(&self) {
        let o = &self.options;
        self.regs.set_event(Event::Fault, o.fault_event);
        self.regs.set_event(Event::Invalidation, o.invalidation_event);
        if self.unit.page_requests() {
            self.regs.set_event(Event::PageRequest, o.page_request_event);
        }
    }
}
