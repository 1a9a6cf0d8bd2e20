//! What the command line can say.

use clap::{Args, Parser, Subcommand, ValueEnum};
use portcullis_machine::scenario::copy::Level;
use std::path::PathBuf;

/// An IOMMU subsystem, and machines on which it can be watched at work.
#[derive(Parser)]
#[command(name = "portcullis", version, disable_help_subcommand = true)]
pub struct Portcullis {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
    Sim(Simulation),
    /// Stand in for an IOMMU's hardware, for tests of drivers.
    #[command(
        subcommand,
        verbatim_doc_comment,
        disable_help_subcommand = true,
        arg_required_else_help = false
    )]
    Model(Model),
    /// Read a page table out of an image of memory.
    #[command(
        subcommand,
        verbatim_doc_comment,
        disable_help_subcommand = true,
        arg_required_else_help = false
    )]
    Pgtable(Pgtable),
}

#[derive(Subcommand)]
pub enum Pgtable {
    Dump(TableImage),
    Check(TableImage),
}

/// Tell what a page table maps, or what is wrong with it.
///
/// FILE is a raw image of memory, such as the file that QEMU's pmemsave writes. dump prints a line
/// for leaves of the same size and permissions that continue one another; check prints a line for
/// each entry that the format would not have written, that leads out of the image or to a table
/// that is in the tree already, or that is torn. Addresses are input addresses without the bits
/// above the table's width.
///
/// Exit status: 0, 1 if check found something, 2 if an argument is wrong or FILE is of no use.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct TableImage {
    /// Image of memory
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Format of the table
    #[arg(long, value_name = "FORMAT")]
    pub format: TableFormat,

    /// Physical address of the root table
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub root: u64,

    /// Physical address of the first byte of FILE
    #[arg(long, value_name = "ADDRESS", value_parser = address, default_value = "0")]
    pub base: u64,

    /// Levels of the walk, as many as the format has at most
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub levels: u8,

    /// Width of the input address [default: what the levels hold]
    #[arg(long, value_name = "BITS")]
    pub input_bits: Option<u8>,

    /// Width of the output address
    #[arg(long, value_name = "BITS", default_value_t = 48)]
    pub output_bits: u8,

    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum TableFormat {
    /// VT-d second stage
    VtdSs,
    /// VT-d first stage
    X86Fs,
    /// AMD host tables
    AmdV1,
    /// AMD guest tables
    AmdV2,
    #[value(name = "arm-s1-4k")]
    ArmS1K4,
    #[value(name = "arm-s1-16k")]
    ArmS1K16,
    #[value(name = "arm-s1-64k")]
    ArmS1K64,
    #[value(name = "arm-s2-4k")]
    ArmS2K4,
    #[value(name = "arm-s2-16k")]
    ArmS2K16,
    #[value(name = "arm-s2-64k")]
    ArmS2K64,
    /// RISC-V Sv39, Sv48, Sv57
    RiscvFs,
    /// RISC-V Sv39x4, Sv48x4, Sv57x4
    RiscvSs,
    /// Rockchip, second version
    RockchipV2,
}

/// An address, in decimal or, after 0x, in hexadecimal.
fn address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "no address of up to 64 bits".into())
}

#[derive(Subcommand)]
pub enum Model {
    Vtd(VtdModel),
}

/// A machine with an Intel VT-d that a test drives over QEMU's qtest protocol, as it drives QEMU.
///
/// It connects to SOCKET, on which the test listens, and obeys one command a line until the test
/// closes it: clock_step, clock_set, in and out, reads and writes of 1 to 8 bytes, read, write,
/// b64read, b64write, memset, endianness. What it cannot do it answers with FAIL and the reason.
///
/// All of FILE is the machine's memory, from address 0 on; the test maps it too. The registers of
/// the VT-d are at 0xfed90000. Three PCI functions are behind it, at 00:10.0, 00:11.0 and 00:12.0:
/// two edu devices and an iommu-testdev, with the registers that QEMU's have. They are found by the
/// ports 0xcf8 and 0xcfc, and their BARs go anywhere above the memory. A message of the VT-d is a
/// write to memory where there is some; there are no interrupt lines.
///
/// Exit status: 0 once the test closes the socket, 1 if the connection breaks, 2 if an argument is
/// wrong or what it names is of no use.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct VtdModel {
    /// Unix socket on which the test listens
    #[arg(long, value_name = "SOCKET")]
    pub qtest: PathBuf,

    /// The machine's memory: whole pages, 2 GiB at most; made if it is not there
    #[arg(long, value_name = "FILE")]
    pub mem: PathBuf,

    /// Bytes of a FILE that is made, or that is empty
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, default_value_t = 256 << 20)]
    pub size: u64,

    /// What the unit can do
    #[arg(long, value_name = "KIND", default_value = "full")]
    pub unit: Unit,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Unit {
    /// Scalable mode with both stages, PASIDs, device TLBs and page requests
    Full,
    /// The same without a first stage
    SecondStage,
    /// The same without a second stage
    FirstStage,
    /// Legacy mode only
    Legacy,
}

/// Run a scenario on a machine with devices behind an IOMMU, and check everything that moves.
///
/// The default scenario copies a file: copy engines behind one Intel VT-d read it and write it
/// elsewhere. Their memory is paged in on demand: a page that is not mapped is asked for by a page
/// request and answered with a page group response. Two hostile devices stand beside them.
/// Everything that moves is checked against three invariants, and the copies against the input by
/// SHA-256. --list names the other scenarios.
///
/// Clock, scheduler and adversary are deterministic: the same input and seed give the same report.
/// With --threads the same machine and the same checks run on real threads and the real clock.
///
/// Exit status: 0 if all data is right and no invariant is broken, 1 if not, 2 if an argument is
/// wrong or a file is of no use.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Simulation {
    /// What is run [default: copy]
    #[arg(long, value_name = "NAME", default_value = "copy", hide_default_value = true)]
    pub scenario: String,

    /// List the scenarios, a line each
    #[arg(long)]
    pub list: bool,

    /// File to copy [default: this executable]
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,

    /// Where to put what the engines wrote: FILE, FILE.1, FILE.2, ...
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Devices: of the copy, engines that work by requester id and inside a PASID in turn [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub devices: Option<usize>,

    /// How much happens, where a scenario lets it be chosen
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub size: Option<usize>,

    /// Page frames of all engines together [default: an eighth of the file, at least two an engine]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub frames: Option<usize>,

    /// Seed of the scheduler and the adversary
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 0)]
    pub seed: u64,

    /// How much goes wrong of what manuals allow to go wrong
    #[arg(long, value_name = "LEVEL", default_value = "off")]
    pub adversary: Adversary,

    /// Run on real threads, N of them workers: the seed then picks data and adversary, not the schedule
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub threads: Option<usize>,

    /// Write what happens to FILE as a Chrome trace, which Perfetto opens
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// Print the report as one JSON object; only what is under "timing" depends on the real clock
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Adversary {
    Off,
    Mild,
    Hostile,
}

impl From<Adversary> for Level {
    fn from(level: Adversary) -> Level {
        match level {
            Adversary::Off => Level::Off,
            Adversary::Mild => Level::Mild,
            Adversary::Hostile => Level::Hostile,
        }
    }
}
