//! Everything that can fail, in every public operation of the core, failed in turn: each call of the
//! driver, each table frame, each allocation that can be refused. What was refused has changed
//! nothing, is done when it is tried again, and nothing is lost on the way.

mod allocator;
#[path = "../common/mod.rs"]
mod common;
mod faulty;
mod given_up;
mod operations;
mod pairs;
mod rig;

use allocator::{Site, What, arm, aside, disarm, take_sites, watched};
use faulty::Kind;
use operations::{Case, Operation};
use rig::{Base, Rig};
use std::{collections::BTreeMap, rc::Rc};

/// What fails.
#[derive(Clone, Copy, Debug)]
enum Fails {
    Nothing,
    Call(Kind, usize),
    /// All from this one on.
    Frame(usize),
    Allocation(usize),
    /// The platform ends while the operation waits for this time, which gives it up there.
    Wait(usize),
}

/// What became of an operation in which something failed.
struct Life {
    /// Whether it came to that.
    failed: bool,
    /// What it said.
    said: Result<(), String>,
    before: String,
    after: String,
    /// After it was done, in the end.
    end: String,
    /// Who allocated, where nothing failed.
    sites: Vec<Site>,
    /// Allocated and not freed in the whole life; frames too.
    left: (isize, usize),
}

impl Rig {
    fn arm(&self, fails: Fails) {
        match fails {
            Fails::Nothing => arm(What::Record),
            Fails::Call(kind, n) => self.trouble.arm(n, kind),
            Fails::Frame(n) => self.board.mem().allow(Some(n)),
            Fails::Allocation(n) => arm(What::Refuse(n)),
            Fails::Wait(n) => self.end_at_wait(n),
        }
    }

    fn disarm(&self, fails: Fails) -> bool {
        let refused = disarm();
        match fails {
            Fails::Nothing => false,
            Fails::Call(..) => self.trouble.disarm(),
            Fails::Frame(_) => {
                self.board.mem().allow(None);
                false
            }
            Fails::Allocation(_) => refused,
            Fails::Wait(_) => self.goes_on(),
        }
    }
}

fn life(op: &Operation, fails: Fails) -> Life {
    let base = aside(Base::new);
    let (mut life, left) = watched(|| {
        let rig = Rc::new(if op.bare { Rig::bare(&base) } else { Rig::new(&base) });
        let Case { mut run, look } = (op.make)(&rig);
        let state = || rig.state() + &aside(&look);
        let before = (aside(state), aside(state)).1;
        rig.arm(fails);
        let said = run();
        let failed = rig.disarm(fails);
        let after = aside(state);
        if said.is_err() && !matches!(fails, Fails::Call(Kind::Lost, _) | Fails::Wait(_)) {
            run().unwrap_or_else(|e| panic!("{}, {fails:?}: refused again: {e}", op.name));
        }
        let end = aside(state) + &aside(|| format!("{} frames", rig.frames()));
        drop((run, look));
        rig.work();
        Life { failed, said, before, after, end, sites: Vec::new(), left: (0, 0) }
    });
    life.sites = take_sites();
    life.left = (left, base.frames());
    base.nothing_is_walked_that_is_free();
    life
}

/// What is wrong with a life in which something failed: refused, it changed something; done at last, it
/// is not what it is at first; something is lost.
fn wrong(op: &Operation, fails: Fails, life: &Life, clean: &Life) -> Option<String> {
    let why = match &life.said {
        Err(_) if life.after != life.before => differ(&life.before, &life.after),
        _ if life.end != clean.end => differ(&clean.end, &life.end),
        _ if life.left != clean.left => format!("left over: {:?}, and usually {:?}", life.left, clean.left),
        _ => return None,
    };
    Some(format!("{}, {fails:?}: said {:?}\n{why}", op.name, life.said))
}

/// The lines that differ.
fn differ(was: &str, is: &str) -> String {
    let only = |these: &str, those: &str, sign| {
        let lines = these.lines().filter(|l| !those.lines().any(|m| m == *l));
        lines.map(|l| format!("{sign} {l}\n")).collect::<String>()
    };
    only(was, is, '-') + &only(is, was, '+')
}

