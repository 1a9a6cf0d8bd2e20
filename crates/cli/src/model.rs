//! `portcullis model`.

use crate::{
    Failure,
    arguments::{Unit, VtdModel},
    files::reason,
};
use portcullis_machine::qtest::{self, Pc};
use std::{
    fs::{self, File},
    io,
    os::unix::net::UnixStream,
    path::Path,
};

/// Serves a VT-d over qtest until the test closes the socket.
///
/// # Errors
/// When the memory or the socket is of no use, and when the connection breaks.
pub fn vtd(arguments: &VtdModel) -> Result<(), Failure> {
    let unit = match arguments.unit {
        Unit::Full => qtest::Unit::Full,
        Unit::SecondStage => qtest::Unit::SecondStage,
        Unit::FirstStage => qtest::Unit::FirstStage,
        Unit::Legacy => qtest::Unit::Legacy,
    };
    let unusable = |path: &Path, why: String| Failure::Argument(format!("{}: {why}", path.display()));
    let mem = &arguments.mem;
    if fs::metadata(mem).map_or(0, |m| m.len()) == 0 {
        Pc::memory_size(arguments.size).map_err(|e| unusable(mem, e.to_string()))?;
    }
    let file = memory(mem, arguments.size).map_err(|e| unusable(mem, reason(&e)))?;
    let mut pc = Pc::over(file, unit.config()).map_err(|e| unusable(mem, e.to_string()))?;
    let socket = &arguments.qtest;
    let stream = UnixStream::connect(socket).map_err(|e| unusable(socket, reason(&e)))?;
    qtest::serve(stream, &mut pc).map_err(|e| Failure::Run(format!("the qtest connection: {}", reason(&e))))
}

/// Opens a file, and gives it a size if it has none.
fn memory(path: &Path, size: u64) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    if file.metadata()?.len() == 0 {
        file.set_len(size)?;
    }
    Ok(file)
}
