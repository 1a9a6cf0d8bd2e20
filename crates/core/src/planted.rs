//! Protections taken away, so that tests can show that their loss is found. Compiled with feature
//! `planted` only.

use crate::{
    driver::{HwLost, Offer, PageRequest},
    instance::Instance,
    platform::Platform,
    sync::{Unmapping, invalidate_chunk},
    tags::Chunk,
    turn::Answer,
};
use alloc::vec::Vec;
use portcullis_sync::slot::{Generation, SlotWord};

/// A protection that a test takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The answer is taken before the queue's lock is held, so that it can go out after its slot
    /// has a new owner.
    AnswerTakenEarly,
    /// An unmap reads the cache tags before it clears the entries, so that an attach in between is
    /// not invalidated.
    TagsReadEarly,
}

impl<P: Platform> Instance<P> {
    /// [`Instance::offer`] with the code taken out of the slot before the queue's lock is held.
    pub(crate) fn offer_taken_early(
        &self,
        generation: Generation,
        word: &SlotWord,
        last: &PageRequest,
    ) -> bool {
        let code = word.take(generation);
        let stale = SlotWord::new();
        if let (Some(code), Some(g)) = (code, stale.arm()) {
            stale.answer(g, code);
            while self.driver().page_response(&Answer::new(last, &stale, g)) == Offer::Full {
                self.platform().now();
            }
        }
        true
    }
}

/// Tags that an unmap read before it cleared anything.
pub(crate) type EarlyTags<P> = Option<Vec<Chunk<P>>>;

impl<P: Platform> Unmapping<'_, P> {
    /// Reads the tags, at the first unmap of the guard.
    pub(crate) fn read_tags_early(&mut self) {
        if self.domain.shared.hub.config.plant != Some(Plant::TagsReadEarly) || self.early.is_some() {
            return;
        }
        let mut chunks = Vec::new();
        let mut cursor = None;
        while let Some(chunk) = self.domain.tags.collect(cursor) {
            cursor = chunk.end();
            chunks.push(chunk);
        }
        self.early = Some(chunks);
    }

    /// Invalidates by the tags that were read early. `None` when there are none.
    pub(crate) async fn invalidate_early(&mut self) -> Option<Result<(), HwLost>> {
        for chunk in &self.early.take()? {
            let (range, non_leaf) = (self.gather.range(), self.gather.non_leaf());
            if let Err(lost) = invalidate_chunk(self.domain, chunk, range, non_leaf).await {
                return Some(Err(lost));
            }
        }
        Some(Ok(()))
    }
}
