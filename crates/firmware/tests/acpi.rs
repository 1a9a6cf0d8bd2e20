//! From the root pointer to the tables.

use portcullis_firmware::acpi::{Header, RootTable, Rsdp, Tables};
use portcullis_firmware::{Malformed, Why};

fn seal(bytes: &mut [u8], checksum: usize) {
    bytes[checksum] = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
}

fn pointer(revision: u8, rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut bytes = b"RSD PTR \0PORTCU".to_vec();
    bytes.push(revision);
    bytes.extend(rsdt.to_le_bytes());
    seal(&mut bytes, 8);
    if revision >= 2 {
        bytes.extend(36_u32.to_le_bytes());
        bytes.extend(xsdt.to_le_bytes());
        bytes.extend([0; 4]);
        seal(&mut bytes, 32);
    }
    bytes
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend((36 + body.len() as u32).to_le_bytes());
    bytes.extend([1, 0]);
    bytes.extend(*b"PORTCULLIS    \x01\0\0\0TOOL\x02\0\0\0");
    bytes.extend(body);
    seal(&mut bytes, 9);
    bytes
}

#[test]
fn the_pointer_leads_to_the_newest_root_table() {
    let root = |bytes: &[u8]| Rsdp::parse(bytes).unwrap().root;
    assert_eq!(root(&pointer(0, 0x1000, 0)), RootTable::Rsdt(0x1000));
    assert_eq!(root(&pointer(2, 0x1000, 0x1_2345_6000)), RootTable::Xsdt(0x1_2345_6000));
    assert_eq!(root(&pointer(2, 0x1000, 0)), RootTable::Rsdt(0x1000));
    let mut longer = pointer(0, 0x1000, 0);
    longer.resize(Rsdp::BYTES, 0xff);
    assert_eq!(root(&longer), RootTable::Rsdt(0x1000));
}

#[test]
fn a_damaged_pointer_is_refused() {
    let why = |bytes: &[u8]| Rsdp::parse(bytes).map_err(|e| (e.offset, e.why)).unwrap_err();
    let good = pointer(2, 0x1000, 0x2000);
    for count in 0..good.len() {
        assert!(matches!(why(&good[..count]).1, Why::Truncated { .. }), "{count} bytes");
    }
    // Each byte is under one of the two sums.
    for i in 8..good.len() {
        let mut bad = good.clone();
        bad[i] ^= 0x40;
        assert!(Rsdp::parse(&bad).is_err(), "byte {i}");
    }
    assert_eq!(why(b"RSD PTX and so on"), (0, Why::Signature { found: *b"RSD " }));
    let mut short = good.clone();
    short[20] = 35;
    assert_eq!(why(&short), (20, Why::TableLength { length: 35 }));
}

#[test]
fn root_tables_are_lists() {
    let narrow = table(b"RSDT", &[0, 0x10, 0, 0, 0, 0x20, 0, 0]);
    let tables = |root, bytes| Tables::parse(root, bytes).map(Iterator::collect::<Vec<_>>);
    assert_eq!(tables(RootTable::Rsdt(0), &narrow), Ok(vec![0x1000, 0x2000]));
    let wide = table(b"XSDT", &[0, 0x10, 0, 0, 1, 0, 0, 0]);
    assert_eq!(tables(RootTable::Xsdt(0), &wide), Ok(vec![0x1_0000_1000]));

    let refused = |root, bytes: &[u8]| Tables::parse(root, bytes).unwrap_err();
    let error = |table, offset, why| Malformed { table, offset, why };
    let found = Why::Signature { found: *b"RSDT" };
    assert_eq!(refused(RootTable::Xsdt(0), &narrow), error(*b"XSDT", 0, found));
    let odd = table(b"XSDT", &[0; 12]);
    assert_eq!(refused(RootTable::Xsdt(0), &odd), error(*b"XSDT", 36, Why::Addresses { bytes: 12 }));
    let cut = &narrow[..40];
    assert_eq!(refused(RootTable::Rsdt(0), cut), error(*b"RSDT", 4, Why::TableLength { length: 44 }));
}

#[test]
fn a_header_is_read_before_its_table() {
    let bytes = table(b"DMAR", &[0; 12]);
    let header = Header::parse(&bytes[..Header::BYTES]).unwrap();
    assert_eq!((header.signature, header.length), (*b"DMAR", 48));
    assert_eq!((header.oem_id, header.creator_revision), (*b"PORTCU", 2));
    let why = Header::parse(&bytes[..35]).unwrap_err().why;
    assert_eq!(why, Why::Truncated { needed: 4, left: 3 });
    assert!(Header::parse(&table(b"DMAR", &[])[..4]).is_err());
}
