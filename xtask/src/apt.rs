//! Downloads a package and all it needs from the Debian archive that the machine's apt uses, with
//! an apt state of our own: the machine's packages are neither read nor changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process;

/// Where QEMU 11 is: the suite for its libraries, and the one for itself.
const SUITES: [&str; 2] = ["trixie", "trixie-backports"];

/// The whole download is some 50 MB.
const LIMIT: Duration = Duration::from_secs(600);

/// Downloads `package` and its closure under `state`, and returns the packages' files.
pub fn download(state: &Path, package: &str, log: &Path) -> Result<Vec<PathBuf>, String> {
    let archive = machines_archive()?;
    let place = state.display().to_string();
    if place.contains(['"', '\n']) {
        return Err(format!("apt cannot be told of the folder {place}"));
    }
    let told = |error: std::io::Error| format!("{place}: {error}");
    for folder in ["lists/partial", "cache/archives/partial", "sources", "none"] {
        fs::create_dir_all(state.join(folder)).map_err(told)?;
    }
    fs::write(state.join("status"), "").map_err(told)?;
    fs::write(state.join("sources/debian.sources"), archive.stanza(&SUITES)).map_err(told)?;
    fs::write(state.join("apt.conf"), configuration(&place)).map_err(told)?;

    apt_get(state, &["update"], log)?;
    let install = [
        "install",
        "--yes",
        "--download-only",
        "--no-install-recommends",
        "--target-release",
        SUITES[1],
        package,
    ];
    apt_get(state, &install, log)?;

    let mut files = Vec::new();
    for entry in fs::read_dir(state.join("cache/archives")).map_err(told)? {
        let path = entry.map_err(told)?.path();
        if path.extension().is_some_and(|ending| ending == "deb") {
            files.push(path);
        }
    }
    Ok(files)
}

/// apt reads this after the machine's own configuration, whose proxies stay in force. The empty
/// dpkg status makes it resolve down to libc.
fn configuration(place: &str) -> String {
    format!(
        r#"#clear APT::Architectures;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "2";
Dir::State "{place}";
Dir::State::lists "{place}/lists";
Dir::State::status "{place}/status";
Dir::State::extended_states "{place}/extended_states";
Dir::Cache "{place}/cache";
Dir::Cache::archives "{place}/cache/archives";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{place}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{place}/none";
"#
    )
}

fn apt_get(state: &Path, args: &[&str], log: &Path) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8")
        .arg("--config-file")
        .arg(state.join("apt.conf"))
        .args(args);
    let ended = process::run(&mut command, log, Some(LIMIT))
        .map_err(|error| format!("cannot start apt-get: {error}"))?;
    // `update` exits with 0 although it could fetch nothing.
    let complaint =
        ended.output.lines().find(|line| line.starts_with("E: ") || line.starts_with("W: Failed to fetch"));
    match (ended.success(), complaint) {
        (Ok(()), None) => Ok(()),
        (_, Some(line)) => Err(format!("apt-get {}: {line}", args[0])),
        (Err(how), None) => Err(format!("apt-get {}: {how}", args[0])),
    }
}

/// A Debian archive, and how apt checks it.
#[derive(Debug, PartialEq, Eq)]
struct Archive {
    uri: String,
    /// The fields of the machine's entry that say what is trusted, as they stand there.
    trust: BTreeMap<&'static str, String>,
}

impl Archive {
    fn stanza(&self, suites: &[&str]) -> String {
        let mut stanza =
            format!("Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n", self.uri, suites.join(" "));
        for (field, value) in &self.trust {
            stanza += &format!("{field}: {value}\n");
        }
        stanza
    }
}

/// Options of an entry that say what is trusted: the names in the one-line form and in deb822.
const TRUST: [(&str, &str); 2] = [("signed-by", "Signed-By"), ("trusted", "Trusted")];

