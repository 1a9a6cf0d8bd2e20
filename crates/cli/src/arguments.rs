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

/// Copy a file through page-faulting devices behind a simulated IOMMU, and prove the copy.
///
/// Copy engines behind one Intel VT-d read the file and write it elsewhere. Their memory is paged in
/// on demand: a page that is not mapped is asked for by a page request and answered with a page group
/// response. Two hostile devices stand beside them. Everything that moves is checked against
/// three invariants, and the copies against the input by SHA-256.
///
/// Clock, scheduler and adversary are deterministic: the same input and seed give the same report.
/// With --threads the same machine and the same checks run on real threads and the real clock.
///
/// Exit status: 0 if every copy is identical and no invariant is broken, 1 if not, 2 if an argument
/// is wrong or a file is of no use.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Simulation {
    /// File to copy [default: this executable]
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,

    /// Where to put what the engines wrote: FILE, FILE.1, FILE.2, ...
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Copy engines, working by requester id and inside a PASID in turn
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 2)]
    pub devices: usize,

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
