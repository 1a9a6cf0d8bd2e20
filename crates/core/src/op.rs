//! Operations that take several steps of hardware.
//!
//! Each is written once, as a future that only ever waits for hardware or for another operation.
//! A caller that can sleep runs it through the platform's `wait`; a platform without threads calls
//! [`Op::step`] between its service turns. Nothing registers a waker: a step looks, and either goes
//! on or says that it is not done.

use crate::{
    driver::{HwLost, InvSeq, SubmitError},
    hub::Hub,
    hw::HwOp,
    instance::Instance,
    platform::{Platform, Sleep},
    wait::{GaveUp, poll_until},
};
use alloc::boxed::Box;
use core::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

/// An operation in its step form. Dropping it unfinished gives it up in an orderly way: what it
/// had begun is taken back, or finished by a worker.
#[must_use = "an operation does nothing until it is stepped"]
pub struct Op<'a, T>(Pin<Box<dyn Future<Output = T> + 'a>>);

impl<'a, T> Op<'a, T> {
    pub(crate) fn new(future: impl Future<Output = T> + 'a) -> Op<'a, T> {
        Op(Box::pin(future))
    }

    /// Goes as far as possible without waiting. Must not be called again once it was ready.
    pub fn step(&mut self) -> Poll<T> {
        self.0.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }
}

/// Runs an operation to its end, sleeping in between.
pub(crate) fn block_on<P: Platform, T>(
    hub: &Hub<P>,
    cx: &Sleep<'_>,
    future: impl Future<Output = T>,
) -> Result<T, GaveUp> {
    let mut future = pin!(future);
    poll_until(&hub.platform, cx, &hub.progress, None, || {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    })
}

/// Submits a piece of work and waits for it; see [`HwOp`].
pub(crate) async fn hw<P: Platform>(
    instance: &Instance<P>,
    mut submit: impl FnMut() -> Result<InvSeq, SubmitError>,
) -> Result<(), HwLost> {
    let mut op = HwOp::new();
    poll_fn(|_| op.step(instance, &mut submit)).await
}
