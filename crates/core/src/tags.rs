//! Which caches may hold a domain's translations: published before an entry is shown to the
//! hardware, read after entries were cleared, so that an unmap and an attach never miss each other.

use crate::{
    driver::{Batch, CacheTag},
    error::OutOfMemory,
    ids::{At, DomainTag, InstanceId},
    instance::Instance,
    platform::{Platform, ShortLock},
};
use alloc::{sync::Arc, vec::Vec};
use portcullis_sync::census::Census;

struct Entry<P: Platform> {
    instance: Arc<Instance<P>>,
    tag: CacheTag,
}

impl<P: Platform> Entry<P> {
    fn place(&self) -> (InstanceId, CacheTag) {
        (self.instance.id(), self.tag)
    }
}

/// Where a reader of the list stands.
pub(crate) type Cursor = Option<(InstanceId, CacheTag)>;

/// Some of the tags, all of one instance.
pub(crate) struct Chunk<P: Platform> {
    pub(crate) instance: Arc<Instance<P>>,
    tags: [CacheTag; Batch::MAX_TAGS],
    len: usize,
}

impl<P: Platform> Chunk<P> {
    pub(crate) fn tags(&self) -> &[CacheTag] {
        &self.tags[..self.len]
    }

    /// Where to go on after this chunk.
    pub(crate) fn end(&self) -> Cursor {
        self.tags().last().map(|t| (self.instance.id(), *t))
    }
}

/// The cache tags of a domain.
pub(crate) struct TagList<P: Platform> {
    entries: P::Lock<Vec<Entry<P>>>,
    /// How many there are, asked without the lock.
    census: Census,
}

impl<P: Platform> TagList<P> {
    pub(crate) fn new(platform: &P) -> TagList<P> {
        TagList { entries: platform.lock(Vec::new()), census: Census::new() }
    }

    /// Makes a tag visible to every unmap whose entries are cleared after this returns. Called
    /// before the hardware entry is installed. Allocates.
    pub(crate) fn publish(&self, instance: &Arc<Instance<P>>, tag: CacheTag) -> Result<(), OutOfMemory> {
        let mut entry = Some(Entry { instance: instance.clone(), tag });
        let mut room = Vec::new();
        loop {
            let (old, wanted) = self.entries.with(|list| {
                if list.len() == list.capacity() {
                    if room.capacity() <= list.len() {
                        return (None, list.len() + 4);
                    }
                    room.append(list);
                    core::mem::swap(list, &mut room);
                }
                if let Some(e) = entry.take() {
                    let at = list.partition_point(|x| x.place() < e.place());
                    list.insert(at, e);
                    self.census.publish(list.len());
                }
                (Some(core::mem::take(&mut room)), 0)
            });
            if old.is_some() {
                return Ok(());
            }
            room.try_reserve_exact(wanted).map_err(|_| OutOfMemory)?;
        }
    }

    /// Takes a tag out, after its entry was cleared and invalidated.
    pub(crate) fn remove(&self, instance: InstanceId, at: At, tag: DomainTag) {
        let gone = self.entries.with(|list| {
            let i = list
                .iter()
                .position(|e| e.instance.id() == instance && (e.tag.at, e.tag.tag) == (at, tag))?;
            let gone = list.remove(i);
            self.census.publish(list.len());
            Some(gone)
        });
        drop(gone);
    }

    /// Orders the clearing of entries before the reading of tags: once per sync.
    pub(crate) fn fence_before_collect(&self) {
        self.census.fence();
    }

    /// The next tags after `cursor`, all of one instance.
    pub(crate) fn collect(&self, cursor: Cursor) -> Option<Chunk<P>> {
        if !self.census.anybody() {
            return None;
        }
        self.entries.with(|list| {
            let start = list.partition_point(|e| Some(e.place()) <= cursor);
            let first = list.get(start)?;
            let mut chunk =
                Chunk { instance: first.instance.clone(), tags: [first.tag; Batch::MAX_TAGS], len: 0 };
            let same = list[start..].iter().take_while(|e| e.instance.id() == first.instance.id());
            for (slot, e) in chunk.tags.iter_mut().zip(same) {
                *slot = e.tag;
                chunk.len += 1;
            }
            Some(chunk)
        })
    }
}