/// Fails what `fails` says of each number until it never comes to that. Returns how often it did.
fn each(
    op: &Operation,
    fails: fn(usize) -> Fails,
    done: fn(&Life) -> bool,
    found: &mut Vec<String>,
) -> usize {
    let clean = life(op, Fails::Nothing);
    assert_eq!(clean.said, Ok(()), "{}", op.name);
    for n in 0.. {
        let life = life(op, fails(n));
        if done(&life) {
            return n;
        }
        found.extend(wrong(op, fails(n), &life, &clean));
    }
    unreachable!("it ends when it is over")
}

fn none(found: &[String]) {
    assert!(found.is_empty(), "{} lives are wrong:\n{}", found.len(), found.join("\n"));
}

#[test]
fn a_call_of_the_driver_that_fails_changes_nothing() {
    let mut found = Vec::new();
    let fails = |n| Fails::Call(Kind::Refused, n);
    let calls: usize = operations::all().map(|op| each(op, fails, |life| !life.failed, &mut found)).sum();
    none(&found);
    assert!(calls > 300, "{calls} calls");
}

#[test]
fn a_frame_that_is_refused_changes_nothing() {
    let mut found = Vec::new();
    let frames: usize =
        operations::all().map(|op| each(op, Fails::Frame, |life| life.said.is_ok(), &mut found)).sum();
    none(&found);
    assert!(frames > 30, "{frames} frames");
}

#[test]
fn an_allocation_that_is_refused_changes_nothing() {
    let mut found = Vec::new();
    let mut allocations = 0;
    for op in operations::all() {
        let clean = life(op, Fails::Nothing);
        for (n, _) in clean.sites.iter().enumerate().filter(|(_, s)| s.fallible && !s.is_of_the_test()) {
            let life = life(op, Fails::Allocation(n));
            assert!(life.failed, "{}: allocation {n} is asked for each time", op.name);
            found.extend(wrong(op, Fails::Allocation(n), &life, &clean));
            allocations += 1;
        }
    }
    none(&found);
    assert!(allocations > 300, "{allocations} allocations");
}

/// Counts the lives in which it came to that: [`life`] itself looks whether what the hardware may still
/// walk is kept.
fn lives(fails: fn(usize) -> Fails) -> usize {
    operations::all().map(|op| (0..).take_while(|n| life(op, fails(*n)).failed).count()).sum()
}

#[test]
fn hardware_that_is_lost_at_any_call_ends_the_operation_and_frees_nothing_it_may_reach() {
    let calls = lives(|n| Fails::Call(Kind::Lost, n));
    assert!(calls > 300, "{calls} calls");
}

#[test]
fn an_operation_that_is_given_up_at_any_wait_frees_nothing_that_the_hardware_may_reach() {
    let waits = lives(Fails::Wait);
    assert!(waits > 150, "{waits} waits");
}