/// The archive this Debian was installed from.
fn machines_archive() -> Result<Archive, String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_matches('"').to_string())
    };
    let codename = match (field("ID=").as_deref(), field("VERSION_CODENAME=")) {
        (Some("debian"), Some(codename)) => codename,
        _ => return Err("this is not a Debian release".into()),
    };

    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    files.extend(parts.flatten().map(|entry| entry.path()));
    files.sort();
    files
        .iter()
        .filter_map(|file| {
            let text = fs::read_to_string(file).ok()?;
            match file.extension()?.to_str()? {
                "list" => one_line_form(&text, &codename),
                "sources" => deb822_form(&text, &codename),
                _ => None,
            }
        })
        .next()
        .ok_or_else(|| format!("apt has no source of the suite {codename}"))
}

/// `deb [signed-by=FILE ...] URI SUITE COMPONENT...`
fn one_line_form(text: &str, codename: &str) -> Option<Archive> {
    text.lines().find_map(|line| {
        let line = line.split('#').next()?;
        let rest = line.trim().strip_prefix("deb")?;
        if !rest.starts_with([' ', '\t', '[']) {
            return None; // deb-src
        }
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(bracket) => bracket.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        if suite != codename || !words.any(|component| component == "main") {
            return None;
        }
        let trust = TRUST.iter().filter_map(|(option, field)| {
            options.split_whitespace().find_map(|given| {
                let (name, value) = given.split_once('=')?;
                (name == *option).then(|| (*field, value.replace(',', " ")))
            })
        });
        Some(Archive { uri: uri.into(), trust: trust.collect() })
    })
}

/// Stanzas of fields, apart by empty lines; a line that starts with a blank continues a field.
fn deb822_form(text: &str, codename: &str) -> Option<Archive> {
    let mut stanza = BTreeMap::<String, String>::new();
    let mut last = String::new();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    for line in lines.chain([""]) {
        if line.trim().is_empty() {
            if let Some(archive) = deb822_entry(&stanza, codename) {
                return Some(archive);
            }
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = stanza.get_mut(&last) {
                *value += "\n";
                *value += line;
            }
        } else if let Some((field, value)) = line.split_once(':') {
            last = field.trim().to_ascii_lowercase();
            stanza.insert(last.clone(), value.trim().into());
        }
    }
    None
}

fn deb822_entry(stanza: &BTreeMap<String, String>, codename: &str) -> Option<Archive> {
    let has = |field: &str, word: &str| {
        let value = stanza.get(field).map(String::as_str).unwrap_or_default();
        value.split_whitespace().any(|given| given == word)
    };
    if has("enabled", "no") || !has("types", "deb") || !has("suites", codename) || !has("components", "main")
    {
        return None;
    }
    let trust = TRUST.iter().filter_map(|(name, field)| Some((*field, stanza.get(*name)?.clone())));
    Some(Archive { uri: stanza.get("uris")?.split_whitespace().next()?.into(), trust: trust.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(uri: &str, trust: &[(&'static str, &str)]) -> Option<Archive> {
        let trust = trust.iter().map(|(field, value)| (*field, value.to_string()));
        Some(Archive { uri: uri.into(), trust: trust.collect() })
    }

    #[test]
    fn the_one_line_form() {
        let text = "\
# deb http://commented.invalid/debian bookworm main
deb-src http://source.invalid/debian bookworm main
deb http://security.invalid/debian-security bookworm-security main
deb http://contrib.invalid/debian bookworm contrib
deb [arch=amd64 signed-by=/k/a.gpg,/k/b.gpg] http://right.invalid/debian bookworm contrib main
";
        assert_eq!(
            one_line_form(text, "bookworm"),
            archive("http://right.invalid/debian", &[("Signed-By", "/k/a.gpg /k/b.gpg")])
        );
        assert_eq!(one_line_form(text, "trixie"), None);
    }

    #[test]
    fn the_deb822_form() {
        let text = "\
Types: deb
URIs: http://off.invalid/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://source.invalid/debian
Suites: bookworm
Components: main

Types: deb deb-src
# comment
URIs: http://right.invalid/debian http://second.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----
";
        let key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n -----END PGP PUBLIC KEY BLOCK-----";
        let found = deb822_form(text, "bookworm");
        assert_eq!(found, archive("http://right.invalid/debian", &[("Signed-By", key)]));
        assert!(found.unwrap().stanza(&SUITES).ends_with("KEY BLOCK-----\n"));
        assert_eq!(deb822_form(text, "trixie"), None);
    }
}
