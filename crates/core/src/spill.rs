//! Room for the page-request groups of devices that joined an attachment after its queue was made.

use crate::{
    error::OutOfMemory,
    platform::{Platform, ShortLock},
};
use alloc::collections::VecDeque;
use portcullis_sync::atomic::{AtomicUsize, Ordering};

/// What a queue had no room for: bounded, and taken before what is in the queue.
pub(crate) struct Spill<P: Platform> {
    /// How many pieces there are, asked without the lock.
    len: AtomicUsize,
    state: P::Lock<State>,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<[u64; 2]>,
    most: usize,
}

impl<P: Platform> Spill<P> {
    /// Without room.
    pub(crate) fn new(platform: &P) -> Self {
        Spill { len: AtomicUsize::new(0), state: platform.lock(State::default()) }
    }

    /// Makes room for so many pieces in all. One at a time does; allocates.
    pub(crate) fn make_room(&self, most: usize) -> Result<(), OutOfMemory> {
        if self.state.with(|s| s.most >= most) {
            return Ok(());
        }
        let mut room = VecDeque::new();
        room.try_reserve_exact(most).map_err(|_| OutOfMemory)?;
        let old = self.state.with(|s| {
            room.append(&mut s.pieces);
            s.most = most;
            core::mem::replace(&mut s.pieces, room)
        });
        drop(old);
        Ok(())
    }

    /// Keeps a piece. False when there is no room. Service context.
    #[cold]
    pub(crate) fn push(&self, piece: [u64; 2]) -> bool {
        self.state.with(|s| {
            let room = s.pieces.len() < s.most;
            if room {
                s.pieces.push_back(piece);
                self.len.store(s.pieces.len(), Ordering::Relaxed);
            }
            room
        })
    }

    /// Takes the oldest piece. One that was announced is seen.
    #[inline]
    pub(crate) fn pop(&self) -> Option<[u64; 2]> {
        if self.len.load(Ordering::Relaxed) == 0 { None } else { self.take() }
    }

    #[cold]
    fn take(&self) -> Option<[u64; 2]> {
        self.state.with(|s| {
            let piece = s.pieces.pop_front();
            self.len.store(s.pieces.len(), Ordering::Relaxed);
            piece
        })
    }
}
