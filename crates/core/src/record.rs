//! A page-request group as the words of its slot's record: written by the turn that takes it in,
//! read by whoever answers it, voids it or looks for it.

use crate::{
    driver::PageRequest,
    ids::{At, DeviceId, Key, Pasid, SourceId, VendorBits},
};

/// Words of a record.
pub(crate) const WORDS: usize = 11;

/// All slots of an instance, and the pages that they refer to.
pub(crate) type Records = portcullis_sync::records::Records<WORDS>;

/// A group whose last request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) last: PageRequest,
    /// Its first requests.
    pub(crate) first: Chain,
    pub(crate) device: Option<DeviceId>,
    /// The attachment whose resolver it waits for.
    pub(crate) owner: Option<Key>,
}

/// A list of stored requests, first to last, by the pages' links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) len: u32,
}

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXEC: u64 = 1 << 2;
const PRIVILEGED: u64 = 1 << 3;
const LAST: u64 = 1 << 4;
const DEVICE: u64 = 1 << 5;
const OWNER: u64 = 1 << 6;
const OWN_ANSWER: u64 = 1 << 7;

#[inline]
fn flag(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

#[inline]
fn flags(r: &PageRequest) -> u64 {
    flag(r.read, READ)
        | flag(r.write, WRITE)
        | flag(r.exec, EXEC)
        | flag(r.privileged, PRIVILEGED)
        | flag(r.last, LAST)
        | flag(r.own_answer, OWN_ANSWER)
}

impl Record {
    /// Where the group's requests came from.
    pub(crate) fn at(&self) -> At {
        At { source: self.last.source, pasid: self.last.pasid }
    }

    #[inline]
    pub(crate) fn to_words(self) -> [u64; WORDS] {
        let r = &self.last;
        let v = r.vendor.0;
        let owner = self.owner.unwrap_or(Key { index: 0, generation: 0 });
        let has = flag(self.device.is_some(), DEVICE) | flag(self.owner.is_some(), OWNER);
        [
            u64::from(r.source.0) << 32 | u64::from(r.pasid.map_or(0, Pasid::get)),
            u64::from(r.index) << 32 | flags(r) | has,
            u64::from(self.first.head) << 32 | u64::from(self.first.len),
            r.address,
            v[0],
            v[1],
            v[2],
            v[3],
            self.device.map_or(0, |d| d.0),
            u64::from(self.first.tail) << 32 | u64::from(owner.index),
            owner.generation,
        ]
    }

    #[inline]
    pub(crate) fn from_words(w: &[u64; WORDS]) -> Record {
        let has = |bit| w[1] & bit != 0;
        Record {
            last: PageRequest {
                source: SourceId((w[0] >> 32) as u32),
                pasid: Pasid::new(w[0] as u32),
                index: (w[1] >> 32) as u16,
                address: w[3],
                read: has(READ),
                write: has(WRITE),
                exec: has(EXEC),
                privileged: has(PRIVILEGED),
                last: has(LAST),
                own_answer: has(OWN_ANSWER),
                vendor: VendorBits([w[4], w[5], w[6], w[7]]),
            },
            first: Chain { head: (w[2] >> 32) as u32, tail: (w[9] >> 32) as u32, len: w[2] as u32 },
            device: has(DEVICE).then_some(DeviceId(w[8])),
            owner: has(OWNER).then_some(Key { index: w[9] as u32, generation: w[10] }),
        }
    }
}

/// A request that waits for the last of its group, as what a page holds.
#[inline]
pub(crate) fn to_page(r: &PageRequest) -> (u64, u32) {
    // All of them lie in the lower half.
    (r.address, flags(r) as u32)
}

/// What [`to_page`] wrote, with what the requests of a group share.
pub(crate) fn from_page((address, flags): (u64, u32), like: &PageRequest) -> PageRequest {
    let has = |bit| u64::from(flags) & bit != 0;
    PageRequest {
        address,
        read: has(READ),
        write: has(WRITE),
        exec: has(EXEC),
        privileged: has(PRIVILEGED),
        last: has(LAST),
        own_answer: has(OWN_ANSWER),
        ..*like
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> impl Strategy<Value = PageRequest> {
        let flags = any::<[bool; 6]>();
        (any::<u32>(), 0..1u32 << 20, any::<u16>(), any::<u64>(), flags, any::<[u64; 4]>()).prop_map(
            |(source, pasid, index, address, [read, write, exec, privileged, last, own_answer], vendor)| {
                PageRequest {
                    source: SourceId(source),
                    pasid: Pasid::new(pasid),
                    index,
                    address,
                    read,
                    write,
                    exec,
                    privileged,
                    last,
                    own_answer,
                    vendor: VendorBits(vendor),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was(
            last in request(),
            like in request(),
            first in any::<(u32, u32, u32)>(),
            device in any::<Option<u64>>(),
            owner in any::<Option<(u32, u64)>>(),
        ) {
            let record = Record {
                last,
                first: Chain { head: first.0, tail: first.1, len: first.2 },
                device: device.map(DeviceId),
                owner: owner.map(|(index, generation)| Key { index, generation }),
            };
            prop_assert_eq!(Record::from_words(&record.to_words()), record);
            let alike = PageRequest {
                source: last.source,
                pasid: last.pasid,
                index: last.index,
                vendor: last.vendor,
                ..like
            };
            prop_assert_eq!(from_page(to_page(&last), &alike), last);
        }
    }
}
