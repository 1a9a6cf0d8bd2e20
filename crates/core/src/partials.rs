//! The accounts of groups of which the last request has not come.

use crate::{
    assembly::{GroupKey, Partial},
    books::{Books, Ledger},
    driver::PageRequest,
    platform::{Platform, Time},
    record::Chain,
    spots::{Payer, Spot},
};

impl<P: Platform> Books<'_, P> {
    /// Keeps a request that is not the last of its group, and charges it. False when there is no room:
    /// its group, if there is one, is answered Invalid as a whole.
    #[inline]
    pub(crate) fn keep(
        &mut self,
        request: &PageRequest,
        spot: &Spot<'_, P>,
        payer: &Payer<'_, P>,
        until: Time,
    ) -> bool {
        match self.add(request, spot, payer) {
            Some(kept) => kept,
            None => self.keep_new(request, spot, payer, until),
        }
    }

    #[inline(never)]
    fn keep_new(
        &mut self,
        request: &PageRequest,
        spot: &Spot<'_, P>,
        payer: &Payer<'_, P>,
        until: Time,
    ) -> bool {
        self.begin(spot.group(request), spot, until) && self.add(request, spot, payer) == Some(true)
    }

    /// Adds a request to its group, if that was begun.
    #[inline]
    fn add(&mut self, request: &PageRequest, spot: &Spot<'_, P>, payer: &Payer<'_, P>) -> Option<bool> {
        let Ledger { assembly, pages, .. } = &mut *self.ledger;
        let partial = assembly.find(spot.group(request))?;
        if !is_current(partial, spot) {
            return None;
        }
        let kept = pages.keep(&mut partial.first, request, &self.instance.records);
        match kept {
            true => payer.charge(),
            false => partial.spoilt = true,
        }
        Some(kept)
    }

    /// A request is refused: its group is answered Invalid as a whole.
    pub(crate) fn spoil(&mut self, request: &PageRequest, spot: &Spot<'_, P>, until: Time) {
        let key = spot.group(request);
        let begun = self.ledger.assembly.find(key).is_some_and(|p| is_current(p, spot));
        if (begun || self.begin(key, spot, until))
            && let Some(partial) = self.ledger.assembly.find(key)
        {
            partial.spoilt = true;
        }
    }

    /// Begins a group, in the place of one that the device does not mean any more.
    fn begin(&mut self, key: GroupKey, spot: &Spot<'_, P>, until: Time) -> bool {
        if let Some(old) = self.ledger.assembly.number(key) {
            self.drop_partial(old);
        }
        let Some((account, number)) = spot.account else { return false };
        let most = self.instance.config().partials_per_device;
        if account.share() == 0 || account.partials.get() >= u64::from(most) {
            return false;
        }
        if spot.inner().is_some_and(|t| !t.lease.partials.lease(&t.domain.quota.partials, u32::MAX)) {
            return false;
        }
        let tenant = spot.inner().and(spot.tenant);
        let begun = self.ledger.assembly.begin(Partial {
            key,
            account: number,
            life: account.life(),
            // Nobody whom it is charged to is known by a version.
            version: if tenant == spot.tenant { spot.version } else { u64::MAX },
            tenant,
            first: Chain::default(),
            spoilt: false,
            until,
        });
        match begun {
            true => account.partials.add(1),
            false => one_partial_less(spot),
        }
        begun
    }

    /// Takes the collected first requests of a group out, for its last one, and says whether the group
    /// is spoilt.
    #[inline]
    pub(crate) fn complete(&mut self, request: &PageRequest, spot: &Spot<'_, P>) -> (Chain, bool) {
        // One that is answered by itself is a group of its own; the rest of its group goes on.
        if !request.last || self.ledger.assembly.is_empty() {
            return (Chain::default(), false);
        }
        self.take_out(spot.group(request), spot).unwrap_or_default()
    }

    #[inline(never)]
    fn take_out(&mut self, key: GroupKey, spot: &Spot<'_, P>) -> Option<(Chain, bool)> {
        let n = self.ledger.assembly.number(key)?;
        let partial = self.ledger.assembly.get_mut(n)?;
        if !is_current(partial, spot) {
            self.drop_partial(n);
            return None;
        }
        let taken = (partial.first, partial.spoilt);
        self.ledger.assembly.end(n);
        if let Some((account, _)) = spot.account {
            account.partials.sub(1);
        }
        one_partial_less(spot);
        Some(taken)
    }

    fn drop_partial(&mut self, n: u32) {
        let Some(partial) = self.ledger.assembly.get_mut(n) else { return };
        let Partial { first, account, tenant, .. } = *partial;
        self.ledger.assembly.end(n);
        if let Some(account) = self.instance.accounts.get(account as usize) {
            account.partials.sub(1);
            account.outstanding.sub(first.len.into());
            account.counts.partials_dropped.add(first.len.into());
        }
        if let Some(t) = tenant.and_then(|key| self.late(key)) {
            let (lease, quota) = (&t.inner.lease, &t.inner.domain.quota);
            lease.partials.uncharge(1, &quota.partials);
            lease.requests.uncharge(first.len, &quota.requests);
        }
        self.leave_late();
        self.ledger.pages.free(first, &self.instance.records);
    }

    /// Drops the partial groups that `goes` says.
    pub(crate) fn drop_partials(&mut self, goes: impl Fn(&Partial) -> bool) {
        let mut next = self.ledger.assembly.first();
        while let Some(n) = next {
            next = self.ledger.assembly.after(n);
            if self.ledger.assembly.get(n).is_some_and(&goes) {
                self.drop_partial(n);
            }
        }
    }

    /// Drops the partial groups of devices and attachments that will not complete them.
    pub(crate) fn sweep(&mut self) {
        if !self.instance.take_sweep() {
            return;
        }
        let instance = self.instance;
        self.drop_partials(|p| {
            let account = instance.accounts.get(p.account as usize);
            account.is_none_or(|a| a.life() != p.life)
                || p.tenant.is_some_and(|key| !instance.hub.attachments.is_there(key))
        });
    }

    /// Drops the partial groups whose last request is late.
    pub(crate) fn drop_late(&mut self, now: Time) {
        while let Some(n) = self.ledger.assembly.first()
            && self.ledger.assembly.get(n).is_some_and(|p| p.until <= now)
        {
            self.drop_partial(n);
        }
    }
}

#[inline]
fn one_partial_less<P: Platform>(spot: &Spot<'_, P>) {
    if let Some(t) = spot.inner() {
        t.lease.partials.uncharge(1, &t.domain.quota.partials);
    }
}

/// Whether a partial group is still what the device means, and meant for what is attached now.
#[inline]
fn is_current<P: Platform>(partial: &mut Partial, spot: &Spot<'_, P>) -> bool {
    let Some((account, number)) = spot.account else { return false };
    partial.life == account.life() && (partial.version == spot.version || is_same(partial, number, spot))
}

/// The table of places has changed since a partial group was last looked at: perhaps elsewhere.
#[cold]
fn is_same<P: Platform>(partial: &mut Partial, account: u32, spot: &Spot<'_, P>) -> bool {
    if partial.account != account {
        return false;
    }
    if partial.tenant == spot.tenant {
        partial.version = spot.version;
        return true;
    }
    partial.tenant.is_none() && spot.inner().is_none()
}
