//! One life of a stall: enabled, decided, disabled; by each kind of decider.

use super::*;
use portcullis::driver::Target;
use portcullis::{
    Claimant, Code, CookieError, CookieWidth, Cookies, FaultKind, Response, Scope, TableSource,
};
use portcullis_pgtable::{FormatDesc, Phys};
use std::time::Duration;

#[test]
fn a_resolver_sleeps_maps_and_the_core_retries() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let told = w.iommu.observe(Scope::Device(d.id()), 4).unwrap();
    let held = data();
    let a = w.iommu.attach(&cx(), &dom, &d, None, held.clone()).unwrap();
    assert!(!w.hw.stalls(stall(1, 1)), "nothing stalls before it is enabled");
    let (maps, board) = (dom.clone(), w.board.clone());
    let resolver = move |cx: &Sleep<'_>, data: &Arc<Data>, s: &StalledAccess| {
        assert_eq!((s.device.0, s.at, s.access, s.privileged), (1, AT, Access::Write, false));
        let event = portcullis::Platform::event(&board);
        let seen = portcullis::Platform::seen(&board, &event);
        let until = portcullis::Platform::now(&board) + Duration::from_millis(3);
        portcullis::Platform::wait(&board, cx, &event, seen, Some(until));
        data.lock().unwrap().push(format!("{:x}", s.address));
        maps.map_range(s.address, Phys(0x10_0000), 0x1000, RW).expect("mapped");
        Verdict::Retry
    };
    let guard = w.iommu.enable_stall(&cx(), &dom, StallDecider::sleeping(resolver)).unwrap();
    let calls = w.hw.take_log();
    assert_eq!(calls.last(), Some(&Call::Stall(AT, true)), "{calls:?}");
    faults(&w, &[stall(1, 7)]);
    assert_eq!(w.hw.resumed(), [], "nobody has decided");
    w.work();
    assert_eq!(w.hw.resumed(), [ended(7, Verdict::Retry)]);
    assert!(dom.lookup(0x7000).is_some());
    assert_eq!(*held.lock().unwrap(), ["7000"]);
    let records: Vec<_> = std::iter::from_fn(|| told.try_next()).map(|t| t.record).collect();
    let [refused, waits] = &records[..] else { panic!("{records:?}") };
    assert_eq!((refused.kind, refused.stalled), (FaultKind::Dma, None));
    assert_eq!(
        (waits.kind, waits.stalled, waits.address),
        (FaultKind::Stall, Some(StallId(7)), Some(0x7000))
    );
    assert!(w.iommu.explain(waits).to_string().contains("and waits"));
    guard.disable(&cx());
    assert!(w.hw.state().stalling.is_empty());
    assert_eq!(a.begin_detach(&cx()).wait(&cx(), None), portcullis::Waited::Gone);
    assert_eq!(Arc::strong_count(&held), 1);
    nothing_waits(&w);
}

#[test]
fn an_immediate_resolver_decides_in_the_turn() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    let odd = |_: &Arc<Data>, s: &StalledAccess| {
        if s.id.0 % 2 == 1 { Verdict::Retry } else { Verdict::Terminate }
    };
    let _guard = w.iommu.enable_stall(&cx(), &dom, StallDecider::immediate(odd)).unwrap();
    faults(&w, &[stall(1, 1), stall(1, 2), stall(1, 3)]);
    let all = [ended(1, Verdict::Retry), ended(2, Verdict::Terminate), ended(3, Verdict::Retry)];
    assert_eq!(w.hw.resumed(), all);
    let c = d.counters();
    assert_eq!((c.stalls, c.retried, c.terminated), (3, 2, 1));
}

