//! Devices come to domains, change them, share them and leave them.

use portcullis::Replaced;
use portcullis::error::AttachError;

use crate::deviations::Cause;
use crate::rig::{Form, Rig, Who};
use crate::stage::{PAGE, RW, Stage};

const IOVA: u64 = 0x100_0000;

/// A device that was added is blocked until it is attached, and translates from then on.
pub fn blocked_until_attached<R: Rig>(s: &mut Stage<R>) {
    let teller = s.add(Who::Teller);
    s.write_stopped(Who::Teller, IOVA, 64, Cause::Blocked);
    let space = s.space(&teller);
    let page = s.page();
    s.map(&space, IOVA, page, PAGE, RW);
    s.write_stopped(Who::Teller, IOVA, 64, Cause::Blocked);
    s.write_stopped(Who::Teller, page.0, 64, Cause::Blocked);
    let at = s.attach(&teller, &space);
    s.lands(Who::Teller, IOVA, &[(page, 64)]);
    s.detach(at);
}

/// Detached, a device is blocked at once, whatever was cached for it; attached again, it is back.
pub fn detached<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    let (page, other) = (s.page(), s.page());
    s.map(&space, IOVA, page, PAGE, RW);
    for _ in 0..2 {
        let at = s.attach(&device, &space);
        s.lands(Who::First, IOVA, &[(page, 256)]);
        s.fetches(&at, IOVA, page, 256);
        s.detach(at);
        s.write_stopped(Who::First, IOVA, 64, Cause::Blocked);
        s.idle_read_stopped(Who::First, IOVA, 64, Cause::Blocked);
    }
    // Changed while nobody was attached: the first attachment's translations are not among what a
    // new one finds.
    s.unmap(&space, IOVA, PAGE);
    s.map(&space, IOVA, other, PAGE, RW);
    let at = s.attach(&device, &space);
    s.lands(Who::First, IOVA, &[(other, 64)]);
    s.detach(at);
    s.write_stopped(Who::First, IOVA, 64, Cause::Blocked);
}

/// From one domain to another and back. Legacy context entries and second-stage PASID entries are
/// replaced in one store; a first stage takes two, so it goes through blocked (`[V]` 6.2.3.1).
pub fn domain_switch<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let (one, two) = (s.space(&device), s.space(&device));
    let (shared, [a, b], [only_one, only_two]) =
        (IOVA, [s.page(), s.page()], [(IOVA + PAGE, s.page()), (IOVA + 2 * PAGE, s.page())]);
    s.map(&one, shared, a, PAGE, RW);
    s.map(&two, shared, b, PAGE, RW);
    s.map(&one, only_one.0, only_one.1, PAGE, RW);
    s.map(&two, only_two.0, only_two.1, PAGE, RW);
    let wanted = match s.rig.shape().form {
        Form::Legacy | Form::ScalableSecond => Replaced::Hitless,
        Form::ScalableFirst => Replaced::ThroughBlocked,
    };

    let mut at = s.attach(&device, &one);
    for round in 0..4 {
        let first = round % 2 == 0;
        let (here, mine, other) = match first {
            true => (a, only_one, only_two),
            false => (b, only_two, only_one),
        };
        s.lands(Who::First, shared, &[(here, 128)]);
        s.fetches(&at, shared, here, 64);
        s.lands(Who::First, mine.0, &[(mine.1, 128)]);
        s.write_stopped(Who::First, other.0, 64, Cause::NotMapped);
        s.read_stopped(&at, other.0, 64, Cause::NotMapped);
        let (next, how) = s.replace(at, if first { &two } else { &one });
        assert_eq!(how, wanted);
        at = next;
    }
    s.detach(at);
}

/// From a table to identity and back, with what was cached of either gone.
pub fn switch_to_identity<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    let (mapped, own) = (s.page(), s.page());
    s.map(&space, own.0, mapped, PAGE, RW);
    let identity = s.identity();
    let mut at = s.attach(&device, &space);
    for _ in 0..2 {
        s.lands(Who::First, own.0, &[(mapped, 64)]);
        (at, _) = s.replace(at, &identity);
        s.lands(Who::First, own.0, &[(own, 64)]);
        (at, _) = s.replace(at, &space);
        s.lands(Who::First, own.0, &[(mapped, 64)]);
    }
    s.detach(at);
}

/// To the blocked domain: attached, and nothing passes.
pub fn switch_to_nothing<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::Teller);
    let space = s.space(&device);
    let page = s.page();
    s.map(&space, IOVA, page, PAGE, RW);
    let blocked = s.rig.iommu().blocked_domain().expect("memory");
    let at = s.attach(&device, &space);
    s.lands(Who::Teller, IOVA, &[(page, 64)]);
    let (at, how) = s.replace(at, &blocked);
    assert_eq!(how, Replaced::ThroughBlocked);
    s.write_stopped(Who::Teller, IOVA, 64, Cause::Blocked);
    let (at, _) = s.replace(at, &space);
    s.lands(Who::Teller, IOVA, &[(page, 64)]);
    s.detach(at);
}

