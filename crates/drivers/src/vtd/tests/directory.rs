//! PASID directories of every size, in the bytes that hardware reads.

use super::{
    attach::{context, pasid_entry},
    *,
};
use portcullis::driver::{Incompatible, PrepareError};
use std::collections::BTreeSet;

fn pasids(bits: u8) -> Features {
    Features { pasid_bits: bits, ..ats() }
}

/// PDTS of the context entry, bits 11:9.
fn pdts(fake: &Fake) -> u64 {
    context(fake)[0] >> 9 & 7
}

fn is_refused(vtd: &Vtd<Fake>, pasid: u32) -> bool {
    let refused = vtd.prepare(with_pasid(pasid), first_stage(7, 0x1000)).unwrap_err();
    refused == PrepareError::Incompatible(Incompatible::Pasid(Pasid::new(pasid).unwrap()))
}

#[test]
fn a_directory_is_as_large_as_the_device_s_pasids() {
    for (bits, size, frames) in [
        (0, 0, 1),
        (1, 0, 1),
        (8, 0, 1),
        (13, 0, 1),
        (14, 1, 1),
        (15, 2, 1),
        (16, 3, 2),
        (17, 4, 4),
        (18, 5, 8),
        (19, 6, 16),
        (20, 7, 32),
    ] {
        let (fake, vtd) = scalable();
        assert_eq!(vtd.add_device(SOURCE, pasids(bits)), Ok(bits));
        assert_eq!(pdts(&fake), size, "{bits} bits");
        let directory = context(&fake)[0] & !0xfff;
        assert!(directory.is_multiple_of(frames * 4096), "contiguous, and aligned to its size");

        let last = (1u32 << bits) - 1;
        if bits > 0 {
            let _ = attach(&vtd, with_pasid(last), first_stage(0x22, 0xabc_d000));
            assert_eq!(pasid_entry(&fake, last.into())[2], 0xabc_d000, "{bits} bits");
            assert!(u64::from(last) >> 6 < 128 << size, "inside what PDTS says");
        }
        if bits < 20 {
            assert!(is_refused(&vtd, last + 1), "{bits} bits");
        }

        let _ = vtd.cut_off(SOURCE).unwrap();
        fake.complete_all();
        vtd.remove_device(SOURCE);
        let released: BTreeSet<_> = fake.released().into_iter().collect();
        let tables = if last >> 6 == 0 { 1 } else { 2 };
        assert_eq!(released.len() as u64, frames + tables, "{bits} bits: nothing stays, each once");
        assert_eq!(fake.released().len(), released.len());
        let of_it = |n| released.contains(&Phys(directory + n * 4096));
        assert!((0..frames).all(of_it));
    }
}

#[test]
fn where_memory_is_in_pieces_a_device_has_fewer_pasids() {
    for (order, bits) in [(4, 19), (3, 18), (1, 16), (0, 15)] {
        let (fake, vtd) = scalable();
        fake.limit_runs(order);
        assert_eq!(vtd.add_device(SOURCE, pasids(20)), Ok(bits));
        assert_eq!(pdts(&fake), u64::from(bits) - 13);
        let last = (1 << bits) - 1;
        let _ = attach(&vtd, with_pasid(last), first_stage(0x22, 0xabc_d000));
        assert_eq!(pasid_entry(&fake, last.into())[2], 0xabc_d000);
        assert!(is_refused(&vtd, last + 1));
        // It stays so: PDTS belongs to the directory.
        let _ = vtd.set_features(SOURCE, Features { pri: true, ..pasids(20) }).unwrap();
        assert_eq!(pdts(&fake), u64::from(bits) - 13);
        assert!(is_refused(&vtd, last + 1));
    }
}

#[test]
fn without_memory_nothing_is_left_behind() {
    for frames in 0..2 {
        let (fake, vtd) = scalable();
        // The context table is there.
        vtd.add_device(SourceId(SOURCE.0 + 1), ats()).unwrap();
        fake.limit_frames(frames);
        assert_eq!(vtd.add_device(SOURCE, pasids(20)), Err(PrepareError::NoMem));
        assert_eq!(fake.released().len(), frames);
        assert_eq!(context(&fake), [0; 4]);
    }
}

#[test]
fn more_pasids_than_the_unit_has_are_refused() {
    let (_, vtd) = running(cap(), scalable_ecap().with_pss(15));
    assert_eq!(vtd.caps().pasid_bits, 16);
    assert!(matches!(vtd.add_device(SOURCE, pasids(17)), Err(PrepareError::Incompatible(_))));
    assert_eq!(vtd.add_device(SOURCE, pasids(16)), Ok(16));
}

#[test]
fn every_frame_of_a_directory_is_cleaned_where_hardware_does_not_snoop() {
    let (fake, vtd) = running(cap(), scalable_ecap().with_c(false));
    vtd.add_device(SOURCE, pasids(20)).unwrap();
    let directory = context(&fake)[0] & !0xfff;
    assert!((0..32).all(|n| fake.was_cleaned(directory + n * 4096, 4096)));
    let _ = attach(&vtd, with_pasid(0xf_ffff), first_stage(0x22, 0xabc_d000));
    assert!(fake.was_cleaned(directory + 0x3fff * 8, 8));
}
