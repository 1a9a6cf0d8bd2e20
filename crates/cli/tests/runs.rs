//! Whole runs, as text and as JSON.

mod common;

use common::{bytes, folder, portcullis};
use serde_json::Value;
use snapbox::file;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

fn json(here: &PathBuf, arguments: &str) -> Value {
    let ended = portcullis(here, arguments).assert().success().stderr_eq("");
    serde_json::from_slice(&ended.get_output().stdout).unwrap()
}

/// What a schedule decides is left open in the snapshot: it changes with the code that is watched.
#[test]
fn a_run_is_reported_as_text() {
    let here = folder("text");
    fs::write(here.join("input file"), bytes(50_000)).unwrap();
    portcullis(&here, "sim --frames 6 --seed 3 --input")
        .arg("input file")
        .assert()
        .success()
        .stderr_eq("")
        .stdout_eq(file!["snapshots/run.txt"]);
}

#[test]
fn a_run_is_reported_as_one_json_object() {
    let here = folder("json");
    fs::write(here.join("input"), bytes(50_000)).unwrap();
    let report = json(&here, "sim --input input --seed 3 --adversary mild --json");
    let mut members = BTreeMap::new();
    kinds("", &report, &mut members);
    let line = |(name, kinds): (&String, &BTreeSet<&str>)| {
        format!("{name}: {}\n", kinds.iter().copied().collect::<Vec<_>>().join(" or "))
    };
    let kinds: String = members.iter().map(line).collect();
    snapbox::assert_data_eq!(kinds, file!["snapshots/json.txt"]);

    assert_eq!(report["ok"], true);
    assert_eq!(report["again"], "portcullis sim --input input --devices 2 --seed 3 --adversary mild");
    let life = report["life"].as_array().unwrap();
    assert_eq!(life.len(), 8);
    assert!(life[0].as_str().unwrap().contains("page request, last of group"));
    assert!(life.iter().all(|line| line.as_str().unwrap().len() < 110));
    assert!(life[7].as_str().unwrap().contains("takes the response"));
    for device in &report["devices"].as_array().unwrap()[..2] {
        assert_eq!(device["sha256"], report["input_sha256"]);
        // Read and written, and a byte now and then where an earlier piece went.
        assert!((100_000..100_100).contains(&device["bytes"].as_u64().unwrap()));
    }
    for check in ["isolation", "settled_once", "quiescence"] {
        assert!(report["invariants"][check]["checked"].as_u64().unwrap() > 0, "{check} checked nothing");
    }
}

/// The name and kinds of every member; those whose names depend on the run count as one.
fn kinds(name: &str, value: &Value, out: &mut BTreeMap<String, BTreeSet<&'static str>>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(all) => {
            all.iter().for_each(|v| kinds(&format!("{name}[]"), v, out));
            "array"
        }
        Value::Object(members) => {
            for (key, v) in members {
                let open = name.ends_with(".settled") || name.ends_with(".blocked");
                kinds(&format!("{name}.{}", if open { "*" } else { key }), v, out);
            }
            "object"
        }
    };
    out.entry(name.into()).or_default().insert(kind);
}

#[test]
fn equal_seeds_give_equal_reports_and_others_do_not() {
    let here = folder("seeds");
    fs::write(here.join("input"), bytes(100_000)).unwrap();
    let report = |seed: u64| {
        let mut report = json(&here, &format!("sim --input input --adversary hostile --json --seed {seed}"));
        assert!(report.as_object_mut().unwrap().remove("timing").is_some());
        report
    };
    let (first, again, other) = (report(11), report(11), report(12));
    assert_eq!(first, again);
    assert_ne!(first["schedule_hash"], other["schedule_hash"]);

    let text = || {
        let ended = portcullis(&here, "sim --input input --adversary hostile --seed 11").assert().success();
        let text = String::from_utf8(ended.get_output().stdout.clone()).unwrap();
        let (real, rest): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| l.starts_with("Real time"));
        assert_eq!(real.len(), 1);
        rest.join("\n")
    };
    assert_eq!(text(), text());
}

