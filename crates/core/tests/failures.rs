//! Everything that can fail, failed in turn: each time a typed error, the state that was before,
//! and nothing left over.

use crate::common::*;
use portcullis::error::{AddDeviceError, AttachError, DomainMapError};
use portcullis::{At, Code, Gap, Replaced, SourceId};
use portcullis_pgtable::{MapError, Phys};
use std::sync::Arc;

const AT: At = At { source: SourceId(1), pasid: None };

/// Runs `scenario` with the `n`th frame refused, for every `n` until it succeeds.
fn every_frame(w: &World, mut scenario: impl FnMut() -> bool) -> usize {
    for n in 0..100 {
        w.board.mem().allow(Some(n));
        let done = scenario();
        w.board.mem().allow(None);
        if done {
            return n;
        }
    }
    panic!("it never succeeds");
}

#[test]
fn a_map_without_memory_writes_nothing() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let before = w.board.frames();
    let refused = every_frame(&w, || match dom.map_range(0x1f_f000, Phys(0), 0x2000, RW) {
        Ok(()) => true,
        Err(e) => {
            assert!(matches!(e, DomainMapError::Table(MapError::NoMem { .. })), "{e}");
            assert_eq!((dom.lookup(0x1f_f000), dom.lookup(0x20_0000)), (None, None));
            false
        }
    });
    assert!(refused >= 4, "each table on the way was refused once");
    drop(dom);
    assert!(w.board.frames() < before, "no frame is left over");
}

#[test]
fn a_domain_and_a_device_without_memory_are_not_made() {
    let w = World::new();
    let frames = w.board.frames();
    let refused = every_frame(&w, || {
        let mut spec = w.spec(1);
        spec.regions = vec![portcullis::ReservedRegion::direct(0x8000, 0x2000, RW)];
        match w.iommu.add_device(&cx(), spec) {
            Ok(_) => true,
            Err(e) => {
                assert!(matches!(e, AddDeviceError::Prepare(_) | AddDeviceError::Direct { .. }), "{e}");
                assert_eq!(w.board.frames(), frames);
                assert_eq!(w.hw.entry(AT), None);
                false
            }
        }
    });
    // The root, three tables below it, and the driver's own on the way to the entry.
    assert_eq!(refused, 5);
    let added = w.hw.take_log().iter().filter(|c| **c == Call::AddDevice(SourceId(1))).count();
    assert_eq!(added, 6, "the driver forgot it each time");
}

#[test]
fn an_attach_without_memory_leaves_the_device_as_it_was() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    let held = data();
    let refused = every_frame(&w, || match w.iommu.attach(&cx(), &dom, &d, None, held.clone()) {
        Ok(_) => true,
        Err(e) => {
            assert!(matches!(e, AttachError::Prepare(_)), "{e}");
            assert_eq!(w.hw.entry(AT), None);
            assert!(dom.is_unused() && !d.features().pri);
            assert_eq!(Arc::strong_count(&held), 1);
            false
        }
    });
    assert_eq!(refused, 1);
}

#[test]
fn a_refused_driver_call_anywhere_in_a_life_ends_in_order() {
    let whole = life(None);
    for n in 0..whole {
        life(Some(n));
    }
    assert!(whole >= 10, "{whole} calls");
}

/// Attach, a page request, replace, unmap, detach, with the `n`th call of the driver failing.
/// Returns how many calls there are.
fn life(n: Option<u32>) -> u32 {
    const MANY: u32 = 1 << 20;
    let w = World::new();
    let d = w.device(1);
    let (one, two) = (w.served(&d), w.served(&d));
    let held = data();
    w.hw.state().fail_after = Some(n.unwrap_or(MANY));
    // A full queue is waited for; out of memory is a typed error, after which it works again.
    let attach = || w.iommu.attach(&cx(), &one, &d, None, held.clone());
    let a = attach().or_else(|e| {
        assert!(matches!(e, AttachError::Prepare(_)), "{e}");
        assert!(one.is_unused() && w.hw.entry(AT).is_none() && !d.features().pri);
        attach()
    });
    let a = a.unwrap();
    w.sends(&[last(1, 1)]);
    w.work();
    w.map(&one, 0x1000);
    let mut gone = one.unmapping();
    gone.unmap(0x1000, 0x1000).unwrap();
    gone.sync(&cx()).unwrap();
    let (b, _, how) = w
        .iommu
        .replace(&cx(), a, &two, held.clone(), Gap::Refused)
        .or_else(|(old, e)| {
            assert!(matches!(e, AttachError::Prepare(_)), "{e}");
            assert!(two.is_unused() && !one.is_unused());
            w.iommu.replace(&cx(), old.expect("it still stands"), &two, held.clone(), Gap::Refused)
        })
        .map_err(|(_, e)| e)
        .unwrap();
    assert_eq!(how, Replaced::Hitless);
    w.sends(&[last(1, 2)]);
    w.work();
    let ended = b.begin_detach(&cx());
    assert!(ended.is_gone() && !ended.lost(), "call {n:?}");
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Success), sent(1, 2, Code::Success)], "call {n:?}");
    assert!(one.is_unused() && two.is_unused() && !d.features().pri, "call {n:?}");
    assert_eq!(Arc::strong_count(&held), 1, "call {n:?}");
    let left = w.hw.state().fail_after;
    assert!(w.hw.state().images.is_empty(), "call {n:?}");
    drop((ended, one, two));
    assert!(w.board.frames() <= 1, "call {n:?}: only the driver's own frame is left");
    left.map_or(0, |left| MANY - left)
}

#[test]
fn memory_that_is_short_only_while_an_entry_is_shown_again_is_waited_for() {
    let w = World::new();
    let d = w.device_with_direct(1, 0x8000);
    let a = w.attach(&w.plain(&d), &d);
    // The detach prepares the entry of the direct regions anew, and the first try is refused.
    w.hw.state().fail_after = Some(0);
    let ended = a.begin_detach(&cx());
    assert!(!ended.lost());
    assert!(w.hw.entry(AT).is_some());
}
