//! Scenarios that only the model can play: page requests, PASIDs, device TLBs, hostile devices, and
//! units with parts missing. Each runs over several seeds and every level of the adversary.

use portcullis_drivers::vtd::Options;
use portcullis_machine::{
    scenario::{
        ALL, Listed, caches,
        copy::{self, CopyConfig},
        stage::{Ending, Setting},
        units,
    },
    sim::Pool,
};
use portcullis_models::{
    adversary::{Action, Level},
    vtd::{Agaw, Config},
};
use std::collections::{BTreeMap, BTreeSet};

/// Seeds for each scenario. `PORTCULLIS_SEEDS` asks for so many where 20 are usual.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let asked: Option<u64> = std::env::var("PORTCULLIS_SEEDS").ok().and_then(|n| n.parse().ok());
    0..asked.map_or(0, |n| n.saturating_mul(usual) / 20).max(usual)
}

#[track_caller]
fn fine(what: &str, ending: &Ending) {
    assert!(
        ending.ok(),
        "{what}, seed {}: {}\nproblems: {:#?}\nstuck: {:?}\nverdict: {:#?}\ntally: {:#?}",
        ending.seed,
        ending.scenario,
        ending.problems,
        ending.stuck,
        ending.verdict,
        ending.tally
    );
}

fn over_seeds(name: &str, usual: u64) {
    let listed = ALL.iter().find(|l| l.name == name).expect("a listed scenario");
    let pool = Pool::default();
    for adversary in [Level::Off, Level::Mild, Level::Hostile] {
        for seed in seeds(usual) {
            let setting = Setting { adversary, pool: pool.clone(), ..Setting::new(seed) };
            let ending = (listed.run)(&setting);
            fine(&format!("{adversary:?}"), &ending);
            assert_eq!(ending.scenario, name);
        }
    }
}

