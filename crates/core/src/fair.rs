//! Whose turn it is: work of many devices for a few workers. Devices take turns, a device's
//! attachments take turns among themselves, and no device has more than its share of the workers at
//! once.

use crate::error::OutOfMemory;
use alloc::{collections::VecDeque, vec::Vec};

/// Work waiting, by device. An item stands in it at most once, under a number of its own.
pub(crate) struct Fair<T> {
    /// By the item's number.
    places: Vec<Place<T>>,
    lanes: Vec<Lane>,
    free: Vec<u32>,
    /// Lanes whose turn comes: each has something waiting and less than its share of the workers.
    ring: VecDeque<u32>,
    /// Workers that one lane has at most.
    share: u32,
    waiting: usize,
}

struct Place<T> {
    item: Option<T>,
    next: Option<u32>,
}

#[derive(Clone, Copy, Default)]
struct Lane {
    ends: Option<(u32, u32)>,
    running: u32,
    in_ring: bool,
}

/// Room for more lanes, allocated before it is put in.
pub(crate) struct Room {
    lanes: Vec<Lane>,
    free: Vec<u32>,
    ring: VecDeque<u32>,
}

impl<T> Fair<T> {
    /// Nothing waits, of items numbered below `items`. A lane has at most `share` workers, and at
    /// least one.
    pub(crate) fn new(items: usize, share: u32) -> Result<Self, OutOfMemory> {
        let mut places = Vec::new();
        places.try_reserve_exact(items).map_err(|_| OutOfMemory)?;
        places.resize_with(items, || Place { item: None, next: None });
        let Room { lanes, free, ring } = Room::new(0)?;
        Ok(Fair { places, lanes, free, ring, share: share.max(1), waiting: 0 })
    }

    /// A lane that nobody has, if there is room for one. Else how many lanes there are: room for
    /// more is made with that.
    pub(crate) fn open(&mut self) -> Result<u32, usize> {
        if let Some(lane) = self.free.pop() {
            return Ok(lane);
        }
        if self.lanes.len() == self.lanes.capacity() {
            return Err(self.lanes.len());
        }
        self.lanes.push(Lane::default());
        Ok(self.lanes.len() as u32 - 1)
    }

    /// Takes room that was made, and gives back what is not needed any more.
    pub(crate) fn widen(&mut self, mut room: Room) -> Room {
        if room.lanes.capacity() > self.lanes.capacity() {
            room.lanes.extend_from_slice(&self.lanes);
            room.free.extend_from_slice(&self.free);
            room.ring.extend(self.ring.iter());
            core::mem::swap(&mut self.lanes, &mut room.lanes);
            core::mem::swap(&mut self.free, &mut room.free);
            core::mem::swap(&mut self.ring, &mut room.ring);
        }
        room
    }

    /// Gives back a lane in which nothing waits or runs.
    pub(crate) fn close(&mut self, lane: u32) {
        self.free.push(lane);
    }

    /// Something of a lane waits for a worker.
    pub(crate) fn push(&mut self, lane: u32, number: u32, item: T) {
        let Some(place) = self.places.get_mut(number as usize) else { return };
        *place = Place { item: Some(item), next: None };
        let Some(l) = self.lanes.get_mut(lane as usize) else { return };
        match &mut l.ends {
            Some((_, last)) => {
                let before = core::mem::replace(last, number);
                self.places[before as usize].next = Some(number);
            }
            none => *none = Some((number, number)),
        }
        self.waiting += 1;
        self.line_up(lane);
    }

    /// What a worker does next, and for which lane: [`done`](Self::done) says that it is.
    pub(crate) fn pop(&mut self) -> Option<(u32, T)> {
        let lane = self.ring.pop_front()?;
        let l = &mut self.lanes[lane as usize];
        l.in_ring = false;
        let (first, last) = l.ends?;
        let place = &mut self.places[first as usize];
        let item = place.item.take()?;
        l.ends = place.next.take().map(|next| (next, last));
        l.running += 1;
        self.waiting -= 1;
        self.line_up(lane);
        Some((lane, item))
    }

    /// A worker has done what it took. True when that lets the lane have its turn again.
    pub(crate) fn done(&mut self, lane: u32) -> bool {
        let l = &mut self.lanes[lane as usize];
        l.running -= 1;
        self.line_up(lane)
    }

    /// Items that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Lanes in which something waits that have their share of the workers already.
    pub(crate) fn held_back(&self) -> usize {
        self.lanes.iter().filter(|l| l.ends.is_some() && l.running >= self.share).count()
    }

