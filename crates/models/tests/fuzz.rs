//! Random registers, descriptors, tables and requests: nothing panics, and nothing runs for ever.

mod common;

use std::sync::Arc;

use common::{A, B, Rig};
use portcullis_models::adversary::{Adversary, Level};
use portcullis_models::bus::{
    AddressType, Operation, PageRequest, Pasid, Prefix, Request, RequesterId, Upstream,
};
use portcullis_models::complex::{Complex, Work};
use portcullis_models::endpoint::{Endpoint, Idle};
use portcullis_models::iommu::Width;
use portcullis_models::log::Silent;
use portcullis_models::memory::Memory;
use portcullis_models::testing::Ram;
use portcullis_models::vtd::{Config, Vtd};
use proptest::prelude::*;

/// One move of the fuzzer.
#[derive(Debug, Clone)]
enum Move {
    Register(u64, bool, u64),
    Read(u64, bool),
    Memory(u64, u64),
    Request(u16, Option<u32>, bool, u64, u8),
    PageRequest(Option<u32>, u64, u8, u16),
    Completion(u16, u32),
    Steps(u8, u64),
    Reset,
}

/// Values that look like something: small, table pointers, high bits, anything.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..64,
        (0u64..64, 0u64..4096).prop_map(|(page, low)| page << 12 | low),
        (0u32..64).prop_map(|b| 1 << b),
        any::<u64>(),
    ]
}

fn moves() -> impl Strategy<Value = Move> {
    let register = prop_oneof![(0u64..0x40).prop_map(|w| w * 4), Just(0x508), Just(0x100c), any::<u64>()];
    let pasid = || proptest::option::of(prop_oneof![0u32..16, 0u32..1 << 20]);
    prop_oneof![
        (register.clone(), any::<bool>(), word()).prop_map(|(r, w, v)| Move::Register(r, w, v)),
        (register, any::<bool>()).prop_map(|(r, w)| Move::Read(r, w)),
        ((0u64..0x2_0000).prop_map(|a| a * 8), word()).prop_map(|(a, v)| Move::Memory(a, v)),
        (0u16..0x200, pasid(), any::<bool>(), word(), any::<u8>())
            .prop_map(|(s, p, t, a, k)| Move::Request(s, p, t, a, k)),
        (pasid(), word(), any::<u8>(), any::<u16>()).prop_map(|(p, a, f, g)| Move::PageRequest(p, a, f, g)),
        (0u16..32, any::<u32>()).prop_map(|(s, t)| Move::Completion(s, t)),
        (1u8..32, any::<u64>()).prop_map(|(n, r)| Move::Steps(n, r)),
        Just(Move::Reset),
    ]
}

fn width(wide: bool) -> Width {
    if wide { Width::Qword } else { Width::Dword }
}

fn apply(complex: &mut Complex, ram: &Ram, now: &mut u64, m: &Move) {
    let port = |c: &mut Complex, f: &dyn Fn(&mut portcullis_models::endpoint::Port)| {
        if let Some(e) = c.endpoint_mut(0) {
            f(e.port_mut());
        }
    };
    let prefix = |p: Option<u32>| p.and_then(Pasid::new).map(Prefix::user);
    match m.clone() {
        Move::Register(off, wide, value) => complex.mmio_write(0, off, width(wide), value),
        Move::Read(off, wide) => {
            complex.mmio_read(0, off, width(wide));
        }
        Move::Memory(addr, value) => ram.put64(addr, value),
        Move::Request(source, pasid, translated, addr, kind) => {
            let at = if translated { AddressType::Translated } else { AddressType::Untranslated };
            let op = match kind % 5 {
                0 => Operation::Read(u32::from(kind)),
                1 => Operation::Write(vec![kind; usize::from(kind)]),
                2 => Operation::Write(vec![kind; 4]),
                3 => Operation::ZeroLengthRead,
                _ => Operation::Translate { no_write: kind & 0x80 != 0 },
            };
            let request = Request { source: RequesterId(source), prefix: prefix(pasid), at, addr, op };
            port(complex, &|p| {
                p.raw_request(request.clone());
            });
        }
        Move::PageRequest(pasid, addr, flags, prgi) => {
            let request = PageRequest {
                source: A,
                prefix: prefix(pasid),
                addr,
                read: flags & 1 != 0,
                write: flags & 2 != 0,
                last: flags & 4 != 0,
                prgi,
                group: 0,
                private: None,
            };
            port(complex, &|p| p.raw_message(Upstream::PageRequest(request)));
        }
        Move::Completion(source, itags) => {
            let source = RequesterId(source);
            port(complex, &|p| p.raw_message(Upstream::InvalidationCompletion { source, itags }));
        }
        Move::Steps(n, pick) => {
            for i in 0..u64::from(n) {
                let mut works: Vec<Work> = Vec::new();
                complex.runnable(*now, &mut works);
                match works.len() as u64 {
                    0 => *now = complex.next_deadline(*now).unwrap_or(*now),
                    len => {
                        let pick = pick.rotate_left(i as u32) % len;
                        complex.run(*now, works[pick as usize]);
                    }
                }
            }
        }
        Move::Reset => complex.reset(*now, 0),
    }
}

fn play(ram: &Arc<Ram>, complex: &mut Complex, moves: &[Move]) {
    let mut now = 0;
    for m in moves {
        apply(complex, ram, &mut now, m);
    }
    // Whatever is left comes to an end.
    for _ in 0..200_000 {
        let mut works = Vec::new();
        complex.runnable(now, &mut works);
        if let Some(&work) = works.first() {
            complex.run(now, work);
        } else if let Some(t) = complex.next_deadline(now) {
            now = t;
        } else {
            return;
        }
    }
    panic!("the complex does not come to rest");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_unit_survives_anything(moves in proptest::collection::vec(moves(), 1..200), seed in any::<u64>()) {
        let ram = Arc::new(Ram::new(0x10_0000));
        let mem: Arc<dyn Memory> = ram.clone();
        let mut complex = Complex::new(mem, Box::new(Silent));
        let config = if seed & 1 == 0 { Config::default() } else { Config::legacy() };
        let unit = complex.add_unit(Box::new(Vtd::new(config)));
        complex.add_endpoint(Endpoint::new(A, seed, Box::new(Idle)), Some(unit));
        complex.add_endpoint(Endpoint::new(B, seed, Box::new(Idle)), Some(unit));
        complex.set_adversary(Adversary::new(Level::Hostile, seed));
        play(&ram, &mut complex, &moves);
    }

    #[test]
    fn a_running_unit_survives_anything(moves in proptest::collection::vec(moves(), 1..200)) {
        let Rig { ram, mut complex, .. } = Rig::scalable(Config::default());
        play(&ram, &mut complex, &moves);
    }

    #[test]
    fn random_descriptors_end(words in proptest::collection::vec(word(), 4..128)) {
        let mut rig = Rig::scalable(Config::default());
        for chunk in words.chunks_exact(4) {
            let ty = chunk[0] % 11;
            rig.submit(&[[chunk[0] & !0xe0f | ty, chunk[1], 0, 0], [ty | 0x10 | chunk[2] << 16, chunk[3], 0, 0]]);
            rig.settle();
            rig.write(portcullis_spec::vtd::regs::offset::FSTS, Width::Dword, 0x71);
            if let Some(t) = rig.complex.next_deadline(rig.now) {
                rig.now = t;
            }
            rig.settle();
        }
    }
}
