//! How often who asked what, and what became of it: what `top` and `audit` are made of.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::Seen;
use crate::{
    control::identity::Identity,
    datapath::tap::{Passed, Record},
    escape,
    status::Status,
};

/// So many askers and names are told apart; what comes beyond is counted together.
const MAX_ASKERS: usize = 4_096;
const MAX_NAMES: usize = 16_384;
/// So many names are told in one [`Count`], the most frequent.
const SHOWN_NAMES: usize = 200;
/// So many different queries in plaintext are told.
const MAX_PLAINTEXT: usize = 65_536;

/// What happened in a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Count {
    /// How long that was, in seconds.
    pub seconds: f64,
    /// How the daemon was at its end.
    pub status: Status,
    /// Who asked.
    pub askers: Vec<Asker>,
    /// What for; the most frequent first.
    pub names: Vec<Name>,
    /// What was sent in plaintext because a route says so.
    pub plaintext: Vec<Plaintext>,
    /// Queries that are in none of the above: there was no time to look at them.
    pub missed: u64,
}

/// Somebody who asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asker {
    /// Who; nothing for a client that was pointed at us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<Identity>,
    /// Such a client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// What became of its queries.
    pub sums: Sums,
}

/// A name that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Name {
    /// In presentation form.
    pub name: String,
    /// What became of the queries.
    pub sums: Sums,
}

/// What became of queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// All of them.
    pub queries: u64,
    /// An upstream was asked, over TLS.
    pub encrypted: u64,
    /// Nobody had to be asked.
    pub cached: u64,
    /// A route says that they are answered here.
    pub local: u64,
    /// A route sends them to a nameserver in plaintext.
    pub plaintext: u64,
    /// They got an error of ours.
    pub failed: u64,
    /// How long all of them took together, in milliseconds.
    pub latency_ms: f64,
}

/// A query that was sent in plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Plaintext {
    /// What for, in presentation form and lower case.
    pub name: String,
    /// To whom.
    pub nameserver: SocketAddr,
}

/// Who asked, as far as askers are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Cgroup(String),
    Client(IpAddr),
    Others,
}

/// A count that goes on.
#[derive(Debug, Default)]
pub struct Tally {
    askers: HashMap<Key, Asker>,
    names: HashMap<String, Sums>,
    plaintext: HashMap<Plaintext, ()>,
    missed: u64,
}

impl Sums {
    fn add(&mut self, seen: &Seen) {
        self.queries += 1;
        self.latency_ms += seen.latency_ms;
        let sum = match (seen.route.as_str(), seen.cached) {
            (_, true) => &mut self.cached,
            ("encrypted", false) => &mut self.encrypted,
            ("plaintext", false) => &mut self.plaintext,
            ("local", false) => &mut self.local,
            _ => &mut self.failed,
        };
        *sum += 1;
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.queries += other.queries;
        self.encrypted += other.encrypted;
        self.cached += other.cached;
        self.local += other.local;
        self.plaintext += other.plaintext;
        self.failed += other.failed;
        self.latency_ms += other.latency_ms;
    }
}

impl Tally {
    /// A query was answered.
    pub(super) fn add(&mut self, record: &Record, seen: &Seen) {
        let mut key = match &seen.asker {
            Some(identity) => Key::Cgroup(identity.cgroup.clone()),
            None => Key::Client(record.client.ip()),
        };
        if self.askers.len() >= MAX_ASKERS && !self.askers.contains_key(&key) {
            key = Key::Others;
        }
        let others = key == Key::Others;
        let asker = self.askers.entry(key).or_insert_with(|| Asker {
            who: seen.asker.clone().filter(|_| !others),
            client: (seen.asker.is_none() && !others).then(|| record.client.ip()),
            sums: Sums::default(),
        });
        asker.sums.add(seen);
        let name = seen.name.to_ascii_lowercase();
        if self.names.len() < MAX_NAMES || self.names.contains_key(&name) {
            self.names.entry(name).or_default().add(seen);
        }
    }

    /// A query was sent in plaintext.
    pub(super) fn passed(&mut self, passed: &Passed) {
        for nameserver in &passed.nameservers {
            if self.plaintext.len() < MAX_PLAINTEXT {
                let name = escape::name(&passed.name).to_ascii_lowercase();
                self.plaintext.insert(Plaintext { name, nameserver: *nameserver }, ());
            }
        }
    }

    /// So many queries were not looked at.
    pub(super) fn missed(&mut self, count: u64) {
        self.missed += count;
    }

    /// What there is, in that many seconds.
    pub fn end(self, seconds: f64, status: Status) -> Count {
        let mut askers: Vec<_> = self.askers.into_values().collect();
        askers.sort_by_key(|asker| std::cmp::Reverse(asker.sums.queries));
        let names = self.names.into_iter().map(|(name, sums)| Name { name, sums });
        let mut names: Vec<_> = names.collect();
        names.sort_by(|a, b| b.sums.queries.cmp(&a.sums.queries).then(a.name.cmp(&b.name)));
        names.truncate(SHOWN_NAMES);
        let plaintext = self.plaintext.into_keys().collect();
        Count { seconds, status, askers, names, plaintext, missed: self.missed }
    }
}

impl Asker {
    /// Who, in a word.
    pub fn name(&self) -> String {
        match (&self.who, self.client) {
            (Some(identity), _) => identity.word(),
            (None, Some(client)) => client.to_string(),
            (None, None) => "(others)".to_owned(),
        }
    }
}
