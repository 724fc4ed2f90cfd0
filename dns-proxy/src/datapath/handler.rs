//! The straight line: parse, forward, fit to the client.

use std::{cell::Cell, rc::Rc, sync::Arc};

use tracing::debug;

use super::{
    query::Query,
    response::{self, Failure, Room},
    stats::Stats,
};
use crate::{upstream::Pool, wire::rr_type};

/// Queries that the clients of one listener may have in flight; a resolver that stalls must not
/// let one namespace take all memory.
pub const MAX_IN_FLIGHT: usize = 4_096;

/// What one worker answers with.
pub struct Handler {
    pool: Pool,
    stats: Arc<Stats>,
}

/// How many queries of one listener are in flight, answers that wait to be written included.
#[derive(Clone, Default)]
pub struct InFlight(Rc<Cell<usize>>);

/// A query's place among them.
pub struct Place(InFlight);

impl Handler {
    /// A handler that asks `pool`.
    pub fn new(pool: Pool, stats: Arc<Stats>) -> Self {
        Self { pool, stats }
    }

    /// The worker's counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Answers what a client sent; `None` if that must not be answered at all.
    pub async fn handle(&self, message: &[u8], room: Room) -> Option<Vec<u8>> {
        let query = match self.parse(message) {
            Ok(query) => query,
            Err(rejection) => return rejection,
        };
        match self.resolve(&query, room).await {
            Ok(answer) => {
                self.stats.encrypted.add();
                Some(answer)
            }
            Err(failure) => Some(self.fail(&query, &failure)),
        }
    }

    /// Answers a client that has no place left in flight.
    pub fn refuse(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self.parse(message) {
            Ok(query) => Some(self.fail(&query, &Failure::Busy)),
            Err(rejection) => rejection,
        }
    }

    /// The query, or what is said to something that is none.
    fn parse(&self, message: &[u8]) -> Result<Query, Option<Vec<u8>>> {
        Query::parse(message).inspect(|_| self.stats.queries.add()).map_err(|reason| {
            self.stats.malformed.add();
            response::reject(message, reason)
        })
    }

    async fn resolve(&self, query: &Query, room: Room) -> Result<Vec<u8>, Failure> {
        if matches!(query.qtype(), rr_type::AXFR | rr_type::IXFR) {
            return Err(Failure::ZoneTransfer);
        }
        let answer = self.pool.exchange(query.to_upstream()).await?;
        response::relay(query, &answer, room)
    }

    fn fail(&self, query: &Query, failure: &Failure) -> Vec<u8> {
        self.stats.failed.add();
        debug!(%failure, "query failed");
        response::fail(query, failure)
    }
}

impl InFlight {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.get()
    }

    /// A place for one more, if there is room; it is free again when the place is dropped.
    pub fn enter(&self) -> Option<Place> {
        let count = self.0.get();
        (count < MAX_IN_FLIGHT).then(|| {
            self.0.set(count + 1);
            Place(self.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let in_flight = &self.0.0;
        in_flight.set(in_flight.get() - 1);
    }
}
