//! DMAR tables: recorded ones, the manual's example, and damaged ones.

mod common;

use common::{recorded, seal};
use portcullis_firmware::dmar::{
    Andd, Atsr, Dmar, Drhd, Flags, Rhsa, Rmrr, Satc, Scope, ScopeKind, Sidp, Step, Structure,
};
use portcullis_firmware::{Malformed, Why};

fn scope(kind: ScopeKind, enumeration_id: u8, start_bus: u8, path: &[(u8, u8)]) -> Scope {
    let path = path.iter().map(|&(device, function)| Step { device, function }).collect();
    Scope { kind, flags: 0, enumeration_id, start_bus, path }
}

fn endpoint(device: u8, function: u8) -> Scope {
    scope(ScopeKind::Endpoint, 0, 0, &[(device, function)])
}

#[test]
fn a_laptop_of_lg() {
    let table = Dmar::parse(&recorded("laptop_lg")).unwrap();
    assert_eq!(table.host_address_width, 39);
    assert_eq!((&table.origin.oem_id, &table.origin.oem_table_id), (b"LGE   ", b"LGPC    "));
    let flags = Flags { interrupt_remapping: true, ..Flags::default() };
    assert_eq!(table.flags, flags);
    let unit = |include_all, base, scopes| {
        Structure::Drhd(Drhd { include_all, segment: 0, base, pages_log2: 0, scopes })
    };
    let reserved =
        |base, limit, scope| Structure::Rmrr(Rmrr { segment: 0, base, limit, scopes: vec![scope] });
    let interrupts =
        vec![scope(ScopeKind::IoApic, 2, 0, &[(0x1e, 7)]), scope(ScopeKind::Hpet, 0, 0, &[(0x1e, 6)])];
    assert_eq!(
        table.structures,
        [
            unit(false, 0xfed9_0000, vec![endpoint(2, 0)]),
            unit(true, 0xfed9_1000, interrupts),
            reserved(0x6f8a_5000, 0x6f8c_4fff, endpoint(0x14, 0)),
            reserved(0x7900_0000, 0x7b7f_ffff, endpoint(2, 0)),
        ]
    );
}

#[test]
fn names_of_acpi_devices() {
    let table = Dmar::parse(&recorded("tablet_microsoft")).unwrap();
    let names = table.structures.iter().filter_map(|s| match s {
        Structure::Andd(andd) => Some((andd.number, andd.name.as_str())),
        _ => None,
    });
    let expected = [(1, r"\_SB.PCI0.I2C0"), (2, r"\_SB.PCI0.I2C1"), (9, r"\_SB.PCI0.UA00")];
    assert_eq!(names.collect::<Vec<_>>(), expected);
}

#[test]
fn integrated_devices_with_their_own_tlbs() {
    let table = Dmar::parse(&recorded("client_intel_edk2")).unwrap();
    assert_eq!(
        table.flags,
        Flags { interrupt_remapping: true, dma_control_opt_in: true, ..Flags::default() }
    );
    let Structure::Drhd(first) = &table.structures[0] else { panic!("a unit") };
    assert_eq!((first.base, first.pages_log2), (0xfc80_0000, 4));
    let scopes = vec![endpoint(2, 0), endpoint(5, 0), endpoint(0xb, 0)];
    assert_eq!(
        table.structures[3],
        Structure::Satc(Satc { required: true, segment: 0, scopes: scopes.clone() })
    );
    let flagged = |(scope, flags): (Scope, u8)| Scope { flags, ..scope };
    let scopes = scopes.into_iter().zip([0x1f, 0x1f, 0x1c]).map(flagged).collect();
    assert_eq!(table.structures[4], Structure::Sidp(Sidp { segment: 0, scopes }));
}

#[test]
fn a_server_with_ats_and_affinity() {
    let table = Dmar::parse(&recorded("server_ami")).unwrap();
    assert_eq!(table.host_address_width, 46);
    let ports = [0x17, 0x3a, 0x5d].map(|bus| scope(ScopeKind::SubHierarchy, 0, bus, &[(0, 0)]));
    let atsr = Atsr { all_ports: false, segment: 0, scopes: ports.into() };
    assert!(table.structures.contains(&Structure::Atsr(atsr)));
    let rhsa = Rhsa { base: 0x9d7f_c000, proximity: 0 };
    assert!(table.structures.contains(&Structure::Rhsa(rhsa)));
}

