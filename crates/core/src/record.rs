//! A page-request group as the words of its slot's record: written by the turn that takes it in,
//! read by whoever answers it, voids it or looks for it.

use crate::{
    driver::PageRequest,
    ids::{DeviceId, Key, Pasid, SourceId, VendorBits},
    places::place_key,
};

/// Words of a record.
pub(crate) const WORDS: usize = 11;

/// All slots of an instance, and the pages that they refer to.
pub(crate) type Records = portcullis_sync::records::Records<WORDS>;

/// A group whose last request has come, as it was filed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) last: PageRequest,
    /// Its first requests.
    pub(crate) first: Chain,
    pub(crate) device: Option<DeviceId>,
    /// The attachment whose resolver it waits for.
    pub(crate) owner: Option<Key>,
}

/// One that has a resolver. Its last request may be borrowed from who has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group<L = PageRequest> {
    pub(crate) last: L,
    pub(crate) first: Chain,
    pub(crate) device: DeviceId,
    pub(crate) owner: Key,
}

/// A list of stored requests, first to last, by the pages' links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) len: u32,
}

/// Beside a PASID, which has 20 bits: there is a device, an owner.
const DEVICE: u64 = 1 << 30;
const OWNER: u64 = 1 << 31;

#[inline]
fn flag(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

impl Group<&PageRequest> {
    #[inline]
    pub(crate) fn to_words(self) -> [u64; WORDS] {
        to_words(self.last, self.first, Some(self.device), Some(self.owner))
    }

    /// The same with a last request of its own.
    pub(crate) fn keep(self) -> Group {
        let Group { last, first, device, owner } = self;
        Group { last: *last, first, device, owner }
    }
}

#[inline]
fn to_words(r: &PageRequest, first: Chain, device: Option<DeviceId>, owner: Option<Key>) -> [u64; WORDS] {
    let v = r.vendor.0;
    let place = place_key(r.source, r.pasid);
    let has = flag(device.is_some(), DEVICE) | flag(owner.is_some(), OWNER);
    let owner = owner.unwrap_or(Key { index: 0, generation: 0 });
    let last = u64::from(r.last) << 48 | u64::from(r.own_answer) << 56;
    [
        place | has,
        last | u64::from(r.index) << 32 | u64::from(access(r)),
        u64::from(first.head) << 32 | u64::from(first.len),
        r.address,
        v[0],
        v[1],
        v[2],
        v[3],
        device.map_or(0, |d| d.0),
        u64::from(first.tail) << 32 | u64::from(owner.index),
        owner.generation,
    ]
}

impl Record {
    pub(crate) fn to_words(self) -> [u64; WORDS] {
        to_words(&self.last, self.first, self.device, self.owner)
    }

    /// `None` for one that goes to nobody.
    #[inline]
    pub(crate) fn group(&self) -> Option<Group<&PageRequest>> {
        let Record { last, first, device, owner } = self;
        Some(Group { last, first: *first, device: (*device)?, owner: (*owner)? })
    }

    #[inline]
    pub(crate) fn from_words(w: &[u64; WORDS]) -> Record {
        let has = |bit| w[0] & bit != 0;
        let [read, write, exec, privileged, low, high, last, own_answer] = w[1].to_le_bytes();
        Record {
            last: PageRequest {
                source: SourceId((w[0] >> 32) as u32),
                pasid: Pasid::new(w[0] as u32 & Pasid::MAX),
                index: u16::from_le_bytes([low, high]),
                address: w[3],
                read: is_set(read),
                write: is_set(write),
                exec: is_set(exec),
                privileged: is_set(privileged),
                last: is_set(last),
                own_answer: is_set(own_answer),
                vendor: VendorBits([w[4], w[5], w[6], w[7]]),
            },
            first: Chain { head: (w[2] >> 32) as u32, tail: (w[9] >> 32) as u32, len: w[2] as u32 },
            device: has(DEVICE).then_some(DeviceId(w[8])),
            owner: has(OWNER).then_some(Key { index: w[9] as u32, generation: w[10] }),
        }
    }
}

#[inline]
fn is_set(byte: u8) -> bool {
    byte & 1 != 0
}

/// A request that waits for the last of its group, and wants no answer itself, as what a page holds.
#[inline]
pub(crate) fn to_page(r: &PageRequest) -> (u64, u32) {
    (r.address, access(r))
}

/// What a request asks for: a byte each, as they lie in the request.
#[inline]
fn access(r: &PageRequest) -> u32 {
    u32::from_le_bytes([r.read, r.write, r.exec, r.privileged].map(u8::from))
}

/// What [`to_page`] wrote, with what the requests of a group share.
pub(crate) fn from_page((address, flags): (u64, u32), like: &PageRequest) -> PageRequest {
    let [read, write, exec, privileged] = flags.to_le_bytes().map(is_set);
    PageRequest { address, read, write, exec, privileged, last: false, own_answer: false, ..*like }
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
            let first = PageRequest { last: false, own_answer: false, ..last };
            prop_assert_eq!(from_page(to_page(&first), &alike), first);
        }
    }
}
