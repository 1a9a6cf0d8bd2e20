//! Memory registration, as RDMA has it: users register stretches of their memory under keys, their
//! functions of the device work on them by key, and a deregistration has ended that when it returns.

use super::{
    Amount,
    actor::Actor,
    room::Room,
    stage::{Ending, Setting, Stage, Task, perform},
};
use crate::{pager::PAGE, platform::AnyPlatform};
use parking_lot::Mutex;
use portcullis::{FaultKind, Scope, Sleep, SourceId, Subscription, driver::Stage as Table};
use portcullis_models::endpoint::Intent;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How much happens.
pub const SIZE: Amount = Amount { of: "registrations by each user", usual: 24, least: 1, most: 100_000 };
/// How many users; the last of them means harm.
pub const USERS: Amount = Amount { of: "users", usual: 3, least: 2, most: 32 };

/// IOVA of the first region of the first user.
const BASE: u64 = 0x4000_0000;
/// Bytes of IOVA of one user.
const WINDOW: u64 = 1 << 30;
/// Pages of a region at most.
const LARGEST: u64 = 4;
/// Bytes of one access.
const PIECE: usize = 64;
/// How often an access is repeated until its record is told: others of the same device may stand in
/// the unit's records, or be told as one.
const REPEATS: u32 = 200;

/// Names a region for as long as it is registered, and never another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u64);

/// A stretch of a user's memory that the user's function may work on.
#[derive(Clone, Copy, Debug)]
struct Region {
    user: usize,
    iova: u64,
    pages: u64,
}

/// Why a key is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BadKey {
    /// Its region was deregistered.
    Stale,
    /// Its region is another user's.
    Foreign,
}

/// The device's table of keys, and what was ever in it.
#[derive(Default)]
struct Keys {
    last: u64,
    regions: BTreeMap<Key, Region>,
    gone: Vec<(Key, Region)>,
}

impl Keys {
    fn register(&mut self, region: Region) -> Key {
        self.last += 1;
        self.regions.insert(Key(self.last), region);
        Key(self.last)
    }

    fn deregister(&mut self, key: Key) {
        if let Some(region) = self.regions.remove(&key) {
            self.gone.push((key, region));
        }
    }

    /// What a user's function may do with a key.
    fn of(&self, user: usize, key: Key) -> Result<Region, BadKey> {
        let region = self.regions.get(&key).ok_or(BadKey::Stale)?;
        if region.user == user { Ok(*region) } else { Err(BadKey::Foreign) }
    }

    /// Some key with its region: registered, or deregistered long ago.
    fn any(&self, rng: &mut fastrand::Rng) -> Option<(Key, Region)> {
        let all = self.regions.len() + self.gone.len();
        let n = rng.usize(..all.max(1));
        self.regions.iter().map(|(k, r)| (*k, *r)).chain(self.gone.iter().copied()).nth(n)
    }
}

/// Where blocked accesses were told of. The set's lock is not the platform's: nothing that may give
/// way to others happens under it.
struct Records {
    faults: Subscription<AnyPlatform>,
    told: Mutex<BTreeSet<(Option<SourceId>, u64)>>,
}

/// A user: a function of the device, and the domain in which its memory is registered.
#[derive(Clone)]
struct User {
    number: usize,
    function: Actor,
    room: Room,
    keys: Arc<Mutex<Keys>>,
    records: Arc<Records>,
}

/// Users register, work and deregister, each on its own; the last one tries the keys of others and
/// those that hold no more, and has its function, which obeys it, go where they led. All that is
/// blocked and told of.
pub fn register(setting: &Setting) -> Ending {
    let users = setting.devices.unwrap_or(USERS.usual);
    let rounds = setting.size.unwrap_or(SIZE.usual);
    perform("register", setting, move |stage, cx| {
        stage.start(cx)?;
        let faults = stage.iommu.observe(Scope::All, 1024).map_err(|e| e.to_string())?;
        let records = Arc::new(Records { faults, told: Mutex::default() });
        let keys = Arc::new(Mutex::new(Keys::default()));
        let mut lodgers = Vec::new();
        let mut tasks: Vec<Task> = Vec::new();
        for number in 0..users {
            let function = stage.device(cx, 8 * (number as u16 + 1), false)?;
            let room = stage.room(&[&function], Table::Any)?;
            lodgers.push(room.attach(cx, &function, None)?);
            let user = User { number, function, room, keys: keys.clone(), records: records.clone() };
            let rng = stage.rng(number as u64);
            tasks.push(Box::new(move |stage, cx| {
                if number + 1 == users {
                    user.means_harm(stage, cx, rng, rounds)
                } else {
                    user.works(stage, cx, rng, rounds)
                }
            }));
        }
        stage.together(cx, tasks)?;
        lodgers.into_iter().try_for_each(|l| l.detach(cx))
    })
}

