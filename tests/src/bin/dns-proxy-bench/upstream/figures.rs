//! What one run says, and the medians of several.

use std::time::{Duration, Instant};

use super::clients::Outcome;
use crate::stats::Spread;

/// A query that takes longer than this was held up by something.
const NORMAL: Duration = Duration::from_millis(65);

/// The figures of a run; NaN where one means nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// Microseconds of CPU for each query.
    pub(super) cpu: f64,
    /// Answers in a second.
    pub(super) rate: f64,
    /// Queries without a good answer.
    pub(super) lost: f64,
    /// Milliseconds, of those whose answers are not late on purpose.
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
    /// Late names that upstream was asked for more than once.
    pub(super) asked_again: f64,
    /// Queries that upstream read at once.
    pub(super) batch: f64,
    /// Connections made to upstream.
    pub(super) connections: f64,
    /// Milliseconds from the upstream's return to the last query that was held up.
    pub(super) recovery: f64,
}

impl Figures {
    /// From what became of the queries sent in `time`, and the CPU time they cost.
    pub(super) fn of(
        outcomes: &[Outcome],
        time: Duration,
        cpu: Duration,
        returned: Option<Instant>,
    ) -> Self {
        let good = outcomes.iter().filter(|outcome| outcome.took.is_some()).count();
        let mut latencies: Vec<f64> = outcomes
            .iter()
            .filter(|outcome| !outcome.late)
            .filter_map(|outcome| Some(outcome.took?.as_secs_f64() * 1e3))
            .collect();
        latencies.sort_unstable_by(f64::total_cmp);
        let at = |part: f64| {
            let index = (latencies.len() as f64 * part) as usize;
            latencies.get(index.min(latencies.len().saturating_sub(1))).copied()
        };
        let held_up = |outcome: &&Outcome| outcome.took.is_none_or(|took| took > NORMAL);
        let recovery = returned.map_or(f64::NAN, |returned| {
            let last = outcomes.iter().filter(held_up).map(|outcome| outcome.sent).max();
            last.map_or(0.0, |last| last.saturating_duration_since(returned).as_secs_f64() * 1e3)
        });
        Self {
            cpu: cpu.as_secs_f64() * 1e6 / good as f64,
            rate: good as f64 / time.as_secs_f64(),
            lost: (outcomes.len() - good) as f64,
            p50: at(0.5).unwrap_or(f64::NAN),
            p99: at(0.99).unwrap_or(f64::NAN),
            max: at(1.0).unwrap_or(f64::NAN),
            asked_again: f64::NAN,
            batch: f64::NAN,
            connections: f64::NAN,
            recovery,
        }
    }

    /// The median of each, but the worst of what must not happen at all.
    pub(super) fn medians(runs: &[Self]) -> Self {
        let median = |of: fn(&Self) -> f64| Spread::of(runs.iter().map(of)).median;
        let worst = |of: fn(&Self) -> f64| runs.iter().map(of).fold(f64::NAN, f64::max);
        Self {
            cpu: median(|run| run.cpu),
            rate: median(|run| run.rate),
            lost: worst(|run| run.lost),
            p50: median(|run| run.p50),
            p99: median(|run| run.p99),
            max: worst(|run| run.max),
            asked_again: worst(|run| run.asked_again),
            batch: median(|run| run.batch),
            connections: median(|run| run.connections),
            recovery: worst(|run| run.recovery),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_answered_is_lost_and_what_was_late_is_not_counted() {
        let sent = Instant::now();
        let outcome = |took: Option<u64>, late| {
            let took = took.map(Duration::from_millis);
            Outcome { sent, late, took }
        };
        let outcomes = [outcome(Some(20), false), outcome(None, false), outcome(Some(320), true)];
        let second = Duration::from_secs(1);
        let figures = Figures::of(&outcomes, second, second, Some(sent));
        assert_eq!((figures.lost, figures.rate, figures.p99), (1.0, 2.0, 20.0));
        assert_eq!(figures.recovery, 0.0);
    }
}
