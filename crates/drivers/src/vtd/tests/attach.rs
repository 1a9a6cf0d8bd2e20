//! Entries and the invalidations of their changes, as bytes.

use super::{fake::Did, *};
use portcullis::driver::{Batch, CacheTag, Change, Incompatible, PrepareError, SubmitError};
use portcullis_spec::vtd::{qi::Desc, regs::offset};
use std::{vec, vec::Vec};

fn root(fake: &Fake) -> u64 {
    fake.get64(offset::RTADDR) & !0xfff
}

/// The context entry of 01:02.3 in legacy mode.
pub(super) fn legacy_context(fake: &Fake) -> [u64; 2] {
    let table = fake.peek(root(fake) + 16);
    assert_eq!(table & 0xfff, 1, "P and nothing else");
    assert_eq!(fake.peek(root(fake) + 16 + 8), 0);
    let at = (table & !0xfff) + 0x13 * 16;
    [fake.peek(at), fake.peek(at + 8)]
}

/// The scalable-mode context entry of 01:02.3.
pub(super) fn context(fake: &Fake) -> [u64; 4] {
    let table = fake.peek(root(fake) + 16);
    assert_eq!(table & 0xfff, 1, "LP and nothing else");
    assert_eq!(fake.peek(root(fake) + 16 + 8), 0, "UP clear");
    let at = (table & !0xfff) + 0x13 * 32;
    [0, 8, 16, 24].map(|i| fake.peek(at + i))
}

/// The PASID-table entry of one of its PASIDs.
pub(super) fn pasid_entry(fake: &Fake, pasid: u64) -> [u64; 8] {
    let directory = context(fake)[0] & !0xfff;
    let table = fake.peek(directory + (pasid >> 6) * 8);
    assert_eq!(table & 0xfff, 1);
    let at = (table & !0xfff) + (pasid & 63) * 64;
    [0, 1, 2, 3, 4, 5, 6, 7].map(|i| fake.peek(at + i * 8))
}

/// The queue without the status addresses of its waits, which are the driver's own.
fn queued(fake: &Fake) -> Vec<Desc> {
    let mut list = fake.queued();
    for d in &mut list {
        if d[0] & 0xe2f == 0x25 {
            d[1] = 0;
        }
    }
    list
}

fn wide(q0: u64, q1: u64) -> Desc {
    [q0, q1, 0, 0]
}

const WAIT: Desc = [0x1_0000_0025, 0, 0, 0];
const WAIT_FENCE: Desc = [0x1_0000_0065, 0, 0, 0];
const FENCE: Desc = [0x45, 0, 0, 0];
const CONTEXT_OF_SOURCE: u64 = 0x0113 << 32;
/// ADDR 0x7FFF_FFFF_FFFF_F000 with S in bit 64, as dev_tlb_inv_dsc has it.
const ALL_ADDRESSES: u64 = 0x7fff_ffff_ffff_f001;
/// The same with S in bit 75, as p_dev_tlb_inv_dsc has it.
const ALL_ADDRESSES_PASID: u64 = 0x7fff_ffff_ffff_f800;

#[test]
fn legacy_second_stage() {
    let (fake, vtd) = legacy();
    vtd.add_device(SOURCE, Features::default()).unwrap();
    assert_eq!(legacy_context(&fake), [0, 0], "blocked at first");
    let seq = attach(&vtd, rid(), second_stage(0x1234, 0xabc_d000));
    // P, TT 00b, SSPTPTR; AW 010b, DID.
    assert_eq!(legacy_context(&fake), [0x0abc_d001, 0x0012_3402]);
    assert_eq!(vtd.done(seq), Poll::Ready(Ok(())), "nothing was cached");
    assert_eq!(fake.queued(), [] as [Desc; 0]);

    let seq = vtd.block(rid()).unwrap();
    assert_eq!(legacy_context(&fake), [0, 0x0012_3400], "the domain id is left");
    // Device-selective context cache, then the domain's IOTLB with DR and DW.
    let expected = [wide(0x31 | 0x1234 << 16 | CONTEXT_OF_SOURCE, 0), wide(0xe2 | 0x1234 << 16, 0), WAIT];
    assert_eq!(queued(&fake), expected);
    assert_eq!(vtd.done(seq), Poll::Pending);
    fake.complete_all();
    assert_eq!(vtd.done(seq), Poll::Ready(Ok(())));

    // A block that has to be repeated invalidates the same again.
    let _ = vtd.block(rid()).unwrap();
    assert_eq!(queued(&fake), expected);
}

