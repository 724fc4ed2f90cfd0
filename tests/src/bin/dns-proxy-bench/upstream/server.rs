//! The far end: a DNS-over-TLS server on the measuring thread, with a road of any length before it.
//!
//! The road is two queues of octets, one each way: what TCP delivers is looked at half a round trip
//! later, and what is written leaves as much later, the first octets of a connection after a round
//! trip more, for the SYN that no queue can hold up.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet, VecDeque},
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    socket::{setsockopt, sockopt},
};
use rustls::{ServerConfig, ServerConnection};

use super::message;

/// The epoll token of the listener; connections have their index.
const LISTENER: u64 = u64::MAX;
/// Octets read from a connection at once.
const CHUNK: usize = 64 * 1024;

/// How a connection ends when it has given so many answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// An orderly close.
    Close,
    /// A reset.
    Reset,
    /// It stays open and says no more.
    Silence,
    /// It sends what is no DNS message, and goes on.
    Junk,
}

/// How to behave.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Orders {
    /// The time from here to the client and back.
    pub(super) round_trip: Duration,
    /// By how much answers to late names are late.
    pub(super) late: Duration,
    /// What a connection does after so many answers.
    pub(super) end: Option<(usize, End)>,
    /// Neither reads nor accepts anything.
    pub(super) frozen: bool,
}

/// What it has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) queries: usize,
    pub(super) connections: usize,
    /// Reads from TLS that held at least one query.
    pub(super) reads: usize,
    /// Late names that were asked more than once.
    pub(super) asked_again: usize,
}

/// The server.
pub(super) struct Server {
    address: SocketAddr,
    config: Arc<ServerConfig>,
    epoll: Epoll,
    listener: Option<TcpListener>,
    connections: Vec<Option<Connection>>,
    pub(super) orders: Orders,
    pub(super) seen: Seen,
    late_names: HashSet<Vec<u8>>,
}

struct Connection {
    tcp: TcpStream,
    tls: ServerConnection,
    inbound: VecDeque<(Instant, Vec<u8>)>,
    outbound: VecDeque<(Instant, Vec<u8>)>,
    /// Octets that TCP would not take yet.
    stuck: Vec<u8>,
    plain: Vec<u8>,
    late: BinaryHeap<Reverse<(Instant, Vec<u8>)>>,
    seen_any: bool,
    answered: usize,
    ended: Option<End>,
    gone: bool,
}

impl Server {
    /// Listens at `address` in the namespace that this thread is in.
    pub(super) fn start(address: SocketAddr, config: Arc<ServerConfig>) -> Result<Self> {
        let mut server = Self {
            address,
            config,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            listener: None,
            connections: Vec::new(),
            orders: Orders::default(),
            seen: Seen::default(),
            late_names: HashSet::new(),
        };
        server.listen()?;
        Ok(server)
    }

    /// Listens, at first and after [`Server::kill`].
    pub(super) fn listen(&mut self) -> Result<()> {
        let listener = TcpListener::bind(self.address).context("bind the far end")?;
        listener.set_nonblocking(true)?;
        self.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Closes everything: whoever connects is refused.
    pub(super) fn kill(&mut self) {
        self.listener = None;
        self.disconnect();
    }

    /// Closes the open connections.
    pub(super) fn disconnect(&mut self) {
        self.connections.clear();
    }

    /// Readable when there is something to do.
    pub(super) fn descriptor(&self) -> impl AsFd + '_ {
        &self.epoll.0
    }

    /// When it has to do something by itself.
    pub(super) fn next(&self) -> Option<Instant> {
        self.connections.iter().flatten().filter_map(Connection::next).min()
    }

    /// Does what there is to do; says whether there was anything.
    pub(super) fn turn(&mut self, now: Instant) -> Result<bool> {
        if self.orders.frozen {
            return Ok(false);
        }
        let mut events = [EpollEvent::empty(); 32];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO)?;
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept()?,
                index => {
                    if let Some(connection) = &mut self.connections[index as usize] {
                        connection.read(now, self.orders.round_trip);
                    }
                }
            }
        }
        let mut busy = count > 0;
        for slot in &mut self.connections {
            if let Some(connection) = slot {
                busy |= connection.turn(now, &self.orders, &mut self.seen, &mut self.late_names)?;
                if connection.gone {
                    *slot = None;
                }
            }
        }
        Ok(busy)
    }

    fn accept(&mut self) -> Result<()> {
        let Some(listener) = &self.listener else {
            return Ok(());
        };
        let Ok((tcp, _)) = listener.accept() else {
            return Ok(());
        };
        tcp.set_nonblocking(true)?;
        tcp.set_nodelay(true)?;
        self.seen.connections += 1;
        let free = self.connections.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.epoll.add(&tcp, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        self.connections[index] =
            Some(Connection::new(tcp, ServerConnection::new(Arc::clone(&self.config))?));
        Ok(())
    }
}

