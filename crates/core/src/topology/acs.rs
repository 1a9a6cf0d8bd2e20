//! Access Control Services: what keeps a request from reaching a peer without passing the IOMMU
//! (PCIe base specification 6.12).

use super::function::{Function, Kind, Quirk};
use core::fmt;

/// Services, by their bits in the ACS Capability and Control registers, which agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AcsServices(pub u16);

impl AcsServices {
    /// No service.
    pub const NONE: Self = Self(0);
    /// Source validation (SV): a request whose requester id is not of a bus below is refused.
    pub const SOURCE_VALIDATION: Self = Self(1 << 0);
    /// Translation blocking (TB): a request that claims to be translated is refused.
    pub const TRANSLATION_BLOCKING: Self = Self(1 << 1);
    /// P2P request redirect (RR): a request to a peer goes up instead.
    pub const REQUEST_REDIRECT: Self = Self(1 << 2);
    /// P2P completion redirect (CR).
    pub const COMPLETION_REDIRECT: Self = Self(1 << 3);
    /// Upstream forwarding (UF): what comes up and points down again goes on upwards.
    pub const UPSTREAM_FORWARDING: Self = Self(1 << 4);
    /// Direct translated P2P (DT): a translated request to a peer goes there straight, which takes
    /// the redirect back.
    pub const DIRECT_TRANSLATED: Self = Self(1 << 6);
    /// What isolation takes at a port: SV, RR, CR and UF.
    pub const REQUIRED: Self = Self(
        Self::SOURCE_VALIDATION.0
            | Self::REQUEST_REDIRECT.0
            | Self::COMPLETION_REDIRECT.0
            | Self::UPSTREAM_FORWARDING.0,
    );
    /// What redirects traffic among the functions of one device.
    const REDIRECT: Self = Self(Self::REQUEST_REDIRECT.0 | Self::COMPLETION_REDIRECT.0);

    /// Whether no service is named.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` are in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that `other` does not have.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for AcsServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 7] = ["SV", "TB", "RR", "CR", "UF", "EC", "DT"];
        let mut between = "";
        for (bit, name) in NAMES.iter().enumerate() {
            if self.0 >> bit & 1 != 0 {
                write!(f, "{between}{name}")?;
                between = "+";
            }
        }
        Ok(())
    }
}

/// The ACS extended capability of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acs {
    /// The services that it has (ACS Capability register).
    pub capable: AcsServices,
    /// The services that are on (ACS Control register).
    pub enabled: AcsServices,
}

/// Why a port does not isolate what is below it, if it does not: the services that are missing, and
/// DT where it is on although it must not be.
///
/// A downstream port of a switch must have SV, RR, CR and UF. A root port must have SV; the others
/// only where the root complex lets traffic pass between root ports (PCIe 6.12.1.1), so what its
/// capability does not name has nothing to redirect.
pub(super) fn missing_at_port(port: &Function) -> Option<AcsServices> {
    if let Some(vouched) = vouched(port) {
        return vouched;
    }
    let Some(acs) = port.acs else { return Some(AcsServices::REQUIRED) };
    let needed = match port.kind {
        Kind::RootPort(_) => AcsServices::REQUIRED.and(acs.capable.or(AcsServices::SOURCE_VALIDATION)),
        _ => AcsServices::REQUIRED,
    };
    missing(needed, acs)
}

/// Why a function of a device with several does not keep its requests from the others, if it does
/// not. `None` also where it has an ACS capability without redirects: a function that can reach its
/// peers must have them (PCIe 6.12.1.2).
pub(super) fn missing_at_function(function: &Function) -> Option<AcsServices> {
    if let Some(vouched) = vouched(function) {
        return vouched;
    }
    match (function.kind, function.acs) {
        (Kind::RootPort(_) | Kind::DownstreamPort(_), _) => missing_at_port(function),
        (Kind::Conventional | Kind::ConventionalBridge(_), _) => Some(AcsServices::REDIRECT),
        (Kind::PcieToPci(_) | Kind::PciToPcie(_) | Kind::EventCollector, _) => Some(AcsServices::REDIRECT),
        // SR-IOV is younger than ACS: a virtual function without it has no way to its peers.
        (Kind::Virtual { .. }, None) => None,
        (_, None) => Some(AcsServices::REDIRECT),
        (_, Some(acs)) => missing(AcsServices::REDIRECT.and(acs.capable), acs),
    }
}

fn missing(needed: AcsServices, acs: Acs) -> Option<AcsServices> {
    // A service that is not there is not on, whatever its control bit reads as.
    let on = acs.enabled.and(acs.capable);
    let direct = AcsServices::DIRECT_TRANSLATED;
    let undone =
        if on.contains(AcsServices::TRANSLATION_BLOCKING) { AcsServices::NONE } else { on.and(direct) };
    let missing = needed.without(on).or(undone);
    (!missing.is_empty()).then_some(missing)
}

/// What a quirk says in place of the registers.
fn vouched(function: &Function) -> Option<Option<AcsServices>> {
    function.quirks.iter().find_map(|quirk| match quirk {
        Quirk::Isolated => Some(None),
        Quirk::NotIsolated => Some(Some(AcsServices::REQUIRED)),
        _ => None,
    })
}
