//! One TLS connection, from dialling to its end.
//!
//! Queries are pipelined without waiting for the handshake or for each other (RFC 7766 section
//! 6.2.1): what is queued while the writer sleeps leaves in one write, and so in one TLS record.
//! Answers may come in any order and are matched by transaction id and question. Whom a query is
//! asked of next when this ends is not decided here.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
    io,
    rc::Rc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::TcpStream,
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_rustls::client::TlsStream;
use tracing::debug;

use super::{
    ExchangeError, Response, Settings,
    dial::{connection_error, dial},
    outstanding::{Answer, Outstanding},
    server::Server,
    tls,
};
use crate::{
    addr::UpstreamAddr,
    wire::{self, HEADER_LEN, flag},
};

/// A connection on which nothing was asked for this long is closed (RFC 7766 section 6.2.3), unless
/// the server names another time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest idle time that is kept to, whatever the server says (RFC 7828 allows 109 minutes).
const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Read at once from TLS; an answer longer than this just takes more reads.
const READ_BUFFER: usize = 16 * 1024;
/// Queries that may be unanswered on one connection; leaves most of the 65,536 ids free, so that
/// a free one is found by guessing.
const MAX_PENDING: usize = 16_384;
/// Octets that may wait to be written; a server that does not read must not fill our memory.
const MAX_OUTBOX: usize = 4 << 20;
/// How long after its deadline a query's answer may still come.
const LAPSED_FOR: Duration = Duration::from_secs(5);
/// A buffer larger than this is not kept for the next write.
const KEPT_OUTBOX: usize = 256 * 1024;
/// Asks for the root's nameservers, which every resolver knows: any answer shows that the server
/// lives, when it is only slow with what it owes.
const PROBE: &[u8] = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01";

/// Why a connection ended or never came to be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConnectionError {
    /// The network's fault: TCP or TLS took too long to come about.
    #[error("{upstream}: cannot be reached in time")]
    Unreachable {
        /// Which server.
        upstream: UpstreamAddr,
    },
    /// The network's or the server's fault.
    #[error("{upstream}: {reason}")]
    Io {
        /// Which server.
        upstream: UpstreamAddr,
        /// The operating system's words.
        reason: String,
    },
    /// The server's fault, or that of somebody in between.
    #[error("{upstream}: TLS: {reason}")]
    Tls {
        /// Which server.
        upstream: UpstreamAddr,
        /// What is wrong, and what was wanted.
        reason: String,
    },
    /// The server owes answers and is silent.
    #[error("{upstream}: silent while answers are due")]
    Silent {
        /// Which server.
        upstream: UpstreamAddr,
    },
    /// The server closed it, as it may at any time (RFC 7766 section 6.2.4).
    #[error("{upstream}: closed by the server")]
    Closed {
        /// Which server.
        upstream: UpstreamAddr,
    },
    /// The server sent something that is no DNS message.
    #[error("{upstream}: sent something that is no DNS message")]
    Junk {
        /// Which server.
        upstream: UpstreamAddr,
    },
    /// Our side: as many queries wait on it as may.
    #[error("{upstream}: too many queries are waiting already")]
    Full {
        /// Which server.
        upstream: UpstreamAddr,
    },
}

/// Unanswered queries by transaction id.
type Table = HashMap<u16, Debt, BuildHasherDefault<IdHasher>>;

/// A query that the server has not answered.
struct Debt {
    query: Rc<Outstanding>,
    sent: Instant,
    /// Nobody waits for it any more. Its answer is a sign of life all the same, and until it comes, or
    /// cannot be expected any more, its id is not given to another.
    lapsed: bool,
}

/// The ids are random already.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, octets: &[u8]) {
        octets.iter().for_each(|octet| self.0 = self.0 << 8 | u64::from(*octet));
    }

    fn write_u16(&mut self, id: u16) {
        // The table looks at the top bits as well as the bottom ones.
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Dialling,
    Up,
    Ended,
}

/// What became of a message from the server.
enum Delivery {
    /// It answers a query, or shows at least that the server lives.
    Taken,
    /// It answers none: it is late, or not to be believed. No sign of life either.
    Unwanted,
    /// It is no response at all.
    Junk,
}

