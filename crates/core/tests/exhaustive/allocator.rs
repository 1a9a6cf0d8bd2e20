//! What a thread allocates while it is watched: counted, written down with who asked, and refused
//! where a test wants that.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    backtrace::Backtrace,
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    ptr,
};

struct Watcher;

#[global_allocator]
static WATCHER: Watcher = Watcher;

/// What is done about the allocations of the thread.
struct Watch {
    on: Cell<bool>,
    /// So many calls deep in what is not watched.
    aside: Cell<u32>,
    /// Allocations since the last call of [`arm`].
    seen: Cell<usize>,
    what: Cell<What>,
    refused: Cell<bool>,
    /// Allocated less freed, since the thread began.
    balance: Cell<isize>,
}

#[derive(Clone, Copy)]
pub enum What {
    Nothing,
    /// Writes down who asks.
    Record,
    /// Refuses the one with this number.
    Refuse(usize),
}

thread_local! {
    static WATCH: Watch = const { Watch {
        on: Cell::new(false),
        aside: Cell::new(0),
        seen: Cell::new(0),
        what: Cell::new(What::Nothing),
        refused: Cell::new(false),
        balance: Cell::new(0),
    } };
    static TRACES: RefCell<Vec<Backtrace>> = const { RefCell::new(Vec::new()) };
}

impl Watch {
    fn sees(&self) -> bool {
        self.on.get() && self.aside.get() == 0
    }

    /// Notes a request. True if it is to be refused.
    fn asked(&self) -> bool {
        let number = self.seen.replace(self.seen.get() + 1);
        match self.what.get() {
            What::Nothing => false,
            What::Record => {
                aside(|| TRACES.with_borrow_mut(|t| t.push(Backtrace::force_capture())));
                false
            }
            What::Refuse(n) => {
                self.refused.set(self.refused.get() || n == number);
                n == number
            }
        }
    }
}

// SAFETY: the system's allocator, which is asked or is not.
#[expect(unsafe_code, reason = "an allocator")]
unsafe impl GlobalAlloc for Watcher {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no watch any more.
        let sees = WATCH.try_with(Watch::sees).unwrap_or(false);
        if sees && WATCH.with(Watch::asked) {
            return ptr::null_mut();
        }
        if sees {
            WATCH.with(|w| w.balance.set(w.balance.get() + 1));
        }
        // SAFETY: the caller's promise about the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        if WATCH.try_with(Watch::sees).unwrap_or(false) {
            WATCH.with(|w| w.balance.set(w.balance.get() - 1));
        }
        // SAFETY: the caller's promise that it came from `alloc` with this layout.
        unsafe { System.dealloc(p, layout) }
    }
}

/// Watches what `f` allocates. Returns also what was allocated and not freed.
pub fn watched<R>(f: impl FnOnce() -> R) -> (R, isize) {
    WATCH.with(|w| {
        let before = w.balance.get();
        w.on.set(true);
        let r = f();
        w.on.set(false);
        (r, w.balance.get() - before)
    })
}

/// Does not watch what `f` allocates: what a test does beside what it tests.
pub fn aside<R>(f: impl FnOnce() -> R) -> R {
    WATCH.with(|w| {
        w.aside.set(w.aside.get() + 1);
        let r = f();
        w.aside.set(w.aside.get() - 1);
        r
    })
}

/// From here on allocations are counted from 0, and recorded or refused.
pub fn arm(what: What) {
    WATCH.with(|w| {
        w.seen.set(0);
        w.refused.set(false);
        w.what.set(what);
    });
}

/// Ends that. True if one was refused.
pub fn disarm() -> bool {
    WATCH.with(|w| {
        w.what.set(What::Nothing);
        w.refused.get()
    })
}

/// Who asked for an allocation: the innermost line of this repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    pub file: String,
    pub line: usize,
    /// It is asked for in a way that can be refused.
    pub fallible: bool,
}

impl Site {
    /// Whether the line is this test's.
    pub fn is_of_the_test(&self) -> bool {
        self.file.contains("/tests/") || self.file.ends_with("pgtable/src/testing.rs")
    }

    /// The line, as it is written.
    pub fn source(&self) -> String {
        let text = std::fs::read_to_string(&self.file).unwrap_or_else(|e| panic!("{}: {e}", self.file));
        text.lines().nth(self.line - 1).unwrap_or_default().trim().to_owned()
    }

    fn of(trace: &Backtrace) -> Site {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("it was built");
        let here = std::env::current_dir().expect("there is one");
        let trace = format!("{trace:?}");
        let mut fallible = false;
        for frame in trace.split("{ fn: ").skip(1) {
            let (function, place) = frame.split_once(", file: \"").unwrap_or((frame, ""));
            let (file, line) = place.split_once("\", line: ").unwrap_or((place, ""));
            fallible |= function.contains("try_reserve");
            // Told relative to where the test runs.
            let file: PathBuf = here.join(file).components().collect();
            let ours = file.strip_prefix(&root).is_ok_and(|f| f.starts_with("crates"));
            if !line.is_empty() && ours && !file.ends_with("exhaustive/allocator.rs") {
                let line = line.chars().take_while(char::is_ascii_digit).collect::<String>();
                let file = file.to_str().expect("its name is text").to_owned();
                let line = line.parse().unwrap_or_else(|_| panic!("without a line's number: {frame}"));
                return Site { file, line, fallible };
            }
        }
        panic!("an allocation that nobody asked for; is this build without line numbers?\n{trace}");
    }
}

/// Who asked for each allocation that was recorded, in order.
pub fn take_sites() -> Vec<Site> {
    aside(|| TRACES.take().iter().map(Site::of).collect())
}
