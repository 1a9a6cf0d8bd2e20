//! The life of one page request, told out of the run in which it happened.

use parking_lot::Mutex;
use portcullis_models::{
    bus::{MsiSource, Pasid, RequesterId},
    log::{AccessLog, Event, What},
};
use std::sync::Arc;

/// One line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    time: u64,
    text: String,
}

#[derive(Default)]
struct Book {
    source: Option<RequesterId>,
    interrupt: u32,
    pasid: Option<Pasid>,
    page: u64,
    prgi: u16,
    group: u64,
    lines: Vec<Line>,
    stage: Stage,
    finished: Option<Vec<Line>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    #[default]
    Nothing,
    Requested,
    Queued,
    Interrupted,
    Resolving,
    Mapped,
    Answered,
    Responded,
    Settled,
}

/// Follows one page-request group of one device at a time, until one went the whole way.
#[derive(Clone, Default)]
pub struct Life(Arc<Mutex<Book>>);

impl Life {
    /// Follows the requests of this device, on an IOMMU whose page-request interrupt has this data.
    pub fn of(source: RequesterId, interrupt: u32) -> Life {
        Life(Arc::new(Mutex::new(Book { source: Some(source), interrupt, ..Book::default() })))
    }

    /// The resolver has got a group.
    pub fn resolving(&self, time: u64, source: RequesterId, prgi: u16, pages: usize) {
        self.note(time, source, prgi, Stage::Resolving, |_| {
            format!(
                "the core hands the group of {pages} to the domain's resolver, on a worker that may sleep"
            )
        });
    }

    /// The resolver has made the page present.
    pub fn mapped(
        &self,
        time: u64,
        source: RequesterId,
        prgi: u16,
        iova: u64,
        phys: u64,
        evicted: Option<u64>,
    ) {
        let mut book = self.0.lock();
        if book.page != iova
            || book.stage != Stage::Resolving
            || book.source != Some(source)
            || book.prgi != prgi
        {
            return;
        }
        let text = match evicted {
            Some(victim) => format!(
                "it evicts {victim:#x} (unmap, invalidate, write back) and maps {iova:#x} to frame {phys:#x}"
            ),
            None => format!("it fills free frame {phys:#x} and maps {iova:#x} to it"),
        };
        book.push(time, Stage::Mapped, text);
    }

    /// The resolver answers.
    pub fn answered(&self, time: u64, source: RequesterId, prgi: u16, code: &str) {
        self.note(time, source, prgi, Stage::Answered, |_| {
            format!("it answers {code}: the slot's word goes from pending to answered, once")
        });
    }

    fn note(
        &self,
        time: u64,
        source: RequesterId,
        prgi: u16,
        stage: Stage,
        say: impl FnOnce(&Book) -> String,
    ) {
        let mut book = self.0.lock();
        if book.source == Some(source)
            && book.prgi == prgi
            && book.stage != Stage::Nothing
            && book.stage < stage
        {
            let text = say(&book);
            book.push(time, stage, text);
        }
    }

    /// The eight lines, once a request went the whole way. Times are nanoseconds of the machine's
    /// clock.
    pub fn lines(&self) -> Vec<String> {
        let book = self.0.lock();
        let lines = book.finished.as_deref().unwrap_or_default();
        let start = lines.first().map_or(0, |l| l.time);
        lines.iter().map(|l| format!("{:>9} ns  {}", l.time.saturating_sub(start), l.text)).collect()
    }
}

impl Book {
    fn push(&mut self, time: u64, stage: Stage, text: String) {
        self.stage = stage;
        self.lines.push(Line { time, text });
    }

    fn forget(&mut self) {
        self.stage = Stage::Nothing;
        self.lines.clear();
    }
}

impl AccessLog for Life {
    fn event(&mut self, event: &Event) {
        let mut book = self.0.lock();
        if book.finished.is_some() {
            return;
        }
        let time = event.time;
        let ours = |source: &RequesterId| book.source == Some(*source);
        match &event.what {
            What::PageRequested(r) if ours(&r.source) && r.needs_response() => {
                // A request that did not get far is forgotten for the next one.
                if matches!(book.stage, Stage::Nothing | Stage::Requested | Stage::Queued) {
                    book.forget();
                    book.page = r.addr;
                    book.prgi = r.prgi;
                    book.group = r.group;
                    book.pasid = r.prefix.map(|p| p.pasid);
                    let want = match (r.read, r.write) {
                        (_, true) => "write",
                        _ => "read",
                    };
                    let text = format!(
                        "{} has no translation to {want} page {:#x}: page request, last of group index {}",
                        r.source, r.addr, r.prgi
                    );
                    book.push(time, Stage::Requested, text);
                }
            }
            What::PageQueued { request, tail, .. }
                if request.group == book.group && request.last && book.stage == Stage::Requested =>
            {
                let text = format!(
                    "the IOMMU drops what it caches for that page and puts the request into its queue (tail {tail:#x})"
                );
                book.push(time, Stage::Queued, text);
            }
            What::Interrupt(msi)
                if matches!(msi.from, MsiSource::Unit(_))
                    && msi.data == book.interrupt
                    && book.stage == Stage::Queued =>
            {
                let text = format!(
                    "it raises the page-request interrupt (data {:#x}); a service turn will read the queue",
                    msi.data
                );
                book.push(time, Stage::Interrupted, text);
            }
            What::ResponseSent { source, prgi, pasid, code, .. }
                if ours(source)
                    && *prgi == book.prgi
                    && *pasid == book.pasid
                    && book.stage == Stage::Answered =>
            {
                let text = format!(
                    "the IOMMU executes the page group response ({code:?}) from the invalidation queue"
                );
                book.push(time, Stage::Responded, text);
            }
            What::Settled { group, .. } if *group == book.group => {
                if book.stage == Stage::Responded {
                    let text = format!(
                        "the device takes the response, translates {:#x} again and goes on",
                        book.page
                    );
                    book.push(time, Stage::Settled, text);
                    if book.lines.len() == 8 {
                        book.finished = Some(std::mem::take(&mut book.lines));
                        return;
                    }
                }
                book.forget();
            }
            _ => {}
        }
    }
}
