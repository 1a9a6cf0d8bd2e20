//! What is run: one row a step, in the order of running.

use crate::boot::{Image, Unit};
use crate::fuzz;
use crate::sim::{Scenario, Sweep};
use crate::steps::{Action, Step};

/// Loom's model replaces the atomics; it goes by `RUSTFLAGS`, which replaces the flags of
/// `.cargo/config.toml`, so they stand here again.
#[cfg(target_arch = "x86_64")]
const LOOM: &str = "--cfg portcullis_loom -C target-feature=+cmpxchg16b";
#[cfg(not(target_arch = "x86_64"))]
const LOOM: &str = "--cfg portcullis_loom";

const LOOM_TEST: &[&str] = &[
    "test",
    "--release",
    "-p",
    "portcullis-sync",
    "-p",
    "portcullis-pgtable",
    "-p",
    "portcullis-models",
    "--test",
    "loom*",
];

/// Shuttle's scheduler replaces the atomics in the same way.
#[cfg(target_arch = "x86_64")]
const SHUTTLE: &str = "--cfg portcullis_shuttle -C target-feature=+cmpxchg16b";
#[cfg(not(target_arch = "x86_64"))]
const SHUTTLE: &str = "--cfg portcullis_shuttle";

/// The steps of `cargo xtask test`.
pub fn test() -> Vec<Step> {
    let mut table = vec![
        step(
            "fmt",
            "formatting",
            Action::Cargo { args: &["fmt", "--all", "--check", "--", "--color", "never"], env: vec![] },
        ),
        step(
            "fmt",
            "formatting of the freestanding image",
            Action::Cargo {
                args: &["fmt", "--manifest-path", "boot/Cargo.toml", "--check", "--", "--color", "never"],
                env: vec![],
            },
        ),
        step(
            "fmt",
            "formatting of the fuzzers",
            Action::Cargo {
                args: &["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check", "--", "--color", "never"],
                env: vec![],
            },
        ),
        step(
            "clippy",
            "lints, warnings are errors",
            Action::Cargo {
                args: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
                env: vec![],
            },
        ),
        step(
            "clippy",
            "lints of the freestanding image",
            Action::Cargo {
                args: &["clippy", "--manifest-path", "boot/Cargo.toml", "--", "-D", "warnings"],
                env: vec![("CARGO_TARGET_DIR", "boot".into())],
            },
        ),
        step(
            "clippy",
            "lints of the fuzzers' targets",
            Action::Cargo {
                args: &[
                    "clippy",
                    "--manifest-path",
                    "fuzz/Cargo.toml",
                    "--all-targets",
                    "--",
                    "-D",
                    "warnings",
                ],
                env: vec![("CARGO_TARGET_DIR", "fuzz".into())],
            },
        ),
        step(
            "doc",
            "documentation, warnings are errors",
            Action::Cargo {
                args: &["doc", "--workspace", "--no-deps"],
                env: vec![("RUSTDOCFLAGS", "-D warnings".into())],
            },
        ),
        step(
            "unit",
            "unit, property, snapshot and compile-fail tests, doctests",
            Action::Tests {
                args: &["test", "--workspace", "--exclude", "portcullis-testbed", "--no-fail-fast"],
                env: vec![],
                qemu: false,
            },
        ),
        step(
            "example",
            "the library's example",
            // Of the packages that were tested together: asked for alone it would be built again, for
            // the features of its own dependencies.
            Action::Built {
                args: &["build", "--workspace", "--exclude", "portcullis-testbed", "--example", "copy"],
                program: "debug/examples/copy",
            },
        ),
        loom(2),
        shuttle(2000),
        step(
            "conformance",
            "the driver over our model and over QEMU",
            Action::Tests {
                args: &["test", "-p", "portcullis-testbed", "--no-fail-fast", "--", "--show-output"],
                env: vec![],
                qemu: true,
            },
        ),
    ];
    table.extend(boot());
    table.push(step(
        "fuzz",
        "the fuzzers' kept inputs",
        Action::Tests {
            args: &["test", "--manifest-path", "fuzz/Cargo.toml"],
            env: vec![("CARGO_TARGET_DIR", "fuzz".into())],
            qemu: false,
        },
    ));
    table.extend(fuzz(5));
    table.push(step("counts", "instruction counts of what is called most", Action::Counts));
    table.push(step("sim", "the default simulation, within 5 s", Action::Sim(Sweep::Default)));
    table.extend(hostile(24, 3));
    table.push(step("sim", "one seed twice gives one report", Action::Sim(Sweep::Repeat { seed: 7 })));
    table
}

