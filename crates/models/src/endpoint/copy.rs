//! A copy engine: reads from one IOVA, writes to another, in pieces that stay within a page.

use std::collections::{BTreeMap, VecDeque};

use super::{Engine, Failure, Intent, Job, JobEnd, JobRefused, Port};
use crate::adversary::Adversary;
use crate::bus::PAGE;

/// A piece of the job.
#[derive(Debug, Clone, Copy)]
struct Piece {
    source: u64,
    destination: u64,
    len: u32,
    /// How often one of its accesses was denied.
    denied: u32,
}

/// What an access does for its piece.
#[derive(Debug, Clone)]
enum Stage {
    Reading(Piece),
    Writing(Piece, Vec<u8>),
    /// Reading again where an earlier piece went, for nothing but to use that translation.
    LookingBack(Piece),
}

/// The engine. Several pieces are under way at once, so that a device with PRI asks for several
/// pages in a group.
#[derive(Debug)]
pub struct CopyEngine {
    window: usize,
    retries: u32,
    /// Pieces for one look back; 0: none.
    every: u64,
    job: Option<Job>,
    /// Bytes handed out as pieces.
    started: u64,
    /// Pieces handed out.
    pieces: u64,
    /// Stages to be started (again).
    waiting: VecDeque<Stage>,
    running: BTreeMap<u64, Stage>,
    end: Option<JobEnd>,
}

impl CopyEngine {
    /// An engine with up to `window` pieces under way (at least 1). A piece whose page request is
    /// answered with Invalid is tried again up to `retries` times.
    pub fn new(window: usize, retries: u32) -> Self {
        CopyEngine {
            window: window.max(1),
            retries,
            every: 0,
            job: None,
            started: 0,
            pieces: 0,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            end: None,
        }
    }

    /// Has the engine read again, after every so many pieces, from where an earlier one went. A
    /// copy alone uses each page once: it would not notice a translation that should be gone.
    #[must_use]
    pub fn looking_back(mut self, every: u64) -> Self {
        self.every = every;
        self
    }

    /// Where to look back to, if it is time: somewhere in what was handed out so far.
    fn look_back(&mut self) -> Option<Piece> {
        self.pieces += 1;
        if self.every == 0 || !self.pieces.is_multiple_of(self.every) {
            return None;
        }
        let job = self.job?;
        let anywhere = self.pieces.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.started.max(1);
        let destination = job.destination.wrapping_add(anywhere);
        Some(Piece { source: destination, destination, len: 1, denied: 0 })
    }

    fn next_piece(&mut self) -> Option<Piece> {
        let job = self.job?;
        let left = job.len - self.started;
        let source = job.source.wrapping_add(self.started);
        let destination = job.destination.wrapping_add(self.started);
        let room = |a: u64| PAGE - (a & (PAGE - 1));
        let len = left.min(room(source)).min(room(destination));
        if len == 0 {
            return None;
        }
        self.started += len;
        Some(Piece { source, destination, len: len as u32, denied: 0 })
    }

    fn has_more(&self) -> bool {
        self.job.is_some_and(|j| self.started < j.len)
    }

    fn start(&mut self, port: &mut Port, stage: Stage) {
        let ticket = match &stage {
            Stage::Reading(p) | Stage::LookingBack(p) => port.access(p.source, Intent::Read(p.len)),
            Stage::Writing(p, data) => port.access(p.destination, Intent::Write(data.clone())),
        };
        self.running.insert(ticket, stage);
    }

    fn finish(&mut self, end: JobEnd) {
        self.job = None;
        self.waiting.clear();
        self.end = Some(end);
    }
}

impl Engine for CopyEngine {
    fn wants(&self, _: &Port) -> bool {
        // Pieces whose write is due go first and are not held back by the window.
        !self.waiting.is_empty()
            || (self.has_more() && self.running.len() < self.window)
            || (self.job.is_some() && self.running.is_empty())
    }

    fn step(&mut self, port: &mut Port, _: &mut Adversary, _: usize) {
        while let Some(stage) = self.waiting.pop_front() {
            self.start(port, stage);
        }
        while self.running.len() < self.window {
            let Some(piece) = self.next_piece() else {
                break;
            };
            self.start(port, Stage::Reading(piece));
            if let Some(earlier) = self.look_back() {
                self.start(port, Stage::LookingBack(earlier));
            }
        }
        if self.job.is_some() && self.running.is_empty() && !self.has_more() {
            self.finish(JobEnd::Done);
        }
    }

    fn ended(&mut self, _: &mut Port, ticket: u64, result: Result<Vec<u8>, Failure>) {
        let Some(stage) = self.running.remove(&ticket) else {
            return;
        };
        if self.job.is_none() {
            return;
        }
        match (stage, result) {
            (Stage::Reading(piece), Ok(data)) => self.waiting.push_back(Stage::Writing(piece, data)),
            (Stage::Writing(..) | Stage::LookingBack(_), Ok(_)) => {}
            (stage, Err(failure)) => self.failed(stage, failure),
        }
    }

    fn reset(&mut self) {
        self.running.clear();
        if self.job.is_some() {
            self.finish(JobEnd::Reset);
        }
    }

    fn submit(&mut self, job: Job) -> Result<(), JobRefused> {
        if self.job.is_some() || !self.running.is_empty() {
            return Err(JobRefused::Busy);
        }
        (self.started, self.pieces) = (0, 0);
        self.end = None;
        self.job = Some(job);
        Ok(())
    }

    fn job_end(&self) -> Option<JobEnd> {
        self.end
    }
}

impl CopyEngine {
    fn failed(&mut self, mut stage: Stage, failure: Failure) {
        let (piece, iova) = match &mut stage {
            Stage::Reading(p) | Stage::LookingBack(p) => {
                let iova = p.source;
                (p, iova)
            }
            Stage::Writing(p, _) => {
                let iova = p.destination;
                (p, iova)
            }
        };
        piece.denied += 1;
        let again = matches!(failure, Failure::Denied(_)) && piece.denied <= self.retries;
        if again {
            self.waiting.push_back(stage);
        } else {
            self.finish(JobEnd::Failed { iova, failure });
        }
    }
}
