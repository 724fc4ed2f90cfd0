//! One TLS connection, from dialling to its end, in one task.
//!
//! Queries are pipelined without waiting for the handshake or for each other (RFC 7766 section
//! 6.2.1): what is queued while the task sleeps leaves in one write, and so in one TLS record.
//! Answers may come in any order and are matched by transaction id and question. When the
//! connection ends, whoever still waits is told, and asks again on another.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map::Entry},
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::{TcpSocket, TcpStream},
    sync::{Notify, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tracing::debug;

use super::{Exempt, Settings, tls};
use crate::{
    addr::UpstreamAddr,
    wire::{self, HEADER_LEN, Question, flag, rcode},
};

/// How long TCP and TLS may take together before another try is worth more; two fifths of the query's
/// whole time if that is less.
const DIAL_TIMEOUT: Duration = Duration::from_millis(1500);
/// A connection on which nothing was asked for this long is closed (RFC 7766 section 6.2.3).
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection that owes an answer this long and has sent nothing since is taken for dead, so
/// that what it owes can still be asked elsewhere; two fifths of the query's whole time if that is
/// less. Half-way there it is given a last chance by a probe.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(800);
/// When the kernel gives up on unacknowledged data (`TCP_USER_TIMEOUT`, RFC 5482), milliseconds.
const TCP_USER_TIMEOUT_MS: u32 = 5_000;
/// Read at once from TLS; an answer longer than this just takes more reads.
const READ_BUFFER: usize = 16 * 1024;
/// Queries that may be unanswered on one connection; leaves most of the 65,536 ids free, so that
/// a free one is found by guessing.
const MAX_PENDING: usize = 16_384;
/// Octets that may wait to be written; a server that does not read must not fill our memory.
const MAX_OUTBOX: usize = 4 << 20;
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
        /// The TLS library's words.
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

/// A handle to the connection's task, which ends with the connection.
pub(super) struct Connection {
    shared: Rc<Shared>,
}

/// What the task and those who ask have in common. One thread, so no locks.
struct Shared {
    upstream: UpstreamAddr,
    /// Framed messages that wait to be written.
    outbox: RefCell<Vec<u8>>,
    /// Wakes the writer.
    queued: Notify,
    pending: RefCell<HashMap<u16, Pending>>,
    /// Wakes the watch: the server owes an answer.
    owing: Notify,
    /// Since when the server has owed an answer without sending anything.
    owed_since: Cell<Option<Instant>>,
    last_used: Cell<Instant>,
    was_up: Cell<bool>,
    has_answered: Cell<bool>,
    silence_timeout: Duration,
    ended: RefCell<Option<ConnectionError>>,
}

struct Pending {
    question: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<u8>, ConnectionError>>,
}

/// What became of a message from the server.
enum Delivery {
    /// It answers a query.
    Taken,
    /// It answers none: it is late, or not to be believed. No sign of life either.
    Unwanted,
    /// It is no response at all.
    Junk,
}

/// Takes a query off the table when whoever asked goes away.
struct Ticket<'a> {
    shared: &'a Shared,
    id: u16,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.shared.pending.borrow_mut().remove(&self.id);
    }
}

impl Connection {
    /// Starts to connect; queries may be asked at once.
    pub(super) fn open(upstream: UpstreamAddr, settings: &Settings) -> Self {
        let shared = Rc::new(Shared {
            upstream: upstream.clone(),
            outbox: RefCell::new(Vec::new()),
            queued: Notify::new(),
            pending: RefCell::new(HashMap::new()),
            owing: Notify::new(),
            owed_since: Cell::new(None),
            last_used: Cell::new(Instant::now()),
            was_up: Cell::new(false),
            has_answered: Cell::new(false),
            silence_timeout: SILENCE_TIMEOUT.min(settings.timeout * 2 / 5),
            ended: RefCell::new(None),
        });
        let connector = TlsConnector::from(Arc::clone(&settings.tls));
        let exempt = Arc::clone(&settings.exempt);
        let dial_timeout = DIAL_TIMEOUT.min(settings.timeout * 2 / 5);
        let task = Rc::clone(&shared);
        tokio::task::spawn_local(async move {
            let end = match timeout(dial_timeout, dial(&upstream, &connector, &*exempt)).await {
                Ok(Ok(stream)) => task.drive(stream).await,
                Ok(Err(error)) => error,
                Err(_) => ConnectionError::Unreachable { upstream },
            };
            task.end(&end);
        });
        Self { shared }
    }