/// Shared by those who ask, by the tasks that read and write, and by who watches it.
pub(super) struct Connection {
    server: Rc<Server>,
    phase: Cell<Phase>,
    /// The server is known to be the one that was meant.
    authenticated: Cell<bool>,
    /// Framed messages that wait to be written.
    outbox: RefCell<Vec<u8>>,
    /// Wakes the writer.
    queued: Notify,
    table: RefCell<Table>,
    /// How many in the table have lapsed.
    lapsed: Cell<usize>,
    /// Since when the server has owed an answer without sending anything useful.
    quiet_since: Cell<Option<Instant>>,
    /// Wakes the watch: the server owes an answer.
    owing: Notify,
    /// Queries answered.
    answered: Cell<u64>,
    /// Our own query on its way: its id, and its answer, which nobody waits for.
    probe: RefCell<Option<(u16, Answer)>>,
    last_used: Cell<Instant>,
    idle_timeout: Cell<Duration>,
    /// Somebody else ends it.
    abandoned: Notify,
}

impl Connection {
    /// One that is to be [`run`](Self::run); queries may be asked at once.
    pub(super) fn new(server: &Rc<Server>) -> Rc<Self> {
        Rc::new(Self {
            server: Rc::clone(server),
            phase: Cell::new(Phase::Dialling),
            authenticated: Cell::new(false),
            outbox: RefCell::default(),
            queued: Notify::new(),
            table: RefCell::default(),
            lapsed: Cell::new(0),
            quiet_since: Cell::new(None),
            owing: Notify::new(),
            answered: Cell::new(0),
            probe: RefCell::default(),
            last_used: Cell::new(Instant::now()),
            idle_timeout: Cell::new(IDLE_TIMEOUT),
            abandoned: Notify::new(),
        })
    }

    /// Dials, then reads and writes until something ends it; says what. `up` is called in between.
    pub(super) async fn run(&self, settings: &Settings, up: impl FnOnce()) -> ConnectionError {
        let upstream = self.server.addr();
        let limit = self.server.dial_limit(settings.timeout);
        let (stream, doubt) =
            match timeout(limit, dial(upstream, self.server.tls(), &*settings.exempt)).await {
                Ok(Ok(secured)) => secured,
                Ok(Err(error)) => return error,
                Err(_) => return ConnectionError::Unreachable { upstream: upstream.clone() },
            };
        debug!(
            %upstream,
            version = ?stream.get_ref().1.protocol_version(),
            handshake = ?stream.get_ref().1.handshake_kind(),
            "connected"
        );
        let (_, session) = stream.get_ref();
        self.server.tally.connected(tls::is_resumed(session), tls::expires(session));
        self.authenticated.set(doubt.is_none());
        self.server.authenticated(doubt);
        self.phase.set(Phase::Up);
        up();
        let (reader, writer) = tokio::io::split(stream);
        tokio::select! {
            end = self.write_queued(writer) => end,
            end = self.read_answers(reader) => end,
            () = self.abandoned.notified() => {
                ConnectionError::Silent { upstream: upstream.clone() }
            }
        }
    }

    /// It takes queries.
    pub(super) fn is_open(&self) -> bool {
        self.phase.get() != Phase::Ended
    }

    /// The handshake is to come.
    pub(super) fn is_dialling(&self) -> bool {
        self.phase.get() == Phase::Dialling
    }

    /// The handshake is over.
    pub(super) fn is_up(&self) -> bool {
        self.phase.get() == Phase::Up
    }

    /// How many queries it has answered.
    pub(super) fn answered(&self) -> u64 {
        self.answered.get()
    }

    /// How many queries it has not answered for which somebody waits.
    pub(super) fn owes(&self) -> usize {
        self.table.borrow().len() - self.lapsed.get()
    }

    /// Answers may still come for which nobody waits.
    pub(super) fn has_lapsed(&self) -> bool {
        self.lapsed.get() > 0
    }

    /// Since when the server has owed an answer without sending anything useful.
    pub(super) fn quiet_since(&self) -> Option<Instant> {
        self.quiet_since.get()
    }

    /// When it is to be closed if nothing is asked any more.
    pub(super) fn idle_at(&self) -> Instant {
        self.last_used.get() + self.idle_timeout.get()
    }

    /// Returns once the server owes something.
    pub(super) async fn owing(&self) {
        self.owing.notified().await;
    }

