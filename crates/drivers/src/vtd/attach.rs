//! Requesters and what they translate through: entries stored together with the invalidations that
//! the change needs (`[V]` 6.2.2.1, 6.2.3.1, table 28).
//!
//! The core has one transition at a time at an attachment point, and changes a requester's features
//! while nothing else happens to it. So an entry that was read stays what it is until it is stored,
//! but for FPD of a context entry, which a storm sets at any time: every store of one is made inside
//! the queue's lock and leaves that bit as it is.

use super::{
    Vtd,
    devices::{AddError, Device},
    directory::Directory,
    entry::{self, PasidHalves},
    invalidate::Items,
    queue::End,
    tables::{Place, pasid_number},
};
use portcullis::{
    At, Platform, ShortLock, SourceId,
    driver::{Change, Features, HwLost, Incompatible, InvSeq, PrepareError, Prepared, SubmitError, Target},
};
use portcullis_pgtable::{NoMem, Phys};
use portcullis_spec::vtd::{
    context::{ContextEntry, ScalableContext, TranslationType},
    join,
    pasid::{PasidFirstStage, PasidLow},
    qi::CcInv,
    split,
};

/// Nothing to wait for.
const NOTHING: InvSeq = InvSeq(0);

/// FPD of a context entry of either mode.
const FPD: u128 = ScalableContext::new().with_fpd(true).into_bits();

/// Words of [`Prepared::image`] that hold a PASID table that has to be linked on the way, if any.
const SPARE: usize = 6;

impl<P: Platform> Vtd<P> {
    /// Returns the bits of PASID that the requester has.
    pub(super) fn add(&self, source: SourceId, features: Features) -> Result<u8, PrepareError> {
        if source.0 > u32::from(u16::MAX) {
            return Err(Incompatible::Other("a requester id has 16 bits").into());
        }
        entry::check_features(&self.unit, features)?;
        let root = self.root.with(|r| *r).ok_or(HwLost)?;
        let place = self.context_place(root, source).map_err(no_mem)?;
        let directory = match self.unit.scalable {
            true => Some(self.tables.new_directory(features.pasid_bits).map_err(no_mem)?),
            false => None,
        };
        let pasid_bits = directory.map_or(0, |d| d.pasid_bits().min(features.pasid_bits));
        let features = Features { pasid_bits, ..features };
        let device = Device::new(source, features, directory);
        if let Err(e) = self.devices.add(device) {
            if let Some(d) = directory {
                self.tables.free_directory(d);
            }
            return Err(match e {
                AddError::NoMem => PrepareError::NoMem,
                AddError::Known => Incompatible::Other("the requester is known already").into(),
            });
        }
        self.queue.forgive(source);
        if let Some(directory) = directory {
            // Every PASID is blocked, translated requests are not if the device has ATS: nobody has
            // told it a translation yet.
            let context = entry::scalable_context(features, directory);
            self.tables.store(place, context.into_bits());
        }
        Ok(pasid_bits)
    }

    /// The place of a requester's context entry; makes the table that it is in. Sleepable.
    fn context_place(&self, root: Phys, source: SourceId) -> Result<Place, NoMem> {
        loop {
            if let Some(place) = self.tables.context(root, source) {
                return Ok(place);
            }
            let mut table = Some(self.tables.frame()?);
            self.growing.with(|()| {
                table = table.take().and_then(|t| self.tables.add_context_table(root, source, t));
            });
            if let Some(unused) = table {
                self.mem.release(unused);
            }
        }
    }

    pub(super) fn change_features(
        &self,
        source: SourceId,
        features: Features,
    ) -> Result<InvSeq, SubmitError> {
        let (Some(device), Some(place)) = (self.devices.get(source), self.context_of(source)) else {
            return Ok(NOTHING);
        };
        let old = self.tables.load(place);
        let (new, present, did) = match device.directory {
            Some(directory) => {
                // PDTS stays, whatever is asked for ([V] 9.4).
                let present = ScalableContext::from_bits(old).p();
                let new = entry::scalable_context(features, directory).with_p(present);
                (new.into_bits(), present, 0)
            }
            None => {
                // TT belongs to what is attached, and is chosen anew with the next attach.
                let entry = ContextEntry::from_bits(old);
                let through = entry.translation_type() == Some(TranslationType::PassThrough);
                let new = if !entry.p() || through {
                    entry
                } else {
                    entry.with_tt(entry::translation_type(features).bits())
                };
                (new.into_bits(), entry.p(), entry.did())
            }
        };
        let mut items = Items::new();
        if present && new != old {
            let context = CcInv::device(did, source.0 as u16);
            items.all_below_context(&self.unit, context);
            if !features.ats {
                // The device was told to stop first ([V] 4.5.2).
                self.ask(&mut items, &device, None);
            }
        }
        let seq = self.submit_or_store(&items, || self.store_context(place, new))?;
        let most = device.directory.map_or(0, |d| d.pasid_bits());
        let features = Features { pasid_bits: features.pasid_bits.min(most), ..features };
        self.devices.update(source, |d| d.features = features);
        Ok(seq)
    }

