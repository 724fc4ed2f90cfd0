//! Records in a fixed amount of memory, the popular ones for longer.
//!
//! S3-FIFO (Yang et al., SOSP 2023): new records wait in a small queue, and only those that were
//! asked for meanwhile get into the main one, where each has further rounds as long as it is asked
//! for. A flood of names that nobody asks for twice passes through the small queue and leaves the
//! rest alone. Fingerprints of those that left it are remembered for a while: who comes again gets
//! into the main queue at once.
//!
//! The queues are rings of bytes, so nothing is lost to an allocator, and the size is exact.

use super::{
    index::Index,
    record::{self, Record},
    ring::{Ring, UNIT},
};

/// The small queue's part of both.
const SMALL: usize = 10;
/// Octets for which there is one slot of the index, of 8 octets: records have about 100.
const OCTETS_PER_SLOT: usize = 80;
/// Octets for which there is one fingerprint, of 2 octets.
const OCTETS_PER_GHOST: usize = 256;
/// A record that would take more than this part of the small queue is not kept.
const LARGEST: usize = 4;
/// A record of the small queue must have been asked for so often to get into the main one.
const POPULAR: u8 = 2;
/// Records that may stay in the main queue for another round while one finds its place.
const MAX_CHANCES: u32 = 32;
/// The place is one in the main queue.
const MAIN: u32 = 1 << 31;

/// The records.
pub(super) struct Store {
    small: Ring,
    main: Ring,
    index: Index,
    ghosts: Vec<u16>,
    /// Records that were dropped to make room for others.
    evicted: u64,
}

/// Where a record is: its offset in units, and which queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u32);

impl Store {
    /// An empty one that takes so many octets in all.
    pub(super) fn new(size: usize) -> Self {
        let (slots, ghosts) = (size / OCTETS_PER_SLOT, (size / OCTETS_PER_GHOST).max(1));
        let queues = size.saturating_sub(slots * 8 + ghosts * 2);
        let small = queues / SMALL;
        Self {
            small: Ring::new(small),
            main: Ring::new(queues - small),
            index: Index::new(slots),
            ghosts: vec![0; ghosts],
            evicted: 0,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.index.count()
    }

    /// How many were dropped to make room for others.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Octets that records take.
    pub(super) fn used(&self) -> usize {
        self.small.used() + self.main.used()
    }

    /// The record with that key.
    pub(super) fn find(&self, hash: u32, key: &[u8]) -> Option<Place> {
        self.index.find(hash, |place| self.record(Place(place)).key() == key).map(Place)
    }

    pub(super) fn record(&self, place: Place) -> Record<'_> {
        Record(match place.0 & MAIN {
            0 => self.small.record(offset(place)),
            _ => self.main.record(offset(place)),
        })
    }

    pub(super) fn record_mut(&mut self, place: Place) -> &mut [u8] {
        match place.0 & MAIN {
            0 => self.small.record_mut(offset(place)),
            _ => self.main.record_mut(offset(place)),
        }
    }

    /// Lets go of a record.
    pub(super) fn remove(&mut self, place: Place) {
        self.index.remove(self.record(place).hash(), place.0);
        match place.0 & MAIN {
            0 => self.small.discard(offset(place)),
            _ => self.main.discard(offset(place)),
        }
    }

    /// Keeps a record in place of the one with its key, if it is not too long.
    pub(super) fn put(&mut self, new: &mut [u8], now: u32) {
        let (hash, mut in_main) = (Record(new).hash(), false);
        if let Some(place) = self.find(hash, Record(new).key()) {
            record::warm(new, self.record(place).heat());
            let old = self.record_mut(place);
            if old.len() == new.len() {
                return old.copy_from_slice(new);
            }
            in_main = place.0 & MAIN != 0;
            self.remove(place);
        }
        if new.len() > self.small.capacity() / LARGEST {
            return;
        }
        let mut chances = MAX_CHANCES;
        while self.index.is_full() {
            if !self.evict_small(now, &mut chances) {
                self.evict_main(now, &mut chances);
            }
        }
        if in_main || self.is_ghost(hash) {
            let place = self.push_main(new, now, &mut chances);
            self.index.insert(hash, place);
        } else {
            while !self.small.has_room(new.len()) {
                self.evict_small(now, &mut chances);
            }
            self.index.insert(hash, unit(self.small.push(new)));
        }
    }

    fn push_main(&mut self, new: &[u8], now: u32, chances: &mut u32) -> u32 {
        while !self.main.has_room(new.len()) {
            self.evict_main(now, chances);
        }
        unit(self.main.push(new)) | MAIN
    }

    /// Makes room in the small queue; whether there was anything in it.
    fn evict_small(&mut self, now: u32, chances: &mut u32) -> bool {
        let Some((at, len)) = self.small.pop() else {
            return false;
        };
        let hash = self.small.tag(at);
        if hash == 0 {
            return true;
        }
        let old = Record(&self.small.record(at)[..len]);
        if old.heat() < POPULAR || old.gone_at() <= now {
            self.index.remove(hash, unit(at));
            self.evicted += 1;
            *self.ghost(hash) = fingerprint(hash);
            return true;
        }
        record::cool(self.small.record_mut(at), 0);
        while !self.main.has_room(len) {
            self.evict_main(now, chances);
        }
        let place = unit(self.main.push(self.small.record(at))) | MAIN;
        self.index.moved(hash, unit(at), place);
        true
    }

    /// Makes room in the main queue, unless the oldest deserves another round.
    fn evict_main(&mut self, now: u32, chances: &mut u32) {
        let Some((at, len)) = self.main.pop() else {
            return;
        };
        let (hash, from) = (self.main.tag(at), unit(at) | MAIN);
        if hash == 0 {
            return;
        }
        let old = Record(self.main.record(at));
        let heat = old.heat();
        if heat > 0 && old.gone_at() > now && *chances > 0 {
            *chances -= 1;
            record::cool(self.main.record_mut(at), heat - 1);
            if let Some(to) = self.main.push_again(at, len) {
                return self.index.moved(hash, from, unit(to) | MAIN);
            }
        }
        self.index.remove(hash, from);
        self.evicted += 1;
    }

    /// Whether it left the small queue not long ago.
    fn is_ghost(&mut self, hash: u32) -> bool {
        let ghost = self.ghost(hash);
        let is_ghost = *ghost == fingerprint(hash);
        if is_ghost {
            *ghost = 0;
        }
        is_ghost
    }

    fn ghost(&mut self, hash: u32) -> &mut u16 {
        let slot = (u64::from(hash) * self.ghosts.len() as u64) >> 32;
        &mut self.ghosts[slot as usize]
    }
}

/// What is left of a hash whose upper bits say where it is remembered.
fn fingerprint(hash: u32) -> u16 {
    hash as u16 | 1
}

fn offset(place: Place) -> usize {
    (place.0 & !MAIN) as usize * UNIT
}

fn unit(offset: usize) -> u32 {
    (offset / UNIT) as u32
}
