//! What is known of an upstream server, for people to read.

use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};

use super::server::Server;
use crate::{
    addr::UpstreamAddr,
    meter::{Distribution, Histogram},
};

/// How a server is, as one worker sees it; the later, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerState {
    /// There is a connection, and all is well.
    Up,
    /// All was well; there is no connection, since nobody asks.
    Idle,
    /// It owes answers and is silent.
    Silent,
    /// It failed the last time.
    Failed,
}

/// One worker's view of one server.
#[derive(Clone, Debug)]
pub struct ServerReport {
    /// Which server.
    pub addr: UpstreamAddr,
    /// How it is.
    pub state: ServerState,
    /// Why it failed the last time, if it did.
    pub error: Option<String>,
    /// Why it is used without being authenticated, if it is.
    pub doubt: Option<String>,
    /// How long its quickest answers take.
    pub latency: Option<Duration>,
    /// Connections that are open.
    pub open: u64,
    /// Connections that came to be.
    pub connected: u64,
    /// Those of them that resumed a session.
    pub resumed: u64,
    /// Answers.
    pub answers: u64,
    /// Times that it failed.
    pub failures: u64,
    /// Those of them for which TLS or authentication was the reason.
    pub tls_failures: u64,
    /// How long its answers took.
    pub latencies: Distribution,
    /// When its certificate expires.
    pub expires: Option<SystemTime>,
}

/// What a server did so far. Only its worker writes and reads it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) connected: Cell<u64>,
    pub(super) resumed: Cell<u64>,
    pub(super) answers: Cell<u64>,
    pub(super) failures: Cell<u64>,
    pub(super) tls_failures: Cell<u64>,
    pub(super) latencies: Histogram,
    pub(super) expires: Cell<Option<SystemTime>>,
}

impl Tally {
    /// A connection came to be.
    pub(super) fn connected(&self, resumed: bool, expires: Option<SystemTime>) {
        self.connected.update(|count| count + 1);
        self.resumed.update(|count| count + u64::from(resumed));
        self.expires.set(expires);
    }
}

impl ServerReport {
    pub(super) fn of(server: &Server) -> Self {
        let open = server.connections().iter().filter(|connection| connection.is_up()).count();
        let open = (open + server.aside.get()) as u64;
        let error = server.last_error();
        let state = match (&error, server.suspected.get(), open) {
            (Some(_), ..) => ServerState::Failed,
            (None, true, _) => ServerState::Silent,
            (None, false, 0) => ServerState::Idle,
            (None, false, _) => ServerState::Up,
        };
        let tally = &server.tally;
        Self {
            addr: server.addr().clone(),
            state,
            error: error.map(|error| error.to_string()),
            doubt: server.doubt(),
            latency: server.rtt.smoothed(),
            open,
            connected: tally.connected.get(),
            resumed: tally.resumed.get(),
            answers: tally.answers.get(),
            failures: tally.failures.get(),
            tls_failures: tally.tls_failures.get(),
            latencies: tally.latencies.read(),
            expires: tally.expires.get(),
        }
    }
}
