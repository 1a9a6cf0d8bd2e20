//! A fault in words that a person understands: who, where, what is or was mapped there, what to do.

use crate::{
    domain::{Domain, DomainInner, Kind},
    fault::{Access, FaultKind, FaultRecord, Reason, Stage},
    iommu::Iommu,
    owner::Owner,
    platform::Platform,
    provenance::{MappingHistory, Provenance},
    storm::Rung,
};
use core::fmt;
use portcullis_pgtable::{Phys, Prot};

/// What is known of a fault. `Display` says it in a few lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explanation {
    /// The record.
    pub record: FaultRecord,
    /// What the requester was attached to, as far as it still exists.
    pub domain: DomainState,
    /// What the address translates to now, with its permissions.
    pub translates: Option<(Phys, Prot)>,
    /// The mapping that is or was there.
    pub provenance: Provenance,
}

/// What a domain lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DomainState {
    /// Nothing was attached.
    None,
    /// Nothing is attached to the domain any more, so that it is not found by its number.
    Detached,
    /// Nothing passes.
    Blocked,
    /// Addresses are physical ones.
    Identity,
    /// Addresses are translated.
    Translating,
}

impl<P: Platform> Iommu<P> {
    /// Says what is known of a fault. The domain is found while something is attached to it; who
    /// holds the domain asks [`Domain::explain`]. Sleepable context.
    pub fn explain(&self, record: &FaultRecord) -> Explanation {
        let domain = record.domain.and_then(|id| self.shared.hub.attachments.domain(id));
        Explanation::new(record, domain.as_deref())
    }
}

impl<P: Platform, O: Owner> Domain<P, O> {
    /// Says what is known of a fault of something that was attached to this domain. Any context.
    pub fn explain(&self, record: &FaultRecord) -> Explanation {
        Explanation::new(record, (record.domain == Some(self.id())).then_some(&*self.inner))
    }
}

impl Explanation {
    fn new<P: Platform>(record: &FaultRecord, domain: Option<&DomainInner<P>>) -> Explanation {
        let state = match (domain.map(|d| &d.kind), record.domain) {
            (Some(Kind::Blocked), _) => DomainState::Blocked,
            (Some(Kind::Identity), _) => DomainState::Identity,
            (Some(Kind::Table(_) | Kind::Foreign(_)), _) => DomainState::Translating,
            (None, Some(_)) => DomainState::Detached,
            (None, None) => DomainState::None,
        };
        let at = domain.zip(record.address);
        Explanation {
            record: *record,
            domain: state,
            translates: at.and_then(|(d, a)| d.table()?.lookup(a)).map(|leaf| (leaf.phys, leaf.prot)),
            provenance: at.map_or(Provenance::Off, |(d, a)| d.provenance(a)),
        }
    }

