//! The PASID, ATS and PRI capabilities of a function, with the order that PCIe asks for.

use thiserror::Error;

/// A configuration write that PCIe forbids at that moment. The write is ignored and noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Violation {
    /// PASID Control changed while ATS was enabled.
    #[error("PASID enable changed while ATS was enabled")]
    PasidWhileAts,
    /// ATS disabled while PRI was enabled.
    #[error("ATS disabled while page requests were enabled")]
    AtsOffWhilePri,
    /// ATS enabled while it was enabled: the smallest translation unit is read-only then.
    #[error("ATS enabled twice")]
    AtsTwice,
    /// PRI enabled before ATS.
    #[error("page requests enabled before ATS")]
    PriBeforeAts,
    /// PRI enabled while earlier requests were outstanding.
    #[error("page requests enabled before the interface had stopped")]
    PriNotStopped,
    /// PRI enabled while it was enabled: the allocation is fixed then.
    #[error("page requests enabled twice")]
    PriTwice,
    /// PRI enabled after a failure without a reset of the interface.
    #[error("page requests enabled after a failure without a reset of the interface")]
    PriNeedsReset,
    /// PRI reset while it was enabled.
    #[error("page request interface reset while enabled")]
    PriResetWhileEnabled,
}

/// The state of the three capabilities.
#[derive(Debug, Clone, Default)]
pub struct Capabilities {
    pasid: Option<u8>,
    ats: Option<u8>,
    /// The function has switched its ATS off by itself.
    ats_given_up: bool,
    pri: Option<u32>,
    pri_failed: bool,
    pri_busy: bool,
    violations: Vec<Violation>,
}

impl Capabilities {
    /// Violations kept; more are dropped.
    const KEPT: usize = 256;

    /// Width of PASIDs in bits, where enabled.
    pub fn pasid(&self) -> Option<u8> {
        self.pasid
    }

    /// Smallest translation unit (4096 << stu bytes), where ATS is enabled.
    pub fn ats(&self) -> Option<u8> {
        self.ats
    }

    /// Outstanding page requests allowed, where PRI is enabled.
    pub fn pri(&self) -> Option<u32> {
        self.pri
    }

    /// PRI Status: a response said Failure, or a response came for no group.
    pub fn pri_failed(&self) -> bool {
        self.pri_failed
    }

    /// Everything that broke the order, in order of time.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    pub(crate) fn set_pasid(&mut self, width: Option<u8>) -> Result<(), Violation> {
        if self.ats.is_some() && width.is_some() != self.pasid.is_some() {
            return self.refuse(Violation::PasidWhileAts);
        }
        self.pasid = width.map(|w| w.min(20));
        Ok(())
    }

    pub(crate) fn set_ats(&mut self, stu: Option<u8>) -> Result<(), Violation> {
        match (self.ats, stu) {
            (Some(_), Some(_)) => return self.refuse(Violation::AtsTwice),
            (Some(_), None) if self.pri.is_some() => {
                return self.refuse(Violation::AtsOffWhilePri);
            }
            _ => {}
        }
        self.ats = stu;
        self.ats_given_up = false;
        Ok(())
    }

    pub(crate) fn set_pri(&mut self, credits: Option<u32>) -> Result<(), Violation> {
        if credits.is_some() {
            if self.ats_given_up {
                // Software cannot know that it came too late, and it comes to nothing.
                return Ok(());
            }
            if self.ats.is_none() {
                return self.refuse(Violation::PriBeforeAts);
            }
            if self.pri.is_some() {
                return self.refuse(Violation::PriTwice);
            }
            if self.pri_failed {
                return self.refuse(Violation::PriNeedsReset);
            }
            if self.pri_busy {
                return self.refuse(Violation::PriNotStopped);
            }
        }
        self.pri = credits;
        Ok(())
    }

    pub(crate) fn reset_pri(&mut self) -> Result<(), Violation> {
        if self.pri.is_some() {
            return self.refuse(Violation::PriResetWhileEnabled);
        }
        self.pri_failed = false;
        Ok(())
    }

    /// An unsupported request as the answer to a translation request makes the function switch its
    /// ATS off, and with it PRI.
    pub(crate) fn ats_refused(&mut self) {
        self.ats_given_up |= self.ats.is_some();
        self.ats = None;
        self.pri = None;
    }

    /// A response said that page requests cannot be served at all.
    pub(crate) fn pri_failure(&mut self) {
        self.pri = None;
        self.pri_failed = true;
    }

    /// Page requests are outstanding, or are no longer.
    pub(crate) fn set_pri_busy(&mut self, busy: bool) {
        self.pri_busy = busy;
    }

    pub(crate) fn clear(&mut self) {
        let violations = std::mem::take(&mut self.violations);
        *self = Capabilities { violations, ..Capabilities::default() };
    }

    fn refuse(&mut self, violation: Violation) -> Result<(), Violation> {
        if self.violations.len() < Self::KEPT {
            self.violations.push(violation);
        }
        Err(violation)
    }
}
