//! One QEMU process: a q35 with its VT-d, test devices behind it, and its memory mapped here.
//!
//! Registers go over [`qtest`](crate::qtest) at some 10 us an access. Memory is shared, so tables,
//! queues and buffers are plain memory to both sides; a device may write it at any time, so it is
//! reached through vm-memory's volatile and atomic accessors and never through a reference.

mod devices;
mod fw_cfg;
mod pci;

use std::fs::{self, File};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::qtest::{Qtest, QtestError};
use portcullis_machine::memory::{MemoryError, Ram};
use portcullis_machine::qtest::{self, Pc};
use portcullis_models::vtd as model;

pub use devices::{DmaFailure, Edu, TestDev};
pub use fw_cfg::FwCfg;
pub use pci::{Bdf, PciConfig};

/// Names the QEMU command; `cargo xtask test` sets it.
pub const COMMAND_VARIABLE: &str = "PORTCULLIS_QEMU";

/// Bytes of guest memory, all of it from physical address 0.
pub const MEMORY_BYTES: usize = 256 << 20;

/// Where the upper part of guest memory begins, which a [`Ram`] can be made of. Below are the holes
/// and shadows of a PC.
pub const UPPER_MEMORY: u64 = 64 << 20;

/// Where q35 has the registers of its VT-d.
pub const VTD_REGISTERS: u64 = 0xfed9_0000;

/// The two edu devices' places on bus 0: their requester ids are 0x80 and 0x88.
pub const EDUS: [Bdf; 2] = [Bdf::new(0, 0x10, 0), Bdf::new(0, 0x11, 0)];

/// The iommu-testdev's place on bus 0: its requester id is 0x90.
pub const TESTDEV: Bdf = Bdf::new(0, 0x12, 0);

/// Where BARs are put: below the APICs, out of the way of memory.
const BARS: u64 = 0xfe00_0000;