#[test]
fn legacy_replace_is_one_store() {
    let (fake, vtd) = legacy();
    vtd.add_device(SOURCE, ats()).unwrap();
    let _ = attach(&vtd, rid(), second_stage(5, 0x1000));
    assert_eq!(legacy_context(&fake), [0x1005, 0x0502], "TT 01b with ATS");
    let prepared = vtd.prepare(rid(), second_stage(6, 0x2000)).unwrap();
    assert_eq!(prepared.change, Change::Hitless);
    let seq = vtd.commit(prepared).unwrap();
    assert_eq!(legacy_context(&fake), [0x2005, 0x0602]);
    assert_ne!(seq, InvSeq(0));
    assert_eq!(
        queued(&fake),
        [
            wide(0x31 | 5 << 16 | CONTEXT_OF_SOURCE, 0),
            wide(0xe2 | 5 << 16, 0),
            FENCE,
            wide(3 | CONTEXT_OF_SOURCE, ALL_ADDRESSES),
            WAIT_FENCE,
        ],
        "the old domain is invalidated, and the device's own TLB"
    );
}

/// What was stored, each behind a barrier, and that the bell rang later with another between.
fn stored_before_the_bell(fake: &Fake, table: u64) -> Vec<Did> {
    let done = fake.done_around(table);
    let bell = done.iter().rposition(|d| *d == Did::Write(offset::IQT)).unwrap_or(done.len());
    let last = done.iter().rposition(|d| matches!(d, Did::Store(..))).unwrap();
    assert!(done[last..bell].contains(&Did::Barrier), "{done:?}");
    assert!(!done[..last].contains(&Did::Write(offset::IQT)), "{done:?}");
    for (i, d) in done.iter().enumerate() {
        assert!(!matches!(d, Did::Store(..)) || i > 0 && done[i - 1] == Did::Barrier, "{done:?}");
    }
    done.into_iter().filter(|d| matches!(d, Did::Store(..))).collect()
}

#[test]
fn entries_change_in_stores_of_sixteen_bytes_before_they_are_invalidated() {
    let (fake, vtd) = legacy();
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let entry = (fake.peek(root(&fake) + 16) & !0xfff) + 0x13 * 16;
    for to in [second_stage(5, 0x1000), second_stage(6, 0x2000), Target::Identity { tag: DomainTag(7) }] {
        fake.done_around(entry);
        let _ = attach(&vtd, rid(), to);
        assert_eq!(stored_before_the_bell(&fake, entry), [Did::Store(entry, 16)]);
    }
    let _ = vtd.block(rid()).unwrap();
    assert_eq!(stored_before_the_bell(&fake, entry), [Did::Store(entry, 16)]);

    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let context = (fake.peek(root(&fake) + 16) & !0xfff) + 0x13 * 32;
    let entry = fake.peek(fake.peek(context) & !0xfff) & !0xfff;
    fake.done_around(entry);
    let _ = attach(&vtd, rid(), first_stage(5, 0x1000));
    let (low, next) = (Did::Store(entry, 16), Did::Store(entry + 16, 16));
    assert_eq!(stored_before_the_bell(&fake, entry), [next, low], "P comes last");
    let _ = attach(&vtd, rid(), second_stage(6, 0x2000));
    assert_eq!(stored_before_the_bell(&fake, entry), [low], "one store, or the entry is torn");
    let _ = vtd.block(rid()).unwrap();
    assert_eq!(stored_before_the_bell(&fake, entry), [low]);
    fake.done_around(context);
    let _ = vtd.cut_off(SOURCE).unwrap();
    assert_eq!(stored_before_the_bell(&fake, context), [Did::Store(context, 16)]);

    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, all_features()).unwrap();
    let directory = fake.peek((fake.peek(root(&fake) + 16) & !0xfff) + 0x13 * 32) & !0xfff;
    fake.done_around(directory);
    let _ = attach(&vtd, with_pasid(0x45), first_stage(5, 0x1000));
    assert_eq!(stored_before_the_bell(&fake, directory), [Did::Store(directory + 8, 8)], "a table is linked");
}

