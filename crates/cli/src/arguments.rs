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
