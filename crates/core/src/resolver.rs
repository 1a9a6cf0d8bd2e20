//! Resolvers: who decides a page-request group, and the token by which it is answered.

use crate::{
    driver::PageRequest,
    error::AlreadyAnswered,
    ids::{At, DeviceId, Key, Pasid},
    instance::Instance,
    platform::{Platform, Sleep},
    record::{Group, from_page},
    stall::{StalledAccess, event},
    turn::Code,
};
use alloc::{boxed::Box, sync::Arc};
use core::{borrow::Borrow, fmt};
use portcullis_sync::slot::{Generation, SlotWord, State};

/// Decides what becomes of page requests. At most one per domain, given when the domain is built,
/// and only for owners that control the mappings.
///
/// Runs in sleepable context, for one attachment on at most one worker at a time. `data` is what
/// the caller gave to attach.
pub trait Resolver<P: Platform, T>: Send + Sync + 'static {
    /// Makes the pages of a group present, or not, and answers it: at once through
    /// [`PageGroup::respond`], or later after [`PageGroup::defer`]. A group that is dropped is
    /// answered Invalid.
    fn resolve(&self, cx: &Sleep<'_>, data: &Arc<T>, group: PageGroup<'_, P>);
}

impl<P, T, F> Resolver<P, T> for F
where
    P: Platform,
    F: Fn(&Sleep<'_>, &Arc<T>, PageGroup<'_, P>) + Send + Sync + 'static,
{
    fn resolve(&self, cx: &Sleep<'_>, data: &Arc<T>, group: PageGroup<'_, P>) {
        self(cx, data, group)
    }
}

/// Decides page requests without sleeping: by what it knows already, or by passing the group on
/// ([`PageGroup::defer`]) to somebody who decides later.
///
/// Runs in service context, which may be an interrupt, for one attachment at most once at a time.
/// It may not wait, allocate, or let go of the last reference to something that sleeps in its drop.
pub trait ImmediateResolver<P: Platform, T>: Send + Sync + 'static {
    /// As [`Resolver::resolve`].
    fn resolve(&self, data: &Arc<T>, group: PageGroup<'_, P>);
}

impl<P, T, F> ImmediateResolver<P, T> for F
where
    P: Platform,
    F: Fn(&Arc<T>, PageGroup<'_, P>) + Send + Sync + 'static,
{
    fn resolve(&self, data: &Arc<T>, group: PageGroup<'_, P>) {
        self(data, group)
    }
}

/// Whether, and where, an attachment's page requests are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolves {
    /// It has no resolver.
    Nothing,
    /// On a worker.
    Sleeping,
    /// In the service turn that brings them.
    Immediately,
}

/// A resolver bound to the data of one attachment: one dynamic call a fault, no downcast. Called where
/// the resolver may be: see [`Resolves`].
pub(crate) trait Handler<P: Platform>: Send + Sync {
    fn handle(&self, group: PageGroup<'_, P>);
}

/// Makes handlers out of the data given to attach.
pub(crate) trait Bind<P: Platform, T>: Send + Sync {
    fn bind(&self, data: Arc<T>) -> Box<dyn Handler<P>>;
    fn resolves(&self) -> Resolves;
}

pub(crate) struct Bound<R>(pub(crate) Arc<R>);

pub(crate) struct BoundImmediate<R>(pub(crate) Arc<R>);

struct BoundHandler<R, T> {
    resolver: Arc<R>,
    data: Arc<T>,
}

impl<P: Platform, T: Send + Sync + 'static, R: Resolver<P, T>> Bind<P, T> for Bound<R> {
    fn bind(&self, data: Arc<T>) -> Box<dyn Handler<P>> {
        Box::new(BoundHandler { resolver: self.0.clone(), data })
    }

    fn resolves(&self) -> Resolves {
        Resolves::Sleeping
    }
}

struct ImmediateHandler<R, T> {
    resolver: Arc<R>,
    data: Arc<T>,
}

impl<P: Platform, T: Send + Sync + 'static, R: ImmediateResolver<P, T>> Bind<P, T> for BoundImmediate<R> {
    fn bind(&self, data: Arc<T>) -> Box<dyn Handler<P>> {
        Box::new(ImmediateHandler { resolver: self.0.clone(), data })
    }

    fn resolves(&self) -> Resolves {
        Resolves::Immediately
    }
}

