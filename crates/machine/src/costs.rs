//! What every step of the simulation costs, in nanoseconds of the virtual clock.
//!
//! The figures are the order of magnitude of a server; nothing depends on them being exact, and
//! all of them are here. The clock is one for the whole machine: work that a real machine does at
//! the same time is added up.

/// An atomic operation on a shared word.
pub const ATOMIC: u64 = 5;
/// An access of the CPU to one entry of table memory.
pub const TABLE_ACCESS: u64 = 5;
/// Cleaning one cache line for a walker that does not snoop.
pub const CLEAN_LINE: u64 = 50;
/// Taking a frame of table memory, zeroed.
pub const FRAME: u64 = 300;
/// Taking a short lock.
pub const LOCK: u64 = 20;
/// Looking at an event, or notifying one.
pub const EVENT: u64 = 30;
/// Reading a register of a device: a round trip over the bus.
pub const MMIO_READ: u64 = 600;
/// Writing a register: posted.
pub const MMIO_WRITE: u64 = 80;
/// The processor goes on with another task.
pub const CONTEXT_SWITCH: u64 = 1_000;
/// From the message of an interrupt to its handler.
pub const INTERRUPT_LATENCY: u64 = 1_500;
/// A sleeping worker is found and woken.
pub const WORKER_DISPATCH: u64 = 3_000;
/// An endpoint issues what it has ready.
pub const ENDPOINT_STEP: u64 = 50;
/// An IOMMU answers from its caches.
pub const TRANSLATE_HIT: u64 = 10;
/// A load of a table entry by an IOMMU.
pub const WALK_LOAD: u64 = 80;
/// A message crosses the fabric.
pub const MESSAGE: u64 = 200;
/// Begin of a transfer over the bus.
pub const MOVE: u64 = 100;
/// Bytes a transfer moves in one nanosecond, after its begin.
pub const BYTES_PER_NS: u64 = 16;
/// An IOMMU takes a step of its own: a command, an answer, a fault record.
pub const UNIT_STEP: u64 = 100;
