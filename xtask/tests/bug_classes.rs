//! The table of other people's bugs names tests: each is there.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What is named, and what kind of thing the text before it says that it is.
struct Named<'a> {
    before: &'a str,
    name: &'a str,
}

/// The names of a cell, in backquotes, clause by clause.
fn clauses(cell: &str) -> impl Iterator<Item = Vec<Named<'_>>> {
    cell.split(';').map(|clause| {
        let parts: Vec<&str> = clause.split('`').collect();
        parts.chunks_exact(2).map(|pair| Named { before: pair[0].trim(), name: pair[1] }).collect()
    })
}

/// Looks up one name. Returns false where it does not know what the name should be.
fn exists(named: &Named<'_>, kind: &str, file: &Path) -> Result<bool, String> {
    let Named { name, .. } = *named;
    let found = match kind {
        "compile-fail" => root().join(format!("crates/core/tests/ui/{name}.rs")).is_file(),
        "scenario" => {
            read(&root().join("crates/machine/src/scenario/mod.rs")).contains(&format!("\"{name}\""))
        }
        "fuzz" => root().join(format!("fuzz/src/{name}.rs")).is_file(),
        "test" => read(file).contains(&format!("fn {name}(")),
        _ => return Ok(false),
    };
    if found { Ok(true) } else { Err(format!("there is no {kind} {name} in {}", file.display())) }
}

#[test]
fn every_test_that_the_table_names_exists() {
    let table = read(&root().join("docs/bug-classes.md"));
    let (mut wrong, mut names, mut rows) = (Vec::new(), 0, 0);
    for row in table.lines().filter(|l| l.starts_with("| B") || l.starts_with("| D")) {
        let cell = row.split('|').nth(3).unwrap_or_else(|| panic!("three columns: {row}"));
        rows += 1;
        let before = names;
        // A file without a folder lies beside the one before it.
        let mut folder = PathBuf::from("crates/core/tests");
        for clause in clauses(cell) {
            let (mut kind, mut file) = ("", root());
            for named in &clause {
                for (word, means) in [("compile-fail:", "compile-fail"), ("scenario", "scenario")] {
                    kind = if named.before.ends_with(word) { means } else { kind };
                }
                if named.name.starts_with("cargo xtask fuzz") {
                    kind = "fuzz";
                } else if named.name.ends_with(".rs") {
                    let path = Path::new(named.name);
                    folder = path.parent().filter(|p| *p != Path::new("")).map_or(folder, Path::to_owned);
                    file = root().join(&folder).join(path.file_name().expect("it ends in .rs"));
                    kind = "test";
                    names += 1;
                    wrong.extend((!file.is_file()).then(|| format!("there is no {}", file.display())));
                } else {
                    match exists(named, kind, &file) {
                        Ok(known) => names += usize::from(known),
                        Err(why) => wrong.push(why),
                    }
                }
            }
        }
        let refers = cell.contains("as B") || cell.contains("oracle");
        assert!(names > before || refers, "nothing is named: {row}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rows >= 24 && names >= 70, "{rows} rows, {names} names");
}