impl<P: Platform, T: Send + Sync, R: ImmediateResolver<P, T>> Handler<P> for ImmediateHandler<R, T> {
    #[inline]
    fn handle(&self, group: PageGroup<'_, P>) {
        self.resolver.resolve(&self.data, group)
    }
}

impl<P: Platform, T: Send + Sync, R: Resolver<P, T>> Handler<P> for BoundHandler<R, T> {
    fn handle(&self, group: PageGroup<'_, P>) {
        let cx = Sleep::in_resolver(group.attachment());
        self.resolver.resolve(&cx, &self.data, group)
    }
}

/// Keeps the data of an attachment that has no resolver, for as long as the attachment lives.
pub(crate) struct Keeps<T>(#[expect(dead_code, reason = "held, not read")] pub(crate) Arc<T>);

impl<P: Platform, T: Send + Sync> Handler<P> for Keeps<T> {
    fn handle(&self, group: PageGroup<'_, P>) {
        drop(group);
    }
}

/// What a resolver may answer. Failure, which turns page requests off for the whole function, is
/// not among it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The pages are there: retry the access.
    Success,
    /// They are not: give the access up.
    Invalid,
}

/// One request of a group, as a resolver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// IOVA of the page.
    pub address: u64,
    /// The device wants to read.
    pub read: bool,
    /// The device wants to write.
    pub write: bool,
    /// The device wants to execute.
    pub exec: bool,
    /// The request is privileged.
    pub privileged: bool,
}

/// The answer that a group still owes, in whoever's hands, with the group: its last request is borrowed
/// from who calls the resolver, or kept.
struct Token<L> {
    slot: u32,
    generation: Generation,
    group: Group<L>,
    /// The service turn that brought it looks after it itself.
    in_turn: bool,
    /// It was answered here, or is in other hands.
    done: bool,
}

impl<L: Borrow<PageRequest>> Token<L> {
    #[inline]
    fn new(slot: u32, generation: Generation, group: Group<L>, in_turn: bool) -> Self {
        Token { slot, generation, group, in_turn, done: false }
    }

    #[inline]
    fn last(&self) -> &PageRequest {
        self.group.last.borrow()
    }

    // Where it is inlined, nothing of the token need be kept in memory.
    #[inline(always)]
    fn respond<P: Platform>(
        &mut self,
        instance: &Instance<P>,
        response: Response,
    ) -> Result<(), AlreadyAnswered> {
        let code = match response {
            Response::Success => Code::Success,
            Response::Invalid => Code::Invalid,
        };
        self.done = true;
        if !instance.settle(self.slot, self.generation, self.last(), code) {
            return Err(AlreadyAnswered);
        }
        if !self.in_turn {
            instance.say_ended();
        }
        Ok(())
    }

    #[inline]
    fn end<P: Platform>(&mut self, instance: &Instance<P>) {
        if !self.done {
            // Whoever answered before has settled it.
            let _ = self.respond(instance, Response::Invalid);
        }
    }

    fn is_pending<P: Platform>(&self, instance: &Instance<P>) -> bool {
        let word = instance.records.word(self.slot).map(SlotWord::peek);
        word == Some((self.generation, State::Pending))
    }

    /// The requests from the `n`th on, by one walk along the pages.
    fn requests<'a, P: Platform>(
        &'a self,
        instance: &'a Instance<P>,
        n: usize,
    ) -> impl Iterator<Item = Request> + 'a {
        let (last, first) = (self.last(), self.group.first);
        let records = &instance.records;
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        let next = |page: &u32| records.next_page(*page);
        let mut page = Some(first.head);
        (0..n.min(first.len)).for_each(|_| page = page.as_ref().and_then(next));
        (n..=first.len).map_while(move |n| {
            let r = if n == first.len {
                *last
            } else {
                let this = page?;
                page = next(&this);
                from_page(records.page(this)?, last)
            };
            records.still_live(self.slot, self.generation).then_some(Request {
                address: r.address,
                read: r.read,
                write: r.write,
                exec: r.exec,
                privileged: r.privileged,
            })
        })
    }
}