#[test]
fn legacy_pass_through() {
    let (fake, vtd) = legacy();
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let _ = attach(&vtd, rid(), Target::Identity { tag: DomainTag(7) });
    assert_eq!(legacy_context(&fake), [0x9, 0x702], "TT 10b, AW 010b");

    let (_, vtd) = running(cap(), legacy_ecap().with_pt(false));
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let e = vtd.prepare(rid(), Target::Identity { tag: DomainTag(7) });
    assert!(matches!(e, Err(PrepareError::Incompatible(Incompatible::NoIdentity))));
}

#[test]
fn legacy_mode_has_no_pasids_and_no_first_stage() {
    let (_, vtd) = legacy();
    vtd.add_device(SOURCE, Features::default()).unwrap();
    assert!(matches!(
        vtd.prepare(with_pasid(1), second_stage(5, 0x1000)),
        Err(PrepareError::Incompatible(Incompatible::Pasid(_)))
    ));
    assert!(matches!(
        vtd.prepare(rid(), first_stage(5, 0x1000)),
        Err(PrepareError::Incompatible(Incompatible::NoCommonFormat))
    ));
    assert!(vtd.add_device(SourceId(9), all_features()).is_err());
    assert!(matches!(
        vtd.prepare(At { source: SourceId(8), pasid: None }, second_stage(5, 0x1000)),
        Err(PrepareError::UnknownSource(SourceId(8)))
    ));
}

#[test]
fn scalable_context_of_a_blocked_requester() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let [low, high, q2, q3] = context(&fake);
    // P, and PDTS 0: no fewer directory entries than 128.
    assert_eq!((low & 0xfff, high, q2, q3), (0x1, 0, 0, 0));
    assert_eq!(pasid_entry(&fake, 0), [0; 8], "blocked");
    assert!(vtd.add_device(SOURCE, Features::default()).is_err());

    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, all_features()).unwrap();
    // P, DTE, PASIDE, PRE, and PDTS 7: 2^14 directory entries.
    assert_eq!(context(&fake)[0] & 0xfff, 0xe1d);
}

#[test]
fn scalable_second_stage() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let _ = attach(&vtd, rid(), second_stage(0x21, 0xabc_d000));
    // P, AW 010b, PGTT 010b, SSPTPTR; DID, PWSNP.
    let expected = [0x0abc_d089, 0x0080_0021, 0, 0, 0, 0, 0, 0];
    assert_eq!(pasid_entry(&fake, 0), expected);
    let _ = vtd.block(rid()).unwrap();
    assert_eq!(pasid_entry(&fake, 0)[..2], [0, 0x21], "no page requests: no FPD");
    assert_eq!(
        queued(&fake),
        [wide(0x17 | 0x21 << 16, 0), wide(0xe2 | 0x21 << 16, 0), WAIT],
        "PASID 0 within the domain, then the domain"
    );
}

