//! Entries that the hardware reads: prepared, shown, taken back.

use crate::{
    driver::{Change, HwLost, PrepareError, Prepared, SubmitError, Target},
    ids::At,
    instance::Instance,
    op::hw,
    platform::Platform,
};

/// A prepared entry in the core's hands; abandoned on drop.
pub(crate) struct Holding<'a, P: Platform> {
    instance: &'a Instance<P>,
    prepared: Option<Prepared>,
}

impl<'a, P: Platform> Holding<'a, P> {
    pub(crate) fn prepare(
        instance: &'a Instance<P>,
        at: At,
        target: Target,
    ) -> Result<(Self, Change), PrepareError> {
        let prepared = instance.driver().prepare(at, target)?;
        let change = prepared.change;
        Ok((Holding { instance, prepared: Some(prepared) }, change))
    }

    fn take(&mut self) -> Option<Prepared> {
        self.prepared.take()
    }
}

impl<P: Platform> Drop for Holding<'_, P> {
    fn drop(&mut self) {
        if let Some(p) = self.prepared.take() {
            self.instance.driver().abandon(p);
        }
    }
}

impl<P: Platform> Instance<P> {
    /// Makes a place translate through `to`, or nothing.
    pub(crate) async fn switch(&self, at: At, to: Option<Target>) -> Result<(), HwLost> {
        match to {
            Some(target) => self.install(at, target, None).await,
            None => hw(self, || self.driver().block(at)).await,
        }
    }

    /// Shows what was prepared, if it still is. Prepares anew for each further try, so that an
    /// invalidation that was dropped is queued again; where there is no memory for that at the
    /// moment, it is tried again like a full queue.
    pub(crate) async fn install(
        &self,
        at: At,
        target: Target,
        mut held: Option<Holding<'_, P>>,
    ) -> Result<(), HwLost> {
        let driver = self.driver();
        hw(self, || {
            let prepared = match held.as_mut().and_then(Holding::take) {
                Some(prepared) => prepared,
                None => driver.prepare(at, target).map_err(|e| match e {
                    PrepareError::NoMem => SubmitError::Full,
                    _ => SubmitError::Lost(HwLost),
                })?,
            };
            driver.commit(prepared).map_err(|(prepared, e)| {
                driver.abandon(prepared);
                e
            })
        })
        .await
    }
}