/// The freestanding image: it passes with its mapping, and fails without.
pub fn boot() -> Vec<Step> {
    let whole = |title: &str, unit| step("boot", title, Action::Boot(Image::Whole, unit));
    vec![
        whole("the freestanding image, legacy mode", Unit::Legacy),
        whole("the freestanding image, scalable mode, second stage", Unit::ScalableSecondStage),
        whole("the freestanding image, scalable mode, first stage", Unit::ScalableFirstStage),
        step(
            "boot",
            "the freestanding image without its mapping must fail",
            Action::Boot(Image::WithoutMapping, Unit::Legacy),
        ),
    ]
}

/// The steps of `cargo xtask fuzz`.
pub fn fuzz(seconds: u64) -> Vec<Step> {
    let one = |target: &'static str| {
        step("fuzz", format!("{target}, {seconds} s"), Action::Fuzz { target, seconds })
    };
    fuzz::TARGETS.map(one).into()
}

/// The steps of `cargo xtask soak`.
pub fn soak(seeds: u64) -> Vec<Step> {
    let mut table = hostile(seeds, seeds.div_ceil(20));
    table.extend([
        step(
            "scenarios",
            "the small scenarios over many seeds, and every seed of the planted races",
            Action::Tests {
                args: &["test", "-p", "portcullis-testbed", "--test", "model", "--test", "races"],
                env: vec![("PORTCULLIS_SEEDS", (seeds / 10).to_string())],
                qemu: false,
            },
        ),
        step(
            "pgtable",
            "page tables of every format against a map of intervals, 400 runs each",
            Action::Tests {
                args: &["test", "--release", "-p", "portcullis-pgtable", "--test", "main", "model::"],
                env: vec![("PROPTEST_CASES", "400".to_owned())],
                qemu: false,
            },
        ),
        loom(3),
        shuttle(200_000),
    ]);
    table.extend(fuzz(120));
    table
}

/// Copy and churn under the hostile adversary: so many seeds on the simulation, and so many runs on
/// threads.
fn hostile(seeds: u64, runs: u64) -> Vec<Step> {
    let mut table = Vec::new();
    for (scenario, name) in [(Scenario::Copy, "copy"), (Scenario::Churn, "churn")] {
        let title = format!("{name}, {seeds} hostile seeds");
        table.push(step("sim", title, Action::Sim(Sweep::Hostile { scenario, seeds })));
        let title = format!("{name}, {runs} hostile runs on four threads");
        table.push(step("sim", title, Action::Sim(Sweep::Threads { scenario, runs })));
    }
    table
}

/// The names that `--only` takes.
pub fn groups() -> Vec<&'static str> {
    let mut groups: Vec<_> = test().iter().map(|step| step.group).collect();
    groups.dedup();
    groups
}

fn loom(preemptions: u32) -> Step {
    step(
        "loom",
        format!("interleavings of sync, pgtable and the software IOTLB, {preemptions} preemptions"),
        Action::Tests {
            args: LOOM_TEST,
            env: vec![
                ("RUSTFLAGS", LOOM.into()),
                ("LOOM_MAX_PREEMPTIONS", preemptions.to_string()),
                ("CARGO_TARGET_DIR", "loom".into()),
            ],
            qemu: false,
        },
    )
}

/// Random schedules of the whole core over the scripted driver.
fn shuttle(schedules: u32) -> Step {
    step(
        "shuttle",
        format!("the core on scheduled threads, {schedules} schedules a scenario"),
        Action::Tests {
            args: &["test", "-p", "portcullis", "--features", "planted", "--test", "shuttle"],
            env: vec![
                ("RUSTFLAGS", SHUTTLE.into()),
                ("PORTCULLIS_SCHEDULES", schedules.to_string()),
                ("CARGO_TARGET_DIR", "shuttle".into()),
            ],
            qemu: false,
        },
    )
}

fn step(group: &'static str, title: impl Into<String>, action: Action) -> Step {
    Step { group, title: title.into(), action }
}
