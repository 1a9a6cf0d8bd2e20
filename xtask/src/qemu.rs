//! Finds QEMU 11 or newer with its qtest accelerator: the one fetched before, the one in PATH, or
//! one fetched now from the archive that the machine's apt is configured for.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{Layout, apt, process};

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
    fetch(at, &log)
        .and_then(|()| probe(&fetched, &log))
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

/// Puts QEMU under target/qemu. The folder appears by one rename when it is complete.
fn fetch(at: &Layout, log: &Path) -> Result<(), String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Err("only x86-64 Linux has a recipe".into());
    }
    let partial = at.target.join(format!("qemu.partial-{}", std::process::id()));
    let told = |error: io::Error| format!("{}: {error}", partial.display());
    sweep(&at.target, log);
    fs::create_dir_all(&partial).map_err(told)?;

    let result = (|| {
        let root = partial.join("root");
        fs::create_dir(&root).map_err(told)?;
        for package in apt::download(&partial.join("apt"), "qemu-system-x86", log)? {
            unpack(&package, &root, log)?;
        }
        let wrapper = root.join(COMMAND);
        fs::write(&wrapper, WRAPPER).map_err(told)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).map_err(told)?;
        probe(&wrapper, log).map_err(|why| format!("what was fetched is of no use: {why}"))?;

        let place = at.target.join("qemu");
        if place.exists() {
            // It failed its probe before; keep it from being in the way.
            fs::rename(&place, partial.join("old")).map_err(told)?;
        }
        fs::rename(&root, &place).map_err(told)
    })();
    let cleaned = fs::remove_dir_all(&partial).map_err(told);
    result.and(cleaned)
}

/// Removes what fetches that were killed have left.
fn sweep(target: &Path, log: &Path) {
    for entry in fs::read_dir(target).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("qemu.partial-"));
        if let Some(owner) = owner
            && !Path::new("/proc").join(owner).exists()
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            let _ = fs::write(log, format!("{}: {error}\n", entry.path().display()));
        }
    }
}

/// `dpkg-deb --fsys-tarfile PACKAGE | tar -x`, which needs no root and touches no dpkg state.
fn unpack(package: &Path, root: &Path, log: &Path) -> Result<(), String> {
    let name = package.display();
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start dpkg-deb: {error}"))?;
    let files = reader.stdout.take().ok_or("dpkg-deb has no output")?;
    let errors = fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(|error| format!("{}: {error}", log.display()))?;
    let written = Command::new("tar")
        .args(["-x", "--no-same-owner", "-C"])
        .arg(root)
        .stdin(files)
        .stderr(errors)
        .status();
    let read = reader.wait();
    match (read, written) {
        (Ok(read), Ok(written)) if read.success() && written.success() => Ok(()),
        _ => Err(format!("cannot unpack {name}")),
    }
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