/// [V] table 33: one device with ATS and one without behind the first unit, all behind a root port
/// behind the second, the rest behind the third. The I/O APIC's id, the HPET's, and the addresses of
/// the units are left open there.
#[test]
fn the_manuals_example() {
    let mut bytes = Vec::new();
    bytes.extend(*b"DMAR\x98\0\0\0\x01\0OEMID TABLE ID\x01\0\0\0TOOL\x01\0\0\0");
    bytes.extend([38, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0, 0, 32, 0, 0, 0, 0, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0]);
    bytes.extend([1, 8, 0, 0, 0, 0, 4, 0, 1, 8, 0, 0, 0, 0, 5, 0]);
    bytes.extend([0, 0, 24, 0, 0, 0, 0, 0, 0, 0x20, 0xd9, 0xfe, 0, 0, 0, 0]);
    bytes.extend([2, 8, 0, 0, 0, 0, 7, 0]);
    bytes.extend([0, 0, 32, 0, 1, 0, 0, 0, 0, 0x30, 0xd9, 0xfe, 0, 0, 0, 0]);
    bytes.extend([3, 8, 0, 0, 2, 0, 31, 7, 4, 8, 0, 0, 1, 0, 31, 6]);
    bytes.extend([5, 0, 16, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0, 5, 0]);
    assert_eq!(bytes.len(), 152);
    seal(&mut bytes);

    let mut table = Dmar::parse(&bytes).unwrap();
    let unit = |include_all, base, scopes| {
        Structure::Drhd(Drhd { include_all, segment: 0, base, pages_log2: 0, scopes })
    };
    let rest = vec![scope(ScopeKind::IoApic, 2, 0, &[(31, 7)]), scope(ScopeKind::Hpet, 1, 0, &[(31, 6)])];
    assert_eq!(
        table.structures,
        [
            unit(false, 0xfed9_1000, vec![endpoint(4, 0), endpoint(5, 0)]),
            unit(false, 0xfed9_2000, vec![scope(ScopeKind::SubHierarchy, 0, 0, &[(7, 0)])]),
            unit(true, 0xfed9_3000, rest),
            Structure::Satc(Satc { required: true, segment: 0, scopes: vec![endpoint(5, 0)] }),
        ]
    );
    assert_eq!(table.write().unwrap(), bytes);
    // More than the table does not matter.
    bytes.push(0xff);
    assert_eq!(Dmar::parse(&bytes), Ok(table.clone()));

    table.structures.clear();
    assert_eq!(table.write().unwrap().len(), 48);
}

#[test]
fn what_is_not_known_is_skipped_and_kept() {
    let mut table = Dmar::new(48);
    table.structures = vec![
        Structure::Unknown { kind: 7, body: vec![1, 2, 3] },
        Structure::Andd(Andd { number: 4, name: r"\_SB.I2C0".into() }),
        Structure::Unknown { kind: 0xffff, body: vec![] },
    ];
    let bytes = table.write().unwrap();
    assert_eq!(Dmar::parse(&bytes), Ok(table));
}

/// A table of one structure, whose bytes begin at offset 48.
fn with(structure: &[u8]) -> Vec<u8> {
    let mut bytes = Dmar::new(39).write().unwrap();
    bytes.extend(structure);
    seal(&mut bytes);
    bytes
}

#[track_caller]
fn refused(bytes: &[u8], offset: usize, why: Why) {
    assert_eq!(Dmar::parse(bytes), Err(Malformed { table: *b"DMAR", offset, why }));
}

#[test]
fn a_damaged_header_is_refused() {
    let good = recorded("laptop_lg");
    refused(&[], 0, Why::Truncated { needed: 4, left: 0 });
    refused(&good[..20], 16, Why::Truncated { needed: 8, left: 4 });
    refused(&good[..100], 4, Why::TableLength { length: 168 });
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    refused(&changed(3, b'X'), 0, Why::Signature { found: *b"DMAX" });
    refused(&changed(4, 35), 4, Why::TableLength { length: 35 });
    refused(&changed(7, 1), 4, Why::TableLength { length: 0x0100_00a8 });
    refused(&changed(47, 1), 0, Why::Checksum { sum: 1 });
    let mut wide = good.clone();
    wide[36] = 64;
    seal(&mut wide);
    refused(&wide, 36, Why::AddressWidth { bits: 65 });
    // One that ends inside its own fixed part.
    let mut short = good[..40].to_vec();
    seal(&mut short);
    refused(&short, 38, Why::Truncated { needed: 10, left: 2 });
    let mut long = Dmar::new(39).write().unwrap();
    long.resize(Dmar::MOST_BYTES as usize + 1, 0);
    seal(&mut long);
    refused(&long, 4, Why::TableLength { length: Dmar::MOST_BYTES + 1 });

    let words = Dmar::parse(&changed(47, 1)).unwrap_err().to_string();
    assert_eq!(words, "DMAR at offset 0x0: the bytes add up to 0x01");
}

