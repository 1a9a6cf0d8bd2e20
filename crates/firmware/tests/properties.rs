//! Random and damaged tables: reading ends with a value or an error, and writing is its inverse.

mod common;

use common::{recorded, seal};
use portcullis::topology::{Address, Buses};
use portcullis_firmware::Topology;
use portcullis_firmware::acpi::{Header, RootTable, Rsdp, Tables};
use portcullis_firmware::dmar::{
    Andd, Atsr, Dmar, Drhd, Flags, Rhsa, Rmrr, Satc, Scope, ScopeKind, Sidp, Step, Structure,
};
use proptest::prelude::*;

fn scopes() -> impl Strategy<Value = Vec<Scope>> {
    let step = (0..32_u8, 0..8_u8).prop_map(|(device, function)| Step { device, function });
    let path = proptest::collection::vec(step, 1..5);
    let scope = (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), path).prop_map(
        |(kind, flags, enumeration_id, start_bus, path)| {
            let kind = ScopeKind::from_type(kind % 8);
            Scope { kind, flags, enumeration_id, start_bus, path }
        },
    );
    proptest::collection::vec(scope, 0..5)
}

fn structure() -> impl Strategy<Value = Structure> {
    let drhd = (any::<bool>(), 0..3_u16, 1..0x1000_u64, 0..16_u8, scopes()).prop_map(
        |(include_all, segment, n, pages_log2, scopes)| {
            let base = n << (12 + pages_log2);
            Structure::Drhd(Drhd { include_all, segment, base, pages_log2, scopes })
        },
    );
    let rmrr = (any::<u16>(), 0..1_u64 << 40, 1..1_u64 << 10, scopes()).prop_map(
        |(segment, page, pages, scopes)| {
            let base = page << 12;
            Structure::Rmrr(Rmrr { segment, base, limit: base + (pages << 12) - 1, scopes })
        },
    );
    let scoped = (0..3_u8, any::<bool>(), any::<u16>(), scopes()).prop_map(
        |(which, flag, segment, scopes)| match which {
            0 => Structure::Atsr(Atsr { all_ports: flag, segment, scopes }),
            1 => Structure::Satc(Satc { required: flag, segment, scopes }),
            _ => Structure::Sidp(Sidp { segment, scopes }),
        },
    );
    let rhsa = any::<(u64, u32)>().prop_map(|(base, proximity)| Structure::Rhsa(Rhsa { base, proximity }));
    let andd = (any::<u8>(), "[ -~]{0,20}").prop_map(|(number, name)| Structure::Andd(Andd { number, name }));
    let unknown = (7..=u16::MAX, proptest::collection::vec(any::<u8>(), 0..20))
        .prop_map(|(kind, body)| Structure::Unknown { kind, body });
    prop_oneof![3 => drhd, 2 => rmrr, 3 => scoped, 1 => rhsa, 1 => andd, 1 => unknown]
}

fn table() -> impl Strategy<Value = Dmar> {
    let flags = any::<(bool, bool, bool)>().prop_map(|(a, b, c)| Flags {
        interrupt_remapping: a,
        x2apic_opt_out: b,
        dma_control_opt_in: c,
    });
    (1..=64_u8, flags, proptest::collection::vec(structure(), 0..12))
        .prop_map(|(width, flags, structures)| Dmar { flags, structures, ..Dmar::new(width) })
}

/// A recorded table.
fn machine() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(recorded("laptop_lg")),
        Just(recorded("tablet_microsoft")),
        Just(recorded("imac_pro")),
        Just(recorded("client_intel_edk2")),
        Just(recorded("server_ami")),
    ]
}

/// Bridges that answer anything, by their address.
fn bridges(at: Address) -> Option<Buses> {
    let n = at.rid.wrapping_mul(0x9e37) ^ at.segment;
    (!n.is_multiple_of(3)).then_some(Buses { secondary: n as u8, subordinate: (n >> 8) as u8 })
}

/// Whatever was read can be asked about.
fn ask(table: &Dmar) {
    let Ok(topology) = Topology::from_dmar(table, &bridges) else { return };
    for rid in (0..=u16::MAX).step_by(97) {
        let at = Address { segment: rid % 3, rid };
        if let Some(unit) = topology.unit_of(at) {
            assert_eq!(unit.segment, at.segment);
            assert_eq!(topology.units()[unit.instance.0 as usize], *unit);
        }
        topology.reserved_of(at, 0).for_each(|region| assert!(region.len.is_multiple_of(4096)));
        topology.atc_of(at);
        topology.ats_behind(at);
    }
}

proptest! {
    #[test]
    fn parsing_is_the_inverse_of_writing(table in table()) {
        let bytes = table.write().unwrap();
        prop_assert_eq!(Dmar::parse(&bytes), Ok(table.clone()));
        ask(&table);
    }

    #[test]
    fn recorded_tables_say_the_same_when_written(bytes in machine()) {
        let table = Dmar::parse(&bytes).unwrap();
        prop_assert_eq!(Dmar::parse(&table.write().unwrap()), Ok(table.clone()));
        ask(&table);
    }

    #[test]
    fn a_changed_byte_is_noticed(bytes in machine(), at in any::<prop::sample::Index>(), change in 1..=u8::MAX) {
        let mut bytes = bytes;
        // Of a shorter table the checksum might be right by chance.
        let at = at.index(bytes.len());
        prop_assume!(!(4..8).contains(&at));
        bytes[at] ^= change;
        prop_assert!(Dmar::parse(&bytes).is_err());
    }

    #[test]
    fn damage_under_a_right_checksum_is_read_or_refused(
        bytes in prop_oneof![machine(), table().prop_map(|table| table.write().unwrap())],
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = bytes;
        // The structures, mostly; never the signature, and the length comes right again.
        for (at, to) in damage {
            let from = 36.min(bytes.len() - 1);
            let at = from + at.index(bytes.len() - from);
            bytes[at] = to;
        }
        if let Some(cut) = cut {
            let left = 36 + cut.index(bytes.len() - 35);
            bytes.truncate(left);
        }
        seal(&mut bytes);
        match Dmar::parse(&bytes) {
            Ok(table) => {
                ask(&table);
                prop_assert_eq!(Dmar::parse(&table.write().unwrap()), Ok(table));
            }
            Err(error) => {
                prop_assert!(error.offset <= bytes.len());
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Rsdp::parse(&bytes);
        let _ = Header::parse(&bytes);
        let _ = Tables::parse(RootTable::Rsdt(0), &bytes);
        if let Ok(table) = Dmar::parse(&bytes) {
            ask(&table);
        }
    }
}
