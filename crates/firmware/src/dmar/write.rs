//! A table to bytes, for whoever provides units to a system: a VMM, a test.

use super::{Dmar, Scope, Structure, kind};
use alloc::vec::Vec;

/// A part of a table is longer than its length field can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} of {bytes} bytes is too long")]
pub struct TooLong {
    what: &'static str,
    bytes: usize,
}

impl Dmar {
    /// The table's bytes, with length and checksum.
    ///
    /// # Errors
    /// [`TooLong`] for a path, a structure or a table that no length field can describe.
    pub fn write(&self) -> Result<Vec<u8>, TooLong> {
        let origin = &self.origin;
        let mut bytes = Vec::new();
        bytes.extend(Dmar::SIGNATURE);
        bytes.extend([0; 4]); // Length.
        bytes.extend([origin.revision, 0]); // Checksum.
        bytes.extend(origin.oem_id);
        bytes.extend(origin.oem_table_id);
        bytes.extend(origin.oem_revision.to_le_bytes());
        bytes.extend(origin.creator_id);
        bytes.extend(origin.creator_revision.to_le_bytes());
        let flags = u8::from(self.flags.interrupt_remapping)
            | u8::from(self.flags.x2apic_opt_out) << 1
            | u8::from(self.flags.dma_control_opt_in) << 2;
        bytes.extend([self.host_address_width.wrapping_sub(1), flags]);
        bytes.extend([0; 10]);
        for structure in &self.structures {
            write(structure, &mut bytes)?;
        }
        let length = fits::<u32>("a table", bytes.len())?;
        bytes.splice(4..8, length.to_le_bytes());
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        bytes.splice(9..10, [sum.wrapping_neg()]);
        Ok(bytes)
    }
}

fn write(structure: &Structure, bytes: &mut Vec<u8>) -> Result<(), TooLong> {
    let mut body = Vec::new();
    let kind = match structure {
        Structure::Drhd(drhd) => {
            body.extend([u8::from(drhd.include_all), drhd.pages_log2 & 0xf]);
            body.extend(drhd.segment.to_le_bytes());
            body.extend(drhd.base.to_le_bytes());
            scopes(&drhd.scopes, &mut body)?;
            kind::DRHD
        }
        Structure::Rmrr(rmrr) => {
            body.extend([0; 2]);
            body.extend(rmrr.segment.to_le_bytes());
            body.extend(rmrr.base.to_le_bytes());
            body.extend(rmrr.limit.to_le_bytes());
            scopes(&rmrr.scopes, &mut body)?;
            kind::RMRR
        }
        Structure::Atsr(atsr) => {
            body.extend([u8::from(atsr.all_ports), 0]);
            body.extend(atsr.segment.to_le_bytes());
            scopes(&atsr.scopes, &mut body)?;
            kind::ATSR
        }
        Structure::Rhsa(rhsa) => {
            body.extend([0; 4]);
            body.extend(rhsa.base.to_le_bytes());
            body.extend(rhsa.proximity.to_le_bytes());
            kind::RHSA
        }
        Structure::Andd(andd) => {
            body.extend([0, 0, 0, andd.number]);
            body.extend(andd.name.as_bytes());
            body.push(0);
            kind::ANDD
        }
        Structure::Satc(satc) => {
            body.extend([u8::from(satc.required), 0]);
            body.extend(satc.segment.to_le_bytes());
            scopes(&satc.scopes, &mut body)?;
            kind::SATC
        }
        Structure::Sidp(sidp) => {
            body.extend([0; 2]);
            body.extend(sidp.segment.to_le_bytes());
            scopes(&sidp.scopes, &mut body)?;
            kind::SIDP
        }
        Structure::Unknown { kind, body: rest } => {
            body.extend(rest);
            *kind
        }
    };
    let length: u16 = fits("a structure", body.len() + 4)?;
    bytes.extend(kind.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.append(&mut body);
    Ok(())
}

fn scopes(scopes: &[Scope], body: &mut Vec<u8>) -> Result<(), TooLong> {
    for scope in scopes {
        let length: u8 = fits("a path", scope.path.len() * 2 + 6)?;
        body.extend([scope.kind.to_type(), length, scope.flags, 0, scope.enumeration_id, scope.start_bus]);
        body.extend(scope.path.iter().flat_map(|step| [step.device, step.function]));
    }
    Ok(())
}

fn fits<T: TryFrom<usize>>(what: &'static str, bytes: usize) -> Result<T, TooLong> {
    T::try_from(bytes).map_err(|_| TooLong { what, bytes })
}
