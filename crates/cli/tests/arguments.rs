//! What the command says of itself, and of arguments that are of no use.

mod common;

use common::{bytes, folder, portcullis};
use snapbox::file;
use std::fs;

#[test]
fn without_a_subcommand_it_prints_help() {
    let here = folder("help");
    let help = portcullis(&here, "--help").assert().success().stdout_eq(file!["snapshots/help.txt"]);
    let bare = portcullis(&here, "").assert().success().stderr_eq("");
    assert_eq!(bare.get_output().stdout, help.get_output().stdout);
    portcullis(&here, "sim --help").assert().success().stdout_eq(file!["snapshots/sim-help.txt"]);
}

#[test]
fn it_tells_its_version() {
    let version = concat!("portcullis ", env!("CARGO_PKG_VERSION"), "\n");
    portcullis(&folder("version"), "--version").assert().success().stdout_eq(version);
}

#[test]
fn the_scenarios_are_listed_a_line_each() {
    portcullis(&folder("list"), "sim --list").assert().success().stdout_eq(file!["snapshots/list.txt"]);
}

#[test]
fn what_is_wrong_is_named_in_one_line() {
    let here = folder("wrong");
    fs::write(here.join("input"), bytes(5000)).unwrap();
    fs::create_dir(here.join("folder")).unwrap();
    let mut said = String::new();
    for arguments in [
        "smi",
        "sim --sped 3",
        "sim input",
        "sim --seed",
        "sim --seed many",
        "sim --seed -1",
        "sim --seed 18446744073709551616",
        "sim --adversary friendly",
        "sim --input input --devices 0",
        "sim --input input --devices 65",
        "sim --input input --devices 99999999999999999999",
        "sim --scenario nothing",
        "sim --scenario churn --input input",
        "sim --scenario churn --output copy",
        "sim --scenario churn --frames 8",
        "sim --scenario churn --devices 33",
        "sim --scenario churn --size 0",
        "sim --scenario churn --threads 0",
        "sim --scenario unmap --size 3",
        "sim --scenario unmap --devices 3",
        "sim --input input --size 3",
        "sim --input input --trace folder",
        "sim --input input --trace missing/trace",
        "sim --input input --trace ./folder/../input",
        "sim --scenario unmap --trace missing/trace",
        "sim --input input --threads 0",
        "sim --input input --threads 65",
        "sim --input input --frames 3",
        "sim --input input --frames 5 --devices 3",
        "sim --input input --frames 16384",
        "sim --input missing",
        "sim --input folder",
        "sim --input input/below",
        "sim --input input --output folder",
        "sim --input input --output missing/output",
        "sim --input input --output input/below",
        "sim --input input --output ./folder/../input",
    ] {
        let ended = portcullis(&here, arguments).assert().code(2).stdout_eq("");
        let line = String::from_utf8_lossy(&ended.get_output().stderr).into_owned();
        assert_eq!(line.matches('\n').count(), 1, "{arguments}: {line}");
        said += &format!("$ portcullis {arguments}\n{line}");
    }
    snapbox::assert_data_eq!(said, file!["snapshots/wrong.txt"]);
}

#[test]
fn an_argument_with_line_breaks_is_named_in_one_line() {
    let here = folder("line-breaks");
    for arguments in [["--input", "no\nsuch\n\nfile"], ["--seed", "1\n\n2"], ["--\n\n", "\u{1b}[31m"]] {
        let ended = portcullis(&here, "sim").args(arguments).assert().code(2);
        let line = String::from_utf8_lossy(&ended.get_output().stderr).into_owned();
        assert!(line.ends_with('\n') && !line.trim_end_matches('\n').contains(char::is_control), "{line:?}");
    }
}

/// A file that opens and cannot be read: permission is no obstacle to every user.
#[cfg(target_os = "linux")]
#[test]
fn an_unreadable_input_is_named() {
    portcullis(&folder("unreadable"), "sim --input /proc/self/mem")
        .assert()
        .code(2)
        .stderr_eq("portcullis: cannot read /proc/self/mem: input/output error\n");
}

#[cfg(unix)]
#[test]
fn an_input_without_an_end_is_refused() {
    let line = "portcullis: /dev/zero is too big: it is held in memory with its copies, \
                so with 63 engines it may have 16777216 bytes\n";
    portcullis(&folder("endless"), "sim --devices 63 --input /dev/zero").assert().code(2).stderr_eq(line);
}

#[test]
fn a_second_output_that_cannot_be_written_leaves_no_first() {
    let here = folder("second-output");
    fs::write(here.join("input"), bytes(10)).unwrap();
    fs::create_dir(here.join("copy.1")).unwrap();
    portcullis(&here, "sim --input input --output copy")
        .assert()
        .code(2)
        .stdout_eq("")
        .stderr_eq("portcullis: cannot write copy.1: is a directory\n");
    assert!(!here.join("copy").exists());
}