#[test]
fn scalable_first_stage_of_a_pasid() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, all_features()).unwrap();
    let _ = attach(&vtd, with_pasid(0x1045), first_stage(0x22, 0xabc_d000));
    // P, PGTT 001b; DID, PWSNP, PGSNP; FSPTPTR with FSPM 00b.
    let expected = [0x41, 0x0180_0022, 0x0abc_d000, 0, 0, 0, 0, 0];
    assert_eq!(pasid_entry(&fake, 0x1045), expected);
    assert_eq!(pasid_entry(&fake, 0), [0; 8], "its neighbour is not touched");

    let _ = vtd.block(with_pasid(0x1045)).unwrap();
    // P clear and FPD set: hardware answers requests on their way, and each would be a fault.
    assert_eq!(pasid_entry(&fake, 0x1045)[..2], [0x2, 0x22]);
    assert_eq!(
        queued(&fake),
        [
            wide(0x17 | 0x22 << 16 | 0x1045 << 32, 0),
            wide(0x26 | 0x22 << 16 | 0x1045 << 32, 0),
            FENCE,
            wide(8 | 0x0113 << 16 | 0x1045 << 32, ALL_ADDRESSES_PASID),
            WAIT_FENCE,
        ]
    );
}

#[test]
fn scalable_pass_through() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, ats()).unwrap();
    let _ = attach(&vtd, rid(), Target::Identity { tag: DomainTag(9) });
    // P, PGTT 100b; DID.
    assert_eq!(pasid_entry(&fake, 0), [0x101, 9, 0, 0, 0, 0, 0, 0]);
    let _ = vtd.block(rid()).unwrap();
    assert_eq!(
        queued(&fake),
        [
            wide(0x31 | CONTEXT_OF_SOURCE, 0),
            wide(0x17 | 9 << 16, 0),
            wide(0x26 | 9 << 16, 0),
            FENCE,
            wide(3 | CONTEXT_OF_SOURCE, ALL_ADDRESSES),
            WAIT_FENCE,
        ],
        "the context cache is for QEMU's sake"
    );
}

#[test]
fn what_one_store_cannot_replace_goes_through_blocked() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let change = |to| {
        let prepared = vtd.prepare(rid(), to).unwrap();
        let change = prepared.change;
        vtd.abandon(prepared);
        change
    };
    assert_eq!(change(first_stage(1, 0x1000)), Change::Hitless);
    let _ = attach(&vtd, rid(), second_stage(2, 0x2000));
    assert_eq!(change(second_stage(3, 0x3000)), Change::Hitless);
    assert_eq!(change(Target::Identity { tag: DomainTag(4) }), Change::Hitless);
    assert_eq!(change(first_stage(1, 0x1000)), Change::ThroughBlocked);

    // A caller who does not block first gets no torn entry.
    let prepared = vtd.prepare(rid(), first_stage(1, 0x1000)).unwrap();
    let (prepared, why) = vtd.commit(prepared).unwrap_err();
    assert_eq!(why, SubmitError::Full);
    assert_eq!(pasid_entry(&fake, 0)[0] & 1, 0);
    fake.complete_all();
    let _ = vtd.commit(prepared).unwrap();
    assert_eq!(pasid_entry(&fake, 0)[..4], [0x41, 0x0180_0001, 0x1000, 0]);

    assert_eq!(change(first_stage(5, 0x5000)), Change::ThroughBlocked);
    assert_eq!(change(first_stage(6, 0x1000)), Change::Hitless, "same root");
    assert_eq!(change(second_stage(2, 0x2000)), Change::Hitless);
    let _ = attach(&vtd, rid(), second_stage(2, 0x2000));
    assert_eq!(pasid_entry(&fake, 0)[0], 0x2089);
}

#[test]
fn a_page_table_that_lost_the_race_for_its_place_is_given_back() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, all_features()).unwrap();
    let first = vtd.prepare(with_pasid(0x100), first_stage(1, 0x1000)).unwrap();
    let second = vtd.prepare(with_pasid(0x101), first_stage(2, 0x2000)).unwrap();
    let third = vtd.prepare(with_pasid(0x102), first_stage(3, 0x3000)).unwrap();
    let _ = vtd.commit(second).unwrap();
    let _ = vtd.commit(first).unwrap();
    assert_eq!(fake.released().len(), 1);
    vtd.abandon(third);
    assert_eq!(fake.released().len(), 2);
    assert_eq!(pasid_entry(&fake, 0x100)[2], 0x1000);
    assert_eq!(pasid_entry(&fake, 0x101)[2], 0x2000);
}