/// The seed picks no schedule there, and the report says so.
#[test]
fn a_run_on_threads_is_checked_as_any_other() {
    let here = folder("threads");
    fs::write(here.join("input"), bytes(200_000)).unwrap();
    let report = json(&here, "sim --input input --threads 4 --adversary hostile --seed 3 --json");
    assert_eq!((&report["ok"], &report["threads"]["workers"]), (&Value::Bool(true), &Value::from(4)));
    assert!(report["threads"]["served_per_second"].as_f64().unwrap() > 0.0);
    assert!(report.get("schedule_hash").is_none() && report.get("virtual_ns").is_none());
    assert_eq!(
        report["again"],
        "portcullis sim --input input --devices 2 --seed 3 --adversary hostile --threads 4"
    );
    let ended = portcullis(&here, "sim --input input --threads 2").assert().success().stderr_eq("");
    let text = String::from_utf8_lossy(&ended.get_output().stdout).into_owned();
    for part in ["Times are real.", "the seed picks data and adversary, not the schedule", "2 workers, "] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

/// Every scenario that is listed runs, says what it does, and names a command that repeats it.
#[test]
fn listed_scenarios_run() {
    let here = folder("scenarios");
    let ended = portcullis(&here, "sim --list").assert().success();
    let list = String::from_utf8_lossy(&ended.get_output().stdout).into_owned();
    let words: Vec<&str> = list.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(words.len() > 10 && words[..3] == ["copy", "churn", "register"], "{list}");
    for word in words.iter().filter(|word| **word != "copy") {
        let report = json(&here, &format!("sim --scenario {word} --seed 5 --adversary mild --json"));
        assert_eq!((&report["ok"], &report["seed"]), (&Value::Bool(true), &Value::from(5)), "{word}");
        let again = format!("portcullis sim --scenario {word} --seed 5 --adversary mild");
        assert_eq!(report["again"].as_str().unwrap(), again);
        assert!(!report["devices"].as_array().unwrap().is_empty(), "{word}");
    }
}

#[test]
fn churn_is_reported_with_what_happened() {
    let here = folder("churn");
    let arguments = "sim --scenario churn --devices 3 --size 30 --seed 2 --adversary hostile";
    let report = json(&here, &format!("{arguments} --json"));
    for what in [
        "reads compared",
        "writes compared",
        "resets",
        "unplugged and plugged in again",
        "detaches",
        "devices bound",
        "reads of address spaces compared",
        "address spaces that exited while bound",
    ] {
        assert!(report["counts"][what].as_u64().unwrap() > 0, "{what}: {}", report["counts"]);
    }
    assert_eq!(report["devices"].as_array().unwrap().len(), 3);
    assert_eq!(report["again"], format!("portcullis {arguments}"));
    let again = json(&here, &format!("{arguments} --json"));
    assert_eq!(report["schedule_hash"], again["schedule_hash"]);
    let ended = portcullis(&here, arguments).assert().success();
    let text = String::from_utf8_lossy(&ended.get_output().stdout).into_owned();
    for part in ["Churn: devices and PASIDs", "What happened", "reads compared", "no invariant is broken"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

/// Regions by key: what is deregistered is out of reach when that returns, and who tries is told of.
#[test]
fn registered_memory_is_out_of_reach_afterwards() {
    let here = folder("register");
    for more in ["", " --threads 2"] {
        let arguments = format!("sim --scenario register --size 8 --seed 2 --adversary hostile{more} --json");
        let counts = &json(&here, &arguments)["counts"];
        let count = |what: &str| counts[what].as_u64().unwrap_or(0);
        assert_eq!(count("registrations"), 16, "{counts}");
        assert_eq!(count("deregistrations"), 16, "{counts}");
        assert_eq!(count("accesses after deregistration, blocked and told of"), 16, "{counts}");
        let bad = count("stale keys refused") + count("foreign keys refused");
        assert!(bad > 0 && count("accesses without a key, blocked") == bad, "{counts}");
        assert!(count("pieces compared") >= 16, "{counts}");
    }
}

#[test]
fn an_empty_file_is_copied() {
    let here = folder("empty");
    fs::write(here.join("input"), "").unwrap();
    fs::write(here.join("copy"), "what was here before").unwrap();
    let ended = portcullis(&here, "sim --input input --output copy").assert().success();
    let text = String::from_utf8_lossy(&ended.get_output().stdout).into_owned();
    assert!(text.contains("Copying 0 bytes of input"), "{text}");
    assert!(text.contains("No page request of the first device went the whole way"), "{text}");
    for copy in ["copy", "copy.1"] {
        assert_eq!(fs::read(here.join(copy)).unwrap(), b"", "{copy}");
    }
}

#[test]
fn copies_of_any_size_by_any_number_of_engines_are_written() {
    let here = folder("sizes");
    for (size, engines) in [(1, 1), (4095, 2), (4096, 3), (4097, 2), (20_000, 64)] {
        let input = bytes(size);
        fs::write(here.join("input"), &input).unwrap();
        let arguments =
            format!("sim --input input --output copy --json --devices {engines} --adversary mild");
        let report = json(&here, &format!("{arguments} --seed {}", u64::MAX));
        assert_eq!(report["ok"], true);
        for n in 0..engines {
            let name = if n == 0 { "copy".into() } else { format!("copy.{n}") };
            assert!(fs::read(here.join(&name)).unwrap() == input, "{name} of {engines}, {size} bytes");
        }
        assert!(!here.join(format!("copy.{engines}")).exists());
        let _ = (0..engines).map(|n| fs::remove_file(here.join(format!("copy.{n}")))).count();
    }
}

/// The command that a report names gives that report.
#[test]
fn the_command_for_another_run_repeats_it() {
    let here = folder("again");
    fs::write(here.join("it's input"), bytes(9_000)).unwrap();
    let ended = portcullis(&here, "sim --frames 9 --devices 3 --adversary mild --seed 5 --json --input")
        .arg("it's input")
        .assert()
        .success();
    let report: Value = serde_json::from_slice(&ended.get_output().stdout).unwrap();
    let command = report["again"].as_str().unwrap();
    let expected = r"portcullis sim --input 'it'\''s input' --devices 3 --frames 9 --seed 5 --adversary mild";
    assert_eq!(command, expected);
    let rest = command.strip_prefix(r"portcullis sim --input 'it'\''s input' ").unwrap();
    let ended = portcullis(&here, &format!("sim --json {rest} --input")).arg("it's input").assert().success();
    let again: Value = serde_json::from_slice(&ended.get_output().stdout).unwrap();
    assert_eq!(report["schedule_hash"], again["schedule_hash"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_told_after_the_report() {
    let here = folder("full");
    fs::write(here.join("input"), bytes(10)).unwrap();
    std::os::unix::fs::symlink("/dev/full", here.join("copy")).unwrap();
    portcullis(&here, "sim --devices 1 --input input --output copy")
        .assert()
        .code(1)
        .stderr_eq("portcullis: cannot write copy: no space left on device\n");
}

/// A run whose reader goes away has not failed; one whose report is lost has.
#[cfg(target_os = "linux")]
#[test]
fn a_report_that_cannot_be_written_is_told() {
    let here = folder("no-report");
    fs::write(here.join("input"), bytes(10)).unwrap();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ended = std::process::Command::new(snapbox::cmd::cargo_bin("portcullis"))
        .args(["sim", "--input", "input"])
        .current_dir(&here)
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let line = "portcullis: cannot write the report: no space left on device\n";
    assert_eq!(String::from_utf8_lossy(&ended.stderr), line);
}
