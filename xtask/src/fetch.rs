//! Puts a program out of a Debian package under the target folder, with the libraries it needs.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Layout, apt};

/// What is fetched, and how it is run.
pub struct Package {
    /// The package.
    pub name: &'static str,
    /// The name that the wrapper gets.
    pub command: &'static str,
    /// A script, at the top of the packages' files, that runs the program there.
    pub wrapper: &'static str,
}

impl Package {
    /// Puts it into the folder `place` of the target folder, which appears by one rename when it is
    /// complete and `usable` says yes to the wrapper.
    pub fn fetch(
        &self,
        at: &Layout,
        place: &str,
        usable: &dyn Fn(&Path) -> Result<(), String>,
        log: &Path,
    ) -> Result<(), String> {
        if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            return Err("only x86-64 Linux has a recipe".into());
        }
        let prefix = format!("{place}.partial-");
        let partial = at.target.join(format!("{prefix}{}", std::process::id()));
        let told = |error: io::Error| format!("{}: {error}", partial.display());
        sweep(&at.target, &prefix, log);
        fs::create_dir_all(&partial).map_err(told)?;

        let result = (|| {
            let root = partial.join("root");
            fs::create_dir(&root).map_err(told)?;
            for package in apt::download(&partial.join("apt"), self.name, log)? {
                unpack(&package, &root, log)?;
            }
            let wrapper = root.join(self.command);
            fs::write(&wrapper, self.wrapper).map_err(told)?;
            fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).map_err(told)?;
            usable(&wrapper).map_err(|why| format!("what was fetched is of no use: {why}"))?;

            let place = at.target.join(place);
            if place.exists() {
                // It failed its probe before; keep it from being in the way.
                fs::rename(&place, partial.join("old")).map_err(told)?;
            }
            fs::rename(&root, &place).map_err(told)
        })();
        let cleaned = fs::remove_dir_all(&partial).map_err(told);
        result.and(cleaned)
    }
}

/// Removes what fetches that were killed have left.
fn sweep(target: &Path, prefix: &str, log: &Path) {
    for entry in fs::read_dir(target).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(prefix));
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