    /// Puts a lane at the end of the ring, where it may be in it and is not.
    fn line_up(&mut self, lane: u32) -> bool {
        let l = &mut self.lanes[lane as usize];
        let newly = l.ends.is_some() && l.running < self.share && !l.in_ring;
        if newly {
            l.in_ring = true;
            self.ring.push_back(lane);
        }
        newly
    }
}

impl Room {
    /// For more than `lanes` lanes. Allocates.
    pub(crate) fn new(lanes: usize) -> Result<Room, OutOfMemory> {
        let count = (lanes * 2).max(16);
        let (mut lanes, mut free, mut ring) = (Vec::new(), Vec::new(), VecDeque::new());
        lanes.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
        free.try_reserve_exact(lanes.capacity()).map_err(|_| OutOfMemory)?;
        ring.try_reserve_exact(lanes.capacity()).map_err(|_| OutOfMemory)?;
        Ok(Room { lanes, free, ring })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const ITEMS: u32 = 12;
    const LANES: u32 = 4;

    /// Items belong to lanes in turn.
    fn lane(number: u32) -> u32 {
        number % LANES
    }

    fn fair(share: u32) -> Fair<u32> {
        let mut fair = Fair::new(ITEMS as usize, share).unwrap();
        (0..LANES).for_each(|n| assert_eq!(fair.open(), Ok(n)));
        fair
    }

    /// The plain way: one list of what waits, one of what runs, one of the order of turns.
    #[derive(Default)]
    struct Model {
        waiting: Vec<u32>,
        running: Vec<u32>,
        turns: Vec<u32>,
    }

    impl Model {
        fn line_up(&mut self, lane_: u32, share: u32) {
            let runs = self.running.iter().filter(|n| lane(**n) == lane_).count() as u32;
            let waits = self.waiting.iter().any(|n| lane(*n) == lane_);
            if waits && runs < share && !self.turns.contains(&lane_) {
                self.turns.push(lane_);
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(u32),
        Pop,
        /// The nth that runs is done.
        Done(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..ITEMS).prop_map(Step::Push),
            3 => Just(Step::Pop),
            2 => any::<usize>().prop_map(Step::Done),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn turns_are_taken_as_the_model_says(steps in prop::collection::vec(step(), 1..80), share in 1..3u32) {
            let (mut fair, mut m) = (fair(share), Model::default());
            for s in steps {
                match s {
                    Step::Push(n) if !m.waiting.contains(&n) => {
                        fair.push(lane(n), n, n);
                        m.waiting.push(n);
                        m.line_up(lane(n), share);
                    }
                    Step::Push(_) => {}
                    Step::Pop => {
                        let expected = (!m.turns.is_empty()).then(|| {
                            let turn = m.turns.remove(0);
                            let i = m.waiting.iter().position(|n| lane(*n) == turn).unwrap();
                            let n = m.waiting.remove(i);
                            m.running.push(n);
                            m.line_up(turn, share);
                            (turn, n)
                        });
                        prop_assert_eq!(fair.pop(), expected);
                    }
                    Step::Done(_) if m.running.is_empty() => {}
                    Step::Done(i) => {
                        let n = m.running.remove(i % m.running.len());
                        let before = m.turns.len();
                        m.line_up(lane(n), share);
                        prop_assert_eq!(fair.done(lane(n)), m.turns.len() > before);
                    }
                }
                prop_assert_eq!(fair.waiting(), m.waiting.len());
                for l in 0..LANES {
                    let runs = m.running.iter().filter(|n| lane(**n) == l).count() as u32;
                    prop_assert!(runs <= share);
                }
            }
        }
    }

    #[test]
    fn a_lane_that_floods_gets_every_other_turn() {
        let mut fair = fair(8);
        for n in [0, 4, 8, 1] {
            fair.push(lane(n), n, n);
        }
        let order: Vec<u32> = core::iter::from_fn(|| fair.pop()).map(|(_, n)| n).collect();
        assert_eq!(order, [0, 1, 4, 8]);
    }

    #[test]
    fn lanes_are_used_again_and_more_are_made() {
        let mut fair = fair(1);
        fair.push(3, 7, 7);
        let mut opened = Vec::new();
        while opened.len() < 40 {
            match fair.open() {
                Ok(lane) => opened.push(lane),
                Err(lanes) => drop(fair.widen(Room::new(lanes).unwrap())),
            }
        }
        assert_eq!(opened, (LANES..LANES + 40).collect::<Vec<_>>());
        assert_eq!(fair.pop(), Some((3, 7)), "what waited still does");
        fair.close(20);
        assert_eq!(fair.open(), Ok(20));
    }
}