impl Connection {
    fn new(tcp: TcpStream, mut tls: ServerConnection) -> Self {
        tls.set_buffer_limit(None);
        Self {
            tcp,
            tls,
            inbound: VecDeque::new(),
            outbound: VecDeque::new(),
            stuck: Vec::new(),
            plain: Vec::new(),
            late: BinaryHeap::new(),
            seen_any: false,
            answered: 0,
            ended: None,
            gone: false,
        }
    }

    fn next(&self) -> Option<Instant> {
        let late = self.late.peek().map(|Reverse((due, _))| *due);
        let ends = [&self.inbound, &self.outbound];
        ends.into_iter().filter_map(|queue| Some(queue.front()?.0)).chain(late).min()
    }

    fn read(&mut self, now: Instant, round_trip: Duration) {
        let mut chunk = vec![0; CHUNK];
        match self.tcp.read(&mut chunk) {
            Ok(0) => self.gone = true,
            Ok(len) => {
                chunk.truncate(len);
                let syn = if self.seen_any { Duration::ZERO } else { round_trip };
                self.seen_any = true;
                // What follows the first octets closely must not overtake them.
                let earliest = self.inbound.back().map_or(now, |(due, _)| *due);
                self.inbound.push_back(((now + syn + round_trip / 2).max(earliest), chunk));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.gone = true,
        }
    }

    fn turn(
        &mut self,
        now: Instant,
        orders: &Orders,
        seen: &mut Seen,
        late_names: &mut HashSet<Vec<u8>>,
    ) -> Result<bool> {
        let mut busy = false;
        while let Some(chunk) = pop_due(&mut self.inbound, now) {
            busy = true;
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                self.tls.read_tls(&mut rest)?;
                let Ok(state) = self.tls.process_new_packets() else {
                    self.gone = true;
                    return Ok(true);
                };
                let start = self.plain.len();
                self.plain.resize(start + state.plaintext_bytes_to_read(), 0);
                self.tls.reader().read_exact(&mut self.plain[start..])?;
                seen.reads += usize::from(state.plaintext_bytes_to_read() > 0);
            }
            self.answer(now, orders, seen, late_names)?;
        }
        while self.late.peek().is_some_and(|Reverse((due, _))| *due <= now) {
            if let Some(Reverse((_, answer))) = self.late.pop() {
                self.say(&answer, orders)?;
            }
            busy = true;
        }
        self.write(now, orders.round_trip)?;
        Ok(busy)
    }

    /// Answers all whole messages that have come.
    fn answer(
        &mut self,
        now: Instant,
        orders: &Orders,
        seen: &mut Seen,
        late_names: &mut HashSet<Vec<u8>>,
    ) -> Result<()> {
        let plain = std::mem::take(&mut self.plain);
        let mut rest = &plain[..];
        while let Some((query, tail)) = message::split_frame(rest) {
            rest = tail;
            seen.queries += 1;
            let answer = message::answer(query);
            if message::is_late(query) && !orders.late.is_zero() {
                seen.asked_again += usize::from(!late_names.insert(message::name(query).to_vec()));
                self.late.push(Reverse((now + orders.late, answer)));
            } else {
                self.say(&answer, orders)?;
            }
        }
        self.plain = rest.to_vec();
        Ok(())
    }

    fn say(&mut self, answer: &[u8], orders: &Orders) -> Result<()> {
        if self.ended.is_some_and(|end| end != End::Junk) {
            return Ok(());
        }
        self.tls.writer().write_all(answer)?;
        self.answered += 1;
        if let Some((limit, end)) = orders.end
            && self.answered == limit
        {
            self.ended = Some(end);
            match end {
                End::Junk => self.tls.writer().write_all(&message::framed(b"this is no DNS"))?,
                End::Close => self.tls.send_close_notify(),
                End::Reset | End::Silence => {}
            }
        }
        Ok(())
    }

    fn write(&mut self, now: Instant, round_trip: Duration) -> Result<()> {
        while self.tls.wants_write() {
            let mut records = Vec::new();
            self.tls.write_tls(&mut records)?;
            self.outbound.push_back((now + round_trip / 2, records));
        }
        while let Some(records) = pop_due(&mut self.outbound, now) {
            self.stuck.extend_from_slice(&records);
        }
        if !self.stuck.is_empty() {
            match self.tcp.write(&self.stuck) {
                Ok(len) => drop(self.stuck.drain(..len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.gone = true,
            }
        }
        if self.stuck.is_empty() && self.outbound.is_empty() {
            match self.ended {
                Some(End::Close) => self.gone = true,
                Some(End::Reset) => {
                    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                    setsockopt(&self.tcp, sockopt::Linger, &linger)?;
                    self.gone = true;
                }
                Some(End::Silence | End::Junk) | None => {}
            }
        }
        Ok(())
    }
}

/// What has come to the end of the road.
fn pop_due(road: &mut VecDeque<(Instant, Vec<u8>)>, now: Instant) -> Option<Vec<u8>> {
    let due = road.front().is_some_and(|(due, _)| *due <= now);
    due.then(|| road.pop_front())?.map(|(_, octets)| octets)
}