#[test]
fn damaged_structures_are_refused() {
    let structure = |kind, length| Why::StructureLength { kind, length };
    // A length of 0 would never end; one below its own prefix; one past the end.
    refused(&with(&[0, 0, 0, 0]), 48, structure(0, 0));
    refused(&with(&[9, 0, 3, 0]), 48, structure(9, 3));
    refused(&with(&[9, 0, 5, 0]), 48, structure(9, 5));
    refused(&with(&[0, 0, 4]), 50, Why::Truncated { needed: 2, left: 1 });
    // Shorter than the fixed part of each type.
    for (kind, least) in [(0, 16), (1, 24), (2, 8), (3, 20), (4, 8), (5, 8), (6, 8)] {
        let short = least - 1;
        let mut bytes = vec![kind, 0, short, 0];
        bytes.resize(short.into(), 0);
        refused(&with(&bytes), 48, structure(kind.into(), short.into()));
    }

    let unit = |size: u8, base: u64| {
        let mut bytes = vec![0, 0, 16, 0, 0, size, 0, 0];
        bytes.extend(base.to_le_bytes());
        with(&bytes)
    };
    assert!(Dmar::parse(&unit(1, 0xfed9_2000)).is_ok());
    refused(&unit(0, 0), 56, Why::Registers { base: 0, bytes: 4096 });
    refused(&unit(1, 0xfed9_1000), 56, Why::Registers { base: 0xfed9_1000, bytes: 8192 });

    let memory = |base: u64, limit: u64| {
        let mut bytes = vec![1, 0, 24, 0, 0, 0, 0, 0];
        bytes.extend(base.to_le_bytes());
        bytes.extend(limit.to_le_bytes());
        with(&bytes)
    };
    assert!(Dmar::parse(&memory(0x1000, 0x1fff)).is_ok());
    assert!(Dmar::parse(&memory(0x1000, u64::MAX)).is_ok());
    for (base, limit) in
        [(0x1000, 0x1ffe), (0x1001, 0x1fff), (0x2000, 0x1fff), (0x2000, 0xfff), (0, u64::MAX)]
    {
        refused(&memory(base, limit), 56, Why::Memory { base, limit });
    }

    refused(&with(b"\x04\0\x0a\0\0\0\0\x01ab"), 56, Why::Name);
    refused(&with(b"\x04\0\x0a\0\0\0\0\x01\xff\0"), 56, Why::Name);
}

#[test]
fn damaged_scopes_are_refused() {
    // Of an ATSR, whose scopes begin at offset 56.
    let scoped = |bytes: &[u8]| {
        let mut all = vec![2, 0, 8 + bytes.len() as u8, 0, 0, 0, 0, 0];
        all.extend(bytes);
        with(&all)
    };
    assert!(Dmar::parse(&scoped(&[2, 10, 0, 0, 0, 0, 31, 7, 0, 0])).is_ok());
    for length in [0, 5, 6, 7, 9, 10, 255] {
        refused(&scoped(&[2, length, 0, 0, 0, 0, 1, 0]), 56, Why::ScopeLength { length });
    }
    refused(&scoped(&[2, 8, 0, 0]), 60, Why::Truncated { needed: 1, left: 0 });
    refused(&scoped(&[2, 8, 0, 0, 0, 0, 32, 0]), 62, Why::Path { device: 32, function: 0 });
    refused(&scoped(&[2, 10, 0, 0, 0, 0, 1, 0, 1, 8]), 64, Why::Path { device: 1, function: 8 });
}

#[test]
fn what_no_length_field_can_say_is_not_written() {
    let mut table = Dmar::new(39);
    let path = vec![Step { device: 0, function: 0 }; 125];
    let scope = Scope { path, ..endpoint(0, 0) };
    table.structures = vec![Structure::Satc(Satc { required: false, segment: 0, scopes: vec![scope] })];
    assert_eq!(table.write().unwrap_err().to_string(), "a path of 256 bytes is too long");
    table.structures = vec![Structure::Unknown { kind: 9, body: vec![0; 0xfffc] }];
    assert!(table.write().is_err());
}