    pub(super) fn reconnect(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        let (Some(device), Some(place)) = (self.devices.get(source), self.context_of(source)) else {
            return Ok(NOTHING);
        };
        // In legacy mode what was attached is attached again, and that sets P.
        if device.directory.is_some() {
            let old = ScalableContext::from_bits(self.tables.load(place));
            let new = old.with_p(true).into_bits();
            self.queue.exclusively(|| self.store_context(place, new));
        }
        self.queue.forgive(source);
        self.devices.update(source, |d| d.cut_off = false);
        Ok(self.queue.newest())
    }

    pub(super) fn cut(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        let Some(place) = self.context_of(source) else {
            return Ok(NOTHING);
        };
        let old = self.tables.load(place);
        let (new, did) = if self.unit.scalable {
            let old = ScalableContext::from_bits(old);
            (old.with_p(false).into_bits(), 0)
        } else {
            let old = ContextEntry::from_bits(old);
            (entry::blocked_context(old).into_bits(), old.did())
        };
        let mut items = Items::new();
        items.all_below_context(&self.unit, CcInv::device(did, source.0 as u16));
        let seq = self.queue.submit(&items, End::default(), || self.store_context(place, new))?;
        self.devices.update(source, |d| d.cut_off = true);
        Ok(seq)
    }

    pub(super) fn remove(&self, source: SourceId) {
        if let Some(place) = self.context_of(source) {
            self.queue.exclusively(|| self.tables.store(place, 0));
        }
        let removed = self.devices.remove(source);
        if let Some(directory) = removed.and_then(|d| d.directory) {
            self.tables.free_directory(directory);
        }
        self.queue.forgive(source);
    }

    pub(super) fn prepare_entry(&self, at: At, to: Target) -> Result<Prepared, PrepareError> {
        let device = self.devices.get(at.source).ok_or(PrepareError::UnknownSource(at.source))?;
        let mut image = [0; 8];
        let Some(directory) = device.directory else {
            if let Some(pasid) = at.pasid {
                return Err(Incompatible::Pasid(pasid).into());
            }
            let entry = entry::legacy(&self.unit, device.features, &to)?;
            image[..2].copy_from_slice(&split(entry.into_bits()));
            return Ok(Prepared { at, change: Change::Hitless, image });
        };
        if let Some(pasid) = at.pasid
            && pasid.get() >> device.features.pasid_bits != 0
        {
            return Err(Incompatible::Pasid(pasid).into());
        }
        let new = entry::pasid(&self.unit, &to)?;
        image[..2].copy_from_slice(&split(new.low.into_bits()));
        image[2..4].copy_from_slice(&split(new.first_stage.into_bits()));
        let change = match self.tables.pasid(directory, pasid_number(at.pasid)) {
            Some(place) => entry::change(&self.tables.load_pasid(place), &new),
            None => {
                let spare = self.tables.frame().map_err(no_mem)?.publish();
                image[SPARE..].copy_from_slice(&[1, spare.0]);
                Change::Hitless
            }
        };
        Ok(Prepared { at, change, image })
    }

    pub(super) fn commit_entry(&self, prepared: Prepared) -> Result<InvSeq, (Prepared, SubmitError)> {
        let at = prepared.at;
        let Some(device) = self.devices.get(at.source) else {
            return Err((prepared, SubmitError::Lost(HwLost)));
        };
        let [l0, l1, f0, f1, ..] = prepared.image;
        let result = match device.directory {
            None => self.commit_context(&device, ContextEntry::from_bits(join(l0, l1))),
            Some(directory) => {
                self.link_spare(directory, &prepared);
                let new = PasidHalves {
                    low: PasidLow::from_bits(join(l0, l1)),
                    first_stage: PasidFirstStage::from_bits(join(f0, f1)),
                };
                self.commit_pasid(&device, directory, at, &new)
            }
        };
        result.map_err(|e| {
            // Linked or given back by now.
            let mut prepared = prepared;
            prepared.image[SPARE] = 0;
            (prepared, e)
        })
    }

    fn commit_context(&self, device: &Device, new: ContextEntry) -> Result<InvSeq, SubmitError> {
        let source = device.source;
        let place = self.context_of(source).ok_or(HwLost)?;
        let old = ContextEntry::from_bits(self.tables.load(place));
        // Cut off means at this very entry in legacy mode.
        let new = new.with_p(!device.cut_off);
        let mut items = Items::new();
        if old.p() || device.cut_off {
            items.context_entry(&self.unit, source, old);
            self.ask(&mut items, device, None);
        }
        self.submit_or_store(&items, || self.store_context(place, new.into_bits()))
    }

    fn commit_pasid(
        &self,
        device: &Device,
        directory: Directory,
        at: At,
        new: &PasidHalves,
    ) -> Result<InvSeq, SubmitError> {
        let place = self.tables.pasid(directory, pasid_number(at.pasid)).ok_or(HwLost)?;
        let old = self.tables.load_pasid(place);
        let mut items = Items::new();
        if !old.low.p() {
            self.tables.store_pasid(place, new);
            return Ok(NOTHING);
        }
        items.pasid_entry(&self.unit, at, old.low);
        self.ask(&mut items, device, at.pasid);
        if entry::change(&old, new) == Change::ThroughBlocked {
            // The caller was told to block first. An entry is never torn for that: it is blocked
            // now, and shown when this is called again.
            let blocked = entry::blocked_pasid(old.low).into_bits();
            self.queue.submit(&items, End::default(), || self.tables.store(place, blocked))?;
            return Err(SubmitError::Full);
        }
        self.queue.submit(&items, End::default(), || self.tables.store_pasid(place, new))
    }

