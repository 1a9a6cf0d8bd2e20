//! What the first requests of groups are kept in: pages of an instance's records that no live record
//! refers to, on a list through their own links. The service turn alone uses it.

use crate::{
    driver::PageRequest,
    record::{Chain, Records, to_page},
};

/// The free pages.
pub(crate) struct Pages {
    /// The first of them. The last one is linked to a page that is none.
    free: u32,
}

impl Pages {
    /// All pages, as they are linked when they are made.
    pub(crate) fn new() -> Pages {
        Pages { free: 0 }
    }

    /// Keeps a request at the end of a chain. False when there is no page left.
    #[inline]
    pub(crate) fn keep(&mut self, chain: &mut Chain, request: &PageRequest, records: &Records) -> bool {
        let page = self.free;
        let (value, note) = to_page(request);
        let Some(next) = records.write_page(page, value, note) else { return false };
        self.free = next;
        match chain.len {
            0 => chain.head = page,
            _ => records.link_page(chain.tail, page),
        }
        chain.tail = page;
        chain.len += 1;
        true
    }

    /// Takes a chain's pages back, once nobody reads them.
    #[inline]
    pub(crate) fn free(&mut self, chain: Chain, records: &Records) {
        if chain.len > 0 {
            records.link_page(chain.tail, self.free);
            self.free = chain.head;
        }
    }
}
