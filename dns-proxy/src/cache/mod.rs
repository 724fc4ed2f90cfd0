//! Answers that were given before: kept as they came, and patched for each client.
//!
//! What is kept is the records on the wire and where their TTLs are; a hit is a lookup, a copy and a
//! few subtractions. Pure: it knows no socket and no clock, the time comes with each call. Each worker
//! has one of its own. The memory is taken in one piece and never grows (`store`).
//!
//! Negative answers: RFC 2308. Stale ones: RFC 8767. Failures: RFC 9520.

mod index;
mod key;
mod lifetime;
mod record;
mod ring;
mod store;
#[cfg(test)]
mod tests;

use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

pub use key::{Bits, Key, View};
pub use lifetime::{Limits, is_failure};
use lifetime::{Verdict, judge, seconds};
use record::{Record, Times};
use store::Store;

use crate::{parts::Parts, wire};

/// TTL of a stale answer, in seconds (RFC 8767 section 4).
pub const STALE_TTL: u32 = 30;
/// How long a stale answer is given without asking again after that has failed, in seconds (RFC 8767
/// section 5).
const RECHECK: u32 = 30;
/// How long a failure is told again at first, in seconds; twice as long each time it goes on (RFC 9520
/// section 3.2) ...
const FIRST_FAILURE: u32 = 1;
/// ... up to this, of which RFC 9520 allows 300.
const MAX_FAILURE: u32 = 30;
/// A popular answer is renewed in the last part of its life, of so many.
const RENEW_IN_LAST: u32 = 10;
/// It is popular if it was found so often.
const POPULAR: u8 = 2;

/// How much is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Octets of memory in all; with 0 nothing is kept.
    pub size: usize,
    /// Bounds of lifetimes.
    pub limits: Limits,
}

/// The answers of one worker.
pub struct Cache {
    epoch: Instant,
    limits: Limits,
    hasher: RandomState,
    store: Store,
    /// What is being written, between calls only to be used again.
    draft: Vec<u8>,
    ttls: Vec<(u16, u32)>,
}

/// An answer that was found.
pub struct Hit<'a> {
    record: Record<'a>,
    age: u32,
    /// It may be given only if there is no fresh one to be had.
    pub is_stale: bool,
    /// It is time to ask again.
    pub is_due: bool,
}

impl Cache {
    /// An empty one that takes so many octets of memory in all, once they are needed.
    pub fn new(size: usize, limits: Limits, now: Instant) -> Self {
        Self {
            epoch: now,
            limits,
            hasher: RandomState::new(),
            store: Store::new(size),
            draft: Vec::new(),
            ttls: Vec::new(),
        }
    }

    /// How many answers there are, fresh or not.
    pub fn count(&self) -> usize {
        self.store.count()
    }

    /// How many were dropped to make room for others.
    pub fn evicted(&self) -> u64 {
        self.store.evicted()
    }

    /// Octets that they take.
    pub fn used(&self) -> usize {
        self.store.used()
    }

    /// The answer to a question, if there is one that is fresh or may be given stale.
    pub fn get(&mut self, key: &Key, now: Instant) -> Option<Hit<'_>> {
        let now = self.time(now);
        let place = self.store.find(self.hash(key), key.bytes())?;
        if self.store.record(place).gone_at() <= now {
            return None;
        }
        record::warm(self.store.record_mut(place), 1);
        let record = self.store.record(place);
        let age = now.saturating_sub(record.kept_at());
        let left = record.lifetime().saturating_sub(age);
        let is_last = left <= record.lifetime() / RENEW_IN_LAST && record.heat() >= POPULAR;
        let is_due = (left == 0 || is_last) && record.retry_at() <= now;
        Some(Hit { record, age, is_stale: left == 0, is_due })
    }

    /// Keeps an answer, if it is for keeping, at a time that is also given in seconds since 1970,
    /// which signatures count in.
    pub fn keep(&mut self, key: &Key, parts: &Parts<'_>, now: Instant, unix: u32) {
        let (hash, now) = (self.hash(key), self.time(now));
        let before = self.store.find(hash, key.bytes());
        let old = before.map(|place| self.store.record(place));
        let (lifetime, max_stale, failures) =
            match judge(key, parts, &self.limits, unix, &mut self.ttls) {
                Verdict::Keep(lifetime) => (lifetime, seconds(self.limits.max_stale), None),
                Verdict::Failure if old.is_some_and(|old| is_good(old, now)) => {
                    return self.failed_at(hash, key, now);
                }
                Verdict::Failure => {
                    let before = old.map_or(0, |old| failures_in_a_row(old, now));
                    let lifetime = FIRST_FAILURE.saturating_mul(1 << before.min(16));
                    (lifetime.min(MAX_FAILURE), 0, Some(before))
                }
                // It replaces what was true before, even if nobody else is to hear of it.
                Verdict::Pass if !is_failure(parts) => {
                    before.into_iter().for_each(|place| self.store.remove(place));
                    return;
                }
                Verdict::Pass => return self.failed_at(hash, key, now),
            };
        let gone_at = now.saturating_add(lifetime).saturating_add(max_stale);
        let times = Times { kept_at: now, lifetime, gone_at };
        let parts = Parts { flags: [parts.flags[0] & !wire::flag::AA, parts.flags[1]], ..*parts };
        record::write(&mut self.draft, (hash, key), &parts, &self.ttls, times, failures);
        self.store.put(&mut self.draft, now);
    }

    /// Takes note that a question could not be asked again.
    pub fn failed(&mut self, key: &Key, now: Instant) {
        self.failed_at(self.hash(key), key, self.time(now));
    }

    fn failed_at(&mut self, hash: u32, key: &Key, now: u32) {
        if let Some(place) = self.store.find(hash, key.bytes()) {
            record::retry_at(self.store.record_mut(place), now.saturating_add(RECHECK));
        }
    }

    /// Never 0, which stands for nothing.
    fn hash(&self, key: &Key) -> u32 {
        self.hasher.hash_one(key.bytes()) as u32 | 1
    }

    /// Whole seconds since the cache was made. Answers are rounded up to the next second in age.
    fn time(&self, now: Instant) -> u32 {
        seconds(now.saturating_duration_since(self.epoch))
    }
}

impl<'a> Hit<'a> {
    /// What it is made of, with the TTLs that it came with.
    pub fn parts(&self) -> Parts<'a> {
        self.record.parts()
    }

    /// How long ago it came.
    pub fn age(&self) -> Duration {
        Duration::from_secs(self.age.into())
    }

    /// Writes the TTLs that are left into the message that its parts make.
    pub fn count_down(&self, message: &mut [u8]) {
        for at in self.record.ttls().as_chunks().0 {
            let at = usize::from(u16::from_le_bytes(*at));
            let Some(octets) = message.get_mut(at..at + 4).and_then(|o| o.first_chunk_mut()) else {
                return;
            };
            let ttl = u32::from_be_bytes(*octets);
            let left = if self.is_stale { STALE_TTL } else { ttl.saturating_sub(self.age) };
            *octets = left.to_be_bytes();
        }
    }
}

/// It is no failure, and may still be given.
fn is_good(record: Record<'_>, now: u32) -> bool {
    record.failures() == 0 && record.gone_at() > now
}

/// How often a question failed in a row until now; it begins anew when nobody asked for a while.
fn failures_in_a_row(record: Record<'_>, now: u32) -> u8 {
    let recently = now.saturating_sub(record.gone_at()) <= MAX_FAILURE;
    if recently { record.failures() } else { 0 }
}
