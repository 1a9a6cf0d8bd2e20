//! Bytes to a table.

use super::{Andd, Atsr, Dmar, Drhd, Flags, Rhsa, Rmrr, Satc, Scope, ScopeKind, Sidp, Step, Structure, kind};
use crate::{
    acpi,
    malformed::{Malformed, Why},
    reader::{Reader, push},
};
use alloc::{string::String, vec::Vec};

/// Type and length, before every remapping structure.
const PREFIX: u16 = 4;

/// Bytes of a scope entry before its path.
const SCOPE: u8 = 6;

impl Dmar {
    /// Reads a table: `bytes` begins with it, and may be longer. Reserved fields are not looked at,
    /// so that tables of later revisions are read for what they have in common with this one.
    ///
    /// # Errors
    /// [`Malformed`] for the first thing that cannot be.
    pub fn parse(bytes: &[u8]) -> Result<Dmar, Malformed> {
        let (header, mut rest) = acpi::open(Dmar::SIGNATURE, bytes, Dmar::MOST_BYTES)?;
        let width_at = rest;
        let bits = u16::from(rest.u8()?) + 1;
        let host_address_width = match u8::try_from(bits) {
            Ok(width @ 1..=64) => width,
            _ => return Err(width_at.error(Why::AddressWidth { bits })),
        };
        let flags = rest.u8()?;
        let flags = Flags {
            interrupt_remapping: flags & 1 << 0 != 0,
            x2apic_opt_out: flags & 1 << 1 != 0,
            dma_control_opt_in: flags & 1 << 2 != 0,
        };
        rest.take(10)?;
        let mut structures = Vec::new();
        while !rest.is_empty() {
            let start = rest;
            let structure = structure(&mut rest)?;
            push(&mut structures, structure).map_err(|why| start.error(why))?;
        }
        Ok(Dmar { origin: header.into(), host_address_width, flags, structures })
    }
}

fn structure(rest: &mut Reader<'_>) -> Result<Structure, Malformed> {
    let start = *rest;
    let (kind, length) = (rest.u16()?, rest.u16()?);
    let wrong = start.error(Why::StructureLength { kind, length });
    // A length of 0 would never end.
    let body = length.checked_sub(PREFIX).map(usize::from).filter(|body| *body <= rest.left());
    let mut body = rest.take(body.ok_or(wrong)?)?;
    let fixed = match kind {
        kind::DRHD => 12,
        kind::RMRR => 20,
        kind::RHSA => 16,
        kind::ATSR | kind::ANDD | kind::SATC | kind::SIDP => 4,
        _ => 0,
    };
    if body.left() < fixed {
        return Err(wrong);
    }
    Ok(match kind {
        kind::DRHD => Structure::Drhd(drhd(&mut body)?),
        kind::RMRR => Structure::Rmrr(rmrr(&mut body)?),
        kind::ATSR => {
            let (flags, segment) = flags_and_segment(&mut body)?;
            Structure::Atsr(Atsr { all_ports: flags & 1 != 0, segment, scopes: scopes(&mut body)? })
        }
        kind::RHSA => {
            body.take(4)?;
            Structure::Rhsa(Rhsa { base: body.u64()?, proximity: body.u32()? })
        }
        kind::ANDD => {
            body.take(3)?;
            Structure::Andd(Andd { number: body.u8()?, name: name(&mut body)? })
        }
        kind::SATC => {
            let (flags, segment) = flags_and_segment(&mut body)?;
            Structure::Satc(Satc { required: flags & 1 != 0, segment, scopes: scopes(&mut body)? })
        }
        kind::SIDP => {
            let (_, segment) = flags_and_segment(&mut body)?;
            Structure::Sidp(Sidp { segment, scopes: scopes(&mut body)? })
        }
        kind => Structure::Unknown { kind, body: copy(&mut body)? },
    })
}

fn drhd(body: &mut Reader<'_>) -> Result<Drhd, Malformed> {
    let flags = body.u8()?;
    let pages_log2 = body.u8()? & 0xf;
    let segment = body.u16()?;
    let base_at = *body;
    let base = body.u64()?;
    let bytes = 1_u64 << (12 + pages_log2);
    if base == 0 || !base.is_multiple_of(bytes) {
        return Err(base_at.error(Why::Registers { base, bytes }));
    }
    Ok(Drhd { include_all: flags & 1 != 0, segment, base, pages_log2, scopes: scopes(body)? })
}

fn rmrr(body: &mut Reader<'_>) -> Result<Rmrr, Malformed> {
    body.take(2)?;
    let segment = body.u16()?;
    let base_at = *body;
    let (base, limit) = (body.u64()?, body.u64()?);
    let is_pages = base % 4096 == 0 && limit % 4096 == 4095 && base < limit;
    // All of memory would be 2^64 bytes.
    if !is_pages || (base, limit) == (0, u64::MAX) {
        return Err(base_at.error(Why::Memory { base, limit }));
    }
    Ok(Rmrr { segment, base, limit, scopes: scopes(body)? })
}

fn flags_and_segment(body: &mut Reader<'_>) -> Result<(u8, u16), Malformed> {
    let flags = body.u8()?;
    body.take(1)?;
    Ok((flags, body.u16()?))
}

/// The rest of a structure, as scope entries.
fn scopes(body: &mut Reader<'_>) -> Result<Vec<Scope>, Malformed> {
    let mut scopes = Vec::new();
    while !body.is_empty() {
        let start = *body;
        let kind = ScopeKind::from_type(body.u8()?);
        let length = body.u8()?;
        let flags = body.u8()?;
        body.take(1)?;
        let enumeration_id = body.u8()?;
        let start_bus = body.u8()?;
        let path = length.checked_sub(SCOPE).map(usize::from);
        let path = path.filter(|path| *path >= 2 && path.is_multiple_of(2) && *path <= body.left());
        let mut path = body.take(path.ok_or(start.error(Why::ScopeLength { length }))?)?;
        let mut steps = Vec::new();
        while !path.is_empty() {
            let at = path;
            let (device, function) = (path.u8()?, path.u8()?);
            if device > 31 || function > 7 {
                return Err(at.error(Why::Path { device, function }));
            }
            push(&mut steps, Step { device, function }).map_err(|why| at.error(why))?;
        }
        let scope = Scope { kind, flags, enumeration_id, start_bus, path: steps };
        push(&mut scopes, scope).map_err(|why| start.error(why))?;
    }
    Ok(scopes)
}

fn name(body: &mut Reader<'_>) -> Result<String, Malformed> {
    let start = *body;
    let bytes = body.rest();
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(start.error(Why::Name))?;
    let text =
        bytes.get(..end).and_then(|text| core::str::from_utf8(text).ok()).filter(|text| text.is_ascii());
    let text = text.ok_or(start.error(Why::Name))?;
    let mut name = String::new();
    name.try_reserve_exact(text.len()).map_err(|_| start.error(Why::OutOfMemory))?;
    name.push_str(text);
    Ok(name)
}

fn copy(body: &mut Reader<'_>) -> Result<Vec<u8>, Malformed> {
    let start = *body;
    let bytes = body.rest();
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| start.error(Why::OutOfMemory))?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}
