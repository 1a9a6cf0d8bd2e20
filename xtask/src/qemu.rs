//! Finds QEMU 11 or newer with its qtest accelerator: the one fetched before, the one in PATH, or
//! one fetched now from the archive that the machine's apt is configured for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Layout, fetch, process};

/// The first release that Debian builds the qtest accelerator for, and that has iommu-testdev.
const OLDEST: u32 = 11;

const COMMAND: &str = "qemu-system-x86_64";

/// Runs the fetched QEMU by its own loader and libraries, wherever its folder lies. Modules are
/// looked for next to /proc/self/exe, which is the loader here, so their folder is named.
const WRAPPER: &str = r#"#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/usr
libraries=$root/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$libraries/qemu"
exec "$root/lib64/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$libraries" \
    "$root/bin/qemu-system-x86_64" -L "$root/share/qemu" -L "$root/share/seabios" "$@"
"#;

/// The path of a command that takes QEMU's arguments, or one line why there is none.
pub fn obtain(at: &Layout) -> Result<PathBuf, String> {
    let log = at.log("qemu");
    let fetched = at.target.join("qemu").join(COMMAND);
    if fetched.exists() && probe(&fetched, &log).is_ok() {
        return Ok(fetched);
    }
    let own = probe(Path::new(COMMAND), &log);
    if own.is_ok() {
        return Ok(COMMAND.into());
    }
    let package = fetch::Package { name: "qemu-system-x86", command: COMMAND, wrapper: WRAPPER };
    let usable = |command: &Path| probe(command, &log);
    package
        .fetch(at, "qemu", &usable, &log)
        .map_err(|why| format!("no QEMU {OLDEST} with qtest: not in PATH, and fetching it failed: {why}"))?;
    Ok(fetched)
}

/// Ok if `command` is recent enough and its qtest accelerator starts.
fn probe(command: &Path, log: &Path) -> Result<(), String> {
    let limit = Some(Duration::from_secs(20));
    let asked = process::run(Command::new(command).arg("--version"), log, limit)
        .map_err(|error| format!("it does not start: {error}"))?;
    asked.success()?;
    match major_version(&asked.output) {
        Some(version) if version >= OLDEST => {}
        Some(version) => return Err(format!("it is QEMU {version}")),
        None => return Err("it does not tell its version".into()),
    }
    // `-accel help` leaves out accelerators that are modules, so we start one.
    let mut start = Command::new(command);
    start.args(["-accel", "qtest", "-machine", "q35", "-nodefaults", "-display", "none", "-qmp", "stdio"]);
    let quit = r#"{"execute":"qmp_capabilities"}{"execute":"quit"}"#;
    process::run_with_input(&mut start, quit, log, limit)
        .map_err(|error| format!("it does not start: {error}"))?
        .success()
        .map_err(|how| format!("its qtest accelerator does not start: {how}"))
}

/// The number after the word "version".
fn major_version(said: &str) -> Option<u32> {
    let (_, after) = said.split_once("version ")?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let said = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)\nCopyright\n";
        assert_eq!(major_version(said), Some(11));
        assert_eq!(major_version("QEMU emulator version 7.2.9"), Some(7));
        assert_eq!(major_version("qemu: not found"), None);
    }
}
