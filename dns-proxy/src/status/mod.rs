//! How the daemon is, in one piece: what `status`, the metrics, the page and `audit` are made of.
//!
//! Gathered when somebody asks ([`gather`]), from counters that are there anyway and from what workers
//! say of themselves between two queries; shown to people by [`text`].

#[cfg(test)]
mod example;
pub mod gather;
pub mod text;
mod warnings;

use std::collections::BTreeMap;

#[cfg(test)]
pub(crate) use example::example;

use serde::{Deserialize, Serialize};

use crate::{meter::Distribution, moment::Moment};

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Of the daemon.
    pub pid: u32,
    /// When it became ready.
    pub since: Moment,
    /// When this was gathered.
    pub at: Moment,
    /// What becomes of the scope's DNS without the daemon: `open` or `closed`.
    pub fail: String,
    /// What the leak guard does: `on`, `count` or `off`; nothing if nothing is intercepted.
    pub guard: Option<String>,
    /// What is intercepted.
    pub scopes: Vec<Scope>,
    /// The cgroup that the programs are attached to.
    pub attached: Option<String>,
    /// Network namespaces, in the order of their ids.
    pub namespaces: Vec<Namespace>,
    /// Token addresses in use, as of the last half minute.
    #[serde(default)]
    pub tokens: u64,
    /// Plain listeners.
    pub listen: Vec<String>,
    /// Upstreams, in the order of preference; those of routes last.
    pub upstreams: Vec<Upstream>,
    /// What is known already.
    pub cache: Cache,
    /// What became of queries.
    pub counters: Counters,
    /// What the kernel programs counted, by reason.
    pub kernel: BTreeMap<String, u64>,
    /// The threads on the query path.
    pub workers: Vec<Worker>,
    /// What is not as it should be.
    pub warnings: Vec<Warning>,
}

/// A part of the cgroup tree that is intercepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scope {
    /// What selects it.
    pub select: Vec<Pattern>,
    /// What is left out.
    pub exclude: Vec<Pattern>,
}

/// A cgroup pattern.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pattern {
    /// As it is written.
    pub pattern: String,
    /// The cgroups that match it now; what is below them is in too.
    pub matches: Vec<String>,
}

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its inode in nsfs, as `lsns` shows it.
    pub id: u64,
    /// Its cookie, if it is in service.
    pub cookie: Option<u64>,
    /// It has listeners that queries are sent to; else they are refused.
    pub ready: bool,
    /// A process of the scope in it, if there is one.
    pub pid: Option<u32>,
    /// That process's cgroup.
    pub cgroup: Option<String>,
    /// The listeners' port.
    pub port: Option<u16>,
    /// IPv4 nameservers are redirected.
    pub ipv4: bool,
    /// IPv6 nameservers are redirected.
    pub ipv6: bool,
}

/// An upstream server, as all workers together see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Upstream {
    /// Where it is.
    pub address: String,
    /// The name that its certificate must hold, if not the address.
    pub name: Option<String>,
    /// It is asked only what a route sends there.
    pub of_route: bool,
    /// How it is.
    pub state: UpstreamState,
    /// Why it failed, or is not authenticated.
    pub error: Option<String>,
    /// Whether it is known to be who it should be; nothing before the first connection.
    pub authenticated: Option<bool>,
    /// How long its quickest answers take, in seconds.
    pub latency_seconds: Option<f64>,
    /// Connections that are open.
    pub connections: u64,
    /// Connections that were made.
    pub connected: u64,
    /// Those of them that resumed a TLS session.
    pub resumed: u64,
    /// Answers.
    pub answers: u64,
    /// Times that it failed.
    pub failures: u64,
    /// Those of them for which TLS or authentication was the reason.
    #[serde(default)]
    pub tls_failures: u64,
    /// How long its answers took.
    #[serde(skip)]
    pub latencies: Distribution,
    /// When its certificate expires.
    pub certificate_expires: Option<Moment>,
}

impl Upstream {
    /// Adds what somebody else says of the same server.
    pub fn merge(&mut self, other: Self) {
        // The quicker connection says more of the server.
        self.latency_seconds = match (self.latency_seconds, other.latency_seconds) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        self.authenticated = match (self.authenticated, other.authenticated) {
            (Some(one), Some(two)) => Some(one && two),
            (one, two) => one.or(two),
        };
        self.state = match (self.state, other.state) {
            (UpstreamState::Failed, _) | (_, UpstreamState::Failed) => UpstreamState::Failed,
            (UpstreamState::Silent, _) | (_, UpstreamState::Silent) => UpstreamState::Silent,
            (UpstreamState::Up, _) | (_, UpstreamState::Up) => UpstreamState::Up,
            (UpstreamState::Idle, UpstreamState::Idle) => UpstreamState::Idle,
        };
        self.error = self.error.take().or(other.error);
        self.connections += other.connections;
        self.connected += other.connected;
        self.resumed += other.resumed;
        self.answers += other.answers;
        self.failures += other.failures;
        self.tls_failures += other.tls_failures;
        self.latencies.merge(&other.latencies);
        // The last word is that of a certificate that was renewed.
        self.certificate_expires = self.certificate_expires.max(other.certificate_expires);
    }
}

/// How an upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamState {
    /// There is a connection, and all is well.
    Up,
    /// All was well; there is no connection, since nobody asks.
    Idle,
    /// It owes answers and is silent.
    Silent,
    /// It failed the last time.
    Failed,
}

/// What is known already.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    /// Octets that it may take; 0 if there is none.
    pub size: u64,
    /// Octets that answers take.
    pub used: u64,
    /// Answers.
    pub names: u64,
    /// Queries that were answered from it, or with what somebody else was just asking.
    pub hits: u64,
    /// Answers that were dropped to make room for others.
    #[serde(default)]
    pub evictions: u64,
}

/// What became of queries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Queries, well formed and admitted, from wherever.
    pub queries: u64,
    /// Those of them that were meant for another nameserver.
    pub intercepted: u64,
    /// Answers from upstream, over TLS.
    pub encrypted: u64,
    /// Those of them whose upstream was not authenticated.
    pub unauthenticated: u64,
    /// Answered without asking.
    pub cached: u64,
    /// Answered here because a route says so.
    pub local: u64,
    /// Sent in plaintext because a route says so.
    pub plaintext_by_route: u64,
    /// Left in plaintext because nobody stopped them; nothing if nobody looks (`--guard off`).
    pub plaintext_by_leak: Option<u64>,
    /// Answered with an error of our own.
    pub failed: u64,
    /// Messages that are no queries.
    pub malformed: u64,
    /// Messages from those who may not ask.
    pub denied: u64,
    /// Sockets and datagrams sent to a listener.
    pub redirected: u64,
    /// Refused since they could not be redirected.
    pub refused: u64,
    /// First queries of new namespaces that were captured, and answered.
    pub captured: u64,
    /// Refused, or counted, by the leak guard.
    pub guarded: u64,
}

/// A thread on the query path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Queries that it had.
    pub queries: u64,
    /// How long ago it last proved that it turns, in seconds.
    pub last_beat_seconds: f64,
    /// Namespaces that it answers.
    pub namespaces: u64,
}

/// What is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// What it is.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}
