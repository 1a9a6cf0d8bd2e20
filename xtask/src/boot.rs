//! The freestanding image in `boot/`: built by the host's own toolchain, booted in QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Layout, process};

/// Which build of the image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// As it is: it must succeed.
    Whole,
    /// Built without the mapping of the device's memory: its own comparison must find that out.
    WithoutMapping,
}

/// How QEMU's VT-d is set up: the image takes the best that it finds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Legacy,
    ScalableSecondStage,
    ScalableFirstStage,
}

impl Unit {
    fn device(self) -> &'static str {
        match self {
            Unit::Legacy => "intel-iommu",
            Unit::ScalableSecondStage => "intel-iommu,scalable-mode=on",
            Unit::ScalableFirstStage => "intel-iommu,scalable-mode=on,fsts=on",
        }
    }

    /// What the image says it uses.
    fn said(self) -> [&'static str; 3] {
        // Where q35 has it, which the image learns from the DMAR table.
        let place = "is served by the unit at 0xfed90000";
        match self {
            Unit::Legacy => [place, "in legacy mode", "of format vtd-ss"],
            Unit::ScalableSecondStage => [place, "in scalable mode", "of format vtd-ss"],
            Unit::ScalableFirstStage => [place, "in scalable mode", "of format x86-fs"],
        }
    }
}

/// QEMU's exit codes: isa-debug-exit turns the byte n, written by the image, into 2n + 1. A reset,
/// which a triple fault causes, ends QEMU with 0, so 0 says nothing.
const SUCCEEDED: i32 = 0x10 << 1 | 1;
const FOUND_A_FAILURE: i32 = 0x11 << 1 | 1;
const BYTES_DIFFER: i32 = 0x13 << 1 | 1;

/// The image needs a second.
const LIMIT: Duration = Duration::from_secs(60);

/// The machine the image is written for.
const MACHINE: &[&str] = &[
    "-accel",
    "tcg",
    "-machine",
    "q35",
    "-cpu",
    "max",
    "-m",
    "256M",
    "-nodefaults",
    "-display",
    "none",
    "-serial",
    "stdio",
    "-no-reboot",
    "-device",
    "isa-debug-exit,iobase=0xf4,iosize=4",
    "-device",
    "edu,dma_mask=0xffffffffffffffff",
];

pub fn check(image: Image, unit: Unit, qemu: &Path, at: &Layout, log: &Path) -> Result<(), String> {
    let kernel = build(image, at, log)?;
    let mut command = Command::new(qemu);
    // The unit comes before the devices behind it.
    command.args(["-device", unit.device()]).args(MACHINE).arg("-kernel").arg(kernel);
    let ended = process::run(&mut command, log, Some(LIMIT))
        .map_err(|error| format!("cannot start QEMU: {error}"))?;
    let missing = unit.said().into_iter().find(|said| !ended.output.contains(said));
    match (image, ended.code) {
        (Image::Whole, Some(SUCCEEDED)) | (Image::WithoutMapping, Some(BYTES_DIFFER)) => {
            missing.map_or(Ok(()), |said| Err(format!("the image does not say `{said}`")))
        }
        (Image::WithoutMapping, Some(SUCCEEDED)) => {
            Err("the image reports success although nothing is mapped".into())
        }
        (_, Some(FOUND_A_FAILURE)) => Err("the image reports a failure".into()),
        (_, Some(BYTES_DIFFER)) => Err("the image reports that the bytes differ".into()),
        _ => Err(match ended.success() {
            Ok(()) => "the image reset the machine before it reported".into(),
            Err(how) => format!("QEMU: {how}"),
        }),
    }
}

fn build(image: Image, at: &Layout, log: &Path) -> Result<PathBuf, String> {
    let boot = at.root.join("boot");
    let target = at.target.join("boot");
    // Run inside its folder, for the flags in its .cargo/config.toml; RUSTFLAGS would replace them.
    let mut command = process::cargo(&boot);
    command
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(["build", "--release", "--target-dir"])
        .arg(&target);
    if image == Image::WithoutMapping {
        command.arg("--no-default-features");
    }
    process::run(&mut command, log, None)
        .map_err(|error| format!("cannot start cargo: {error}"))?
        .success()
        .map_err(|how| format!("the build failed: {how}"))?;
    Ok(target.join("x86_64-unknown-linux-gnu/release/portcullis-boot"))
}