#[test]
fn a_decider_elsewhere_answers_by_number() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = user(&w, &d);
    let cookies = Arc::new(Cookies::new(&w.board, 4, CookieWidth::Bits32).unwrap());
    let numbers: Arc<Mutex<Vec<u64>>> = Arc::default();
    let (table, out) = (cookies.clone(), numbers.clone());
    let forward = move |_: &Arc<Data>, stalled: Deferred<Board>| {
        assert_eq!(stalled.stalled().map(|s| (s.id, s.address)), Some((StallId(3), 0x3000)));
        assert_eq!(
            (stalled.len(), stalled.request(0).map(|r| (r.address, r.write))),
            (1, Some((0x3000, true)))
        );
        out.lock().unwrap().extend(table.hold(stalled).ok());
    };
    let a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    let _guard = w.iommu.enable_stall(&cx(), &dom, StallDecider::elsewhere(forward)).unwrap();
    faults(&w, &[stall(1, 3)]);
    let cookie = numbers.lock().unwrap()[0];
    let stranger = Claimant::OfDevice(portcullis::DeviceId(9));
    assert_eq!(cookies.respond(cookie, stranger, Response::Success), Err(CookieError::Foreign(cookie)));
    assert!(cookies.respond(cookie ^ 1, Claimant::Holder, Response::Success).is_err());
    assert_eq!(w.hw.resumed(), []);
    let speaker = Claimant::OfAttachment(a.key());
    assert_eq!(cookies.respond(cookie, speaker, Response::Success), Ok(()));
    assert_eq!(cookies.respond(cookie, speaker, Response::Success), Err(CookieError::Stale(cookie)));
    assert_eq!(w.hw.resumed(), [ended(3, Verdict::Retry)]);
}

#[test]
fn what_is_attached_later_stalls_before_it_translates() {
    let w = World::new();
    let (d, e) = (soc_device(&w, 1), soc_device(&w, 2));
    let dom = w.plain(&d);
    let guard = decide(&w, &dom, Verdict::Retry);
    w.hw.take_log();
    let (a, b) = (w.attach(&dom, &d), w.attach(&dom, &e));
    let stalls: Vec<_> =
        w.hw.take_log().into_iter().filter(|c| matches!(c, Call::Stall(..) | Call::Commit(..))).collect();
    let [Call::Stall(AT, true), Call::Commit(AT, _), Call::Stall(..), Call::Commit(..)] = stalls[..] else {
        panic!("{stalls:?}")
    };
    faults(&w, &[stall(1, 1), stall(2, 2)]);
    w.work();
    assert_eq!(w.hw.resumed().len(), 2);
    assert!(!b.begin_detach(&cx()).lost());
    assert_eq!(w.hw.state().stalling.len(), 1, "what is detached stalls no more");
    drop(guard);
    w.pass(Duration::from_millis(1));
    assert!(w.hw.state().stalling.is_empty());
    drop(a);
    w.work();
}

#[test]
fn what_is_enabled_again_has_the_new_decider_and_the_old_one_is_let_go_of() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    let kept = Arc::new(());
    let keeps = kept.clone();
    let first = move |_: &Sleep<'_>, _: &Arc<Data>, _: &StalledAccess| {
        let _ = &keeps;
        Verdict::Retry
    };
    let guard = w.iommu.enable_stall(&cx(), &dom, StallDecider::sleeping(first)).unwrap();
    drop(guard);
    assert_eq!(Arc::strong_count(&kept), 1, "the guard let go of it");
    let guard = decide(&w, &dom, Verdict::Terminate);
    faults(&w, &[stall(1, 1)]);
    w.work();
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Terminate)]);
    guard.disable(&cx());
}

#[test]
fn a_guard_dropped_by_its_own_resolver_ends_what_waits() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    let seat: Arc<Mutex<Option<Stalling<Board>>>> = Arc::default();
    let mine = seat.clone();
    let resolver = move |_: &Sleep<'_>, _: &Arc<Data>, _: &StalledAccess| {
        drop(mine.lock().unwrap().take());
        Verdict::Retry
    };
    let guard = w.iommu.enable_stall(&cx(), &dom, StallDecider::sleeping(resolver)).unwrap();
    *seat.lock().unwrap() = Some(guard);
    faults(&w, &[stall(1, 1), stall(1, 2)]);
    w.work();
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Terminate), ended(2, Verdict::Terminate)]);
    nothing_waits(&w);
}

