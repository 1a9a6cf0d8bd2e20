//! Races planted as switches of the test build. A schedule that differs and finds nothing is worth
//! nothing: each of these is found within 2,000 seeds, and the same seeds find nothing without it.

use portcullis::{Config, config::Plant};
use portcullis_machine::{
    runner::Stuck,
    scenario::{
        Scenario, caches, paging,
        stage::{Ending, Setting},
    },
    sim::{self, Pool, StuckBecause},
};

/// Within so many seeds each has to be found.
const MOST: u64 = 2_000;
/// Finds after which the search ends; `PORTCULLIS_SEEDS` asks for all seeds.
const ENOUGH: u64 = 3;
/// Seeds that are looked at without the race at least.
const TWINS: u64 = 150;

/// Searches, and says what it found; then runs the twin over the same seeds.
#[track_caller]
fn found(scenario: Scenario, plant: impl Fn(&mut Setting), finds: impl Fn(&Ending) -> bool) {
    let all = std::env::var("PORTCULLIS_SEEDS").is_ok();
    let pool = Pool::default();
    let setting = |seed| Setting { pool: pool.clone(), ..Setting::new(seed) };
    let mut seeds = Vec::new();
    let mut searched = 0;
    while searched < MOST && (all || (seeds.len() as u64) < ENOUGH) {
        let mut planted = setting(searched);
        plant(&mut planted);
        if finds(&scenario(&planted)) {
            seeds.push(searched);
        }
        searched += 1;
    }
    let first = &seeds[..seeds.len().min(8)];
    println!("{} of {searched} seeds, the first {first:?}", seeds.len());
    assert!(!seeds.is_empty(), "{MOST} seeds did not find it");
    let mut again = setting(seeds[0]);
    plant(&mut again);
    assert!(finds(&scenario(&again)), "seed {} does not show it again", seeds[0]);
    for seed in 0..searched.max(TWINS) {
        let ending = scenario(&setting(seed));
        assert!(
            ending.ok(),
            "without the race, seed {seed}: {:?} {:?} {:?}",
            ending.problems,
            ending.stuck,
            ending.verdict
        );
    }
}

fn core(plant: Plant) -> impl Fn(&mut Setting) {
    move |s| s.core = Config { plant: Some(plant), ..s.core }
}

/// An answer is taken out of its slot before the queue's lock is held, and goes out after a detach
/// has freed the slot and the place has a new owner.
#[test]
fn an_answer_after_its_slot_has_a_new_owner() {
    let finds = |e: &Ending| e.verdict.quiescence.violations > 0;
    found(paging::answer_at_detach, core(Plant::AnswerTakenEarly), finds);
}

/// A notification between the check and the wait is lost: the run hangs.
#[test]
fn a_wake_up_lost_between_check_and_wait() {
    let plant = |s: &mut Setting| s.plant = Some(sim::Plant::LostWakeup);
    let finds =
        |e: &Ending| matches!(&e.stuck, Some(Stuck::Sim(stuck)) if stuck.because == StuckBecause::Deadlock);
    found(paging::sleeping_resolvers, plant, finds);
}

/// An unmap reads the cache tags before it clears the entries, and misses a device that is attached
/// and reads in between.
#[test]
fn an_unmap_that_reads_the_tags_before_it_clears_the_entries() {
    let finds = |e: &Ending| e.verdict.isolation.violations > 0;
    found(caches::unmap_at_attach, core(Plant::TagsReadEarly), finds);
}
