//! Tells a dead connection from a slow name.
//!
//! A connection is judged, not a query: one that sends anything useful lives. One that is silent
//! longer than an answer usually takes is asked for a sign of life, which every resolver can give at
//! once; if that does not come either, another connection is made, and takes over as soon as it is
//! up and this one still silent. What was asked here is then asked there too, and the first answer
//! counts: some servers are only slow.

use std::{rc::Rc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{ConnectionError, connection::Connection, pool::Inner};

/// A connection that owes an answer this long and has sent nothing since is taken for dead, even if
/// no other can be made; two fifths of the query's whole time if that is less.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(800);
/// So many unanswered queries are not all slow names.
const CROWD: usize = 8;
/// How often patience may double while probes are answered and nothing else is, or while one
/// connection after the other is replaced.
const MAX_DOUBLINGS: u32 = 5;

impl Inner {
    /// Ends a connection that is silent while it owes answers, or that nobody uses.
    pub(super) async fn watch(
        self: &Rc<Self>,
        index: usize,
        connection: &Rc<Connection>,
    ) -> ConnectionError {
        let server = &self.servers[index];
        let limit = SILENCE_TIMEOUT.min(self.settings.timeout * 2 / 5);
        let (mut doublings, mut answered) = (0, 0);
        loop {
            let Some(since) = connection.quiet_since() else {
                if connection.has_lapsed() && server.has_replaced(connection) {
                    // It may just be slower than anybody waits: that is worth knowing.
                    sleep_until(Instant::now() + limit).await;
                    connection.sweep(Instant::now(), || self.late(index));
                    continue;
                }
                tokio::select! {
                    () = sleep_until(connection.idle_at()) => {}
                    () = connection.owing() => {}
                }
                let idle = connection.is_up() && connection.quiet_since().is_none();
                if idle && connection.idle_at() <= Instant::now() {
                    return connection.closed();
                }
                // While it is dialled it is not idle, and has a limit of its own.
                if !connection.is_up() {
                    connection.owing().await;
                }
                continue;
            };
            if connection.answered() > answered {
                (doublings, answered) = (0, connection.answered());
            }
            let in_vain = doublings.max(server.replaced.get()).min(MAX_DOUBLINGS);
            let patience = || server.rtt.patience(in_vain, limit / 2);
            if !stays_quiet(connection, since, since + patience()).await {
                continue;
            }
            let now = Instant::now();
            let asked = patience();
            if since + asked > now {
                continue; // meanwhile it has shown on another connection how long it takes
            }
            connection.sweep(now, || self.late(index));
            if connection.quiet_since().is_none() {
                continue; // whoever asked has given up
            }
            if !server.has_replaced(connection) {
                connection.probe(now, self.settings.timeout);
                if connection.owes() > CROWD {
                    self.open_spare(index);
                }
            }
            if !stays_quiet(connection, since, now + asked).await {
                doublings = (doublings + 1).min(MAX_DOUBLINGS);
                continue;
            }
            if patience() > asked {
                continue;
            }
            self.rescue(index, connection, Instant::now());
            // One that serves a single query says nothing of the server.
            if server.is_main(connection) {
                server.suspected.set(true);
                self.open_spare(index);
                if server.spare.borrow().as_ref().is_some_and(|spare| spare.is_up()) {
                    self.replace(index, connection, Instant::now());
                }
            }
            // The spare one takes its place when it comes up.
            let until = Instant::now() + limit;
            if stays_quiet(connection, since, until).await {
                if !server.has_replaced(connection) {
                    return self.silent(index);
                }
                self.ask_again(index, connection, until);
            }
        }
    }

    fn silent(&self, index: usize) -> ConnectionError {
        ConnectionError::Silent { upstream: self.servers[index].addr().clone() }
    }
}

/// Whether nothing useful came until then.
async fn stays_quiet(connection: &Connection, since: Instant, until: Instant) -> bool {
    sleep_until(until).await;
    connection.quiet_since() == Some(since)
}
