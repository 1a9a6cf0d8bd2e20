//! What the other rows are compared with: what one core pays for an access that excludes the others
//! when there are none.

use crate::Row;
use std::{
    hint::black_box,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Times that one call does it, so that the call itself costs nothing beside.
const TIMES: u64 = 256;

/// One read-modify-write of a word that nobody else uses, its result used; and a lock that nobody
/// else wants, taken and given back.
pub(crate) fn rows() -> Vec<Row> {
    let word = AtomicU64::new(0);
    let lock = Mutex::new(0u64);
    vec![
        Row::new("one locked add", TIMES, move || {
            for _ in 0..TIMES {
                black_box(black_box(&word).fetch_add(1, Ordering::AcqRel));
            }
        }),
        Row::new("a lock pair", TIMES, move || {
            for _ in 0..TIMES {
                *black_box(&lock).lock().unwrap_or_else(|e| e.into_inner()) += 1;
            }
        }),
    ]
}
