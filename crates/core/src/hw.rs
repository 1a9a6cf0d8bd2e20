//! One piece of work for the invalidation queue: submitted until it is taken, waited for, and
//! repeated where somebody else's error dropped it. Deadlines and quarantine for all vendors.

use crate::{
    driver::{HwLost, InvError, InvSeq, SubmitError},
    fault::Reason,
    ids::SourceId,
    instance::Instance,
    platform::{Platform, Time},
};
use core::task::Poll;

/// Errors after which an instance counts as lost. Each device that times out costs two (its
/// time-out, and the abort of what stood behind it), so this bounds a machine full of dead devices
/// without giving up a working instance.
const MOST_ERRORS: u32 = 4096;

enum Stage {
    Submit,
    Wait(InvSeq),
    /// A device that timed out is being cut off, before anything else.
    Cut(SourceId, InvSeq),
}

/// The progress of one piece of work.
pub(crate) struct HwOp {
    stage: Stage,
    since: Option<Time>,
    errors: u32,
}

impl HwOp {
    pub(crate) fn new() -> HwOp {
        HwOp { stage: Stage::Submit, since: None, errors: 0 }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.since = None;
    }

    /// What comes after an error: the work again, unless that never ends.
    fn failed<P: Platform>(&mut self, instance: &Instance<P>, e: InvError) -> Result<Stage, SubmitError> {
        self.errors += 1;
        match e {
            _ if self.errors > MOST_ERRORS => return Err(SubmitError::Lost(HwLost)),
            InvError::Lost(l) => return Err(SubmitError::Lost(l)),
            InvError::DeviceTimeout(s) => instance.quarantine(s, Reason::DeviceTimeout),
            InvError::Aborted => {}
        }
        Ok(Stage::Submit)
    }

    /// Goes as far as possible without waiting. `submit` is called again when what it submitted
    /// was dropped, so it must be idempotent.
    pub(crate) fn step<P: Platform>(
        &mut self,
        instance: &Instance<P>,
        submit: &mut dyn FnMut() -> Result<InvSeq, SubmitError>,
    ) -> Poll<Result<(), HwLost>> {
        loop {
            if instance.is_lost() {
                return Poll::Ready(Err(HwLost));
            }
            let asked = match self.stage {
                Stage::Submit => match instance.suspect() {
                    Some(s) => instance.driver().cut_off(s).map(|q| Stage::Cut(s, q)),
                    None => submit().map(Stage::Wait),
                },
                Stage::Wait(q) | Stage::Cut(_, q) => match (instance.driver().done(q), &self.stage) {
                    (Poll::Pending, _) => Err(SubmitError::Full),
                    (Poll::Ready(Ok(())), Stage::Cut(s, _)) => {
                        instance.was_cut(*s);
                        Ok(Stage::Submit)
                    }
                    (Poll::Ready(Ok(())), _) => return Poll::Ready(Ok(())),
                    (Poll::Ready(Err(e)), _) => self.failed(instance, e),
                },
            };
            match asked {
                Ok(next) => self.enter(next),
                Err(SubmitError::Lost(l)) => {
                    instance.declare_lost();
                    return Poll::Ready(Err(l));
                }
                Err(SubmitError::Full) => {
                    let now = instance.platform().now();
                    let since = *self.since.get_or_insert(now);
                    if now.since(since) > instance.config().hardware_deadline {
                        instance.declare_lost();
                        return Poll::Ready(Err(HwLost));
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}
