//! What the manual leaves to a unit: legacy mode, small and missing parts, and the registers.

use super::{
    paging::reads_own,
    stage::{Ending, Setting, perform},
};
use crate::pager::PAGE;
use portcullis::{FaultKind, Scope, SourceId, driver::Stage as Table};
use portcullis_models::{
    endpoint::Intent,
    vtd::{Agaw, Config},
};

const BASE: u64 = 0x4000_0000;

fn page(n: u64) -> u64 {
    BASE + n * PAGE
}

/// Two devices in two domains, in which the same addresses lead to different memory; one of them
/// has ATS. What one loses the other keeps.
pub fn two_devices(setting: &Setting) -> Ending {
    perform("two devices", setting, |stage, cx| {
        stage.start(cx)?;
        let devices = [stage.device(cx, 0x08, true)?, stage.device(cx, 0x0208, false)?];
        let rooms = [stage.room(&[&devices[0]], Table::Any)?, stage.room(&[&devices[1]], Table::Any)?];
        let mut lodgers = Vec::new();
        for (room, device) in rooms.iter().zip(&devices) {
            (0..6).try_for_each(|n| room.map(page(n), n % 2 == 0).map(|_| ()))?;
            lodgers.push(room.attach(cx, device, None)?);
        }
        for (room, device) in rooms.iter().zip(&devices) {
            for n in 0..6 {
                reads_own(cx, device, None, room, page(n))?;
            }
            device.must(cx, None, page(0) + 32, Intent::Write(vec![7; 32]))?;
            device.must_not(cx, None, page(1), Intent::Write(vec![7; 32]))?;
            device.must_not(cx, None, page(6), Intent::Read(8))?;
        }
        rooms[0].unmap(cx, &[page(2), page(4)])?;
        devices[0].must_not(cx, None, page(2), Intent::Read(8))?;
        reads_own(cx, &devices[1], None, &rooms[1], page(2))?;
        // A large run, and its end: more than one page to invalidate, tables to free.
        for round in 0..2 {
            (8..40).try_for_each(|n| rooms[1].map(page(n), true).map(|_| ()))?;
            for n in 8..40 {
                reads_own(cx, &devices[1], None, &rooms[1], page(n))?;
            }
            let run: Vec<u64> = (8..40).map(page).collect();
            rooms[1].unmap(cx, &run)?;
            devices[1].must_not(cx, None, page(8 + round), Intent::Read(8))?;
        }
        lodgers.into_iter().try_for_each(|l| l.detach(cx))
    })
}

/// More faults than the unit has records: what is recorded is told, and that something was lost is
/// told too.
pub fn fault_overflow(setting: &Setting) -> Ending {
    let mut setting = setting.clone();
    setting.unit = Config { fault_records: 1, collapse_faults: false, ..setting.unit };
    perform("fault record overflow", &setting, |stage, cx| {
        stage.start(cx)?;
        let device = stage.device(cx, 0x08, false)?;
        let room = stage.room(&[&device], Table::Any)?;
        let lodger = room.attach(cx, &device, None)?;
        let faults = stage.iommu.observe(Scope::All, 256).map_err(|e| e.to_string())?;
        let (mut told, mut lost) = (0, 0);
        for _ in 0..50 {
            let open: Vec<u64> = (0..16).map(|n| device.begin(None, page(n), Intent::Read(8))).collect();
            for ticket in open {
                if device.end(cx, ticket)?.is_ok() {
                    return Err("an access outside of everything was let through".into());
                }
            }
            device.until_silent(cx)?;
            while let Some(record) = faults.try_next() {
                match record.kind {
                    FaultKind::Dma => {
                        told += 1;
                        let known = record.source == Some(SourceId(0x08))
                            && record.address.is_some_and(|a| (page(0)..page(16)).contains(&a));
                        if !known {
                            return Err(format!("a record that fits nothing: {record:?}"));
                        }
                    }
                    FaultKind::Overflow => lost += 1,
                    _ => {}
                }
            }
            if told > 0 && lost > 0 {
                return lodger.detach(cx);
            }
        }
        Err(format!("{told} faults told, {lost} overflows"))
    })
}

/// A unit in caching mode is refused, with the reason.
pub fn caching_mode(setting: &Setting) -> Ending {
    let mut setting = setting.clone();
    setting.unit.caching_mode = true;
    perform("caching mode", &setting, |stage, cx| match stage.start(cx) {
        Err(reason) if reason.contains("caching mode") => Ok(()),
        other => Err(format!("a unit in caching mode was not refused for it: {other:?}")),
    })
}

/// Units that differ from the default one in one thing, each by its name.
pub fn variants() -> Vec<(&'static str, Config)> {
    let d = Config::default;
    vec![
        ("not coherent", Config { coherent: false, walks_coherent: false, ..d() }),
        ("the root table pointer invalidates nothing", Config { esrtps: false, ..d() }),
        ("no page-selective invalidation", Config { page_selective: false, ..d() }),
        ("small address masks", Config { max_address_mask: 0, ..d() }),
        ("suspects are not named", Config { names_suspects: false, ..d() }),
        ("one fault record", Config { fault_records: 1, ..d() }),
        ("one device-TLB invalidation at a time", Config { itags: 1, ..d() }),
        ("few translations are kept", Config { iotlb_entries: 4, ..d() }),
        ("4 bits of domain id", Config { domain_id_bits: 4, ..d() }),
        ("no dirty bits in the second stage", Config { second_stage_accessed_dirty: false, ..d() }),
        ("4K pages only", Config { second_stage_2m: false, second_stage_1g: false, ..d() }),
        ("3 levels", Config { widths: vec![Agaw::Bits39], ..d() }),
        ("5 levels", d().with_levels(Agaw::Bits57)),
        ("8 bits of PASID", Config { pasid_bits: 8, ..d() }),
    ]
}