/// Two devices in two domains: the same IOVAs, other memory, and neither reaches the other's.
pub fn two_devices_two_domains<R: Rig>(s: &mut Stage<R>) {
    let (first, second) = (s.add(Who::First), s.add(Who::Second));
    let (one, two) = (s.space(&first), s.space(&second));
    let [a, b, c] = [s.page(), s.page(), s.page()];
    s.map(&one, IOVA, a, PAGE, RW);
    s.map(&two, IOVA, b, PAGE, RW);
    s.map(&two, IOVA + PAGE, c, PAGE, RW);
    let (at_one, at_two) = (s.attach(&first, &one), s.attach(&second, &two));
    // In turn: each finds what the other made the hardware cache.
    for _ in 0..2 {
        s.lands(Who::First, IOVA, &[(a, 512)]);
        s.lands(Who::Second, IOVA, &[(b, 512)]);
        s.fetches(&at_one, IOVA, a, 64);
        s.fetches(&at_two, IOVA, b, 64);
        s.lands(Who::Second, IOVA + PAGE, &[(c, 512)]);
        s.write_stopped(Who::First, IOVA + PAGE, 64, Cause::NotMapped);
        s.read_stopped(&at_one, IOVA + PAGE, 64, Cause::NotMapped);
        // Nor by the address that it has in memory.
        s.write_stopped(Who::First, b.0, 64, Cause::NotMapped);
        s.write_stopped(Who::Second, a.0, 64, Cause::NotMapped);
    }
    // What happens to one domain does not touch the other.
    s.unmap(&one, IOVA, PAGE);
    s.write_stopped(Who::First, IOVA, 64, Cause::NotMapped);
    s.lands(Who::Second, IOVA, &[(b, 64)]);
    s.detach(at_one);
    s.write_stopped(Who::First, IOVA, 64, Cause::Blocked);
    s.lands(Who::Second, IOVA, &[(b, 64)]);
    s.detach(at_two);
}

/// Two devices in one domain: an unmap reaches both, and one leaves without the other.
pub fn one_domain_for_two<R: Rig>(s: &mut Stage<R>) {
    let (first, second) = (s.add(Who::First), s.add(Who::Second));
    let space = s.space(&first);
    let (page, gone) = (s.page(), s.page());
    s.map(&space, IOVA, page, PAGE, RW);
    s.map(&space, IOVA + PAGE, gone, PAGE, RW);
    let (at_first, at_second) = (s.attach(&first, &space), s.attach(&second, &space));
    for who in [Who::First, Who::Second] {
        s.lands(who, IOVA, &[(page, 64)]);
        s.lands(who, IOVA + PAGE, &[(gone, 64)]);
    }
    s.unmap(&space, IOVA + PAGE, PAGE);
    for who in [Who::First, Who::Second] {
        s.write_stopped(who, IOVA + PAGE, 64, Cause::NotMapped);
        s.lands(who, IOVA, &[(page, 64)]);
    }
    s.detach(at_first);
    s.write_stopped(Who::First, IOVA, 64, Cause::Blocked);
    s.lands(Who::Second, IOVA, &[(page, 64)]);
    s.detach(at_second);
    s.write_stopped(Who::Second, IOVA, 64, Cause::Blocked);
}

/// A page that a device reaches whatever it is attached to, and nothing else by that right. Where a
/// table can only be shown through blocked, the attach is refused rather than the page interrupted.
pub fn direct_region<R: Rig>(s: &mut Stage<R>) {
    let (region, page) = (s.page(), s.page());
    let device = s.add_with_direct(Who::First, region).expect("the region can be mapped");
    s.lands(Who::First, region.0, &[(region, 64)]);
    s.write_stopped(Who::First, region.0 + PAGE, 64, Cause::NotMapped);
    s.write_stopped(Who::First, IOVA, 64, Cause::NotMapped);
    let space = s.space(&device);
    s.map(&space, IOVA, page, PAGE, RW);
    let attached = s.try_attach(&device, &space);
    if s.rig.shape().form == Form::ScalableFirst {
        assert!(matches!(attached, Err(AttachError::NotHitless(_))));
    } else {
        let at = attached.expect("the device is attached");
        s.lands(Who::First, region.0, &[(region, 64)]);
        s.lands(Who::First, IOVA, &[(page, 64)]);
        s.unmap(&space, IOVA, PAGE);
        s.detach(at);
    }
    s.lands(Who::First, region.0, &[(region, 64)]);
    s.write_stopped(Who::First, IOVA, 64, Cause::NotMapped);
    s.write_stopped(Who::First, page.0, 64, Cause::NotMapped);
}

/// A device that is reset has its attachment back, and no more than that.
pub fn reset<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let space = s.space(&device);
    let page = s.page();
    s.map(&space, IOVA, page, PAGE, RW);
    let at = s.attach(&device, &space);
    for _ in 0..2 {
        s.lands(Who::First, IOVA, &[(page, 64)]);
        device.reset(&s.cx).expect("the hardware answers");
        s.write_stopped(Who::First, IOVA + PAGE, 64, Cause::NotMapped);
        s.fetches(&at, IOVA, page, 64);
    }
    s.detach(at);
    device.reset(&s.cx).expect("the hardware answers");
    s.write_stopped(Who::First, IOVA, 64, Cause::Blocked);
}
