//! A fast hasher with a fixed key: equal insertions give equal iteration orders, so that a seed
//! stays a seed. The keys are addresses and ids of the system under test, not of an attacker who
//! could gain from collisions beyond slowing its own simulation down.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map with the fixed hasher.
pub(crate) type Map<K, V> = HashMap<K, V, BuildHasherDefault<Fixed>>;

#[derive(Default, Clone, Copy)]
pub(crate) struct Fixed(u64);

impl Fixed {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Fixed {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.add(u64::from(b));
        }
    }
    fn write_u8(&mut self, i: u8) {
        self.add(u64::from(i));
    }
    fn write_u16(&mut self, i: u16) {
        self.add(u64::from(i));
    }
    fn write_u32(&mut self, i: u32) {
        self.add(u64::from(i));
    }
    fn write_u64(&mut self, i: u64) {
        self.add(i);
    }
    fn write_usize(&mut self, i: usize) {
        self.add(i as u64);
    }
}