    /// Links the PASID table that was made for an entry, unless somebody was faster.
    fn link_spare(&self, directory: Directory, prepared: &Prepared) {
        if let Some(spare) = spare(prepared) {
            let pasid = pasid_number(prepared.at.pasid);
            let unused = self.growing.with(|()| self.tables.add_pasid_table(directory, pasid, spare));
            if let Some(unused) = unused {
                self.mem.reclaim(unused);
            }
        }
    }

    pub(super) fn abandon_entry(&self, prepared: Prepared) {
        if let Some(spare) = spare(&prepared) {
            self.mem.reclaim(spare);
        }
    }

    /// With `silent`, faults at the entry are not recorded (FPD, `[V]` 9.6).
    pub(super) fn block_entry(&self, at: At, silent: bool) -> Result<InvSeq, SubmitError> {
        let Some(device) = self.devices.get(at.source) else {
            return Ok(NOTHING);
        };
        let Some(place) = self.entry_of(&device, at) else {
            return Ok(NOTHING);
        };
        let old = self.tables.load(place);
        if old == 0 {
            return Ok(NOTHING);
        }
        let mut items = Items::new();
        let new = if device.directory.is_none() {
            let old = ContextEntry::from_bits(old);
            items.context_entry(&self.unit, at.source, old);
            entry::blocked_context(old).into_bits()
        } else {
            let old = PasidLow::from_bits(old);
            items.pasid_entry(&self.unit, at, old);
            // Until the drain is over, page requests on their way are answered by hardware, each
            // with a fault that says nothing new (SPT.2).
            let quiet = silent || device.features.pri;
            entry::blocked_pasid(old).with_fpd(quiet).into_bits()
        };
        self.ask(&mut items, &device, at.pasid);
        self.queue.submit(&items, End::default(), || match device.directory {
            Some(_) => self.tables.store(place, new),
            None => self.store_context(place, new),
        })
    }

    /// Stores a context entry and leaves FPD as it is there. Inside the queue's lock.
    fn store_context(&self, place: Place, new: u128) {
        let fpd = self.tables.load(place) & FPD;
        self.tables.store(place, new & !FPD | fpd);
    }

    /// Whether faults of a requester are recorded: FPD of its context entry, which holds for all
    /// below it (`[V]` 9.3, 9.4).
    pub(super) fn set_fpd(&self, source: SourceId, on: bool) -> Result<InvSeq, SubmitError> {
        let Some(place) = self.context_of(source) else {
            return Ok(NOTHING);
        };
        let did = match self.unit.scalable {
            true => 0,
            false => ContextEntry::from_bits(self.tables.load(place)).did(),
        };
        let mut items = Items::new();
        items.all_below_context(&self.unit, CcInv::device(did, source.0 as u16));
        self.queue.submit(&items, End::default(), || {
            let entry = self.tables.load(place);
            self.tables.store(place, if on { entry | FPD } else { entry & !FPD });
        })
    }

    /// Where the entry of an attachment point is, if it was ever used.
    pub(super) fn entry_of(&self, device: &Device, at: At) -> Option<Place> {
        match device.directory {
            Some(directory) => self.tables.pasid(directory, pasid_number(at.pasid)),
            None if at.pasid.is_some() => None,
            None => self.context_of(at.source),
        }
    }

    fn context_of(&self, source: SourceId) -> Option<Place> {
        let root = self.root.with(|r| *r)?;
        self.tables.context(root, source)
    }

    /// Whether a device is asked for its own TLB. Its answer also says that what it had translated
    /// itself has arrived (`[V]` 6.5.4), which a cut-off does not: only one that was cut off because it
    /// does not answer is asked nothing.
    pub(super) fn is_asked(&self, device: &Device) -> bool {
        device.features.ats && !(device.cut_off && self.queue.is_silent(device.source))
    }

    fn ask(&self, items: &mut Items, device: &Device, pasid: Option<portcullis::Pasid>) {
        if self.is_asked(device) {
            let source = device.source;
            items.device_tlb(&self.unit, At { source, pasid }, device.features);
        }
    }

    fn submit_or_store(&self, items: &Items, store: impl FnOnce()) -> Result<InvSeq, SubmitError> {
        if items.as_slice().is_empty() {
            self.queue.exclusively(store);
            return Ok(NOTHING);
        }
        self.queue.submit(items, End::default(), store)
    }
}

fn spare(prepared: &Prepared) -> Option<Phys> {
    match prepared.image[SPARE..] {
        [1, phys] => Some(Phys(phys)),
        _ => None,
    }
}

fn no_mem(_: NoMem) -> PrepareError {
    PrepareError::NoMem
}
