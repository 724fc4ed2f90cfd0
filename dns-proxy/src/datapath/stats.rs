//! What one worker did, readable from other threads.

use crate::{
    datapath::outcome::{Answers, Failures, Latencies},
    meter::Counter,
};

/// Counters of one worker; only that worker writes them, so they never bounce between cores.
#[derive(Debug, Default)]
pub struct Stats {
    /// Queries admitted and well formed.
    pub queries: Counter,
    /// Those of them that were meant for another nameserver.
    pub intercepted: Counter,
    /// Answers from upstream, so over TLS.
    pub encrypted: Counter,
    /// Those of them whose upstream was not authenticated, because the operator does not insist.
    pub unauthenticated: Counter,
    /// Answered without asking: with what was known, or what somebody else was just asking.
    pub cached: Counter,
    /// Answered with an error of our own: no upstream, or not to be forwarded.
    pub failed: Counter,
    /// Sent to a nameserver in plaintext because a route says so, answered or not.
    pub plaintext: Counter,
    /// Answered here because a route says so.
    pub local: Counter,
    /// Messages that are no queries.
    pub malformed: Counter,
    /// Messages from those who may not ask.
    pub denied: Counter,
    /// Answers to queries, by what became of them.
    pub answers: Answers,
    /// Errors of our own, by their reasons.
    pub failures: Failures,
    /// How long they took, from when the query was received until the answer was there, or was sent
    /// if it was there at once.
    pub latencies: Latencies,
}
