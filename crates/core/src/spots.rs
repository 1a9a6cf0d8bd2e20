//! Where the requests of a round come from, and what stands there: looked up, and gone in to, once.

use crate::{
    account::Account,
    assembly::GroupKey,
    attachment::Inner,
    driver::PageRequest,
    ids::Key,
    instance::Instance,
    places::place_key,
    platform::Platform,
    slab::{Tenant, leave},
};
use portcullis_sync::tenants::{Inside, Phase};

/// A place that requests come from, as a round found it.
pub(crate) struct Spot<'a, P: Platform> {
    /// Its key in the table of places.
    pub(crate) key: u64,
    /// The table's version then: what was found stands as long as that does.
    pub(crate) version: u64,
    /// The device's account, and its number. `None` for a requester that nobody knows.
    pub(crate) account: Option<(&'a Account, u32)>,
    /// What is attached there.
    pub(crate) tenant: Option<Key>,
    inside: Option<Inside<'a, Tenant<P>>>,
}

impl<'a, P: Platform> Spot<'a, P> {
    const NOWHERE: Spot<'a, P> =
        Spot { key: u64::MAX, version: 0, account: None, tenant: None, inside: None };

    /// What is attached there, unless it is closed.
    #[inline]
    pub(crate) fn tenant(&self) -> Option<&Inside<'a, Tenant<P>>> {
        self.inside.as_ref()
    }

    #[inline]
    pub(crate) fn inner(&self) -> Option<&Inner<P>> {
        self.inside.as_ref().map(|t| &*t.inner)
    }

    /// What is attached there, if it decides page requests, unless it is closed; and whether it is still
    /// to be opened.
    #[inline]
    pub(crate) fn serving(&self) -> Option<(&Tenant<P>, bool)> {
        let t = self.inside.as_ref()?;
        let phase = t.phase();
        (phase != Phase::Closed && t.inner.resolves()).then_some((&**t, phase == Phase::Waiting))
    }

    /// What tells a request's group from others.
    #[inline]
    pub(crate) fn group(&self, request: &PageRequest) -> GroupKey {
        GroupKey { place: self.key, index: request.index }
    }

    /// Who is charged for requests that come from there.
    #[inline]
    pub(crate) fn payer(&self) -> Option<Payer<'_, P>> {
        Some(Payer { account: self.account?.0, tenant: self.inner() })
    }

    fn look_up(&mut self, instance: &'a Instance<P>, request: &PageRequest, key: u64) {
        let version = instance.places.version();
        let place = instance.place(request.source, request.pasid);
        let account = place.and_then(|p| Some((instance.accounts.get(p.account as usize)?, p.account)));
        let tenant = place.and_then(|p| p.tenant);
        if self.tenant != tenant || self.inside.is_none() {
            self.leave();
            self.inside = tenant.and_then(|key| instance.hub.attachments.enter(key));
        }
        (self.key, self.version, self.account, self.tenant) = (key, version, account, tenant);
    }

    fn leave(&mut self) {
        if let Some(inside) = self.inside.take() {
            let Inner { lease, domain, .. } = &*inside.inner;
            lease.trim(&domain.quota);
            inside.inner.announce();
            leave(inside);
        }
    }
}

/// A device, and what is attached at the place that a request of it came from.
pub(crate) struct Payer<'a, P: Platform> {
    pub(crate) account: &'a Account,
    pub(crate) tenant: Option<&'a Inner<P>>,
}

impl<P: Platform> Payer<'_, P> {
    /// Charges one request, for which there is room.
    #[inline]
    pub(crate) fn charge(&self) {
        self.account.outstanding.add(1);
        if let Some(t) = self.tenant {
            t.lease.requests.charge();
        }
    }

    /// Takes `n` charges back.
    #[inline]
    pub(crate) fn uncharge(&self, n: u32) {
        self.account.outstanding.sub(n.into());
        if let Some(t) = self.tenant {
            t.lease.requests.uncharge(n, &t.domain.quota.requests);
        }
    }
}

/// The places that a round remembers. It stays inside of their attachments until its end, or until the
/// head of the queue is told to have passed.
pub(crate) struct Spots<'a, P: Platform> {
    instance: &'a Instance<P>,
    spots: [Spot<'a, P>; SPOTS],
    /// Those in use, in the order in which they came into use: so are their workers sent.
    order: [u8; SPOTS],
    used: usize,
}

const BITS: u32 = 3;
const SPOTS: usize = 1 << BITS;

impl<'a, P: Platform> Spots<'a, P> {
    pub(crate) fn new(instance: &'a Instance<P>) -> Self {
        Spots { instance, spots: [const { Spot::NOWHERE }; SPOTS], order: [0; SPOTS], used: 0 }
    }

    /// The place that a request came from.
    #[inline]
    pub(crate) fn find(&mut self, request: &PageRequest) -> &Spot<'a, P> {
        let key = place_key(request.source, request.pasid);
        // Fibonacci hashing.
        let at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BITS)) as usize;
        let spot = &self.spots[at];
        if spot.key != key || !self.instance.places.unchanged(spot.version) {
            self.look_up(at, request, key);
        }
        &self.spots[at]
    }

    #[cold]
    fn look_up(&mut self, at: usize, request: &PageRequest, key: u64) {
        let spot = &mut self.spots[at];
        if spot.key == Spot::<P>::NOWHERE.key
            && let Some(next) = self.order.get_mut(self.used)
        {
            *next = at as u8;
            self.used += 1;
        }
        spot.look_up(self.instance, request, key);
    }

    pub(crate) fn leave_all(&mut self) {
        for at in self.order.iter().take(self.used) {
            let spot = &mut self.spots[usize::from(*at) % SPOTS];
            spot.leave();
            spot.key = Spot::<P>::NOWHERE.key;
        }
        self.used = 0;
    }
}

impl<P: Platform> Drop for Spots<'_, P> {
    fn drop(&mut self) {
        self.leave_all();
    }
}
