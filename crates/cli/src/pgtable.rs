//! `portcullis pgtable`.

use crate::{
    Failure,
    arguments::{TableFormat, TableImage},
    files::reason,
    print,
};
use portcullis_pgtable::{
    AmdV1, AmdV2, ArmStage1, ArmStage2, Config, Format, Phys, RiscvFirstStage, RiscvSecondStage, RockchipV2,
    Top, VtdSecondStage, X86FirstStage,
    dump::{self, Finding, Image, Mapped},
};
use std::{cell::RefCell, fmt::Write, fs::File, os::unix::fs::FileExt};

/// Prints what a table maps.
///
/// # Errors
/// When the image is of no use.
pub fn dump(arguments: &TableImage) -> Result<(), Failure> {
    let mut text = String::new();
    let mut line = |m: Mapped| {
        let _ = if arguments.json { writeln!(text, "{}", m.json()) } else { writeln!(text, "{m}") };
    };
    read(arguments, &mut line, &mut |_| ())?;
    print(&text)
}

/// Prints what is wrong with a table.
///
/// # Errors
/// When something is, and when the image is of no use.
pub fn check(arguments: &TableImage) -> Result<(), Failure> {
    let (mut text, mut found) = (String::new(), 0u64);
    let mut line = |f: Finding| {
        found += 1;
        let _ = if arguments.json { writeln!(text, "{}", f.json()) } else { writeln!(text, "{f}") };
    };
    read(arguments, &mut |_| (), &mut line)?;
    print(&text)?;
    match found {
        0 => Ok(()),
        1 => Err(Failure::Run("one entry is wrong".into())),
        n => Err(Failure::Run(format!("{n} entries are wrong"))),
    }
}

fn read(
    arguments: &TableImage,
    mapped: &mut dyn FnMut(Mapped),
    wrong: &mut dyn FnMut(Finding),
) -> Result<(), Failure> {
    let unusable = |why: String| Failure::Argument(format!("{}: {why}", arguments.file.display()));
    let file = File::open(&arguments.file).map_err(|e| unusable(reason(&e)))?;
    let image = OnDisk { file, base: arguments.base, page: RefCell::default() };
    if image.load(arguments.root, 4).is_none() {
        return Err(unusable(format!("has no root table at {:#x}", arguments.root)));
    }
    let read = match arguments.format {
        TableFormat::VtdSs => of::<VtdSecondStage>,
        TableFormat::X86Fs => of::<X86FirstStage>,
        TableFormat::AmdV1 => of::<AmdV1>,
        TableFormat::AmdV2 => of::<AmdV2>,
        TableFormat::ArmS1K4 => of::<ArmStage1<12>>,
        TableFormat::ArmS1K16 => of::<ArmStage1<14>>,
        TableFormat::ArmS1K64 => of::<ArmStage1<16>>,
        TableFormat::ArmS2K4 => of::<ArmStage2<12>>,
        TableFormat::ArmS2K16 => of::<ArmStage2<14>>,
        TableFormat::ArmS2K64 => of::<ArmStage2<16>>,
        TableFormat::RiscvFs => of::<RiscvFirstStage>,
        TableFormat::RiscvSs => of::<RiscvSecondStage>,
        TableFormat::RockchipV2 => of::<RockchipV2>,
    };
    read(&image, arguments, mapped, wrong);
    Ok(())
}

fn of<F: Format>(
    image: &OnDisk,
    arguments: &TableImage,
    mapped: &mut dyn FnMut(Mapped),
    wrong: &mut dyn FnMut(Finding),
) {
    let top = Top { root: Phys(arguments.root), levels: arguments.levels.into() };
    let levels = top.levels.clamp(F::MIN_LEVELS, F::MAX_LEVELS);
    // Roots that are always larger hold more; those that may be are taken for a single table.
    let more = F::root_bits(0, levels).saturating_sub(F::TABLE_BITS);
    let whole = (F::shift(levels + 1) + more).min(64) as u8;
    let config = Config {
        input_bits: arguments.input_bits.unwrap_or(whole),
        output_bits: arguments.output_bits,
        levels: arguments.levels,
        ..Config::default()
    };
    dump::read::<F>(image, top, &config, mapped, wrong);
}

/// A file that is read a page at a time: an image may be larger than memory.
struct OnDisk {
    file: File,
    base: u64,
    /// The last page that was read, by its offset.
    page: RefCell<(Option<u64>, Vec<u8>)>,
}

impl Image for OnDisk {
    fn load(&self, address: u64, bytes: usize) -> Option<u64> {
        const PAGE: usize = 4096;
        let offset = address.checked_sub(self.base)?;
        let (page, within) = (offset / PAGE as u64, (offset % PAGE as u64) as usize);
        let (held, held_bytes) = &mut *self.page.borrow_mut();
        if *held != Some(page) {
            *held = None;
            held_bytes.resize(PAGE, 0);
            let mut read = 0;
            while read < PAGE {
                match self.file.read_at(&mut held_bytes[read..], page * PAGE as u64 + read as u64) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => read += n,
                }
            }
            held_bytes.truncate(read);
            *held = Some(page);
        }
        let mut word = [0; 8];
        word.get_mut(..bytes)?.copy_from_slice(held_bytes.get(within..within.checked_add(bytes)?)?);
        Some(u64::from_le_bytes(word))
    }
}