/// QEMU takes 30 to 70 ms to connect; a loaded machine some multiple of it.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Why there is no QEMU to test with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QemuError {
    /// The folder for the socket and the memory, or the process, could not be made.
    #[error("cannot {doing}")]
    Host {
        /// What failed.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Guest memory could not be mapped.
    #[error("cannot map guest memory: {0}")]
    Map(String),
    /// QEMU exited, or does not talk.
    #[error("QEMU does not talk; it wrote: {said}")]
    Silent {
        /// What it wrote to its standard error.
        said: String,
        /// What the connection says.
        source: QtestError,
    },
    /// A command failed after the start.
    #[error("a qtest command failed")]
    Qtest(#[from] QtestError),
    /// There is another device, or none, where one was expected.
    #[error("no device {expected:#010x} at {at}, but {found:#010x}")]
    NoDevice {
        /// Where.
        at: Bdf,
        /// Device id in the upper half, vendor id in the lower.
        expected: u32,
        /// The same of what is there; all ones if nothing is.
        found: u32,
    },
}

/// A running QEMU, or what stands in for it; dropped, it ends.
#[derive(Debug)]
pub struct Qemu {
    qtest: Arc<Qtest>,
    memory: GuestMemoryMmap,
    upper: Arc<MmapRegion>,
    _other: Other,
}

impl Qemu {
    /// Starts the QEMU that [`COMMAND_VARIABLE`] names. Without one, prints the line by which
    /// `cargo xtask test` counts the test `name` as skipped, and returns `None`: the caller returns.
    ///
    /// # Panics
    /// If there is a command and it does not start: that is a failed test.
    #[must_use]
    pub fn start_or_skip(name: &str, vtd: &str) -> Option<Self> {
        let Some(command) = std::env::var_os(COMMAND_VARIABLE) else {
            println!("PORTCULLIS-SKIP: {name}: no QEMU ({COMMAND_VARIABLE} is not set)");
            return None;
        };
        match Self::start(Path::new(&command), vtd) {
            Ok(qemu) => Some(qemu),
            Err(error) => panic!("{name}: {}: {error:?}", Path::new(&command).display()),
        }
    }

    /// Starts `command` with the VT-d's properties `vtd`, such as `"scalable-mode=on,fsts=on"`, and
    /// brings the test devices up: BARs, memory decoding, bus mastering.
    ///
    /// The process also ends when the calling thread does.
    ///
    /// # Errors
    /// Any [`QemuError`].
    pub fn start(command: &Path, vtd: &str) -> Result<Self, QemuError> {
        let host = |doing| move |source| QemuError::Host { doing, source };
        let meeting = Meeting::new()?;
        let errors = meeting.folder.0.join("errors");
        let stderr = File::create(&errors).map_err(host("keep QEMU's messages"))?;
        let process = Command::new(command)
            .args(arguments(&meeting.socket, &meeting.ram, vtd))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map(Process)
            .map_err(host("start QEMU"))?;
        Self::meet(meeting, Other::Process(process), || fs::read_to_string(&errors).unwrap_or_default())
    }

    /// Starts our own model of a VT-d in QEMU's place: the machine behind
    /// `portcullis model vtd --qtest`, on a thread of its own.
    ///
    /// # Errors
    /// Any [`QemuError`].
    pub fn start_model(unit: model::Config) -> Result<Self, QemuError> {
        let host = |doing| move |source| QemuError::Host { doing, source };
        let meeting = Meeting::new()?;
        let file = File::options().read(true).write(true).open(&meeting.ram);
        let mut pc = Pc::over(file.map_err(host("open guest memory"))?, unit)
            .map_err(|error| QemuError::Map(error.to_string()))?;
        let socket = meeting.socket.clone();
        let thread = std::thread::spawn(move || qtest::serve(UnixStream::connect(socket)?, &mut pc));
        Self::meet(meeting, Other::Thread(thread), String::new)
    }

    /// Waits for the other side to connect, and brings the test devices up.
    fn meet(meeting: Meeting, mut other: Other, said: impl Fn() -> String) -> Result<Self, QemuError> {
        let qtest = Qtest::accept(&meeting.listener, START_LIMIT, || other.is_alive())
            .and_then(|qtest| {
                qtest.read32(VTD_REGISTERS)?; // It has read its options and opened its memory.
                Ok(qtest)
            })
            .map_err(|source| QemuError::Silent { said: said(), source })?;
        let Meeting { folder, memory, upper, .. } = meeting;
        drop(folder); // Both sides have open what was in it, so even a killed test leaves nothing.

        let qemu = Self { qtest: Arc::new(qtest), memory, upper, _other: other };
        let pci = PciConfig::new(qemu.qtest.clone());
        for (i, (at, id)) in DEVICES.into_iter().enumerate() {
            pci.expect(at, id)?;
            pci.enable(at, bar_of(i))?;
        }
        Ok(qemu)
    }

    /// Registers, ports and the clock.
    #[must_use]
    pub fn qtest(&self) -> &Arc<Qtest> {
        &self.qtest
    }

    /// Guest memory, which CPU, VT-d and devices see too. Clones share the mapping.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Guest memory from [`UPPER_MEMORY`] on, as memory that gives out frames. Each call begins
    /// with all of them free: one for each QEMU.
    ///
    /// # Errors
    /// [`MemoryError::NotAtomic`] where 16-byte accesses would take a lock.
    pub fn ram(&self) -> Result<Ram, MemoryError> {
        Ram::over(UPPER_MEMORY, self.upper.clone())
    }

    /// PCI configuration space.
    #[must_use]
    pub fn pci(&self) -> PciConfig {
        PciConfig::new(self.qtest.clone())
    }

    /// What QEMU has for the machine's firmware.
    #[must_use]
    pub fn fw_cfg(&self) -> FwCfg {
        FwCfg::new(self.qtest.clone())
    }

    /// The two edu devices of [`EDUS`].
    #[must_use]
    pub fn edus(&self) -> [Edu; 2] {
        [0, 1].map(|i| Edu::new(self.qtest.clone(), bar_of(i)))
    }

    /// The iommu-testdev of [`TESTDEV`].
    #[must_use]
    pub fn testdev(&self) -> TestDev {
        TestDev::new(self.qtest.clone(), bar_of(2))
    }
}

const DEVICES: [(Bdf, u32); 3] = [(EDUS[0], Edu::ID), (EDUS[1], Edu::ID), (TESTDEV, TestDev::ID)];

/// The BAR of the device at `index` in [`DEVICES`]: none is larger than 1 MiB.
const fn bar_of(index: usize) -> u64 {
    BARS + ((index as u64) << 20)
}

/// Maps the two parts of guest memory.
fn map_memory(file: Arc<File>) -> Result<(GuestMemoryMmap, Arc<MmapRegion>), String> {
    let map = |start: u64, size: usize| -> Result<_, String> {
        let part = FileOffset::from_arc(file.clone(), start);
        let region = Arc::new(MmapRegion::from_file(part, size).map_err(|e| e.to_string())?);
        let guest = GuestRegionMmap::with_arc(region.clone(), GuestAddress(start));
        Ok((guest.ok_or("it does not fit the address space")?, region))
    };
    let (low, _) = map(0, UPPER_MEMORY as usize)?;
    let (high, upper) = map(UPPER_MEMORY, MEMORY_BYTES - UPPER_MEMORY as usize)?;
    let memory = GuestMemoryMmap::from_regions(vec![low, high]).map_err(|e| e.to_string())?;
    Ok((memory, upper))
}

fn arguments(socket: &Path, ram: &Path, vtd: &str) -> Vec<String> {
    let vtd = match vtd {
        "" => "intel-iommu".to_string(),
        properties => format!("intel-iommu,{properties}"),
    };
    let [edu0, edu1] = EDUS.map(|at| {
        let slot = at.device();
        format!("edu,addr={slot:#x},dma_mask=0xffffffffffffffff")
    });
    [
        ["-accel", "qtest"],
        ["-qtest", &format!("unix:{}", socket.display())],
        ["-qtest-log", "/dev/null"],
        ["-display", "none"],
        ["-run-with", "exit-with-parent=on"],
        ["-machine", "q35,memory-backend=ram"],
        ["-m", &format!("{}M", MEMORY_BYTES >> 20)],
        [
            "-object",
            &format!("memory-backend-file,id=ram,size={MEMORY_BYTES},share=on,mem-path={}", ram.display()),
        ],
        ["-device", &vtd],
        ["-device", &edu0],
        ["-device", &edu1],
        ["-device", &format!("iommu-testdev,addr={:#x}", TESTDEV.device())],
    ]
    .into_iter()
    .flatten()
    .map(String::from)
    .chain(["-nodefaults".to_string()])
    .collect()
}

/// Where the two sides find each other: a socket, and memory that both map.
struct Meeting {
    folder: Folder,
    socket: PathBuf,
    listener: UnixListener,
    ram: PathBuf,
    memory: GuestMemoryMmap,
    upper: Arc<MmapRegion>,
}

impl Meeting {
    fn new() -> Result<Self, QemuError> {
        let host = |doing| move |source| QemuError::Host { doing, source };
        let folder = Folder::new().map_err(host("make a folder for the socket"))?;
        let socket = folder.0.join("qtest");
        let listener = UnixListener::bind(&socket).map_err(host("listen for QEMU"))?;
        let ram = folder.0.join("ram");
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&ram)
            .map_err(host("make guest memory"))?;
        file.set_len(MEMORY_BYTES as u64).map_err(host("size guest memory"))?;
        let (memory, upper) = map_memory(Arc::new(file)).map_err(QemuError::Map)?;
        Ok(Self { folder, socket, listener, ram, memory, upper })
    }
}

/// Who is at the other end of the socket.
#[derive(Debug)]
enum Other {
    Process(Process),
    /// It ends by itself once the socket is closed.
    Thread(JoinHandle<io::Result<()>>),
}

impl Other {
    fn is_alive(&mut self) -> bool {
        match self {
            Other::Process(process) => process.is_alive(),
            Other::Thread(thread) => !thread.is_finished(),
        }
    }
}

/// A child that does not outlive its owner.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have exited by itself; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A private folder, removed with all in it.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("portcullis-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // Guest memory belongs in memory; a short path besides, as a socket's has 107 bytes.
        let shared = Path::new("/dev/shm").join(&name);
        match fs::create_dir(&shared) {
            Ok(()) => Ok(Self(shared)),
            Err(_) => {
                let place = std::env::temp_dir().join(&name);
                fs::create_dir(&place)?;
                Ok(Self(place))
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing is lost with a folder that stays behind.
        let _ = fs::remove_dir_all(&self.0);
    }
}
