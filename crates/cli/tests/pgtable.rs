//! `portcullis pgtable`: tables out of images of memory.

mod common;

use common::{folder, portcullis};
use std::{fs, path::Path};

/// An image from address 0x10000 on with a VT-d second-stage table: a page, two that follow, and a
/// leaf of 2 MiB.
fn image(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = vec![0u8; 0x5000];
    let mut entry = |at: usize, w: u64| bytes[at..at + 8].copy_from_slice(&w.to_le_bytes());
    entry(0, 0x1_1003);
    entry(0x1000, 0x1_2003);
    entry(0x2000, 0x1_3003);
    entry(0x2008, 0x4020_0083);
    entry(0x3000, 0x7001);
    entry(0x3008, 0x8003);
    entry(0x3010, 0x9003);
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

const TABLE: &str = "memory --format vtd-ss --root 0x10000 --base 65536";

#[test]
fn dump_tells_what_is_mapped() {
    let here = folder("pgtable-dump");
    image(&here.join("memory"), |_| ());
    let text = "\
0x000000000000-0x000000000fff -> 0x7000 leaves of 0x1000 Prot(READ)
0x000000001000-0x000000002fff -> 0x8000 leaves of 0x1000 Prot(READ | WRITE)
0x000000200000-0x0000003fffff -> 0x40200000 leaves of 0x200000 Prot(READ | WRITE)
";
    portcullis(&here, &format!("pgtable dump {TABLE}")).assert().success().stdout_eq(text);
    let json = r#"{"first":"0x0","last":"0xfff","phys":"0x7000","leaf_size":"0x1000","prot":1}
...
"#;
    portcullis(&here, &format!("pgtable dump --json {TABLE}")).assert().success().stdout_eq(json);
}

#[test]
fn check_tells_what_is_wrong() {
    let here = folder("pgtable-check");
    let check = format!("pgtable check {TABLE}");
    image(&here.join("memory"), |_| ());
    portcullis(&here, &check).assert().success().stdout_eq("");
    // An address that is not aligned to 2 MiB.
    image(&here.join("memory"), |bytes| bytes[0x2009] = 0x10);
    portcullis(&here, &check)
        .assert()
        .code(1)
        .stdout_eq("0x000000200000: level 2 entry 0x40201083 at 0x12008 has unexpected bits 0x1000\n")
        .stderr_eq("portcullis: one entry is wrong\n");
}

#[test]
fn what_is_of_no_use_is_said() {
    let here = folder("pgtable-unusable");
    image(&here.join("memory"), |_| ());
    for arguments in [
        "none --format vtd-ss --root 0",
        "memory --format vtd-ss --root 0x90000000",
        "memory --format vtd-ss --root 7g",
        "memory --format none --root 0",
        "memory --root 0",
    ] {
        portcullis(&here, &format!("pgtable check {arguments}")).assert().code(2).stdout_eq("");
    }
}
