//! What the manual says of each way to be stopped, and where QEMU's VT-d does otherwise.
//!
//! A deviation is data. The scenario that meets it asks for it by name and asserts what QEMU does
//! instead, so that a mended QEMU fails the test and the entry goes.

use portcullis::{Access, Reason};
use portcullis_spec::vtd::fault::FaultReason;

use crate::rig::{Form, Kind};

/// Why an access is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No device of its bus was ever added: the root entry is not present.
    NoRoot,
    /// A neighbour was added, this device was not: its context entry is not present.
    NoContext,
    /// The device is known, and attached to nothing.
    Blocked,
    /// Nothing is mapped there.
    NotMapped,
    /// The mapping is for reading only.
    ReadOnly,
    /// The address has more bits than the table.
    TooWide,
}

impl Cause {
    /// The fault reason that the manual has for it (`[V]` table 30).
    #[must_use]
    pub fn manual(self, form: Form, access: Access) -> FaultReason {
        use FaultReason as F;
        match (self, form) {
            (Cause::NoRoot, Form::Legacy) => F::Lrt2,
            (Cause::NoRoot, _) => F::Srt2,
            (Cause::NoContext | Cause::Blocked, Form::Legacy) => F::Lct2,
            (Cause::NoContext, _) => F::Sct2,
            (Cause::Blocked, _) => F::Spt2,
            (Cause::NotMapped, Form::Legacy) if access == Access::Read => F::Lgn3,
            (Cause::NotMapped, Form::Legacy) => F::Lgn2,
            (Cause::NotMapped, Form::ScalableSecond) => F::Sss2,
            (Cause::NotMapped, Form::ScalableFirst) => F::Sfs2,
            (Cause::ReadOnly, Form::Legacy) => F::Lgn2,
            (Cause::ReadOnly, _) => F::Sgn6,
            (Cause::TooWide, Form::Legacy) => F::Lgn1,
            (Cause::TooWide, Form::ScalableSecond) => F::Sgn5,
            (Cause::TooWide, Form::ScalableFirst) => F::Sgn1,
        }
    }

    /// The same in the words that all vendors share. Legacy mode knows of no absent page, only of
    /// absent permissions.
    #[must_use]
    pub fn reason(self, form: Form) -> Reason {
        match self {
            Cause::NoRoot | Cause::NoContext | Cause::Blocked => Reason::Blocked,
            Cause::NotMapped if form == Form::Legacy => Reason::Permission,
            Cause::NotMapped => Reason::NotMapped,
            Cause::ReadOnly => Reason::Permission,
            Cause::TooWide => Reason::AddressRange,
        }
    }
}

/// One way in which QEMU is not what the manual describes.
#[derive(Debug)]
pub struct Deviation {
    /// What it is about.
    pub name: &'static str,
    /// Where it shows.
    pub forms: &'static [Form],
    /// What the manual says.
    pub manual: &'static str,
    /// What QEMU does.
    pub qemu: &'static str,
    /// The reasons that QEMU records, of a write and of a read, where they are not the manual's.
    pub records: Option<(Cause, FaultReason, FaultReason)>,
}

impl Deviation {
    /// Whether it shows here.
    #[must_use]
    pub fn shows(&self, kind: Kind, form: Form) -> bool {
        kind == Kind::Qemu && self.forms.contains(&form)
    }
}

const SCALABLE: &[Form] = &[Form::ScalableSecond, Form::ScalableFirst];
const SECOND: &[Form] = &[Form::ScalableSecond];
const FIRST: &[Form] = &[Form::ScalableFirst];
const ALL: &[Form] = &[Form::Legacy, Form::ScalableSecond, Form::ScalableFirst];

/// A root entry that is not present.
pub static ROOT_ENTRY: Deviation = Deviation {
    name: "root entry not present, in scalable mode",
    forms: SCALABLE,
    manual: "SRT.2 (39h), [V] table 30",
    qemu: "records legacy mode's LRT.2 (1h)",
    records: Some((Cause::NoRoot, FaultReason::Lrt2, FaultReason::Lrt2)),
};

/// A context entry that is not present.
pub static CONTEXT_ENTRY: Deviation = Deviation {
    name: "context entry not present, in scalable mode",
    forms: SCALABLE,
    manual: "SCT.2 (41h), [V] table 30",
    qemu: "records legacy mode's LCT.2 (2h)",
    records: Some((Cause::NoContext, FaultReason::Lct2, FaultReason::Lct2)),
};

