//! Every kept input of every target, without a fuzzer.

use std::fs;
use std::path::Path;

#[track_caller]
fn replay(name: &str) {
    let (_, target) = portcullis_fuzz::TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("a corpus") {
        let path = entry.expect("an entry").path();
        // The failure's own message does not say which input it was.
        println!("{}", path.display());
        target(&fs::read(path).expect("an input"));
        count += 1;
    }
    assert!(count > 0, "nothing is kept");
}

#[test]
fn dmar() {
    replay("dmar");
}

#[test]
fn vtd() {
    replay("vtd");
}

#[test]
fn intake() {
    replay("intake");
}

#[test]
fn pgtable() {
    replay("pgtable");
}