    /// It is for the queries that it has been given only.
    pub(super) fn close_when_answered(&self) {
        self.idle_timeout.set(Duration::ZERO);
    }

    /// It is to be given no more queries, and closed when it owes nothing: we say so, or the server
    /// does (RFC 7828 section 3.2.2).
    pub(super) fn is_leaving(&self) -> bool {
        self.idle_timeout.get().is_zero()
    }

    /// Ends it as silent.
    pub(super) fn abandon(&self) {
        self.abandoned.notify_one();
    }

    /// Queues a query.
    ///
    /// # Errors
    /// As many wait as may.
    pub(super) fn submit(
        &self,
        query: &Rc<Outstanding>,
        now: Instant,
    ) -> Result<u16, ConnectionError> {
        let message = query.message();
        let len = u16::try_from(message.len()).map_err(|_| self.full())?;
        let mut outbox = self.outbox.borrow_mut();
        let mut table = self.table.borrow_mut();
        if table.len() >= MAX_PENDING && self.lapsed.replace(0) > 0 {
            table.retain(|_, debt| !debt.lapsed);
        }
        if outbox.len() > MAX_OUTBOX || table.len() >= MAX_PENDING {
            return Err(self.full());
        }
        let id = loop {
            // Unpredictable (RFC 5452 section 9.2).
            if let Entry::Vacant(vacant) = table.entry(rand::random()) {
                let id = *vacant.key();
                vacant.insert(Debt { query: Rc::clone(query), sent: now, lapsed: false });
                break id;
            }
        };
        query.owed_by.update(|connections| connections.saturating_add(1));
        query.asked.set(self.server.index);
        outbox.extend_from_slice(&len.to_be_bytes());
        outbox.extend_from_slice(&id.to_be_bytes());
        outbox.extend_from_slice(&message[2..]);
        self.queued.notify_one();
        Ok(id)
    }

    /// Asks something of our own, whose answer is a sign of life.
    pub(super) fn probe(&self, now: Instant, patience: Duration) {
        let (query, answer) = Outstanding::new(PROBE.to_vec(), now + patience);
        query.hedged.set(true); // another server's answer would say nothing of this one
        if let Ok(id) = self.submit(&query, now) {
            *self.probe.borrow_mut() = Some((id, answer));
        }
    }

    /// Settles what is past its deadline, and takes off the table what cannot be answered any more.
    pub(super) fn sweep(&self, now: Instant, late: impl Fn() -> ExchangeError) {
        let mut table = self.table.borrow_mut();
        let mut lapsed = 0;
        table.retain(|_, debt| {
            let query = &debt.query;
            if query.is_wanted() && query.deadline <= now {
                query.settle(Err(late()));
            }
            debt.lapsed = !query.is_wanted();
            let kept = !debt.lapsed || query.deadline + LAPSED_FOR > now;
            lapsed += usize::from(kept && debt.lapsed);
            kept
        });
        self.lapsed.set(lapsed);
        if table.len() == lapsed {
            self.quiet_since.set(None);
        }
    }

    /// What was asked before `then`, of this server only, and how long ago; the oldest first.
    pub(super) fn debts(&self, then: Instant) -> Vec<(Rc<Outstanding>, Instant)> {
        let table = self.table.borrow();
        let due = table
            .values()
            .filter(|debt| debt.query.is_wanted() && !debt.query.hedged.get() && debt.sent <= then);
        let mut due: Vec<_> = due.map(|debt| (Rc::clone(&debt.query), debt.sent)).collect();
        due.sort_unstable_by_key(|(_, sent)| *sent);
        due
    }

    /// Closes it for good; what it still owes must be asked elsewhere.
    pub(super) fn close(&self) -> Vec<Rc<Outstanding>> {
        self.phase.set(Phase::Ended);
        self.probe.take();
        self.lapsed.set(0);
        let debts: Vec<_> = self.table.take().into_values().map(|debt| debt.query).collect();
        debts.iter().for_each(|query| query.owed_by.update(|n| n.saturating_sub(1)));
        debts
    }

