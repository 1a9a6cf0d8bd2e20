//! How large the queues in memory are.

/// The size of a queue in memory: 1 to 128 pages of 4 KiB, a power of two (`[V]` 11.4.9.3, 11.4.11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueSize {
    order: u8,
}

impl QueueSize {
    /// One page.
    pub const MIN: QueueSize = QueueSize { order: 0 };
    /// 128 pages.
    pub const MAX: QueueSize = QueueSize { order: 7 };

    /// The smallest size of at least so many pages; [`QueueSize::MAX`] where none is as large.
    pub const fn of_pages(pages: u32) -> QueueSize {
        let mut size = QueueSize::MIN;
        while size.pages() < pages && size.order < QueueSize::MAX.order {
            size.order += 1;
        }
        size
    }

    /// Pages of 4 KiB.
    pub const fn pages(self) -> u32 {
        1 << self.order
    }

    /// The base-2 logarithm of the pages, as PQS and QS have it.
    pub(super) const fn order(self) -> u32 {
        self.order as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_rounded_up_as_far_as_there_are_sizes() {
        let pages = |n| QueueSize::of_pages(n).pages();
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 127, 128, 129, u32::MAX].map(pages),
            [1, 1, 2, 4, 4, 8, 128, 128, 128, 128]
        );
    }
}
