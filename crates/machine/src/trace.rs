//! A run as a Chrome trace, which Perfetto and `chrome://tracing` open: a process for each device,
//! in it tracks of its accesses, of its page-request groups and of the resolvers that serve it.
//!
//! Events are written as they happen: what is kept is what is open.

use crate::{
    oracle::{Entry, Place, Reader},
    platform::AnyPlatform,
    watch,
};
use parking_lot::Mutex;
use portcullis::Platform;
use portcullis_models::{
    bus::{Pasid, RequesterId},
    log::{Event, Reach, What},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    io::{self, Write},
    sync::Arc,
};

/// The trace of one run. A handle.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Writer>>);

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").finish_non_exhaustive()
    }
}

struct Writer {
    out: Box<dyn Write + Send>,
    clock: Option<AnyPlatform>,
    /// Something was written before.
    begun: bool,
    /// The first error; nothing is written after it.
    error: Option<io::Error>,
    /// Tracks that have their names.
    named: BTreeSet<(u32, u32)>,
    /// What is open, and on which lane.
    open: BTreeMap<Span, u32>,
}

/// What has a beginning and an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    process: u32,
    kind: Kind,
    number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Access,
    Group,
    Resolver,
}

impl Kind {
    /// Lanes of a kind begin here.
    fn tracks(self) -> u32 {
        match self {
            Kind::Access => 1,
            Kind::Group => 1 << 16,
            Kind::Resolver => 1 << 17,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Access => "DMA",
            Kind::Group => "page request groups",
            Kind::Resolver => "resolver",
        }
    }
}

/// The track of what has no length.
const EVENTS: u32 = 0;
/// The process of the IOMMU itself; those of devices are their requester ids and one.
const IOMMU: u32 = 1 << 20;

impl Trace {
    /// A trace written to `out`, which should be buffered.
    pub fn new(out: Box<dyn Write + Send>) -> Trace {
        Trace(Arc::new(Mutex::new(Writer {
            out,
            clock: None,
            begun: false,
            error: None,
            named: BTreeSet::new(),
            open: BTreeMap::new(),
        })))
    }

    /// Takes the time from this platform from now on, and reads what an oracle is told.
    pub fn reader(&self, platform: &AnyPlatform) -> Box<dyn Reader> {
        self.0.lock().clock = Some(platform.clone());
        Box::new(self.clone())
    }

    /// Ends what is open, and the trace.
    ///
    /// # Errors
    /// The first that writing met.
    pub fn finish(&self) -> io::Result<()> {
        let mut w = self.0.lock();
        let open: Vec<Span> = w.open.keys().copied().collect();
        open.into_iter().for_each(|span| w.end(span));
        let end = if w.begun { "\n]}\n" } else { "{\"traceEvents\":[]}\n" };
        w.put(end);
        // The platform holds the hardware, and that this reader.
        w.clock = None;
        match w.error.take() {
            Some(e) => Err(e),
            None => w.out.flush(),
        }
    }
}

impl Reader for Trace {
    fn read(&mut self, entry: &Entry) {
        let mut w = self.0.lock();
        match entry {
            Entry::Attach { place, domain } => w.at(*place, "attach", &[("domain", domain.to_string())]),
            Entry::Replaced { place, domain } => w.at(*place, "leave", &[("domain", domain.to_string())]),
            Entry::Detached { place, domain } => w.at(*place, "detach", &[("domain", domain.to_string())]),
            Entry::Enters { place, attachment } => {
                w.begin(resolver(*place, *attachment), "resolver", &at(place.1));
            }
            Entry::Leaves { place, attachment } => w.end(resolver(*place, *attachment)),
            Entry::Map { .. } | Entry::Unmapped { .. } | Entry::Delivered { .. } | Entry::Gone(_) => {}
            Entry::Bus(event) => w.bus(event),
        }
    }
}

fn process(source: RequesterId) -> u32 {
    u32::from(source.0) + 1
}

fn resolver(place: Place, attachment: u64) -> Span {
    Span { process: process(place.0), kind: Kind::Resolver, number: attachment }
}

fn access(r: &Reach) -> Span {
    Span { process: process(r.source), kind: Kind::Access, number: r.access }
}