    /// What to do next, in a sentence.
    pub fn advice(&self) -> &'static str {
        match (self.record.reason, &self.provenance, self.record.kind) {
            (
                Reason::NotMapped | Reason::Permission,
                Provenance::Known(MappingHistory { gone: Some(_), .. }),
                _,
            ) => {
                "the device used a buffer after it was unmapped: let its driver stop the DMA, or wait for it, first"
            }
            (Reason::NotMapped, _, FaultKind::InterruptRemapping) => {
                "no interrupt is set up under this index: check what was written to the device's MSI registers"
            }
            (Reason::NotMapped, Provenance::Never, _) => {
                "this was never given to the device: check the address that its driver programmed, and its length"
            }
            (Reason::NotMapped, ..) if self.translates.is_some() => {
                "it is mapped now: the device was started before the mapping, or kept an old answer"
            }
            (Reason::NotMapped, ..) => {
                "check the address that the driver programmed, and that it maps before it starts the device"
            }
            (Reason::Permission, ..) => {
                "map with the direction in which the device moves data, or find out why it goes the other way"
            }
            (Reason::AddressRange, ..) => {
                "the address is wider than the table: limit the device's DMA mask, or ask for a wider table"
            }
            (Reason::Blocked, ..) => {
                "nothing lets this requester pass: attach the device, or the PASID, before it is started"
            }
            (Reason::RequestType, ..) => {
                "the device sent a kind of request that it was not granted: check which features are on, and its trust"
            }
            (Reason::InterruptRange, ..) => {
                "the interrupt range is no memory: keep buffers out of it; if it was meant as an interrupt, check MSI"
            }
            (Reason::BadEntry, ..) => {
                "the IOMMU found a bad entry in its tables: a fault of its driver; keep the raw words for a report"
            }
            (Reason::TableAccess, ..) => {
                "the IOMMU could not reach its own tables: check that memory holds, and that nobody else writes there"
            }
            (Reason::Quota, ..) => {
                "the device asks for more pages at once than its share: raise its credits if that is legitimate"
            }
            (Reason::QueueOverflow, ..) => {
                "requests came faster than they were read: lower the shares, or service the instance sooner"
            }
            (Reason::Deadline, ..) => {
                "no resolver answered in time: look for one that hangs, add workers, or raise the deadline"
            }
            (Reason::DeviceTimeout, ..) => {
                "the device does not invalidate its own TLB: it was cut off, and needs a reset before it is used again"
            }
            (Reason::UnexpectedCompletion, ..) => {
                "the device, or another under its id, makes up answers: do not trust it, and reset it"
            }
            (Reason::Hardware, ..) => {
                "the IOMMU does not answer: its devices are lost until the machine, or the unit, is reset"
            }
            (Reason::Storm, _, FaultKind::Stall | FaultKind::StallLimit) => {
                "its faults are refused at once until it is quiet: find out what it wants that nobody maps"
            }
            (Reason::Storm, _, FaultKind::Quarantine | FaultKind::ResetWanted) => {
                "the device does not stop faulting: stop its driver, and reset it before it is used again"
            }
            (Reason::Storm, ..) => {
                "look at the last faults that were told one by one: what is the same in them is the cause"
            }
            (Reason::Other, ..) => "see the vendor's code",
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.record;
        who(f, r)?;
        writeln!(f, " {}: {}.", did(r), why(r))?;
        write!(f, "  where:   {}", r.instance)?;
        if let Some(group) = r.group {
            write!(f, ", {group}")?;
        }
        match (r.domain, self.domain) {
            (None, _) if r.source.is_some() => f.write_str(", nothing attached")?,
            (None, _) => {}
            (Some(id), DomainState::Detached) => {
                write!(f, ", domain {id}, to which nothing is attached any more")?
            }
            (Some(id), DomainState::Blocked) => write!(f, ", domain {id}, which blocks everything")?,
            (Some(id), DomainState::Identity) => write!(f, ", domain {id}, which translates nothing")?,
            (Some(id), _) => write!(f, ", domain {id}")?,
        }
        match r.stage {
            Some(Stage::First) => f.write_str(", first stage")?,
            Some(Stage::Second) => f.write_str(", second stage")?,
            None => {}
        }
        writeln!(f, "; record {} at {}, code {:#x}", r.sequence, r.at, r.code)?;
        if r.address.is_some() && self.domain == DomainState::Translating {
            self.mappings(f)?;
        }
        write!(f, "  next:    {}.", self.advice())
    }
}

impl Explanation {
    fn mappings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.provenance {
            Provenance::Known(m) => {
                let last = m.iova.saturating_add(m.len.saturating_sub(1));
                let to = m.phys.0;
                writeln!(f, "  mapping: {:#x}..={last:#x} to {to:#x}, {}", m.iova, rights(m.prot))?;
                writeln!(f, "           mapped {}", m.mapped)?;
                if let Some(gone) = &m.gone {
                    writeln!(f, "           unmapped {}", gone.unmapped)?;
                    match gone.invalidated {
                        Some(at) => writeln!(f, "           out of every cache since {at}")?,
                        None => writeln!(f, "           not invalidated yet: caches may still hold it")?,
                    }
                }
            }
            Provenance::Never => writeln!(f, "  mapping: none, at any time")?,
            Provenance::Forgotten => writeln!(f, "  mapping: none as far back as the history goes")?,
            Provenance::Off => {}
        }
        match (self.translates, &self.provenance) {
            (Some((phys, prot)), _) => writeln!(f, "  now:     {:#x}, {}", phys.0, rights(prot)),
            (None, Provenance::Off) => writeln!(f, "  now:     not mapped; no history is kept"),
            (None, _) => Ok(()),
        }
    }
}

fn who(f: &mut fmt::Formatter<'_>, r: &FaultRecord) -> fmt::Result {
    match (r.device, r.source) {
        (Some(device), Some(source)) => write!(f, "{device} ({source})")?,
        (Some(device), None) => write!(f, "{device}")?,
        (None, Some(source)) => write!(f, "an unknown requester ({source})")?,
        (None, None) => write!(f, "{}", r.instance)?,
    }
    match r.pasid {
        Some(pasid) => write!(f, ", PASID {pasid},"),
        None => Ok(()),
    }
}

