//! The trace: read back, it holds together and counts what the report counts.

mod common;

use common::{bytes, folder, portcullis};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// What a trace says of one process.
#[derive(Debug, Default)]
struct Process {
    name: String,
    /// Events and beginnings of spans, by name.
    counts: BTreeMap<String, u64>,
}

/// Reads a trace and checks its form: each track has its name, time on it does not go back, each
/// beginning has its end, and no two spans of a track cross.
fn read(path: &Path) -> BTreeMap<u64, Process> {
    let trace: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut processes: BTreeMap<u64, Process> = BTreeMap::new();
    let mut tracks = BTreeSet::new();
    let mut open: BTreeMap<(u64, u64), &str> = BTreeMap::new();
    let mut last: BTreeMap<(u64, u64), f64> = BTreeMap::new();
    for event in trace["traceEvents"].as_array().unwrap() {
        let (pid, tid) = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        let (track, name) = ((pid, tid), event["name"].as_str());
        let process = processes.entry(pid).or_default();
        let ts = event["ts"].as_f64().unwrap();
        assert!(ts >= last.insert(track, ts).unwrap_or(0.0), "time goes back: {event}");
        match event["ph"].as_str().unwrap() {
            "M" if name == Some("process_name") => {
                process.name = event["args"]["name"].as_str().unwrap().into();
            }
            "M" => {
                assert_eq!(name, Some("thread_name"));
                assert!(event["args"]["name"].is_string() && tracks.insert(track), "{event}");
            }
            "i" => {
                assert!(event["s"] == "t" && tracks.contains(&track), "{event}");
                *process.counts.entry(name.unwrap().into()).or_default() += 1;
            }
            "B" => {
                assert!(tracks.contains(&track), "{event}");
                assert!(open.insert(track, name.unwrap()).is_none(), "two spans at once: {event}");
                *process.counts.entry(name.unwrap().into()).or_default() += 1;
            }
            "E" => assert!(open.remove(&track).is_some(), "an end without a beginning: {event}"),
            other => panic!("{other}: {event}"),
        }
    }
    assert!(open.is_empty(), "without an end: {open:?}");
    assert!(processes.values().all(|p| !p.name.is_empty()));
    processes
}

#[test]
fn a_trace_counts_what_the_report_counts() {
    let here = folder("trace");
    fs::write(here.join("input"), bytes(60_000)).unwrap();
    for more in ["", " --threads 4"] {
        let arguments = "sim --input input --seed 3 --adversary hostile --json --trace trace.json";
        let ended = portcullis(&here, &format!("{arguments}{more}")).assert().success().stderr_eq("");
        let report: Value = serde_json::from_slice(&ended.get_output().stdout).unwrap();
        let processes = read(&here.join("trace.json"));
        let sum = |members: &Value| members.as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        for device in report["devices"].as_array().unwrap() {
            let process = processes.values().find(|p| device["id"] == p.name).unwrap();
            let count = |name: &str| process.counts.get(name).copied().unwrap_or(0);
            let number = |name: &str| device[name].as_u64().unwrap();
            assert_eq!(count("page request"), number("page_requests"), "{process:?}");
            assert_eq!(count("page request group"), number("groups"), "{process:?}");
            let settled: u64 = sum(&device["settled"]);
            assert_eq!(count("page request group"), settled, "{process:?}");
            assert_eq!(count("response"), settled, "{process:?}");
            let blocked: u64 = sum(&device["blocked"]);
            assert_eq!(count("fault"), blocked, "{process:?}");
            assert_eq!(
                count("read") + count("write") + number("interrupts"),
                number("accesses"),
                "{process:?}"
            );
            assert_eq!((count("attach"), count("detach")), (1, 1), "{process:?}");
            let answered = device["pager"].as_object().unwrap();
            let answered: u64 =
                ["served", "refused", "too_late"].iter().map(|k| answered[*k].as_u64().unwrap()).sum();
            assert_eq!(count("resolver"), answered, "{process:?}");
        }
        let iommu = processes.values().find(|p| p.name == "IOMMU").unwrap();
        assert!(iommu.counts["invalidation"] > 0);
    }
}

#[test]
fn every_scenario_can_be_traced() {
    let here = folder("trace-all");
    let trace = here.join("trace.json");
    for scenario in ["churn", "reset-with-requests-outstanding", "two-devices"] {
        let arguments = format!("sim --scenario {scenario} --seed 4 --adversary mild --trace trace.json");
        portcullis(&here, &arguments).assert().success();
        let processes = read(&trace);
        assert!(processes.values().any(|p| p.counts.contains_key("attach")), "{scenario}: {processes:?}");
        let resets = processes.values().any(|p| p.counts.contains_key("reset"));
        assert_eq!(resets, scenario != "two-devices", "{scenario}");
    }
}

#[test]
fn a_trace_on_a_full_disk_is_told() {
    let here = folder("trace-full");
    fs::write(here.join("input"), bytes(10)).unwrap();
    if !Path::new("/dev/full").exists() {
        return;
    }
    portcullis(&here, "sim --input input --trace /dev/full")
        .assert()
        .code(1)
        .stderr_eq("portcullis: cannot write /dev/full: no space left on device\n");
}
