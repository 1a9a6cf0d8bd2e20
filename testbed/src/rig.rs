//! The machines that a scenario runs on.
//!
//! A [`Rig`] is a started VT-d with three devices behind it, and the memory of its machine. What it
//! does not know is what should happen: that is the [`Stage`](crate::stage::Stage)'s part.

mod model;
mod qemu;

use std::fmt;
use std::sync::Arc;

use portcullis::driver::{DeviceControl, Stage};
use portcullis::{InstanceId, Iommu, Platform, SourceId};
use portcullis_machine::{memory::Ram, oracle::Oracle};
use portcullis_pgtable::Phys;

pub use model::{ModelRig, on_model, play};
pub use qemu::{QemuRig, on_full_qemu, on_qemu, on_qtest_model};

/// The one instance.
pub const INSTANCE: InstanceId = InstanceId(0);

/// How the unit is made to translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Legacy mode, second stage.
    Legacy,
    /// Scalable mode, second stage.
    ScalableSecond,
    /// Scalable mode, first stage.
    ScalableFirst,
}

impl Form {
    /// The stage of the tables.
    #[must_use]
    pub fn stage(self) -> Stage {
        match self {
            Form::Legacy | Form::ScalableSecond => Stage::Second,
            Form::ScalableFirst => Stage::First,
        }
    }
}

/// A form, and how deep its tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The form.
    pub form: Form,
    /// Levels of the walk: 3, 4 or 5, and at least 4 in a first stage.
    pub levels: u8,
}

impl From<Form> for Shape {
    /// Four levels, as most tables have.
    fn from(form: Form) -> Shape {
        Shape { form, levels: 4 }
    }
}

impl Shape {
    /// Bits of the IOVAs that such a table translates: of a first stage the lower canonical half
    /// (`[V]` 3.6).
    #[must_use]
    pub fn input_bits(self) -> u8 {
        let reach = 12 + 9 * self.levels;
        if self.form.stage() == Stage::First { reach - 1 } else { reach }
    }
}

/// What stands behind the scenarios: hardware is one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Our model.
    Model,
    /// QEMU's.
    Qemu,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Model => "the model",
            Kind::Qemu => "QEMU",
        })
    }
}

/// The devices. All are plugged in from the start, whether the core knows them or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// Reads and writes.
    First,
    /// Reads and writes.
    Second,
    /// Only writes, and learns on every rig whether a write was let through.
    Teller,
}

impl Who {
    /// All of them.
    pub const ALL: [Who; 3] = [Who::First, Who::Second, Who::Teller];

    /// Its requester id.
    #[must_use]
    pub fn source(self) -> SourceId {
        SourceId(match self {
            Who::First => 0x80,
            Who::Second => 0x88,
            Who::Teller => 0x90,
        })
    }
}

/// What a device learned of its own access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was let through.
    Done,
    /// It was stopped, or a part of it.
    Blocked,
    /// This device is told nothing.
    Nothing,
}

/// A write as the device made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// What it learned.
    pub told: Told,
}

/// What a device has after a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// These bytes.
    Bytes(Vec<u8>),
    /// None.
    Nothing,
    /// It has no way to show: there was no [`Outlet`].
    Unseen,
}

/// A page that a device may write, to show what it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlet {
    /// Where the device sees it.
    pub iova: u64,
    /// Where it is.
    pub phys: Phys,
}

/// A machine with a started VT-d.
pub trait Rig {
    /// Its platform.
    type P: Platform;

    /// What it is.
    fn kind(&self) -> Kind;

    /// How its unit translates, and how deep.
    fn shape(&self) -> Shape;

    /// Its platform's handle.
    fn platform(&self) -> &Self::P;

    /// Fault recording registers of the unit.
    fn fault_registers(&self) -> usize;

    /// The subsystem, with [`INSTANCE`] registered and no device added.
    fn iommu(&self) -> &Iommu<Self::P>;

    /// Its memory.
    fn ram(&self) -> &Ram;

    /// The configuration space of a device.
    fn control(&self, who: Who) -> Arc<dyn DeviceControl>;

    /// Lets a device write `len` bytes of its own at `iova`.
    fn write(&mut self, who: Who, iova: u64, len: usize) -> Sent;

    /// Lets a device read `len` bytes, at most a page, at `iova`.
    fn read(&mut self, who: Who, iova: u64, len: usize, outlet: Option<Outlet>) -> Fetched;

    /// Runs the service turns and the sleepable work that are due.
    fn settle(&mut self);

    /// Takes note of what is mapped and attached, and judges by it where the bus can be watched.
    fn oracle(&self) -> &Oracle;

    /// What the rig itself saw that should not have been.
    ///
    /// # Errors
    /// That, in words.
    fn verdict(&mut self) -> Result<(), String>;
}