    /// It takes queries.
    pub(super) fn is_open(&self) -> bool {
        self.shared.ended.borrow().is_none()
    }

    /// The handshake was completed at some time.
    pub(super) fn was_up(&self) -> bool {
        self.shared.was_up.get()
    }

    /// It has given at least one answer.
    pub(super) fn has_answered(&self) -> bool {
        self.shared.has_answered.get()
    }

    /// Asks one query and waits for its answer; the caller sets the time limit.
    ///
    /// # Errors
    /// The connection ended before the answer came.
    pub(super) async fn exchange(&self, message: &[u8]) -> Result<Vec<u8>, ConnectionError> {
        let (sender, answer) = oneshot::channel();
        let _ticket = self.shared.submit(message, sender)?;
        answer.await.unwrap_or_else(|_| Err(self.shared.closed()))
    }
}

impl Shared {
    /// Queues a message; whoever holds the ticket waits for the answer.
    fn submit(
        &self,
        message: &[u8],
        answer: oneshot::Sender<Result<Vec<u8>, ConnectionError>>,
    ) -> Result<Ticket<'_>, ConnectionError> {
        if let Some(error) = self.ended.borrow().as_ref() {
            return Err(error.clone());
        }
        let len = u16::try_from(message.len()).map_err(|_| self.full())?;
        if self.outbox.borrow().len() > MAX_OUTBOX {
            return Err(self.full());
        }
        let question = Question::read(message).map_or(&[][..], |q| &message[HEADER_LEN..q.end]);
        let pending = Pending { question: question.to_vec(), answer };
        let id = self.enter(pending)?;
        let mut outbox = self.outbox.borrow_mut();
        outbox.extend_from_slice(&len.to_be_bytes());
        outbox.extend_from_slice(&id.to_be_bytes());
        outbox.extend_from_slice(&message[2..]);
        self.queued.notify_one();
        Ok(Ticket { shared: self, id })
    }

    /// Finds a random id that is not in use (RFC 5452 section 9.2).
    fn enter(&self, entry: Pending) -> Result<u16, ConnectionError> {
        let mut pending = self.pending.borrow_mut();
        if pending.len() >= MAX_PENDING {
            return Err(self.full());
        }
        loop {
            if let Entry::Vacant(vacant) = pending.entry(rand::random()) {
                let id = *vacant.key();
                vacant.insert(entry);
                return Ok(id);
            }
        }
    }

    /// Reads and writes until something ends it.
    async fn drive(&self, stream: TlsStream<TcpStream>) -> ConnectionError {
        self.was_up.set(true);
        debug!(
            upstream = %self.upstream,
            version = ?stream.get_ref().1.protocol_version(),
            handshake = ?stream.get_ref().1.handshake_kind(),
            "connected"
        );
        let (reader, writer) = tokio::io::split(stream);
        tokio::select! {
            end = self.write_queued(writer) => end,
            end = self.read_answers(reader) => end,
            end = self.watch() => end,
        }
    }

    async fn write_queued(&self, mut writer: WriteHalf<TlsStream<TcpStream>>) -> ConnectionError {
        loop {
            let batch = self.outbox.take();
            if batch.is_empty() {
                self.queued.notified().await;
                continue;
            }
            let now = Instant::now();
            self.last_used.set(now);
            if self.owed_since.get().is_none() {
                self.owed_since.set(Some(now));
                self.owing.notify_one();
            }
            let written = async {
                writer.write_all(&batch).await?;
                writer.flush().await
            };
            if let Err(error) = written.await {
                return self.io_error(&error);
            }
        }
    }

    async fn read_answers(&self, mut reader: ReadHalf<TlsStream<TcpStream>>) -> ConnectionError {
        let mut buffer = Vec::with_capacity(READ_BUFFER);
        loop {
            match reader.read_buf(&mut buffer).await {
                Ok(0) => return self.closed(),
                // Servers that close without a TLS goodbye are common and do no harm here.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return self.closed(),
                Err(error) => return self.io_error(&error),
                Ok(_) => {}
            }
            let mut rest = &buffer[..];
            let mut useful = false;
            while let Some((message, tail)) = split_frame(rest) {
                match self.deliver(message) {
                    Delivery::Taken => useful = true,
                    Delivery::Unwanted => {}
                    Delivery::Junk => {
                        return ConnectionError::Junk { upstream: self.upstream.clone() };
                    }
                }
                rest = tail;
            }
            let consumed = buffer.len() - rest.len();
            buffer.drain(..consumed);
            buffer.reserve(READ_BUFFER);
            if useful {
                let owes = !self.pending.borrow().is_empty();
                self.owed_since.set(owes.then(Instant::now));
            }
        }
    }

    /// Hands an answer to whoever asked.
    fn deliver(&self, message: &[u8]) -> Delivery {
        let Some(id) = wire::u16_at(message, 0) else {
            return Delivery::Junk;
        };
        if message.len() < HEADER_LEN || message[2] & flag::QR == 0 {
            return Delivery::Junk;
        }
        match self.pending.borrow_mut().entry(id) {
            Entry::Occupied(entry) if answers(message, &entry.get().question) => {
                self.has_answered.set(true);
                // The receiver may be gone: its deadline passed.
                let _: Result<(), _> = entry.remove().answer.send(Ok(message.to_vec()));
                Delivery::Taken
            }
            Entry::Occupied(_) | Entry::Vacant(_) => Delivery::Unwanted,
        }
    }

    /// Ends a connection that is silent while it owes answers, or that nobody uses.
    async fn watch(&self) -> ConnectionError {
        loop {
            if let Some(since) = self.owed_since.get() {
                if self.pending.borrow().is_empty() {
                    self.owed_since.set(None);
                } else if since.elapsed() >= self.silence_timeout {
                    return ConnectionError::Silent { upstream: self.upstream.clone() };
                } else if since.elapsed() < self.silence_timeout / 2 {
                    sleep_until(since + self.silence_timeout / 2).await;
                } else {
                    // Something of our own; its answer is a sign of life.
                    let (sender, _nobody) = oneshot::channel();
                    let _ticket = self.submit(PROBE, sender);
                    sleep_until(since + self.silence_timeout).await;
                }
                continue;
            }
            let idle_at = self.last_used.get() + IDLE_TIMEOUT;
            if Instant::now() >= idle_at {
                return self.closed();
            }
            tokio::select! {
                () = sleep_until(idle_at) => {}
                () = self.owing.notified() => {}
            }
        }
    }

    /// Tells everybody who waits.
    fn end(&self, reason: &ConnectionError) {
        debug!(%reason, waiting = self.pending.borrow().len(), "connection ended");
        *self.ended.borrow_mut() = Some(reason.clone());
        for (_, pending) in self.pending.take() {
            // The receiver may be gone: its deadline passed.
            let _: Result<(), _> = pending.answer.send(Err(reason.clone()));
        }
    }

    fn full(&self) -> ConnectionError {
        ConnectionError::Full { upstream: self.upstream.clone() }
    }

    fn closed(&self) -> ConnectionError {
        ConnectionError::Closed { upstream: self.upstream.clone() }
    }

    fn io_error(&self, error: &io::Error) -> ConnectionError {
        connection_error(&self.upstream, error)
    }
}