    async fn write_queued(&self, mut writer: WriteHalf<TlsStream<TcpStream>>) -> ConnectionError {
        let mut batch = Vec::new();
        loop {
            std::mem::swap(&mut batch, &mut *self.outbox.borrow_mut());
            if batch.is_empty() {
                self.queued.notified().await;
                continue;
            }
            let now = Instant::now();
            self.last_used.set(now);
            if self.quiet_since.get().is_none() {
                self.quiet_since.set(Some(now));
                self.owing.notify_one();
            }
            let written = async {
                writer.write_all(&batch).await?;
                writer.flush().await
            };
            if let Err(error) = written.await {
                return connection_error(self.server.addr(), &error);
            }
            batch.clear();
            batch.shrink_to(KEPT_OUTBOX);
        }
    }

    async fn read_answers(&self, mut reader: ReadHalf<TlsStream<TcpStream>>) -> ConnectionError {
        let mut buffer = Vec::with_capacity(READ_BUFFER);
        loop {
            match reader.read_buf(&mut buffer).await {
                Ok(0) => return self.closed(),
                // Servers that close without a TLS goodbye are common and do no harm here.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return self.closed(),
                Err(error) => return connection_error(self.server.addr(), &error),
                Ok(_) => {}
            }
            let Some(consumed) = self.take_answers(&buffer) else {
                return ConnectionError::Junk { upstream: self.server.addr().clone() };
            };
            buffer.drain(..consumed);
            buffer.reserve(READ_BUFFER);
        }
    }

    /// Delivers all whole messages; how many octets they took, or `None` if one is junk.
    fn take_answers(&self, buffer: &[u8]) -> Option<usize> {
        let now = Instant::now();
        let mut quickest = None;
        let mut alive = false;
        let mut rest = buffer;
        while let Some((message, tail)) = wire::split_frame(rest) {
            match self.deliver(message, now, &mut quickest) {
                Delivery::Taken => alive = true,
                Delivery::Unwanted => {}
                Delivery::Junk => return None,
            }
            rest = tail;
        }
        if let Some(quickest) = quickest {
            self.server.rtt.quickest(quickest);
        }
        if alive {
            self.quiet_since.set((self.owes() > 0).then_some(now));
            self.server.answered();
        }
        Some(buffer.len() - rest.len())
    }

    /// Hands an answer to whoever asked.
    fn deliver(&self, message: &[u8], now: Instant, quickest: &mut Option<Duration>) -> Delivery {
        let Some(id) = wire::u16_at(message, 0) else {
            return Delivery::Junk;
        };
        if message.len() < HEADER_LEN || message[2] & (flag::QR | flag::OPCODE) != flag::QR {
            return Delivery::Junk;
        }
        let (Debt { query, sent, lapsed }, hop) = match self.table.borrow_mut().entry(id) {
            Entry::Occupied(entry) if entry.get().query.is_answered_by(message) => {
                let Some(hop) = wire::Hop::read(message) else {
                    // The server has lost count of octets, or cannot answer this query at all.
                    entry.get().query.suspect();
                    return Delivery::Junk;
                };
                (entry.remove(), hop)
            }
            Entry::Occupied(_) | Entry::Vacant(_) => return Delivery::Unwanted,
        };
        self.lapsed.update(|count| count - usize::from(lapsed));
        query.owed_by.update(|connections| connections.saturating_sub(1));
        // What is to be closed stays so.
        if !self.is_leaving()
            && let Some(idle) = hop.keepalive
        {
            self.idle_timeout.set(idle.min(MAX_IDLE_TIMEOUT)); // RFC 7828 section 3.2.2
        }
        let took = now.saturating_duration_since(sent);
        *quickest = Some(quickest.map_or(took, |quickest| quickest.min(took)));
        if self.probe.borrow_mut().take_if(|(probe, _)| *probe == id).is_none() {
            self.answered.update(|answered| answered + 1);
            self.server.tally.answers.update(|answers| answers + 1);
            self.server.tally.latencies.add(took);
            self.server.rtt.answer(took);
            let authenticated = self.authenticated.get();
            let by = self.server.addr().socket_addr();
            query.settle(Ok(Response { message: message.to_vec(), authenticated, by }));
        }
        Delivery::Taken
    }

    fn full(&self) -> ConnectionError {
        ConnectionError::Full { upstream: self.server.addr().clone() }
    }

    /// The server closed it, or it was closed for want of queries.
    pub(super) fn closed(&self) -> ConnectionError {
        ConnectionError::Closed { upstream: self.server.addr().clone() }
    }
}