#[test]
fn structures_are_cleaned_where_hardware_does_not_snoop() {
    let (fake, vtd) = running(cap(), legacy_ecap().with_c(false));
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let not_coherent = Target::Table {
        desc: FormatDesc { coherent: false, ..desc(VTD_SECOND_STAGE) },
        root: Phys(0x1000),
        tag: DomainTag(5),
    };
    assert!(matches!(
        vtd.prepare(rid(), second_stage(5, 0x1000)),
        Err(PrepareError::Incompatible(Incompatible::NotCoherent))
    ));
    let _ = attach(&vtd, rid(), not_coherent);
    let table = fake.peek(root(&fake) + 16) & !0xfff;
    assert!(fake.was_cleaned(root(&fake), 4096));
    assert!(fake.was_cleaned(root(&fake) + 16, 16));
    assert!(fake.was_cleaned(table, 4096));
    assert!(fake.was_cleaned(table + 0x13 * 16, 16));
    assert!(!vtd.caps().coherent);
}

#[test]
fn features_and_cutting_off() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, ats()).unwrap();
    assert_eq!(context(&fake)[0] & 0xfff, 0x5);
    let all = [wide(0x31 | CONTEXT_OF_SOURCE, 0), wide(0x37, 0), wide(0xd2, 0)];
    let _ = vtd.set_features(SOURCE, all_features()).unwrap();
    assert_eq!(context(&fake)[0] & 0xfff, 0x1d);
    assert_eq!(queued(&fake), [&all[..], &[WAIT]].concat());
    fake.complete_all();

    // ATS off: the device's TLB too.
    let _ = vtd.set_features(SOURCE, Features::default()).unwrap();
    assert_eq!(context(&fake)[0] & 0xfff, 0x1);
    let device = [FENCE, wide(3 | CONTEXT_OF_SOURCE, ALL_ADDRESSES), WAIT_FENCE];
    assert_eq!(queued(&fake), [&all[..], &device[..]].concat());
    fake.complete_all();

    // Cut off: nothing is asked of the device, and a change of features does not undo it.
    let _ = vtd.set_features(SOURCE, ats()).unwrap();
    fake.complete_all();
    let _ = vtd.cut_off(SOURCE).unwrap();
    assert_eq!(context(&fake)[0] & 0xfff, 0x4);
    assert_eq!(queued(&fake), [&all[..], &[WAIT]].concat());
    fake.complete_all();
    assert_eq!(vtd.set_features(SOURCE, Features::default()), Ok(InvSeq(0)));
    assert_eq!(context(&fake)[0] & 0xfff, 0x0);
    let _ = vtd.restore(SOURCE).unwrap();
    assert_eq!(context(&fake)[0] & 0xfff, 0x1);

    let _ = vtd.cut_off(SOURCE).unwrap();
    fake.complete_all();
    vtd.remove_device(SOURCE);
    assert_eq!(context(&fake), [0; 4]);
    assert_eq!(fake.released().len(), 2, "directory and table");
}

#[test]
fn attaching_does_not_undo_a_legacy_cut_off() {
    let (fake, vtd) = legacy();
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let _ = attach(&vtd, rid(), second_stage(5, 0x1000));
    let _ = vtd.cut_off(SOURCE).unwrap();
    let _ = attach(&vtd, rid(), second_stage(6, 0x2000));
    assert_eq!(legacy_context(&fake), [0x2000, 0x0602], "P clear");
    let _ = vtd.restore(SOURCE).unwrap();
    let _ = attach(&vtd, rid(), second_stage(6, 0x2000));
    assert_eq!(legacy_context(&fake), [0x2001, 0x0602]);
}

