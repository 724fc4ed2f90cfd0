//! What became of a query, for those who count: which way it went, who answered, and what.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use super::response::Failure;
use crate::{
    meter::{Counter, Distribution, Histogram},
    upstream::{ExchangeError, Transport},
};

/// Which way a query went, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// To an upstream, over TLS.
    Encrypted,
    /// To a nameserver, in plaintext, because a route says so.
    Plaintext,
}

/// Where the answer to a query that may be asked comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It was asked for.
    Asked,
    /// It was known.
    Cache,
    /// It was known, and is beyond its time (RFC 8767).
    Stale,
    /// Somebody else was asking for it already.
    Shared,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is an answer.
    Answered(Road, Source),
    /// It is answered here, because a route says so.
    Local,
    /// It got an error of ours.
    Failed,
}

impl Outcome {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 10] = [
        Self::Answered(Road::Encrypted, Source::Asked),
        Self::Answered(Road::Encrypted, Source::Cache),
        Self::Answered(Road::Encrypted, Source::Stale),
        Self::Answered(Road::Encrypted, Source::Shared),
        Self::Answered(Road::Plaintext, Source::Asked),
        Self::Answered(Road::Plaintext, Source::Cache),
        Self::Answered(Road::Plaintext, Source::Stale),
        Self::Answered(Road::Plaintext, Source::Shared),
        Self::Local,
        Self::Failed,
    ];

    /// The way, in a word.
    pub fn route(self) -> &'static str {
        match self {
            Self::Answered(Road::Encrypted, _) => "encrypted",
            Self::Answered(Road::Plaintext, _) => "plaintext",
            Self::Local => "local",
            Self::Failed => "none",
        }
    }

    /// Who answered, in a word.
    pub fn source(self) -> &'static str {
        match self {
            Self::Answered(Road::Encrypted, Source::Asked) => "upstream",
            Self::Answered(Road::Plaintext, Source::Asked) => "nameserver",
            Self::Answered(_, Source::Cache) => "cache",
            Self::Answered(_, Source::Stale) => "stale",
            Self::Answered(_, Source::Shared) => "shared",
            Self::Local => "local",
            Self::Failed => "none",
        }
    }

    /// The answer is there as soon as the query is.
    pub fn is_at_once(self) -> bool {
        matches!(self, Self::Answered(_, Source::Cache) | Self::Local)
    }

    const fn index(self) -> usize {
        match self {
            Self::Answered(Road::Encrypted, source) => source as usize,
            Self::Answered(Road::Plaintext, source) => 4 + source as usize,
            Self::Local => 8,
            Self::Failed => 9,
        }
    }
}

/// Why a query got an error of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The upstream did not answer in time.
    Timeout,
    /// There was no connection to an upstream.
    Connection,
    /// The answer was malformed.
    BadAnswer,
    /// The nameserver that a route names did not answer.
    Nameserver,
    /// There is nobody to ask for the zone.
    ZoneTransfer,
    /// The client has too many queries in flight.
    Busy,
}

impl Reason {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 6] = [
        Self::Timeout,
        Self::Connection,
        Self::BadAnswer,
        Self::Nameserver,
        Self::ZoneTransfer,
        Self::Busy,
    ];

    /// In a word or two.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connection => "connection",
            Self::BadAnswer => "bad_answer",
            Self::Nameserver => "nameserver",
            Self::ZoneTransfer => "zone_transfer",
            Self::Busy => "busy",
        }
    }
}

impl From<&Failure> for Reason {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Upstream(ExchangeError::Timeout) => Self::Timeout,
            Failure::Upstream(ExchangeError::Connection(_)) => Self::Connection,
            Failure::BadAnswer => Self::BadAnswer,
            Failure::Plain(_) => Self::Nameserver,
            Failure::ZoneTransfer => Self::ZoneTransfer,
            Failure::Busy => Self::Busy,
        }
    }
}

/// Errors of ours by reason.
#[derive(Debug, Default)]
pub struct Failures([Counter; Reason::ALL.len()]);

impl Failures {
    /// Counts one.
    pub fn count(&self, failure: &Failure) {
        self.0[Reason::from(failure) as usize].add();
    }

    /// How many there were.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize].get()
    }
}

/// Response codes that fit the header (RFC 1035 section 4.1.1).
pub const RCODES: usize = 16;

/// Both ways in which clients ask.
pub const TRANSPORTS: [Transport; 2] = [Transport::Datagram, Transport::Stream];

/// Answers by outcome, transport and response code: one addition for each.
#[derive(Debug, Default)]
pub struct Answers([[[Counter; RCODES]; TRANSPORTS.len()]; Outcome::ALL.len()]);

impl Answers {
    /// Counts an answer, a message with a header.
    pub fn count(&self, outcome: Outcome, transport: Transport, answer: &[u8]) {
        let rcode = answer.get(3).map_or(0, |flags| usize::from(flags & 0xf));
        self.0[outcome.index()][transport as usize][rcode].add();
    }

    /// How many there were.
    pub fn of(&self, outcome: Outcome, transport: Transport, rcode: usize) -> u64 {
        self.0[outcome.index()][transport as usize].get(rcode).map_or(0, Counter::get)
    }
}

/// How long answers took, by outcome.
#[derive(Debug, Default)]
pub struct Latencies([Histogram; Outcome::ALL.len()]);

impl Latencies {
    /// So many answers took so long.
    pub fn add(&self, outcome: Outcome, took: Duration, many: u64) {
        self.0[outcome.index()].add_many(took, many);
    }

    /// How long they took.
    pub fn of(&self, outcome: Outcome) -> Distribution {
        self.0[outcome.index()].read()
    }
}

/// Answers that were there at once and are still to be sent: the clock is read once for all of them.
#[derive(Debug, Default)]
pub struct AtOnce([Cell<u64>; Outcome::ALL.len()]);

impl AtOnce {
    /// One more.
    pub fn add(&self, outcome: Outcome) {
        self.0[outcome.index()].update(|count| count + 1);
    }

    /// They are sent, and their queries came then.
    pub fn sent(&self, came: Instant, latencies: &Latencies) {
        let mut took = None;
        for (outcome, count) in Outcome::ALL.into_iter().zip(&self.0) {
            let count = count.take();
            if count > 0 {
                latencies.add(outcome, *took.get_or_insert_with(|| came.elapsed()), count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_follow_the_order_of_all() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.index(), index, "{outcome:?}");
        }
        for (index, transport) in TRANSPORTS.into_iter().enumerate() {
            assert_eq!(transport as usize, index, "{transport:?}");
        }
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason:?}");
        }
    }

    #[test]
    fn answers_are_counted_apart() {
        let answers = Answers::default();
        let outcome = Outcome::Answered(Road::Plaintext, Source::Cache);
        answers.count(outcome, Transport::Stream, &[0, 0, 0x81, 0x83]);
        answers.count(outcome, Transport::Stream, &[]);
        assert_eq!(answers.of(outcome, Transport::Stream, 3), 1);
        assert_eq!(answers.of(outcome, Transport::Stream, 0), 1);
        assert_eq!(answers.of(outcome, Transport::Datagram, 3), 0);
        assert_eq!(answers.of(Outcome::Local, Transport::Stream, 3), 0);
    }
}