/// A PASID-table entry that is not present and of which nothing is left.
pub static PASID_ENTRY: Deviation = Deviation {
    name: "PASID-table entry not present",
    forms: SCALABLE,
    manual: "SPT.2 (59h); the other fields of an entry with P=0 are not looked at, [V] 9.6",
    qemu: "looks at PGTT first, and records SPT.4 (5Bh) for its invalid value 0",
    records: Some((Cause::Blocked, FaultReason::Spt4, FaultReason::Spt4)),
};

/// A second-stage entry without permissions in scalable mode.
pub static NOT_MAPPED: Deviation = Deviation {
    name: "second-stage entry not present, in scalable mode",
    forms: SECOND,
    manual: "SSS.2 (79h), [V] table 30",
    qemu: "records legacy mode's LGN.2 (5h) or LGN.3 (6h)",
    records: Some((Cause::NotMapped, FaultReason::Lgn2, FaultReason::Lgn3)),
};

/// A write to a second-stage page that may be read only.
pub static READ_ONLY: Deviation = Deviation {
    name: "no write permission in the second stage, in scalable mode",
    forms: SECOND,
    manual: "SGN.6 (85h), [V] table 30",
    qemu: "records legacy mode's LGN.2 (5h)",
    records: Some((Cause::ReadOnly, FaultReason::Lgn2, FaultReason::Lgn2)),
};

/// An address wider than the second stage in scalable mode.
pub static TOO_WIDE: Deviation = Deviation {
    name: "address beyond the second stage's width, in scalable mode",
    forms: SECOND,
    manual: "SGN.5 (84h), [V] table 30",
    qemu: "records legacy mode's LGN.1 (4h)",
    records: Some((Cause::TooWide, FaultReason::Lgn1, FaultReason::Lgn1)),
};

/// P of a PASID-table entry.
pub static PRESENT_BIT: Deviation = Deviation {
    name: "P of a PASID-table entry",
    forms: SCALABLE,
    manual: "blocks every request while it is 0, [V] 9.6",
    qemu: "is looked at for the first request of a device and not again: afterwards an entry with a \
           valid type is walked",
    records: None,
};

/// The end of pass-through.
pub static PASS_THROUGH: Deviation = Deviation {
    name: "a PASID-table entry that was pass-through",
    forms: SCALABLE,
    manual: "is read anew after an invalidation of the PASID cache, [V] 6.5.2.2",
    qemu: "stays pass-through until the device's context-cache entry is invalidated",
    records: None,
};

/// A permission that was cached.
pub static CACHED_PERMISSION: Deviation = Deviation {
    name: "a write where a translation for reading is in the IOTLB",
    forms: ALL,
    manual: "is recorded as any other, [V] 7.1.3",
    qemu: "is stopped without a record",
    records: None,
};

/// AW of a PASID-table entry with a first stage.
pub static FIRST_STAGE_WIDTH: Deviation = Deviation {
    name: "AW of a PASID-table entry with a first stage",
    forms: FIRST,
    manual: "is ignored, FSPM tells the levels, [V] 9.6",
    qemu: "limits the address: with AW=0 those of 2^29 and above are not canonical (SGN.1, 80h)",
    records: None,
};

/// A read that was refused, at edu.
pub static REFUSED_READ: Deviation = Deviation {
    name: "a read that was refused, at the device",
    forms: ALL,
    manual: "completes as Unsupported Request, without data, [V] table 30",
    qemu: "hands the device zeros, and edu goes on",
    records: None,
};

/// All of them.
pub static DEVIATIONS: [&Deviation; 11] = [
    &ROOT_ENTRY,
    &CONTEXT_ENTRY,
    &PASID_ENTRY,
    &NOT_MAPPED,
    &READ_ONLY,
    &TOO_WIDE,
    &PRESENT_BIT,
    &PASS_THROUGH,
    &CACHED_PERMISSION,
    &FIRST_STAGE_WIDTH,
    &REFUSED_READ,
];

/// The reason that hardware of a kind records, where it is not the manual's.
#[must_use]
pub fn recorded_instead(kind: Kind, form: Form, cause: Cause, access: Access) -> Option<FaultReason> {
    DEVIATIONS.into_iter().filter(|d| d.shows(kind, form)).find_map(|d| {
        let (met, write, read) = d.records?;
        (met == cause).then_some(if access == Access::Read { read } else { write })
    })
}
