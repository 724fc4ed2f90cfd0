//! Queries as somebody sees them who looks: `watch`, the query log, dnstap.
//!
//! ```text
//! workers' taps ─► hub (who is it? who wants it?) ─► watchers on the control socket
//!                                                 └► sinks: query log, dnstap, each with a thread
//! ```
//! All of it on a thread of its own, which takes what there is fifty times a second. Whoever is too slow
//! misses lines, and is told how many; nobody waits for him.

pub mod dnstap;
pub mod filter;
pub mod hub;
pub mod query_log;
pub mod sink;
pub mod tally;
pub mod thread;
mod who;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    control::identity::Identity, datapath::tap::Record, escape, mnemonic, moment::Moment,
    upstream::Transport,
};

/// A query that was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// When it came.
    pub time: Moment,
    /// Who asked; nothing if he was pointed at us, or is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asker: Option<Identity>,
    /// The cookie of his network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<u64>,
    /// His address in it.
    pub client: SocketAddr,
    /// The process, if it was looked for and found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The nameserver that he asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nameserver: Option<IpAddr>,
    /// `udp` or `tcp`.
    pub transport: String,
    /// The name, in presentation form.
    pub name: String,
    /// The type.
    #[serde(rename = "type")]
    pub qtype: String,
    /// Which way it went: `encrypted`, `plaintext`, `local`, `none`.
    pub route: String,
    /// Who answered: `upstream`, `nameserver`, `cache`, `stale`, `shared`, `local`, `none`.
    pub source: String,
    /// The upstream or nameserver that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<SocketAddr>,
    /// The response code.
    pub rcode: String,
    /// How long it took, in milliseconds.
    pub latency_ms: f64,
    /// Nobody had to be asked.
    pub cached: bool,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id, as the daemon sees it.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// What a watcher gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// A query.
    Seen(Box<Seen>),
    /// So many queries are missing here.
    Dropped {
        /// How many.
        dropped: u64,
    },
}

impl Seen {
    fn of(record: &Record, asker: Option<Identity>) -> Self {
        let source = record.outcome.source();
        Self {
            time: record.came.into(),
            asker,
            netns: record.origin.map(|origin| origin.netns),
            client: record.client,
            process: None,
            nameserver: record.origin.map(|origin| IpAddr::from(origin.addr).to_canonical()),
            transport: match record.transport {
                Transport::Datagram => "udp".to_owned(),
                Transport::Stream => "tcp".to_owned(),
            },
            name: escape::name(&record.name),
            qtype: mnemonic::type_name(record.qtype),
            route: record.outcome.route().to_owned(),
            source: source.to_owned(),
            upstream: record.by,
            rcode: mnemonic::rcode_name(record.rcode),
            latency_ms: (record.took.as_secs_f64() * 1e6).round() / 1e3,
            cached: matches!(source, "cache" | "stale" | "shared"),
        }
    }

    /// Who asked, in a word.
    pub fn who(&self) -> String {
        match &self.asker {
            Some(identity) => identity.word(),
            None => self.client.ip().to_string(),
        }
    }
}

/// A line for people.
impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.to_string();
        let nameserver = self.nameserver.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        let answer = match (&self.upstream, self.cached) {
            (_, true) => self.source.clone(),
            (Some(upstream), false) => upstream.to_string(),
            (None, false) => self.source.clone(),
        };
        let route = if self.route == "plaintext" { "PLAINTEXT" } else { &self.route };
        write!(
            f,
            "{} {:<16} @{nameserver} {} {} {route} {answer} {} {:.1}ms",
            &time[11..23],
            self.who(),
            self.name,
            self.qtype,
            self.rcode,
            self.latency_ms,
        )?;
        match &self.process {
            Some(Process { pid, name }) => write!(f, " {}[{pid}]", escape::plain(name)),
            None => Ok(()),
        }
    }
}