type Arguments = [(&'static str, String)];

fn at(pasid: Option<Pasid>) -> Vec<(&'static str, String)> {
    pasid.map(|p| ("PASID", p.get().to_string())).into_iter().collect()
}

impl Writer {
    fn bus(&mut self, event: &Event) {
        let hex = |n: u64| format!("{n:#x}");
        match &event.what {
            What::Begin(r) => {
                let mut args = at(r.pasid);
                args.extend([("iova", hex(r.iova)), ("phys", hex(r.phys)), ("bytes", r.len.to_string())]);
                self.begin(access(r), if r.write { "write" } else { "read" }, &args);
            }
            What::Finish(r) => self.end(access(r)),
            What::Blocked { source, pasid, addr, status, reason, .. } => {
                let mut args = at(*pasid);
                args.extend([("address", hex(*addr)), ("reason", watch::blocked(*status, *reason))]);
                self.instant(process(*source), "fault", &args);
            }
            What::PageRequested(r) => {
                let pasid = r.prefix.map(|p| p.pasid);
                let mut args = at(pasid);
                args.extend([("page", hex(r.addr)), ("group index", r.prgi.to_string())]);
                self.instant(process(r.source), "page request", &args);
                if r.needs_response() && r.group != 0 {
                    self.begin(group(r.source, r.group), "page request group", &args);
                }
            }
            What::PageDropped { request, cause, .. } => {
                let args = [("cause", format!("{cause:?}"))];
                self.instant(process(request.source), "page request dropped", &args);
            }
            What::ResponseSent { source, pasid, prgi, code, by, .. } => {
                let mut args = at(*pasid);
                args.extend([
                    ("group index", prgi.to_string()),
                    ("code", format!("{code:?}")),
                    ("by", format!("{by:?}").to_lowercase()),
                ]);
                self.instant(process(*source), "response", &args);
            }
            What::Settled { source, group: number, .. } => self.end(group(*source, *number)),
            What::Invalidated { cache, source, pasid } => {
                let to = source.map_or(IOMMU, process);
                let mut args = at(*pasid);
                args.push(("cache", format!("{cache:?}")));
                self.instant(to, "invalidation", &args);
            }
            What::Reset { source } => self.instant(process(*source), "reset", &[]),
            _ => {}
        }
    }

    fn at(&mut self, place: Place, name: &str, more: &Arguments) {
        let mut args = at(place.1);
        args.extend_from_slice(more);
        self.instant(process(place.0), name, &args);
    }

    /// Begins a span on the first free lane of its kind: lanes of one device do not cross.
    fn begin(&mut self, span: Span, name: &str, args: &Arguments) {
        if self.open.contains_key(&span) {
            return;
        }
        let all = Span { number: 0, ..span }..=Span { number: u64::MAX, ..span };
        let taken: BTreeSet<u32> = self.open.range(all).map(|(_, lane)| *lane).collect();
        let lane = (0..).find(|lane| !taken.contains(lane)).unwrap_or(0);
        self.open.insert(span, lane);
        let track = (span.process, span.kind.tracks() + lane);
        self.name(track, &format!("{} {lane}", span.kind.name()));
        self.event('B', track, name, args);
    }

    fn end(&mut self, span: Span) {
        if let Some(lane) = self.open.remove(&span) {
            self.event('E', (span.process, span.kind.tracks() + lane), "", &[]);
        }
    }

    fn instant(&mut self, process: u32, name: &str, args: &Arguments) {
        let track = (process, EVENTS);
        self.name(track, "events");
        self.event('i', track, name, args);
    }

    /// Gives a track and its process their names, once.
    fn name(&mut self, (process, track): (u32, u32), name: &str) {
        if self.named.insert((process, track)) {
            if self.named.insert((process, u32::MAX)) {
                let device = match process {
                    IOMMU => "IOMMU".into(),
                    id => RequesterId((id - 1) as u16).to_string(),
                };
                self.event('M', (process, 0), "process_name", &[("name", device)]);
            }
            self.event('M', (process, track), "thread_name", &[("name", name.into())]);
        }
    }

    fn event(&mut self, phase: char, (process, track): (u32, u32), name: &str, args: &Arguments) {
        let ns = self.clock.as_ref().map_or(0, |p| p.now().0);
        let mut line =
            String::from(if self.begun { ",\n" } else { "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n" });
        self.begun = true;
        let _ = write!(line, "{{\"ph\":\"{phase}\",\"pid\":{process},\"tid\":{track}");
        let _ = write!(line, ",\"ts\":{}.{:03}", ns / 1_000, ns % 1_000);
        if !name.is_empty() {
            let _ = write!(line, ",\"name\":\"{}\"", escaped(name));
        }
        if phase == 'i' {
            line.push_str(",\"s\":\"t\"");
        }
        if !args.is_empty() {
            let args: Vec<String> =
                args.iter().map(|(key, value)| format!("\"{key}\":\"{}\"", escaped(value))).collect();
            let _ = write!(line, ",\"args\":{{{}}}", args.join(","));
        }
        line.push('}');
        self.put(&line);
    }

    fn put(&mut self, text: &str) {
        if self.error.is_none() {
            self.error = self.out.write_all(text.as_bytes()).err();
        }
    }
}

fn group(source: RequesterId, number: u64) -> Span {
    Span { process: process(source), kind: Kind::Group, number }
}

fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}