/// TCP and TLS.
async fn dial(
    upstream: &UpstreamAddr,
    connector: &TlsConnector,
    exempt: &dyn Exempt,
) -> Result<TlsStream<TcpStream>, ConnectionError> {
    let connected = async {
        let socket = match upstream.socket_addr() {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        exempt.exempt(socket.as_fd())?;
        setsockopt(&socket, sockopt::TcpUserTimeout, &TCP_USER_TIMEOUT_MS)?;
        let stream = socket.connect(upstream.socket_addr()).await?;
        stream.set_nodelay(true)?;
        connector.connect(tls::server_name(upstream), stream).await
    };
    connected.await.map_err(|error: io::Error| connection_error(upstream, &error))
}

fn connection_error(upstream: &UpstreamAddr, error: &io::Error) -> ConnectionError {
    let upstream = upstream.clone();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some();
    let reason = error.to_string();
    if tls {
        ConnectionError::Tls { upstream, reason }
    } else {
        ConnectionError::Io { upstream, reason }
    }
}

/// The first complete message and what follows it (RFC 1035 section 4.2.2).
fn split_frame(buffer: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::from(wire::u16_at(buffer, 0)?);
    buffer[2..].split_at_checked(len)
}

/// Whether `message` answers `question`. Errors may come without the question.
fn answers(message: &[u8], question: &[u8]) -> bool {
    match wire::counts(message) {
        Some([0, 0, ..]) => message[3] & flag::RCODE != rcode::NOERROR,
        Some([1, ..]) => Question::read(message)
            .is_some_and(|read| Question::same(&message[HEADER_LEN..read.end], question)),
        _ => false,
    }
}
