//! Levels above the root, for formats that grow.

use crate::{
    cursor::entries,
    engine::{MAX_LEVELS, Table},
    format::Format,
    mem::{Fresh, TableMem},
    table::Top,
};

impl<F: Format, M: TableMem> Table<F, M> {
    /// A root that reaches `last`, built over the old one but not put in its place; `None` when
    /// there is no memory for it.
    pub(crate) fn growth(&self, old: Top, last: u64) -> Option<Growth> {
        let mut growth = Growth { old, roots: [const { None }; MAX_LEVELS] };
        while !self.reaches(growth.top(), last) {
            let below = growth.top();
            let Ok(mut root) = self.mem.frames(self.root_order) else {
                growth.abandon(self);
                return None;
            };
            let entry = self.format.settle(self.format.table(below.levels + 1, below.root));
            self.mem.fill_private(&mut root, 0..1, |_| entry);
            self.clean(root.phys(), 0..entries::<F>());
            growth.roots[below.levels] = Some(root);
        }
        if growth.top() != old {
            self.clean_barrier();
        }
        Some(growth)
    }
}

/// Roots that are not in their place yet, each at the level below which it was built.
pub(crate) struct Growth {
    old: Top,
    roots: [Option<Fresh>; MAX_LEVELS],
}

impl Growth {
    /// The top that it will be.
    #[inline]
    pub(crate) fn top(&self) -> Top {
        let highest = self.roots.iter().enumerate().rev().find_map(|(below, r)| Some((below, r.as_ref()?)));
        highest.map_or(self.old, |(below, root)| Top { root: root.phys(), levels: below + 1 })
    }

    /// Gives the roots back.
    pub(crate) fn abandon<F: Format, M: TableMem>(self, table: &Table<F, M>) {
        for root in self.roots.into_iter().flatten() {
            table.mem.release(root);
        }
    }

    /// Puts them in their place, unless somebody else grew the table meanwhile.
    pub(crate) fn commit<F: Format, M: TableMem>(self, table: &Table<F, M>) -> bool {
        let new = self.top();
        if new == self.old {
            return true;
        }
        if !table.swap_top(self.old, new) {
            self.abandon(table);
            return false;
        }
        for root in self.roots.into_iter().flatten() {
            root.publish();
        }
        true
    }
}
