//! Running programs with their output kept in a file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a program ended, and what it wrote.
pub struct Ended {
    /// Its exit code; `None` if a signal or the time limit ended it.
    pub code: Option<i32>,
    /// The time limit ended it.
    pub timed_out: bool,
    /// What it wrote to stdout and stderr.
    pub output: String,
}

impl Ended {
    /// Ok if the program exited with 0, else one line that says how it ended.
    pub fn success(&self) -> Result<(), String> {
        match self.code {
            Some(0) => Ok(()),
            Some(code) => Err(format!("exit code {code}")),
            None if self.timed_out => Err("time limit passed".into()),
            None => Err("ended by a signal".into()),
        }
    }
}

/// A cargo command, run by the cargo that runs us, at the root of the repository.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root).env("CARGO_TERM_COLOR", "never");
    command
}

/// Runs `command` with both its output streams appended to `log`, for at most `limit`.
pub fn run(command: &mut Command, log: &Path, limit: Option<Duration>) -> io::Result<Ended> {
    run_with_input(command, "", log, limit)
}

/// As [`run`], with `input` (less than a pipe holds) on its standard input.
pub fn run_with_input(
    command: &mut Command,
    input: &str,
    log: &Path,
    limit: Option<Duration>,
) -> io::Result<Ended> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = File::options().create(true).append(true).open(log)?;
    let before = file.metadata()?.len();
    let mut child = command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file).spawn()?;
    if let Some(mut pipe) = child.stdin.take()
        && let Err(error) = pipe.write_all(input.as_bytes())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        child.kill()?;
        child.wait()?;
        return Err(error);
    }

    let start = Instant::now();
    let mut timed_out = false;
    let status = loop {
        let Some(limit) = limit else {
            break child.wait()?;
        };
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            timed_out = true;
            child.kill()?;
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    };

    let all = fs::read(log)?;
    let new = all.get(usize::try_from(before).unwrap_or(usize::MAX)..).unwrap_or_default();
    Ok(Ended {
        code: if timed_out { None } else { status.code() },
        timed_out,
        output: String::from_utf8_lossy(new).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Option<Duration>) -> Ended {
        let name = format!("xtask-process-{}-{}", std::process::id(), script.len());
        let log = std::env::temp_dir().join(name);
        let ended = run(Command::new("sh").args(["-c", script]), &log, limit);
        let _ = fs::remove_file(&log);
        ended.unwrap()
    }

    #[test]
    fn both_streams_and_the_code_are_kept() {
        let ended = shell("echo one; echo two >&2; exit 3", None);
        assert_eq!((ended.code, ended.output.as_str()), (Some(3), "one\ntwo\n"));
        assert_eq!(ended.success(), Err("exit code 3".into()));
    }

    #[test]
    fn the_limit_ends_a_program_that_hangs() {
        let ended = shell("exec sleep 60", Some(Duration::from_millis(50)));
        assert!(ended.timed_out);
        assert_eq!(ended.success(), Err("time limit passed".into()));
    }
}