/// What it tried, as a clause.
fn did(r: &FaultRecord) -> Did<'_> {
    Did(r)
}

struct Did<'a>(&'a FaultRecord);

impl fmt::Display for Did<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Did(r) = self;
        f.write_str(match (r.kind, r.access) {
            (FaultKind::Overflow, _) => return f.write_str("lost records or requests"),
            (FaultKind::Quarantine, _) => return f.write_str("was cut off"),
            (FaultKind::InstanceLost, _) => return f.write_str("was given up"),
            (FaultKind::Storm, _) => {
                let rung = Rung::ALL.get(r.code as usize).copied().unwrap_or_default();
                return write!(f, "faults more than it did, or less: {rung}");
            }
            (FaultKind::ResetWanted, _) => return f.write_str("should be reset"),
            (FaultKind::StallLimit, _) if r.code == 0 => return f.write_str("may not stall for a while"),
            (FaultKind::StallLimit, _) => return f.write_str("may stall again"),
            (FaultKind::Configuration, Access::Unknown) => {
                return f.write_str(match r.reason {
                    Reason::DeviceTimeout => "was told to forget translations",
                    Reason::UnexpectedCompletion => "says that it has forgotten translations",
                    _ if r.source.is_some() => "met an error of the IOMMU",
                    _ => "reported an error of its own",
                });
            }
            (FaultKind::PageRequest, Access::Unknown) => "asked for a page",
            (FaultKind::PageRequest, Access::Write) => "asked for a page to write",
            (FaultKind::PageRequest, Access::Execute) => "asked for a page to execute",
            (FaultKind::PageRequest, _) => "asked for a page to read",
            (FaultKind::InterruptRemapping, _) => "raised an interrupt",
            (_, Access::Read) => "read",
            (_, Access::Write) => "wrote",
            (_, Access::Execute) => "fetched an instruction",
            (_, Access::Atomic) => "did an atomic operation",
            (_, Access::Translate) => "asked for a translation",
            (_, Access::Unknown) => "made a request",
        })?;
        if let Some(address) = r.address {
            match r.address_mask.trailing_zeros() {
                0 => write!(f, " at {address:#x}")?,
                bits => write!(f, " in the {} bytes at {address:#x}", 1u128 << bits)?,
            }
        }
        if r.privileged {
            f.write_str(", privileged,")?;
        }
        f.write_str(match r.stalled {
            Some(_) => " and waits",
            None => " and was refused",
        })
    }
}

fn why(r: &FaultRecord) -> &'static str {
    match (r.reason, r.kind) {
        (Reason::NotMapped, FaultKind::InterruptRemapping) => "the entry of the interrupt is not present",
        (Reason::NotMapped, _) => "nothing is mapped there",
        (Reason::Permission, _) => "the mapping does not allow it",
        (Reason::AddressRange, _) => "the address is outside what the table can translate",
        (Reason::Blocked, _) => "the requester is blocked, or nobody knows it",
        (Reason::RequestType, _) => "it has no right to requests of this kind",
        (Reason::InterruptRange, _) => "the address is in the interrupt range",
        (Reason::BadEntry, _) => "an entry of the IOMMU's tables is invalid",
        (Reason::TableAccess, _) => "the IOMMU could not reach its tables",
        (Reason::Quota, _) => "it is over its share",
        (Reason::QueueOverflow, _) => "a queue overflowed",
        (Reason::Deadline, _) => "nobody answered before the deadline",
        (Reason::DeviceTimeout, _) => "it did not complete an invalidation of its own TLB",
        (Reason::UnexpectedCompletion, _) => "nobody had told it to",
        (Reason::Hardware, _) => "it does not respond any more",
        (Reason::Storm, FaultKind::StallLimit) if r.code == 0 => "it stalled too much",
        (Reason::Storm, FaultKind::StallLimit) => "it was quiet",
        (Reason::Storm, FaultKind::Storm) => "counted over the last windows",
        (Reason::Storm, _) => "it faults too much",
        (Reason::Other, FaultKind::Overflow) => "the records came faster than they were read",
        (Reason::Other, _) => "the vendor's code says why",
    }
}

fn rights(prot: Prot) -> &'static str {
    match (prot.contains(Prot::READ), prot.contains(Prot::WRITE)) {
        (true, true) => "read and write",
        (true, false) => "read only",
        (false, true) => "write only",
        (false, false) => "no access",
    }
}
