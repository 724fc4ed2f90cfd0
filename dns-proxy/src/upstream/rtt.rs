//! How long an upstream takes to answer, learned from its answers.

use std::{cell::Cell, time::Duration};

/// No less than this is waited for a sign of life, however near the upstream is: on a busy machine
/// either side may be off its core for so long.
const MIN_PATIENCE: Duration = Duration::from_millis(8);
/// While nothing is known (RFC 6298 section 2.1 says a second).
const INITIAL_PATIENCE: Duration = Duration::from_millis(400);
/// No answer is asked for twice before this.
const MIN_HEDGE: Duration = Duration::from_millis(50);
/// After this one is, however slow the upstream usually is.
const MAX_HEDGE: Duration = Duration::from_secs(1);
/// A server is left for one less preferred if it takes so many times as long ...
const FAR_TIMES: f64 = 3.0;
/// ... and so much longer.
const FAR_SECONDS: f64 = 0.03;
/// By how much the estimate of the 95th percentile moves at once.
const STEP: f64 = 0.02;

/// Estimates for one upstream; nothing is known at first.
#[derive(Debug, Default)]
pub(super) struct Rtt(Cell<Option<Estimate>>);

/// In seconds.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    /// Smoothed time of the quickest answers, and how much that varies (RFC 6298 section 2).
    smoothed: f64,
    variation: f64,
    /// About one answer in twenty takes longer than this.
    slow: f64,
}

impl Rtt {
    /// Notes how long the quickest of the answers that came at once took. It is the road's time, or
    /// nearly, where slower ones had to be looked up.
    pub(super) fn quickest(&self, took: Duration) {
        let took = took.as_secs_f64();
        self.0.set(Some(match self.0.get() {
            None => Estimate { smoothed: took, variation: took / 2.0, slow: took * 2.0 },
            Some(mut estimate) => {
                // What was looked up says nothing of the road.
                let sample = took.min(estimate.smoothed * 2.0);
                let error = sample - estimate.smoothed;
                // Slowness may be a moment's; quickness is always the road's.
                estimate.smoothed += if error < 0.0 { error / 2.0 } else { error / 8.0 };
                estimate.variation += (error.abs() - estimate.variation) / 4.0;
                estimate
            }
        }));
    }

    /// Notes how long any answer took.
    pub(super) fn answer(&self, took: Duration) {
        if let Some(mut estimate) = self.0.get() {
            let step = STEP * estimate.slow;
            let up = took.as_secs_f64() > estimate.slow;
            // In balance when one in twenty is above.
            estimate.slow += if up { step } else { -step / 19.0 };
            estimate.slow = estimate.slow.max(estimate.smoothed);
            self.0.set(Some(estimate));
        }
    }

    /// How long the quickest answers take, if there were any.
    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.0.get().map(|estimate| Duration::from_secs_f64(estimate.smoothed))
    }

    /// Whether this one is so much slower than `other` that it need not be preferred.
    pub(super) fn is_far_behind(&self, other: &Self) -> bool {
        match (self.0.get(), other.0.get()) {
            (Some(own), Some(other)) => own.smoothed > other.smoothed * FAR_TIMES + FAR_SECONDS,
            _ => false,
        }
    }

    /// How long an answer usually takes at most, if that is known.
    pub(super) fn usual(&self) -> Option<Duration> {
        self.0.get().map(|estimate| {
            let spread = (4.0 * estimate.variation).max(estimate.smoothed / 4.0);
            Duration::from_secs_f64(estimate.smoothed + spread)
        })
    }

    /// How long a connection that owes answers may be silent before one wonders, if one has wondered so
    /// often in vain; not longer than `most`, unless the upstream is known to take longer.
    pub(super) fn patience(&self, in_vain: u32, most: Duration) -> Duration {
        let known = self.usual().map(|usual| usual.max(MIN_PATIENCE));
        let usual = known.unwrap_or_else(|| INITIAL_PATIENCE.min(most));
        (usual * (1 << in_vain)).min(usual.max(most))
    }

    /// After how long without an answer another upstream is asked too: few answers take so long.
    pub(super) fn hedge_after(&self) -> Duration {
        self.0.get().map_or(MAX_HEDGE, |estimate| {
            Duration::from_secs_f64(estimate.slow * 2.0).clamp(MIN_HEDGE, MAX_HEDGE)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIP: Duration = Duration::from_millis(20);

    #[test]
    fn patience_follows_the_round_trip_and_not_slow_names() {
        let (rtt, most) = (Rtt::default(), Duration::from_millis(400));
        let patience = |in_vain| rtt.patience(in_vain, most);
        assert_eq!((patience(0), patience(3)), (INITIAL_PATIENCE, most));
        assert_eq!(rtt.patience(0, TRIP), TRIP);
        (0..100).for_each(|_| rtt.quickest(TRIP));
        assert!((TRIP..TRIP * 3 / 2).contains(&patience(0)), "{:?}", patience(0));
        assert_eq!((patience(1), patience(9)), (patience(0) * 2, most));
        rtt.quickest(Duration::from_secs(1));
        assert!(patience(0) < TRIP * 4, "{:?}", patience(0));
    }

    #[test]
    fn patience_with_a_far_upstream_is_longer_than_with_others() {
        let (rtt, most) = (Rtt::default(), TRIP);
        rtt.quickest(TRIP * 3);
        assert!(rtt.patience(0, most) > TRIP * 3 && rtt.patience(5, most) < TRIP * 10);
    }

    #[test]
    fn only_a_much_slower_server_is_far_behind() {
        let (quick, slow, unknown) = (Rtt::default(), Rtt::default(), Rtt::default());
        quick.quickest(TRIP);
        slow.quickest(TRIP * 4);
        assert!(!slow.is_far_behind(&quick) && !slow.is_far_behind(&unknown));
        (0..100).for_each(|_| slow.quickest(TRIP * 6));
        assert!(slow.is_far_behind(&quick) && !quick.is_far_behind(&slow));
    }

    #[test]
    fn few_answers_are_slower_than_the_time_to_hedge() {
        let rtt = Rtt::default();
        rtt.quickest(TRIP);
        let slow = Duration::from_millis(300);
        for number in 0..10_000 {
            rtt.answer(if number % 100 < 10 { slow } else { TRIP });
        }
        // A tenth is slow: it is not waited for less than that.
        assert!((slow..=MAX_HEDGE).contains(&rtt.hedge_after()), "{:?}", rtt.hedge_after());
        (0..10_000).for_each(|_| rtt.answer(TRIP));
        assert_eq!(rtt.hedge_after(), MIN_HEDGE);
    }
}
