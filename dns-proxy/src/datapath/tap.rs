//! Shows queries to whoever looks. While nobody does, it costs one relaxed load.
//!
//! A worker writes, somebody else takes; a worker never waits for that: what finds no room is dropped
//! and counted, and so is what comes in the moment in which the others are taken.

use std::{
    mem,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use dns_proxy_common::Origin;

use super::{original::Admitted, outcome::Outcome};
use crate::{
    upstream::Transport,
    wire::{HEADER_LEN, Question, flag},
};

/// Records that may wait to be taken: at a million queries per second, a sixtieth of one.
const MAX_RECORDS: usize = 16_384;
/// Octets of messages that may.
const MAX_OCTETS: usize = 8 << 20;

/// How much somebody wants to see; more is more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Interest {
    /// Nothing.
    #[default]
    None = 0,
    /// What was asked and what became of it.
    Queries = 1,
    /// Whole messages, too.
    Messages = 2,
}

/// A query that was answered.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it came.
    pub came: SystemTime,
    /// How long until there was an answer.
    pub took: Duration,
    /// Who sent it, as he is called in his own network.
    pub client: SocketAddr,
    /// Who asked whom; nothing if he was pointed at us.
    pub origin: Option<Origin>,
    /// How it came.
    pub transport: Transport,
    /// The name asked for, on the wire.
    pub name: Box<[u8]>,
    /// The type asked for.
    pub qtype: u16,
    /// The class asked for.
    pub qclass: u16,
    /// What became of it.
    pub outcome: Outcome,
    /// Who was asked for it.
    pub by: Option<SocketAddr>,
    /// The response code.
    pub rcode: u8,
    /// Octets of the answer.
    pub answer_len: usize,
    /// Query and answer, if somebody wants them.
    pub messages: Option<Messages>,
}

/// A query on its way to a nameserver, in plaintext.
#[derive(Clone, Debug)]
pub struct Passed {
    /// The name asked for, on the wire.
    pub name: Box<[u8]>,
    /// Who is asked, one after the other.
    pub nameservers: Vec<SocketAddr>,
}

/// What was seen at a tap since somebody last looked.
#[derive(Debug, Default)]
pub struct Batch {
    /// Queries that were answered.
    pub records: Vec<Record>,
    /// Queries that were sent in plaintext.
    pub passed: Vec<Passed>,
    /// How many of either were dropped.
    pub dropped: u64,
}

/// What was sent to whom.
#[derive(Clone, Debug)]
pub struct Messages {
    /// By the client.
    pub query: Box<[u8]>,
    /// To it.
    pub answer: Box<[u8]>,
}

/// Where a worker's queries can be looked at.
#[derive(Debug, Default)]
pub struct Tap {
    interest: AtomicU8,
    dropped: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    records: Vec<Record>,
    passed: Vec<Passed>,
    octets: usize,
}

impl Tap {
    /// Whether anybody looks.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.interest.load(Ordering::Relaxed) != Interest::None as u8
    }

    /// Somebody wants to see so much from now on.
    pub fn open(&self, interest: Interest) {
        self.interest.store(interest as u8, Ordering::Relaxed);
    }

    /// Shows a query and its answer.
    #[cold]
    pub fn show(
        &self,
        (asker, transport): (Admitted<'_>, Transport),
        (query, came): (&[u8], Instant),
        (answer, outcome, by): (&[u8], Outcome, Option<&SocketAddr>),
    ) {
        let Some(question) = Question::read(query) else {
            return;
        };
        let took = came.elapsed();
        let now = SystemTime::now();
        let whole = self.interest.load(Ordering::Relaxed) >= Interest::Messages as u8;
        let record = Record {
            came: now.checked_sub(took).unwrap_or(now),
            took,
            client: asker.peer,
            origin: asker.origin,
            transport,
            name: query[HEADER_LEN..question.end - 4].into(),
            qtype: question.qtype,
            qclass: question.qclass,
            outcome,
            by: by.copied(),
            rcode: answer.get(3).map_or(0, |flags| flags & flag::RCODE),
            answer_len: answer.len(),
            messages: whole.then(|| Messages { query: query.into(), answer: answer.into() }),
        };
        let octets = if whole { query.len() + answer.len() } else { 0 };
        match self.queue.try_lock() {
            Ok(mut queue)
                if queue.records.len() < MAX_RECORDS && queue.octets + octets <= MAX_OCTETS =>
            {
                queue.octets += octets;
                queue.records.push(record);
            }
            Ok(_) | Err(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Shows a query that is about to be sent in plaintext.
    #[cold]
    pub fn pass(&self, name: &[u8], nameservers: &[SocketAddr]) {
        match self.queue.try_lock() {
            Ok(mut queue) if queue.passed.len() < MAX_RECORDS => {
                queue.passed.push(Passed { name: name.into(), nameservers: nameservers.into() });
            }
            Ok(_) | Err(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes all that was shown since the last time.
    pub fn take(&self) -> Batch {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Queue { records, passed, .. } = mem::take(&mut *queue);
        drop(queue);
        Batch { records, passed, dropped: self.dropped.swap(0, Ordering::Relaxed) }
    }
}