#[test]
fn a_resolver_that_panics_terminates() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    let resolver = |_: &Sleep<'_>, _: &Arc<Data>, s: &StalledAccess| match s.id {
        StallId(1) => panic!("on purpose"),
        _ => Verdict::Retry,
    };
    let _guard = w.iommu.enable_stall(&cx(), &dom, StallDecider::sleeping(resolver)).unwrap();
    faults(&w, &[stall(1, 1), stall(1, 2)]);
    let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| w.work()));
    assert!(worked.is_err());
    w.work();
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Terminate), ended(2, Verdict::Retry)]);
    nothing_waits(&w);
}

/// A bound PASID of one device and a stalling requester id of another, on one instance at once.
#[test]
fn stalls_and_page_requests_of_an_address_space_have_their_own_handlers() {
    let w = World::new();
    let (gpu, nic) = (soc_device(&w, 1), w.device(2));
    let mm = Mm::new(&w.board, 0..u64::MAX);
    let space = w.iommu.address_space_domain(mm.clone()).unwrap();
    let bond = space.bind(&cx(), &nic).unwrap();
    let (dom, held) = (w.plain(&gpu), data());
    let a = w.iommu.attach(&cx(), &dom, &gpu, None, held.clone()).unwrap();
    let guard = decide(&w, &dom, Verdict::Retry);
    for n in 1..=4 {
        assert!(w.hw.stalls(stall(1, n)));
        let asks = portcullis::driver::PageRequest { pasid: Some(space.pasid()), ..last(2, n as u16 + 0x10) };
        w.hw.sends(&[asks]);
    }
    w.iommu.service(IOMMU);
    w.work();
    assert_eq!(*held.lock().unwrap(), ["1000", "2000", "3000", "4000"]);
    assert_eq!(*mm.faults.lock().unwrap(), [0x1_1000, 0x1_2000, 0x1_3000, 0x1_4000]);
    assert_eq!(w.hw.resumed().len(), 4);
    assert!(w.hw.answers().iter().all(|sent| sent.code == Code::Success) && w.hw.answers().len() == 4);
    // The end of one is not the end of the other.
    w.hw.take_log();
    assert!(w.hw.stalls(stall(1, 9)));
    let asks = portcullis::driver::PageRequest { pasid: Some(space.pasid()), ..last(2, 0x20) };
    w.hw.sends(&[asks]);
    w.iommu.service(IOMMU);
    drop(guard);
    assert_eq!((w.hw.resumed(), w.hw.answers().len()), (vec![ended(9, Verdict::Terminate)], 0));
    w.work();
    assert_eq!(w.hw.answers().len(), 1);
    drop((bond, a));
    w.work();
    nothing_waits(&w);
}

#[test]
fn a_nested_domain_has_its_guest_decide() {
    struct GuestTable(FormatDesc);
    impl TableSource for GuestTable {
        fn desc(&self) -> FormatDesc {
            self.0
        }
        fn root(&self) -> Phys {
            Phys(0x5000)
        }
    }
    let w = World::new();
    w.hw.state().nests = true;
    let d = soc_device(&w, 1);
    let parent = w.plain(&d);
    let table = Arc::new(GuestTable(parent.format().unwrap()));
    let guest: portcullis::Domain<Board, portcullis::Nested<Data>> =
        w.iommu.nested_domain(&parent, &[&d], table, None::<Never>).unwrap();
    let _a = w.iommu.attach(&cx(), &guest, &d, None, data()).unwrap();
    assert!(matches!(w.hw.entry(AT), Some(Target::Nested { .. })));
    let late: Passed = Arc::default();
    let list = late.clone();
    let forward = move |_: &Arc<Data>, stalled: Deferred<Board>| list.lock().unwrap().push(stalled);
    let _guard = w.iommu.enable_stall(&cx(), &guest, StallDecider::elsewhere(forward)).unwrap();
    faults(&w, &[stall(1, 1), stall(1, 2)]);
    w.pass(Duration::from_millis(900));
    let mut late = core::mem::take(&mut *late.lock().unwrap());
    late.remove(0).respond(Response::Success).unwrap();
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Retry)]);
    drop(late);
    assert_eq!(w.hw.resumed()[1..], [ended(2, Verdict::Terminate)]);
}
