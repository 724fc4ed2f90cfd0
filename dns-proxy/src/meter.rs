//! Numbers that one thread writes and all may read: no lock, and no instruction that locks a cache
//! line, since nobody else writes.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A number that goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn add(&self) {
        self.add_many(1);
    }

    /// Adds so many. Two threads that did this at once would lose what one of them adds.
    pub fn add_many(&self, many: u64) {
        self.set(self.get().wrapping_add(many));
    }

    /// Makes it another number.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What takes no longer than this is all in one bucket, nanoseconds.
const FIRST: u64 = 1_000;
/// So many powers of ten above it are divided ...
const DECADES: usize = 8;
/// ... into so many buckets each, which are equally wide: half of the power.
const STEPS: usize = 18;
/// With one for what is below, and one for what is above.
const BUCKETS: usize = DECADES * STEPS + 2;

/// How long things took: log-linear buckets from a microsecond to a hundred seconds.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    /// Nanoseconds.
    sum: Counter,
}

/// A histogram at one moment, or several of them added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    buckets: [u64; BUCKETS],
    sum: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { Counter(AtomicU64::new(0)) }; BUCKETS], sum: Counter::default() }
    }
}

impl Histogram {
    /// Notes that something took so long.
    pub fn add(&self, took: Duration) {
        self.add_many(took, 1);
    }

    /// Notes that so many things took so long.
    pub fn add_many(&self, took: Duration, many: u64) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].add_many(many);
        self.sum.add_many(nanos.saturating_mul(many));
    }

    /// All that it holds now.
    pub fn read(&self) -> Distribution {
        let mut buckets = [0; BUCKETS];
        for (count, counter) in buckets.iter_mut().zip(&self.buckets) {
            *count = counter.get();
        }
        Distribution { buckets, sum: Duration::from_nanos(self.sum.get()) }
    }
}

impl Default for Distribution {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum: Duration::ZERO }
    }
}

impl Distribution {
    /// Adds what another one holds.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count = count.wrapping_add(*more);
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How long all of them took together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// How many took no longer than this, which must be a bound of a bucket to be exact.
    pub fn up_to(&self, limit: Duration) -> u64 {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[..=bucket(nanos)].iter().sum()
    }

    /// So large a part of them, between 0 and 1, took no longer than this; none if there are none.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = part.clamp(0.0, 1.0) * self.count() as f64;
        let mut below = 0.0;
        for (index, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= rank {
                let low = index.checked_sub(1).map_or(0, bound) as f64;
                // Nothing is known of how far above the last bound it is.
                let high = bound(index.min(BUCKETS - 2)) as f64;
                let nanos = low + (high - low).max(0.0) * ((rank - below) / count);
                return Some(Duration::from_nanos(nanos as u64));
            }
            below += count;
        }
        None
    }
}

/// The bucket of what took so many nanoseconds: the first whose bound is not below.
fn bucket(nanos: u64) -> usize {
    if nanos <= FIRST {
        return 0;
    }
    let below = nanos - 1;
    let decade = (below / FIRST).ilog10();
    let step = (below / (FIRST / 2 * 10_u64.pow(decade)) - 2) as usize;
    (1 + decade as usize * STEPS + step).min(BUCKETS - 1)
}

/// What is in a bucket took no more nanoseconds than this; the last has no bound.
fn bound(bucket: usize) -> u64 {
    let Some(above) = bucket.checked_sub(1) else {
        return FIRST;
    };
    let (decade, step) = ((above / STEPS) as u32, (above % STEPS) as u64);
    FIRST / 2 * 10_u64.pow(decade) * (step + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_not_above_its_bound() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(bound(index)), index, "{}", bound(index));
            assert_eq!(bucket(bound(index) + 1), index + 1, "{}", bound(index));
        }
        assert_eq!(bound(BUCKETS - 2), 100_000_000_000);
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_took_how_long_is_told_back() {
        let histogram = Histogram::default();
        histogram.add_many(Duration::from_micros(40), 98);
        histogram.add(Duration::from_millis(20));
        histogram.add(Duration::from_secs(200));
        let mut read = histogram.read();
        let count = |micros| read.up_to(Duration::from_micros(micros));
        assert_eq!([10, 50, 10_000, 25_000].map(count), [0, 98, 98, 99]);
        assert_eq!(read.count(), 100);
        assert_eq!(read.sum(), Duration::from_micros(200_023_920));
        let half = read.quantile(0.5).expect("there are some");
        assert!((35..=40).contains(&half.as_micros()), "{half:?}");
        assert_eq!(read.quantile(1.0), Some(Duration::from_secs(100)));
        assert_eq!(Distribution::default().quantile(0.5), None);
        read.merge(&read.clone());
        assert_eq!(read.count(), 200);
    }
}