macro_rules! reply {
    ($(#[$doc:meta])* $name:ident <$($life:lifetime)?> of $last:ty, in $instance:ty) => {
        $(#[$doc])*
        #[must_use = "a group that is dropped is answered Invalid"]
        pub struct $name<$($life,)? P: Platform> {
            instance: $instance,
            token: Token<$last>,
        }

        impl<$($life,)? P: Platform> $name<$($life,)? P> {
            /// Number of requests in the group, at least one.
            pub fn len(&self) -> usize {
                self.token.group.first.len as usize + 1
            }

            /// Never: a group has a last request.
            pub fn is_empty(&self) -> bool {
                false
            }

            /// Whether nobody has answered it so far.
            pub fn is_pending(&self) -> bool {
                self.token.is_pending(&self.instance)
            }

            /// The `n`th request. `None` past the end, and once somebody else answered the group.
            pub fn request(&self, n: usize) -> Option<Request> {
                self.token.requests(&self.instance, n).next()
            }

            /// The requests, first to last; ends early if somebody else answers the group.
            pub fn requests(&self) -> impl Iterator<Item = Request> + '_ {
                self.token.requests(&self.instance, 0)
            }

            /// The device that asks.
            pub fn device(&self) -> DeviceId {
                self.token.group.device
            }

            /// Where the requests came from.
            pub fn at(&self) -> At {
                self.token.last().at()
            }

            /// The PASID of the requests.
            pub fn pasid(&self) -> Option<Pasid> {
                self.token.last().pasid
            }

            /// Page request group index.
            pub fn index(&self) -> u16 {
                self.token.last().index
            }

            /// The attachment that the group belongs to, for a detach from inside a resolver.
            pub fn attachment(&self) -> Key {
                self.token.group.owner
            }

            /// Answers the group. Never waits; any context.
            ///
            /// # Errors
            /// [`AlreadyAnswered`] when a deadline, a detach or a reset came first. Nothing
            /// changed then.
            #[inline]
            pub fn respond(mut self, response: Response) -> Result<(), AlreadyAnswered> {
                self.token.respond(&self.instance, response)
            }
        }

        impl<$($life,)? P: Platform> Drop for $name<$($life,)? P> {
            #[inline]
            fn drop(&mut self) {
                self.token.end(&self.instance);
            }
        }

        impl<$($life,)? P: Platform> fmt::Debug for $name<$($life,)? P> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("at", &self.at())
                    .field("index", &self.index())
                    .field("len", &self.len())
                    .finish()
            }
        }
    };
}

reply! {
    /// A page-request group in a resolver's hands. Answered once: by [`respond`](Self::respond),
    /// or Invalid when dropped.
    PageGroup<'a> of &'a PageRequest, in &'a Arc<Instance<P>>
}

reply! {
    /// A group that is answered after its resolver returned, or a stalled transaction whose decider is
    /// elsewhere. It does not keep the attachment alive:
    /// a detach answers it, and a later [`respond`](Self::respond) is told so.
    Deferred<> of PageRequest, in Arc<Instance<P>>
}

impl<P: Platform> Deferred<P> {
    /// What it is where it is no group but a stalled transaction: it has one request, and
    /// [`Response::Success`] retries it, any other end terminates it.
    pub fn stalled(&self) -> Option<StalledAccess> {
        let Token { slot, group: Group { last, device, owner, .. }, .. } = &self.token;
        self.instance.is_stall(*slot).then(|| StalledAccess {
            id: event::id_of(last),
            device: *device,
            at: self.at(),
            address: last.address,
            access: event::access_of(last),
            privileged: last.privileged,
            attachment: *owner,
        })
    }

    /// The same out of the turn that brought it.
    pub(crate) fn leaves_turn(mut self) -> Self {
        self.token.in_turn = false;
        self
    }

    /// The token for a stalled transaction.
    pub(crate) fn new(
        instance: &Arc<Instance<P>>,
        slot: u32,
        generation: Generation,
        group: Group,
        in_turn: bool,
    ) -> Self {
        Deferred { instance: instance.clone(), token: Token::new(slot, generation, group, in_turn) }
    }
}

impl<'a, P: Platform> PageGroup<'a, P> {
    /// Takes the group out of the resolver, to be answered later from anywhere.
    pub fn defer(mut self) -> Deferred<P> {
        self.token.done = true;
        let Token { slot, generation, group, .. } = self.token;
        Deferred::new(self.instance, slot, generation, group.keep(), false)
    }

    /// The token for a group that goes to an attachment.
    #[inline]
    pub(crate) fn new(
        instance: &'a Arc<Instance<P>>,
        slot: u32,
        generation: Generation,
        group: Group<&'a PageRequest>,
        in_turn: bool,
    ) -> Self {
        PageGroup { instance, token: Token::new(slot, generation, group, in_turn) }
    }
}
