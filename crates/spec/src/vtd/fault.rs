//! Fault reasons (`[V]` table 30 in 7.1.3 for DMA remapping, table 15 in 5.1.4.1 for interrupt
//! remapping) and how each request type is answered when it meets one.

/// How hardware answers a request that meets a fault condition (`[V]` table 30).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// NA: this type of request does not meet the condition.
    NotApplicable,
    /// UR: Unsupported Request. As the answer to a translation request it makes the function switch
    /// its ATS off.
    UnsupportedRequest,
    /// CA: Completer Abort.
    CompleterAbort,
    /// Success with R=W=U=S=0: a translation request only, not reported as a fault unless
    /// [`FaultReason::reported_on_translation`].
    SuccessNoAccess,
    /// Success with the effective permission: a translation request only, not reported as a fault.
    SuccessEffective,
}

macro_rules! fault_reasons {
    ($($(#[doc = $doc:literal])* $variant:ident = $code:literal, $name:literal, $qualified:literal,
        $untranslated:ident, $translation:ident, $translated:ident, $page_request:literal;)+) => {
        encoding! {
            /// FR, the reason in a fault recording register (`[V]` table 30, table 15), named after
            /// its condition code. Sub-conditions, such as LCT.4.1 to LCT.4.3, share a code.
            FaultReason {
                $($(#[doc = $doc])* $variant = $code,)+
            }
        }

        impl FaultReason {
            /// The condition code as the manual writes it; for interrupt remapping, where the
            /// manual has none, `IR.` and the reason.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The condition in words.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*).trim_ascii(),)+ }
            }

            /// Whether an FPD bit on the way of the request suppresses the record.
            #[must_use]
            pub const fn is_qualified(self) -> bool {
                match self { $(Self::$variant => $qualified,)+ }
            }

            /// The answer to an untranslated request, with or without PASID.
            #[must_use]
            pub const fn on_untranslated(self) -> Answer {
                match self { $(Self::$variant => answer!($untranslated),)+ }
            }

            /// The answer to a translation request, with or without PASID.
            #[must_use]
            pub const fn on_translation(self) -> Answer {
                match self { $(Self::$variant => answer!($translation),)+ }
            }

            /// The answer to a translated request, with or without PASID.
            #[must_use]
            pub const fn on_translated(self) -> Answer {
                match self { $(Self::$variant => answer!($translated),)+ }
            }

            /// Whether a page request can meet this. If so it is recorded, answered Invalid Request
            /// when it is the last of its group, and dropped otherwise.
            #[must_use]
            pub const fn on_page_request(self) -> bool {
                match self { $(Self::$variant => $page_request,)+ }
            }
        }
    };
}

macro_rules! answer {
    (na) => {
        Answer::NotApplicable
    };
    (ur) => {
        Answer::UnsupportedRequest
    };
    (ca) => {
        Answer::CompleterAbort
    };
    (none) => {
        Answer::SuccessNoAccess
    };
    (eff) => {
        Answer::SuccessEffective
    };
}

// Columns: code, name, qualified; answer to untranslated, translation, translated; page request.
fault_reasons! {
    /// Legacy: root entry not present.
    Lrt2 = 0x01, "LRT.2", false, ur, ur, ur, false;
    /// Legacy: context entry not present.
    Lct2 = 0x02, "LCT.2", true, ur, ur, ur, false;
    /// Legacy: context entry has an unsupported width or type, or its table is not accessible.
    Lct4 = 0x03, "LCT.4", true, ur, ca, ur, false;
    /// Legacy: address beyond the guest or host address width.
    Lgn1 = 0x04, "LGN.1", true, ur, none, ur, false;
    /// Legacy: no write permission.
    Lgn2 = 0x05, "LGN.2", true, ur, eff, na, false;
    /// Legacy: no read permission.
    Lgn3 = 0x06, "LGN.3", true, ur, eff, na, false;
    /// Legacy: second-stage entry not accessible.
    Lss1 = 0x07, "LSS.1", true, ur, ca, na, false;
    /// Legacy: root entry not accessible.
    Lrt1 = 0x08, "LRT.1", false, ur, ca, ur, false;
    /// Legacy: context entry not accessible.
    Lct1 = 0x09, "LCT.1", false, ur, ca, ur, false;
    /// Legacy: reserved field set in a present root entry.
    Lrt3 = 0x0A, "LRT.3", false, ur, ca, ur, false;
    /// Legacy: reserved field set in a present context entry.
    Lct3 = 0x0B, "LCT.3", true, ur, ca, ur, false;
    /// Legacy: reserved field set in a second-stage entry.
    Lss2 = 0x0C, "LSS.2", true, ur, ca, na, false;
    /// Legacy: the translation type blocks translation and translated requests.
    Lct5 = 0x0D, "LCT.5", true, na, ur, ur, false;
    /// Legacy: output address in the interrupt range.
    Lgn4 = 0x0E, "LGN.4", true, ur, ca, ur, false;

    /// Interrupt: reserved field set in a remappable request.
    Ir20 = 0x20, "IR.20", false, ur, na, na, false;
    /// Interrupt: index beyond the table.
    Ir21 = 0x21, "IR.21", false, ur, na, na, false;
    /// Interrupt: entry not present.
    Ir22 = 0x22, "IR.22", true, ur, na, na, false;
    /// Interrupt: table not accessible.
    Ir23 = 0x23, "IR.23", false, ur, na, na, false;
    /// Interrupt: reserved field set in a present entry.
    Ir24 = 0x24, "IR.24", true, ur, na, na, false;
    /// Interrupt: compatibility format is blocked.
    Ir25 = 0x25, "IR.25", false, ur, na, na, false;
    /// Interrupt: source id not allowed by the entry.
    Ir26 = 0x26, "IR.26", true, ur, na, na, false;
    /// Interrupt: posted descriptor not accessible.
    Ir27 = 0x27, "IR.27", true, ur, na, na, false;
    /// Interrupt: reserved field set in a posted descriptor.
    Ir28 = 0x28, "IR.28", true, ur, na, na, false;
    /// A request without PASID to the interrupt range that is not a valid interrupt.
    Ir29 = 0x29, "IR.29", false, ur, na, na, false;
    /// Interrupt: extended interrupt mode is required and not enabled.
    Ir2a = 0x2A, "IR.2A", false, ur, na, na, false;
    /// Interrupt: remapping is required and not enabled.
    Ir2b = 0x2B, "IR.2B", false, ur, na, na, false;

    /// RTADDR_REG is programmed with an invalid mode.
    Rta1 = 0x30, "RTA.1", false, ur, ca, ur, true;
    /// A request with PASID in legacy mode.
    Rta2 = 0x31, "RTA.2", false, ur, ur, ur, false;
    /// A page request in legacy mode.
    Rta3 = 0x32, "RTA.3", false, na, na, na, true;
    /// Abort-DMA mode.
    Rta4 = 0x33, "RTA.4", false, ur, ur, ur, true;
    /// Execute requested, on hardware of major version 8 or above.
    Rta5 = 0x34, "RTA.5", false, ur, ur, ur, false;

    /// Root entry not accessible.
    Srt1 = 0x38, "SRT.1", false, ur, ca, ur, true;
    /// Half of the root entry not present.
    Srt2 = 0x39, "SRT.2", false, ur, ur, ur, true;
    /// Reserved field set in the present half of a root entry.
    Srt3 = 0x3A, "SRT.3", false, ur, ca, ur, true;

    /// Context entry not accessible.
    Sct1 = 0x40, "SCT.1", false, ur, ca, ur, true;
    /// Context entry not present.
    Sct2 = 0x41, "SCT.2", true, ur, ur, ur, true;
    /// Reserved field set in a present context entry.
    Sct3 = 0x42, "SCT.3", true, ur, ca, ur, true;
    /// Context entry: PRE without DTE, RID_PASID beyond the directory, or EPTR without PASIDE.
    Sct4 = 0x43, "SCT.4", true, ur, ca, ur, true;
    /// DTE is clear: translation and translated requests are blocked.
    Sct5 = 0x44, "SCT.5", true, na, ur, ur, false;
    /// PASIDE is clear: requests with PASID are blocked.
    Sct6 = 0x45, "SCT.6", true, ur, ur, na, true;
    /// PASID beyond the directory.
    Sct7 = 0x46, "SCT.7", true, ur, ur, ur, true;
    /// PRE is clear: page requests are blocked.
    Sct8 = 0x47, "SCT.8", true, na, na, na, true;
    /// The PASID of the request is RID_PASID.
    Sct9 = 0x48, "SCT.9", true, ur, ur, ur, true;
    /// EPTR is clear: translated requests with PASID are blocked.
    Sct10 = 0x49, "SCT.10", true, na, na, ur, false;

    /// PASID directory entry not accessible.
    Spd1 = 0x50, "SPD.1", false, ur, ca, ca, true;
    /// PASID directory entry not present.
    Spd2 = 0x51, "SPD.2", true, ur, none, ur, true;
    /// Reserved field set in a present PASID directory entry.
    Spd3 = 0x52, "SPD.3", true, ur, ca, ca, true;

    /// PASID table entry not accessible.
    Spt1 = 0x58, "SPT.1", false, ur, ca, ca, true;
    /// PASID table entry not present.
    Spt2 = 0x59, "SPT.2", true, ur, none, ur, true;
    /// Reserved field set in a present PASID table entry.
    Spt3 = 0x5A, "SPT.3", true, ur, ca, ca, true;
    /// PASID table entry has an unsupported width, type or paging mode, or a table out of range.
    Spt4 = 0x5B, "SPT.4", true, ur, ca, ca, true;
    /// Execute requested and not supported, on hardware of major version 7 or below.
    Spt5 = 0x5C, "SPT.5", true, ur, none, na, false;
    /// Privileged mode requested and SRE is clear.
    Spt6 = 0x5D, "SPT.6", true, ur, none, na, false;
    /// Translated address beyond the host permission table.
    Spt9 = 0x60, "SPT.9", true, na, na, ur, false;

    /// First-stage entry not accessible.
    Sfs1 = 0x70, "SFS.1", true, ur, none, na, false;
    /// First-stage entry not present.
    Sfs2 = 0x71, "SFS.2", true, ur, none, na, false;
    /// Reserved field set in a present first-stage entry.
    Sfs3 = 0x72, "SFS.3", true, ur, none, na, false;
    /// Root of the first stage not accessible.
    Sfs4 = 0x73, "SFS.4", true, ur, none, na, false;
    /// Nested: address in a first-stage entry beyond the guest address width.
    Sfs5 = 0x74, "SFS.5", true, ur, none, na, false;
    /// Nested: no read permission for the root of the first stage.
    Sfs6 = 0x75, "SFS.6", true, ur, none, na, false;
    /// Nested: no read permission for a first-stage entry.
    Sfs7 = 0x76, "SFS.7", true, ur, none, na, false;
    /// Nested: no write permission for a first-stage flag update.
    Sfs8 = 0x77, "SFS.8", true, ur, none, na, false;

    /// Second-stage entry not accessible.
    Sss1 = 0x78, "SSS.1", true, ur, ca, na, false;
    /// Second stage grants neither read nor write.
    Sss2 = 0x79, "SSS.2", true, ur, none, na, false;
    /// Reserved field set in a second-stage entry.
    Sss3 = 0x7A, "SSS.3", true, ur, ca, na, false;
    /// Root of the second stage not accessible.
    Sss4 = 0x7B, "SSS.4", true, ur, ca, na, false;
    /// Second-stage flag update needed without snooped walks.
    Sss5 = 0x7C, "SSS.5", true, ur, ca, na, false;
    /// Second-stage flag update failed.
    Sss6 = 0x7D, "SSS.6", true, ur, ca, na, false;

    /// First-stage input address not canonical.
    Sgn1 = 0x80, "SGN.1", true, ur, none, na, false;
    /// User request to a supervisor page.
    Sgn2 = 0x81, "SGN.2", true, ur, none, na, false;
    /// Host address, translated or passed through, beyond the host address width.
    Sgn4 = 0x83, "SGN.4", true, ur, none, ur, false;
    /// Second-stage input address beyond the guest address width.
    Sgn5 = 0x84, "SGN.5", true, ur, none, na, false;
    /// No write permission.
    Sgn6 = 0x85, "SGN.6", true, ur, eff, na, false;
    /// No read permission.
    Sgn7 = 0x86, "SGN.7", true, ur, eff, na, false;
    /// Output address in the interrupt range.
    Sgn8 = 0x87, "SGN.8", true, ur, ca, ur, false;
    /// PASID wider than ECAP.PSS.
    Sgn10 = 0x89, "SGN.10", true, ur, ur, ur, false;

    /// First-stage flag update needed without snooped walks.
    Sfs9 = 0x90, "SFS.9", true, ur, none, na, false;
    /// First-stage flag update failed.
    Sfs10 = 0x91, "SFS.10", true, ur, none, na, false;

    /// Host permission entry not accessible.
    Hpt1 = 0xA0, "HPT.1", true, na, na, ca, false;
    /// Reserved field set in a host permission entry.
    Hpt2 = 0xA1, "HPT.2", true, na, na, ca, false;
    /// Root of the host permission table not accessible.
    Hpt3 = 0xA2, "HPT.3", true, na, na, ca, false;
    /// Zero-length read ended before a permission was found.
    Hpt4 = 0xA3, "HPT.4", true, na, na, ur, false;
    /// Host permission table grants no write.
    Hpt5 = 0xA4, "HPT.5", true, na, na, ur, false;
    /// Host permission table grants no read.
    Hpt6 = 0xA5, "HPT.6", true, na, na, ur, false;
}

impl FaultReason {
    /// Whether this is one of the interrupt remapping faults (`[V]` table 15).
    #[must_use]
    pub const fn is_interrupt(self) -> bool {
        self.bits() >> 4 == 2
    }

    /// Whether a translation request that meets this is recorded. A translation request that is
    /// answered Success is a recoverable fault and leaves no record (`[V]` 7.1.2); SFS.10 is the
    /// exception.
    #[must_use]
    pub const fn reported_on_translation(self) -> bool {
        match self.on_translation() {
            Answer::UnsupportedRequest | Answer::CompleterAbort => true,
            Answer::SuccessNoAccess => matches!(self, Self::Sfs10),
            Answer::SuccessEffective | Answer::NotApplicable => false,
        }
    }
}
