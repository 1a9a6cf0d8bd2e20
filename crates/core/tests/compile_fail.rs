//! What the types forbid. Each file under `ui` has a twin that differs in one line and compiles,
//! so that it fails for the reason that its name gives.

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn what_the_types_forbid_does_not_compile_and_its_twin_does() {
    let t = trybuild::TestCases::new();
    for name in names() {
        t.compile_fail(format!("tests/ui/{name}.rs"));
        t.pass(format!("tests/ui/{name}_ok.rs"));
    }
}

#[test]
fn each_pair_differs_in_one_line() {
    let names = names();
    assert!(names.len() >= 12, "{names:?}");
    for name in &names {
        let read = |n: &str| fs::read_to_string(Path::new("tests/ui").join(n)).expect(n);
        let (bad, ok) = (read(&format!("{name}.rs")), read(&format!("{name}_ok.rs")));
        assert_eq!(bad.lines().count(), ok.lines().count(), "{name}");
        let differ: Vec<_> = bad.lines().zip(ok.lines()).filter(|(b, o)| b != o).collect();
        assert_eq!(differ.len(), 1, "{name}: {differ:#?}");
        assert!(Path::new("tests/ui").join(format!("{name}.stderr")).exists(), "{name}: its message is kept");
    }
}

/// The files that must not compile. A twin without one is found here too.
fn names() -> BTreeSet<String> {
    let entries = fs::read_dir("tests/ui").expect("the folder of the pairs");
    let files = entries.map(|e| e.expect("an entry").file_name().into_string().expect("a plain name"));
    let rust = files.filter_map(|f| f.strip_suffix(".rs").map(str::to_owned));
    rust.map(|n| n.strip_suffix("_ok").map_or(n.clone(), str::to_owned)).collect()
}