impl User {
    fn works(
        &self,
        stage: &Stage,
        cx: &Sleep<'_>,
        mut rng: fastrand::Rng,
        rounds: usize,
    ) -> Result<(), String> {
        for _ in 0..rounds {
            let (key, region) = self.registers(stage, &mut rng)?;
            for _ in 0..rng.u32(1..6) {
                self.writes_and_reads(stage, cx, key, &mut rng)?;
            }
            // Some are under way while the region goes: they end one way or the other.
            let under_way: Vec<u64> = (0..rng.u32(..4))
                .map(|_| {
                    self.function.begin(None, anywhere(region, &mut rng), Intent::Write(vec![0x5a; PIECE]))
                })
                .collect();
            self.deregisters(stage, cx, key, region)?;
            // A function that goes on as if nothing had happened.
            let iova = anywhere(region, &mut rng);
            self.is_blocked_and_told(stage, cx, iova)?;
            stage.count("accesses after deregistration, blocked and told of", 1);
            for ticket in under_way {
                let _ = self.function.end(cx, ticket)?;
            }
            stage.sleep(cx, rng.u64(..40_000))?;
        }
        Ok(())
    }

    fn means_harm(
        &self,
        stage: &Stage,
        cx: &Sleep<'_>,
        mut rng: fastrand::Rng,
        rounds: usize,
    ) -> Result<(), String> {
        for _ in 0..2 * rounds {
            stage.sleep(cx, rng.u64(..30_000))?;
            let Some((key, region)) = self.keys.lock().any(&mut rng) else { continue };
            let refused = self.keys.lock().of(self.number, key).err();
            match refused {
                Some(BadKey::Stale) => stage.count("stale keys refused", 1),
                Some(BadKey::Foreign) => stage.count("foreign keys refused", 1),
                None => continue,
            }
            // Its function does not ask the table of keys.
            let iova = anywhere(region, &mut rng);
            let intent = if rng.bool() { Intent::Read(16) } else { Intent::Write(vec![0xbd; PIECE]) };
            self.function.must_not(cx, None, iova, intent)?;
            stage.count("accesses without a key, blocked", 1);
        }
        Ok(())
    }

    fn registers(&self, stage: &Stage, rng: &mut fastrand::Rng) -> Result<(Key, Region), String> {
        let pages = rng.u64(1..=LARGEST);
        // Addresses are used again, as soon as they may be.
        let slot = rng.u64(..8);
        let iova = BASE + self.number as u64 * WINDOW + slot * LARGEST * PAGE;
        for page in 0..pages {
            self.room.map(iova + page * PAGE, true)?;
        }
        let region = Region { user: self.number, iova, pages };
        stage.count("registrations", 1);
        Ok((self.keys.lock().register(region), region))
    }

    fn deregisters(&self, stage: &Stage, cx: &Sleep<'_>, key: Key, region: Region) -> Result<(), String> {
        self.keys.lock().deregister(key);
        let pages: Vec<u64> = (0..region.pages).map(|n| region.iova + n * PAGE).collect();
        self.room.unmap(cx, &pages)?;
        stage.count("deregistrations", 1);
        Ok(())
    }

    fn writes_and_reads(
        &self,
        stage: &Stage,
        cx: &Sleep<'_>,
        key: Key,
        rng: &mut fastrand::Rng,
    ) -> Result<(), String> {
        let region = self.keys.lock().of(self.number, key).map_err(|why| format!("{key:?}: {why:?}"))?;
        let iova = anywhere(region, rng);
        let data: Vec<u8> = (0..PIECE).map(|_| rng.u8(..)).collect();
        self.function.must(cx, None, iova, Intent::Write(data.clone()))?;
        let found = self.function.must(cx, None, iova, Intent::Read(PIECE as u32))?;
        if found != data {
            return Err(format!("{iova:#x} was written and reads something else"));
        }
        stage.count("pieces compared", 1);
        Ok(())
    }

    /// Nothing gets through to an address, and somebody hears of it.
    fn is_blocked_and_told(&self, stage: &Stage, cx: &Sleep<'_>, iova: u64) -> Result<(), String> {
        for n in 0..REPEATS {
            self.function.must_not(cx, None, iova, Intent::Write(vec![0xde; PIECE]))?;
            for _ in 0..8 {
                if self.is_told_of(iova) {
                    return Ok(());
                }
                stage.sleep(cx, 2_000 << (n / 32))?;
            }
        }
        Err(format!("{}: nobody was told of the access to {iova:#x}", self.function.id))
    }

    fn is_told_of(&self, iova: u64) -> bool {
        let Records { faults, told } = &*self.records;
        while let Some(record) = faults.try_next() {
            if let (FaultKind::Dma, Some(address)) = (record.kind, record.address) {
                told.lock().insert((record.source, address & !(PAGE - 1)));
            }
        }
        // Once: the next access to this page has to be told of again.
        told.lock().remove(&(Some(SourceId(self.function.id.0.into())), iova & !(PAGE - 1)))
    }
}

/// A piece of a region, behind the mark at the begin of each page.
fn anywhere(region: Region, rng: &mut fastrand::Rng) -> u64 {
    let piece = PIECE as u64;
    region.iova + rng.u64(..region.pages) * PAGE + piece * rng.u64(1..PAGE / piece)
}