/// What may be allocated in a way that cannot be refused, once an instance is registered: see
/// ARCHITECTURE.md, "What allocates".
const DOCUMENTED: &[(&str, &str)] = &[
    // An `Iommu`.
    ("iommu.rs", "hub: Arc::new(Hub::new(platform, config)?)"),
    ("iommu.rs", "Arc::new(shared)"),
    ("owner/spaces.rs", "pasids: Arc::new(Pasids::new(platform))"),
    // An instance.
    ("registry.rs", "Arc::new(Instance::new("),
    // A device, and its group.
    ("member.rs", "Arc::new(spec)"),
    ("registry.rs", "Arc::new(Member::new("),
    ("registry.rs", "Arc::new(DeviceInner::new("),
    ("device.rs", "Arc::new(Pasids::new("),
    ("registry.rs", "Arc::new(Group::new("),
    // What a group with direct regions rests in.
    ("rest.rs", "Arc::new(Use::new("),
    ("rest.rs", "Arc::new(DomainInner::new("),
    // A domain, what its owner keeps, and its resolver.
    ("owner/mod.rs", "Arc::new(inner)"),
    ("owner/external.rs", "Arc::new(inner)"),
    ("owner/kernel_dma.rs", "Arc::new(inner)"),
    ("owner/nested.rs", "Arc::new(inner)"),
    ("owner/sva.rs", "Arc::new(DomainInner::new("),
    ("domain.rs", "own: Arc::new(own)"),
    ("domain.rs", "Arc::new(Seat::new("),
    ("owner/external.rs", "Arc::new(Bound(Arc::new(r)))"),
    ("owner/external.rs", "Arc::new(BoundImmediate(Arc::new(resolver)))"),
    ("owner/user_object.rs", "Arc::new(Bound(Arc::new(r)))"),
    ("owner/user_object.rs", "Arc::new(BoundImmediate(Arc::new(resolver)))"),
    ("owner/source.rs", "ended: Arc::new(AtomicBool::new(false))"),
    ("owner/sva.rs", "Arc::new(Faults "),
    ("owner/sva.rs", "Arc::new(Bonds::new("),
    ("owner/sva.rs", "Arc::new(resolver::Bound(faults))"),
    // An attachment, and its handler.
    ("attach.rs", "Arc::new(Inner::new(parts))"),
    ("roll.rs", "now: Arc::new(roll)"),
    ("join.rs", "Arc::new(new)"),
    ("join.rs", "Arc::new(joining)"),
    ("resolver.rs", "Box::new(BoundHandler "),
    ("iommu.rs", "Box::new(Keeps(data.clone()))"),
    ("stall/mod.rs", "Arc::new(Bound "),
    // Who decides what stalls.
    ("stall/mod.rs", "Decider::Sleeping(Arc::new(resolver))"),
    // A default domain's attachment, which has no data, and what its drivers share.
    ("claim.rs", "attach(Iommu::wanted("),
    ("claim.rs", "Arc::new(Default "),
    // An observer: its queue, and itself.
    ("observer.rs", "Arc::new(Queue::new("),
    ("observer.rs", "Arc::new(Desk "),
    // An operation in step form.
    ("op.rs", "Box::pin(future)"),
];

#[test]
fn faults_and_page_requests_are_served_without_an_allocation() {
    let served = [
        "answer page requests",
        "service a page request that nobody may make",
        "decide what stalls on a worker",
        "decide what stalls at once",
        "have what stalls decided elsewhere",
    ];
    for op in operations::all().filter(|op| served.contains(&op.name)) {
        let sites = life(op, Fails::Nothing).sites;
        let ours: Vec<_> = sites.iter().filter(|site| !site.is_of_the_test()).collect();
        assert!(ours.is_empty(), "{}: {ours:#?}", op.name);
    }
    assert_eq!(operations::all().filter(|op| served.contains(&op.name)).count(), served.len());
}

#[test]
fn what_cannot_be_refused_is_what_is_documented() {
    let mut found = BTreeMap::new();
    for op in operations::all() {
        for site in life(op, Fails::Nothing).sites {
            if !site.fallible && !site.is_of_the_test() {
                found.entry(site).or_insert(op.name);
            }
        }
    }
    let documented =
        |site: &Site, line: &str| DOCUMENTED.iter().any(|(f, l)| site.file.ends_with(f) && line.contains(l));
    let mut unknown = String::new();
    for (site, op) in &found {
        let line = site.source();
        if !documented(site, &line) {
            unknown += &format!("{}:{}: {line}, in: {op}\n", site.file, site.line);
        }
    }
    assert!(unknown.is_empty(), "allocated infallibly:\n{unknown}");
    let lines: Vec<_> = found.keys().map(|site| (site, site.source())).collect();
    for (file, text) in DOCUMENTED {
        let is = lines.iter().any(|(site, line)| site.file.ends_with(file) && line.contains(text));
        assert!(is, "nothing is allocated any more by {file}: {text}");
    }
}