/// Requests that a device translated itself are over when it answers, and not before ([V] 6.5.4).
#[test]
fn a_device_that_was_cut_off_is_asked_for_its_tlb_all_the_same() {
    let device = wide(3 | CONTEXT_OF_SOURCE, ALL_ADDRESSES);
    for (fake, vtd) in [legacy(), scalable()] {
        vtd.add_device(SOURCE, ats()).unwrap();
        let _ = attach(&vtd, rid(), second_stage(5, 0x1000));
        let _ = vtd.cut_off(SOURCE).unwrap();
        fake.complete_all();
        let _ = attach(&vtd, rid(), second_stage(6, 0x2000));
        assert!(queued(&fake).contains(&device), "{:x?}", queued(&fake));
        fake.complete_all();
        let page = wide(3 | CONTEXT_OF_SOURCE, 0x1000);
        let list =
            batch(&vtd, &fake, VTD_SECOND_STAGE, &[tag(6, rid(), true)], Some((0x1000, 0x1fff)), false);
        assert!(list.contains(&page), "{list:x?}");
        fake.complete_all();
        let _ = vtd.block(rid()).unwrap();
        assert!(queued(&fake).contains(&device), "{:x?}", queued(&fake));
    }
}

fn tag(n: u32, at: At, ats: bool) -> CacheTag {
    CacheTag { tag: DomainTag(n), at, ats, nested: false }
}

fn batch(
    vtd: &Vtd<Fake>,
    fake: &Fake,
    id: FormatId,
    tags: &[CacheTag],
    range: Option<(u64, u64)>,
    non_leaf: bool,
) -> Vec<Desc> {
    fake.complete_all();
    let batch = Batch { tags, desc: desc(id), range, non_leaf };
    let _ = vtd.submit(&batch).unwrap();
    queued(fake)
}

#[test]
fn batches_of_the_second_stage() {
    let (fake, vtd) = legacy();
    let other = At { source: SourceId(0x20), pasid: None };
    let tags = [tag(5, rid(), false), tag(5, other, false), tag(6, other, false)];
    let run = |range, non_leaf| batch(&vtd, &fake, VTD_SECOND_STAGE, &tags, range, non_leaf);
    // One page, IH: each tag once.
    assert_eq!(
        run(Some((0x1000, 0x1fff)), false),
        [wide(0xf2 | 5 << 16, 0x1040), wide(0xf2 | 6 << 16, 0x1040), WAIT]
    );
    // Four pages in an aligned block of four; tables changed: IH clear.
    assert_eq!(run(Some((0x4000, 0x7fff)), true)[0], wide(0xf2 | 5 << 16, 0x4002));
    // Two pages across a large boundary are two blocks, not a block of 2^19 pages.
    assert_eq!(
        run(Some((0x7fff_f000, 0x8000_0fff)), false)[..2],
        [wide(0xf2 | 5 << 16, 0x7fff_f040), wide(0xf2 | 5 << 16, 0x8000_0040)]
    );
    // More than MAMV allows, or everything: the domain.
    assert_eq!(run(Some((0, 0x7f_ffff_ffff)), false)[0], wide(0xe2 | 5 << 16, 0));
    assert_eq!(run(None, true)[0], wide(0xe2 | 5 << 16, 0));

    let (fake, vtd) = running(cap().with_psi(false), legacy_ecap());
    assert_eq!(
        batch(&vtd, &fake, VTD_SECOND_STAGE, &tags, Some((0, 0xfff)), false)[0],
        wide(0xe2 | 5 << 16, 0)
    );
}

#[test]
fn batches_of_the_first_stage_and_device_tlbs() {
    let (fake, vtd) = scalable();
    let features = Features { invalidate_queue_depth: 8, ..all_features() };
    vtd.add_device(SOURCE, features).unwrap();
    let tags = [tag(5, rid(), true), tag(5, with_pasid(0x42), true)];
    let run = |range| batch(&vtd, &fake, X86_FIRST_STAGE, &tags, range, false);
    assert_eq!(
        run(Some((0x20_0000, 0x3f_ffff))),
        [
            wide(0x36 | 5 << 16, 0x20_0049),
            wide(0x36 | 5 << 16 | 0x42 << 32, 0x20_0049),
            FENCE,
            // 512 pages: S, and the lowest zero of the page number is bit 8 of it.
            wide(3 | 8 << 16 | CONTEXT_OF_SOURCE, 0x2f_f001),
            wide(8 | 8 << 4 | 0x0113 << 16 | 0x42 << 32, 0x2f_f800),
            WAIT_FENCE,
        ]
    );
    assert_eq!(run(None)[..2], [wide(0x26 | 5 << 16, 0), wide(0x26 | 5 << 16 | 0x42 << 32, 0)]);
    // A device without ATS is left out.
    let _ = vtd.set_features(SOURCE, Features::default()).unwrap();
    assert_eq!(run(None).len(), 3);
}

