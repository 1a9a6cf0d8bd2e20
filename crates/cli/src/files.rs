//! The file that is copied, and those that are written.

use crate::Failure;
use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Reads a file of at most `most` bytes whole, for so many engines.
///
/// # Errors
/// When it cannot be read, or is larger.
pub fn read(path: &Path, most: u64, engines: usize) -> Result<Arc<[u8]>, Failure> {
    let unreadable =
        |e: io::Error| Failure::Argument(format!("cannot read {}: {}", path.display(), reason(&e)));
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    // A device or a pipe tells no size, and may have no end.
    file.take(most + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(Failure::Argument(format!(
            "{} is too big: it is held in memory with its copies, so with {engines} engines it may have {most} bytes",
            path.display()
        )));
    }
    Ok(bytes.into())
}

/// Files to be written, opened before there is anything to write.
pub struct Outputs {
    files: Vec<(PathBuf, File)>,
}

impl Outputs {
    /// Opens `base`, `base.1` and so on. What was there stays until something is written.
    ///
    /// # Errors
    /// When one cannot be written, or is the input itself, which a run that fails would spoil;
    /// those that did not exist before are removed again.
    pub fn open(base: &Path, count: usize, input: &Path) -> Result<Outputs, Failure> {
        let mut files = Vec::new();
        let mut made = Vec::new();
        for n in 0..count {
            let path = numbered(base, n);
            let existed = path.exists();
            let opened = if existed && is_same(&path, input) {
                Err("it is the input".into())
            } else {
                let file = File::options().write(true).create(true).truncate(false).open(&path);
                file.map_err(|e| reason(&e))
            };
            match opened {
                Ok(file) => {
                    if !existed {
                        made.push(path.clone());
                    }
                    files.push((path, file));
                }
                Err(why) => {
                    for path in made {
                        // It holds nothing; whoever took it away meanwhile did what we want.
                        let _ = fs::remove_file(path);
                    }
                    return Err(Failure::Argument(format!("cannot write {}: {why}", path.display())));
                }
            }
        }
        Ok(Outputs { files })
    }

    /// Writes one output to each file.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(self, outputs: &[Vec<u8>]) -> Result<(), Failure> {
        for ((path, mut file), bytes) in self.files.into_iter().zip(outputs) {
            replace(&mut file, bytes)
                .map_err(|e| Failure::Run(format!("cannot write {}: {}", path.display(), reason(&e))))?;
        }
        Ok(())
    }
}

/// Opens an empty file to be written while there is something to write.
///
/// # Errors
/// When it cannot be written, or is the input.
pub fn create(path: &Path, input: Option<&Path>) -> Result<File, Failure> {
    let refused = |why| Failure::Argument(format!("cannot write {}: {why}", path.display()));
    if input.is_some_and(|input| is_same(path, input)) {
        return Err(refused("it is the input".into()));
    }
    File::create(path).map_err(|e| refused(reason(&e)))
}

fn replace(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    // A pipe or a terminal has no length to set.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
        file.rewind()?;
    }
    file.write_all(bytes)
}

/// Whether two paths lead to one regular file.
fn is_same(one: &Path, other: &Path) -> bool {
    one.is_file()
        && matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(one), Ok(other)) if one == other)
}

fn numbered(base: &Path, n: usize) -> PathBuf {
    if n == 0 {
        return base.into();
    }
    let mut name = OsString::from(base);
    name.push(format!(".{n}"));
    name.into()
}

/// The error without its number, which says nothing that its text does not.
pub fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
