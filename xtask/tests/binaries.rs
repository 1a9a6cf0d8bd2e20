//! Where a package's tests are one binary, cargo no longer looks for others: each file is in one.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|e| e.expect("an entry").path())
}

/// The name of a file or folder of tests; none for anything else.
fn name(path: &Path) -> Option<&str> {
    let tests = match path.is_dir() {
        true => path.join("main.rs").is_file() || path.join("mod.rs").is_file(),
        false => path.extension().is_some_and(|e| e == "rs"),
    };
    path.file_stem()?.to_str().filter(|_| tests)
}

#[test]
fn every_file_of_tests_is_in_a_binary() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let packages = entries(&root.join("crates")).chain([root.join("testbed")]);
    let (mut left_out, mut files) = (Vec::new(), 0);
    for package in packages.filter(|p| p.join("tests/main.rs").is_file()) {
        let main = read(&package.join("tests/main.rs"));
        let manifest = read(&package.join("Cargo.toml"));
        assert!(manifest.contains("autotests = false"), "{} names its tests", package.display());
        for path in entries(&package.join("tests")) {
            let Some(name) = name(&path) else { continue };
            files += 1;
            let module = main.lines().any(|l| l == format!("mod {name};"));
            let binary = manifest.contains(&format!("[[test]]\nname = \"{name}\"\n"));
            if module == binary {
                left_out
                    .push(format!("{}: neither a module of main.rs nor a [[test]], or both", path.display()));
            }
        }
    }
    assert!(left_out.is_empty(), "{}", left_out.join("\n"));
    assert!(files >= 30, "{files} files");
}