#[test]
fn throttling_names_the_physical_function() {
    let (fake, vtd) = running(cap(), scalable_ecap().with_dit(true));
    let features = Features { physical_function: Some(SourceId(0x0abc)), ..ats() };
    vtd.add_device(SOURCE, features).unwrap();
    let tags = [tag(5, rid(), true)];
    let list = batch(&vtd, &fake, VTD_SECOND_STAGE, &tags, Some((0, 0xfff)), false);
    // PFSID 15:4 in bits 63:52, 3:0 in bits 15:12.
    assert_eq!(list[2], wide(3 | 0xc << 12 | CONTEXT_OF_SOURCE | 0x0ab << 52, 0));
}

#[test]
fn the_largest_batch_fits_an_empty_queue() {
    let (fake, vtd) = scalable();
    let mut tags = vec![];
    for n in 0..16 {
        vtd.add_device(SourceId(n), ats()).unwrap();
        let at = At { source: SourceId(n), pasid: None };
        tags.push(tag(n + 1, at, true));
    }
    let range = Some((0x7fff_f000, 0x8000_0fff));
    let list = batch(&vtd, &fake, X86_FIRST_STAGE, &tags, range, false);
    assert_eq!(list.len(), 16 * 2 + 1 + 16 * 2 + 1);
}

#[test]
fn foreign_tables_are_checked() {
    let (_, vtd) = scalable();
    let good = desc(VTD_SECOND_STAGE);
    assert_eq!(vtd.can_walk(&good), Ok(()));
    let input_bits = 57;
    assert_eq!(
        vtd.can_walk(&FormatDesc { input_bits, ..good }),
        Err(Incompatible::InputWidth { table: 57, walker: 48 })
    );
    let page_sizes = 1 << 13;
    assert!(matches!(vtd.can_walk(&FormatDesc { page_sizes, ..good }), Err(Incompatible::PageSizes { .. })));
    let output_bits = 52;
    assert!(vtd.can_walk(&FormatDesc { output_bits, ..good }).is_err());
    let levels = 5;
    assert_eq!(vtd.can_walk(&FormatDesc { levels, ..good }), Err(Incompatible::Levels(5)));
    let dirty = true;
    assert_eq!(vtd.can_walk(&FormatDesc { dirty, ..good }), Err(Incompatible::NoDirtyTracking));
}

#[test]
fn new_tables_have_the_format_asked_for() {
    use portcullis::driver::{Stage, TableRequest};
    let (_, vtd) = scalable();
    let make = |stage| {
        let request = TableRequest { stage, ..TableRequest::default() };
        vtd.new_table(request).map(|t| t.desc())
    };
    let d = make(Stage::Any).unwrap();
    assert_eq!((d.id, d.coherent, d.output_bits), (VTD_SECOND_STAGE, true, 48));
    assert_eq!(d.page_sizes, 1 << 12 | 1 << 21 | 1 << 30);
    let d = make(Stage::First).unwrap();
    assert_eq!((d.id, d.input_bits), (X86_FIRST_STAGE, 47));
    assert_eq!(d.page_sizes, 1 << 12 | 1 << 21, "FS1GP is clear");
    assert_eq!(vtd.can_walk(&d), Ok(()));
    let (_, vtd) = running(cap(), scalable_ecap().with_ssts(false));
    let any = vtd.new_table(TableRequest::default()).unwrap();
    assert_eq!(any.desc().id, X86_FIRST_STAGE);
}
