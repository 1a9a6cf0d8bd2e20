//! The command, and files for it.
#![allow(dead_code, reason = "each test file uses what it needs")]

use snapbox::cmd::{Command, cargo_bin};
use std::{fs, path::PathBuf};

/// An empty folder of a test's own.
pub fn folder(test: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// `portcullis` in a folder, with arguments that are separated by spaces.
pub fn portcullis(folder: &PathBuf, arguments: &str) -> Command {
    Command::new(cargo_bin("portcullis"))
        .current_dir(folder)
        .env_remove("COLUMNS")
        .args(arguments.split_whitespace())
}

/// Bytes whose pages all differ, the same on every machine.
pub fn bytes(n: usize) -> Vec<u8> {
    (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
