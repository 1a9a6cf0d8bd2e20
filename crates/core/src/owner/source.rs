//! Where the table of a domain comes from, if it is not the core's own.

use crate::{
    domain::DomainInner,
    driver::{Driver, Incompatible, ParentTable, Target},
    ids::DomainTag,
    owner::pasids::OwnedPasid,
    platform::Platform,
};
use alloc::sync::Arc;
use portcullis_pgtable::{FormatDesc, Phys};
use portcullis_sync::atomic::{AtomicBool, Ordering};

/// A table that somebody else writes: the CPU's own of an address space, or a guest's. The core
/// neither maps in it nor frees it; who does says when something in it went, and keeps its frames
/// until that has been invalidated.
pub trait TableSource: Send + Sync + 'static {
    /// What a walker needs to read it. Constant.
    fn desc(&self) -> FormatDesc;
    /// Address of the root table: a physical one of an address space, one of the parent domain of a
    /// guest. Constant.
    fn root(&self) -> Phys;
}

/// What a domain has in the place of a table of its own.
pub(crate) struct Foreign<P: Platform> {
    source: Arc<dyn TableSource>,
    /// Translates every address that the table holds, the tables' own among them.
    pub(crate) parent: Option<Arc<DomainInner<P>>>,
    /// Nothing may be found in the table any more.
    ended: Arc<AtomicBool>,
    /// The PASID that stands for the table wherever it is bound. Given back with the domain.
    pub(crate) pasid: Option<OwnedPasid<P>>,
}

impl<P: Platform> Foreign<P> {
    pub(crate) fn new(source: Arc<dyn TableSource>) -> Self {
        Foreign { source, parent: None, ended: Arc::new(AtomicBool::new(false)), pasid: None }
    }

    /// What a CPU writes is never cleaned for a walker that does not snoop.
    pub(crate) fn desc(&self) -> FormatDesc {
        let desc = self.source.desc();
        FormatDesc { coherent: desc.coherent || self.parent.is_none(), ..desc }
    }

    pub(crate) fn target(&self, tag: DomainTag) -> Option<Target> {
        if self.ended.load(Ordering::Acquire) {
            return None;
        }
        let (desc, root) = (self.desc(), self.source.root());
        let Some(parent) = &self.parent else { return Some(Target::Table { desc, root, tag }) };
        let table = parent.table()?;
        let parent = ParentTable { desc: table.desc(), root: table.root() };
        Some(Target::Nested { desc, root, tag, parent })
    }

    /// Whether an instance can walk it.
    pub(crate) fn fits(&self, driver: &dyn Driver) -> Result<(), Incompatible> {
        match self.parent.as_ref().and_then(|p| p.desc()) {
            Some(parent) => driver.can_nest(&self.desc(), &parent),
            None => driver.can_walk(&self.desc()),
        }
    }

    /// From here on nobody is shown the table.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn ended(&self) -> &Arc<AtomicBool> {
        &self.ended
    }
}