macro_rules! scenarios {
    ($($test:ident: $name:literal, $seeds:literal;)*) => {
        $(#[test] fn $test() { over_seeds($name, $seeds); })*

        #[test]
        fn every_listed_scenario_has_a_test() {
            let tested: BTreeSet<&str> = [$($name),*].into();
            let listed: BTreeSet<&str> = ALL.iter().map(|l| l.name).collect();
            assert_eq!(tested, listed);
        }
    };
}

scenarios! {
    page_requests: "page requests", 12;
    pasids: "pasids", 12;
    queue_overflow: "queue overflow", 6;
    page_request_at_detach: "page request at detach", 20;
    page_requests_switched_off: "page requests switched off", 40;
    answer_at_detach: "answer at detach", 20;
    reset_with_requests_outstanding: "reset with requests outstanding", 20;
    sleeping_resolvers: "sleeping resolvers", 20;
    unmap: "unmap", 12;
    device_tlbs: "device TLBs", 12;
    domain_switch: "domain switch", 12;
    tables_wait_for_the_sync: "tables wait for the sync", 12;
    device_tlb_timeout: "device TLB time-out", 6;
    migration: "migration", 12;
    unmap_at_attach: "unmap at attach", 20;
    untrusted_rogue: "untrusted rogue", 6;
    flooding_rogue: "flooding rogue", 6;
    private_data: "private data", 12;
    storm: "storm", 4;
    stuck_resolver: "stuck resolver", 12;
    two_devices: "two devices", 12;
    fault_record_overflow: "fault record overflow", 12;
    churn: "churn", 20;
    register: "register", 20;
    kernel_dma: "kernel DMA", 12;
    user_object: "user object", 12;
    address_space: "address space", 12;
    identity: "identity", 6;
}

/// What a unit with one thing missing still has to do.
#[test]
fn variants_of_the_unit() {
    let pool = Pool::default();
    for (variant, unit) in units::variants() {
        for Listed { name, run: scenario, .. } in ALL {
            for seed in seeds(1) {
                let setting = Setting {
                    unit: unit.clone(),
                    adversary: Level::Mild,
                    pool: pool.clone(),
                    ..Setting::new(seed)
                };
                fine(&format!("{variant}, {name}"), &scenario(&setting));
            }
        }
    }
}

/// Legacy mode: a unit that knows nothing else, and one that is made to.
#[test]
fn legacy_mode() {
    let forced = Options { force_legacy: true, ..Options::default() };
    let pool = Pool::default();
    for (unit, options) in [(Config::legacy(), Options::default()), (Config::default(), forced)] {
        for adversary in [Level::Off, Level::Hostile] {
            for seed in seeds(8) {
                let setting = Setting {
                    unit: unit.clone(),
                    options,
                    adversary,
                    pool: pool.clone(),
                    ..Setting::new(seed)
                };
                for scenario in [
                    units::two_devices,
                    units::fault_overflow,
                    caches::unmap,
                    caches::device_tlbs,
                    caches::domain_switch,
                    caches::tables_wait_for_the_sync,
                    caches::device_tlb_timeout,
                    caches::unmap_at_attach,
                ] {
                    fine("legacy mode", &scenario(&setting));
                }
            }
        }
    }
}

/// Legacy mode with tables that are not snooped.
#[test]
fn legacy_mode_not_coherent() {
    let unit = Config { coherent: false, ..Config::legacy() };
    for seed in seeds(4) {
        let setting = Setting { unit: unit.clone(), ..Setting::new(seed) };
        for scenario in [units::two_devices, caches::unmap, caches::domain_switch] {
            fine("not coherent", &scenario(&setting));
        }
    }
}

#[test]
fn caching_mode_is_refused_with_the_reason() {
    fine("caching mode", &units::caching_mode(&Setting::new(0)));
}

#[test]
fn one_seed_is_one_run() {
    for Listed { name, run: scenario, .. } in ALL {
        let setting = Setting { adversary: Level::Hostile, ..Setting::new(7) };
        let (a, b) = (scenario(&setting), scenario(&setting));
        assert_eq!(
            (a.schedule_hash(), a.ns, &a.verdict, &a.tally),
            (b.schedule_hash(), b.ns, &b.verdict, &b.tally),
            "{name}"
        );
    }
}

/// The main scenario where the tables have fewer levels than usual, and more.
#[test]
fn copies_through_3_and_5_levels() {
    let input: std::sync::Arc<[u8]> = (0..24_000u32).map(|i| ((i * i) >> 7) as u8).collect();
    let pool = Pool::default();
    for width in [Agaw::Bits39, Agaw::Bits57] {
        for seed in seeds(6) {
            let config = CopyConfig {
                seed,
                adversary: Level::Hostile,
                unit: Config { widths: vec![width], ..Config::default().with_levels(Agaw::Bits57) },
                pool: pool.clone(),
                ..CopyConfig::new(input.clone())
            };
            let report = copy::run(&config).expect("a run").report;
            assert!(report.ok, "{width:?}, seed {seed}: {:?} {:?}", report.problems, report.invariants);
        }
    }
}

/// The main scenario under the hostile adversary: the schedules differ, every kind of hostile
/// action occurs, and nothing comes of it.
#[test]
fn two_hundred_hostile_copies() {
    let input: std::sync::Arc<[u8]> = (0..24_000u32).map(|i| ((i * i) >> 7) as u8).collect();
    let pool = Pool::default();
    let mut schedules = BTreeSet::new();
    let mut actions: BTreeMap<Action, u64> = BTreeMap::new();
    let all = seeds(200);
    let n = all.end;
    for seed in all {
        let config = CopyConfig {
            seed,
            adversary: Level::Hostile,
            pool: pool.clone(),
            ..CopyConfig::new(input.clone())
        };
        let report = copy::run(&config).expect("a run").report;
        assert!(report.ok, "seed {seed}: {:?} {:?}", report.problems, report.invariants);
        schedules.insert(report.schedule_hash);
        for (action, n) in report.adversary_actions {
            *actions.entry(action).or_default() += n;
        }
    }
    assert!(schedules.len() as u64 >= n * 95 / 100, "{} schedules over {n} seeds", schedules.len());
    assert_eq!(actions.len(), Action::ALL.len());
    for (action, n) in actions {
        assert!(n > 0, "the adversary never did this: {action}");
    }
}
