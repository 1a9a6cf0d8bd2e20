//! Machines on real threads: the same scenarios, the same checks, another schedule every time.

use portcullis_machine::scenario::{
    ALL,
    copy::{self, CopyConfig, Level},
    stage::Setting,
};

/// Input whose pages all differ.
fn input(bytes: u64) -> std::sync::Arc<[u8]> {
    (0..bytes).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[test]
fn engines_copy_and_their_resolvers_overlap() {
    let mut at_once = 0;
    for seed in 0..4 {
        let mut config = CopyConfig::new(input(400_000));
        config.engines = 3;
        config.seed = seed;
        config.threads = Some(4);
        config.adversary = if seed % 2 == 0 { Level::Off } else { Level::Hostile };
        let outcome = copy::run(&config).unwrap();
        let report = &outcome.report;
        assert!(report.ok, "seed {seed}: {:?} {:#?}", report.problems, report.invariants);
        assert!(outcome.outputs.iter().all(|o| o[..] == config.input[..]));
        let threads = report.threads.unwrap();
        assert!(threads.served > 0 && threads.served_per_second > 0.0, "{threads:?}");
        assert_eq!((report.virtual_ns, report.schedule_hash.as_ref()), (None, None));
        at_once = at_once.max(report.resolvers_at_once);
    }
    assert!(at_once >= 2, "no two resolvers ran at the same time");
}

#[test]
fn one_worker_runs_one_resolver_at_a_time() {
    let mut config = CopyConfig::new(input(100_000));
    config.threads = Some(1);
    let report = copy::run(&config).unwrap().report;
    assert!(report.ok, "{:?} {:#?}", report.problems, report.invariants);
    assert_eq!(report.resolvers_at_once, 1);
}

/// What a missing invalidation leaves in a cache is seen on threads too.
#[test]
fn a_planted_fault_is_caught_by_isolation() {
    let caught = |mutated: bool| {
        let mut config = CopyConfig::new(input(600_000));
        config.threads = Some(4);
        config.mutations.ignore_iotlb_invalidation = mutated;
        copy::run(&config).unwrap().report.invariants.isolation.violations
    };
    assert_eq!(caught(false), 0);
    assert!((0..8).any(|_| caught(true) > 0));
}

#[test]
fn small_scenarios_hold_on_threads() {
    for (n, listed) in ALL.into_iter().enumerate() {
        let name = listed.name;
        // One of them waits for time-outs of a second each.
        let levels =
            if name.contains("time-out") { vec![Level::Off] } else { vec![Level::Off, Level::Hostile] };
        for level in levels {
            let ending =
                (listed.run)(&Setting { threads: Some(4), adversary: level, ..Setting::new(n as u64) });
            assert!(
                ending.ok(),
                "{name}, {level:?}: {:#?} {:?} {:#?}",
                ending.problems,
                ending.stuck,
                ending.verdict
            );
        }
    }
}
