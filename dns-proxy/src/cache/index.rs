//! Where the record of a hash is: a table of fixed size, with linear probing.

/// How full it may become, in eighths.
const FULLEST: usize = 7;

/// The table. An entry is a hash, and one more than the place.
pub(super) struct Index {
    slots: Vec<(u32, u32)>,
    count: usize,
}

impl Index {
    /// An empty one with so many slots, 8 octets each.
    pub(super) fn new(slots: usize) -> Self {
        Self { slots: vec![(0, 0); slots.max(FULLEST + 1)], count: 0 }
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= self.slots.len() / (FULLEST + 1) * FULLEST
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The first place with that hash that satisfies.
    pub(super) fn find(&self, hash: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.slot_of(hash, is).map(|slot| self.slots[slot].1 - 1)
    }

    /// Notes a place; there must be room.
    pub(super) fn insert(&mut self, hash: u32, place: u32) {
        let mut slot = self.home(hash);
        while self.slots[slot].1 != 0 {
            slot = self.next(slot);
        }
        self.slots[slot] = (hash, place + 1);
        self.count += 1;
    }

    /// Notes that what was at one place is at another.
    pub(super) fn moved(&mut self, hash: u32, from: u32, to: u32) {
        if let Some(slot) = self.slot_of(hash, |place| place == from) {
            self.slots[slot].1 = to + 1;
        }
    }

    /// Forgets a place.
    pub(super) fn remove(&mut self, hash: u32, place: u32) {
        let Some(mut hole) = self.slot_of(hash, |other| other == place) else {
            return;
        };
        // Those behind it move up, unless they would stand before their home.
        let mut slot = self.next(hole);
        while self.slots[slot].1 != 0 {
            let home = self.home(self.slots[slot].0);
            if self.distance(home, slot) >= self.distance(hole, slot) {
                self.slots[hole] = self.slots[slot];
                hole = slot;
            }
            slot = self.next(slot);
        }
        self.slots[hole] = (0, 0);
        self.count -= 1;
    }

    fn slot_of(&self, hash: u32, is: impl Fn(u32) -> bool) -> Option<usize> {
        let mut slot = self.home(hash);
        loop {
            match self.slots[slot] {
                (_, 0) => return None,
                (other, place) if other == hash && is(place - 1) => return Some(slot),
                _ => slot = self.next(slot),
            }
        }
    }

    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> 32) as usize
    }

    fn next(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.slots.len() - from }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

    use super::*;

    #[test]
    fn it_finds_what_was_put_in_and_not_what_was_taken_out() {
        let mut rng = SmallRng::seed_from_u64(1);
        let (mut index, mut model) = (Index::new(64), HashMap::new());
        for _ in 0..50_000 {
            let place = rng.random_range(0..80_u32);
            // Few hashes, most of them at the end of the table, so that they collide and wrap.
            let hash = u32::MAX - place % 13 * 0x0200_0000;
            if model.remove(&place).is_some() {
                index.remove(hash, place);
            } else if !index.is_full() {
                model.insert(place, hash);
                index.insert(hash, place);
            }
            let place = rng.random_range(0..80_u32);
            let hash = u32::MAX - place % 13 * 0x0200_0000;
            let found = index.find(hash, |other| other == place);
            assert_eq!(found.is_some(), model.contains_key(&place));
            assert_eq!(index.count(), model.len());
        }
    }
}
