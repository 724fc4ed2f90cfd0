//! What a [`DotServer`](super::DotServer) and its connections share: the orders and the journal.

use super::journal::{Journal, Seen};
use super::orders::Orders;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Both, each behind a lock that is never held across an await.
#[derive(Debug, Default)]
pub(super) struct Shared {
    orders: Mutex<Orders>,
    journal: Mutex<Journal>,
}

/// Counts a connection as open while it lives.
pub(super) struct Open(Arc<Shared>);

impl Shared {
    pub(super) fn orders(&self) -> Orders {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn order(&self, orders: Orders) {
        *self.orders.lock().unwrap_or_else(PoisonError::into_inner) = orders;
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the next connection.
    pub(super) fn accepted(&self) -> usize {
        let mut journal = self.journal();
        journal.accepted += 1;
        journal.accepted - 1
    }

    pub(super) fn opened(self: &Arc<Self>) -> Open {
        self.journal().open += 1;
        Open(Arc::clone(self))
    }

    pub(super) fn asked(&self, seen: Seen) {
        let mut journal = self.journal();
        journal.queries.push(seen);
        journal.in_flight += 1;
        journal.max_in_flight = journal.max_in_flight.max(journal.in_flight);
    }

    pub(super) fn answered(&self, count: usize) {
        self.journal().in_flight -= count;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.journal().open -= 1;
    }
}
