//! The near end: clients that ask over UDP or TCP, as fast as answers come or at a steady pace.

use std::{
    io::{ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt},
};

use super::message;

/// An answer that takes longer is lost: more than any forwarder was told to wait.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(4);
/// Datagrams taken or sent by one system call.
const BATCH: usize = 64;
/// Room for an answer.
const ANSWER: usize = 512;
/// Every so many names are late ones, if there are to be any.
const LATE_EVERY: u32 = 100;

/// How the clients ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// So many queries are always on their way.
    Window(usize),
    /// So many a second, whether they are answered or not.
    Pace(u32),
}

/// Over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    /// So many connections, each with its part of the window.
    TcpKept(usize),
    /// A connection for each query.
    TcpOnce,
}

/// What became of one query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) sent: Instant,
    pub(super) late: bool,
    /// The time to a good answer; `None` if there was none.
    pub(super) took: Option<Duration>,
}

#[derive(Clone, Copy)]
struct Waiting {
    number: u32,
    sent: Instant,
    late: bool,
}

/// The queries on their way, by transaction id.
pub(super) struct Book {
    waiting: Vec<Option<Waiting>>,
    open: usize,
    next: u32,
    with_late: bool,
    pub(super) outcomes: Vec<Outcome>,
}

impl Book {
    pub(super) fn new(first: u32, with_late: bool) -> Self {
        Self { waiting: vec![None; 1 << 16], open: 0, next: first, with_late, outcomes: Vec::new() }
    }

    /// How many are on their way.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// The number after the last one used.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    fn ask(&mut self, now: Instant) -> Vec<u8> {
        let number = self.next;
        self.next += 1;
        let id = number as u16;
        self.settle(id, None);
        let late = self.with_late && number.is_multiple_of(LATE_EVERY);
        self.waiting[usize::from(id)] = Some(Waiting { number, sent: now, late });
        self.open += 1;
        message::query(id, number, late)
    }

    fn answered(&mut self, answer: &[u8], now: Instant) {
        if let Some((id, _)) = answer.split_first_chunk() {
            let good = message::is_good(answer).then_some(now);
            self.settle(u16::from_be_bytes(*id), good);
        }
    }

    fn settle(&mut self, id: u16, good: Option<Instant>) {
        if let Some(waiting) = self.waiting[usize::from(id)].take() {
            let Waiting { sent, late, .. } = waiting;
            self.open -= 1;
            self.outcomes.push(Outcome { sent, late, took: good.map(|at| at - sent) });
        }
    }

    /// Gives up on those that have waited too long.
    fn give_up(&mut self, now: Instant) {
        for id in 0..=u16::MAX {
            let waiting = self.waiting[usize::from(id)];
            if waiting.is_some_and(|waiting| now - waiting.sent > LOST_AFTER) {
                self.settle(id, None);
            }
        }
    }

    /// Gives up on all of them; their numbers, for whoever wonders.
    pub(super) fn close(&mut self) -> Vec<u32> {
        let numbers = self.waiting.iter().flatten().map(|waiting| waiting.number).collect();
        (0..=u16::MAX).for_each(|id| self.settle(id, None));
        numbers
    }
}

/// Clients of one kind.
pub(super) struct Clients {
    load: Load,
    started: Instant,
    paced: u64,
    swept: Instant,
    pub(super) asking: bool,
    pub(super) book: Book,
    road: Road,
}

enum Road {
    Udp { socket: UdpSocket, send: Box<MultiHeaders<()>>, receive: Box<MultiHeaders<()>> },
    Tcp(Tcp),
}

struct Tcp {
    to: SocketAddr,
    epoll: Epoll,
    /// `None`: a connection for each query.
    kept: Option<usize>,
    streams: Vec<Option<(TcpStream, Vec<u8>)>>,
    turn: usize,
}

impl Clients {
    /// Clients of the server at `to`; the numbers of their names start at `first`.
    pub(super) fn start(
        to: SocketAddr,
        transport: Transport,
        load: Load,
        book: Book,
    ) -> Result<Self> {
        let road = match transport {
            Transport::Udp => {
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                socket.connect(to)?;
                socket.set_nonblocking(true)?;
                setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
                let headers = || Box::new(MultiHeaders::preallocate(BATCH, None));
                Road::Udp { socket, send: headers(), receive: headers() }
            }
            Transport::TcpKept(connections) => Road::Tcp(Tcp::new(to, Some(connections))?),
            Transport::TcpOnce => Road::Tcp(Tcp::new(to, None)?),
        };
        let now = Instant::now();
        Ok(Self { load, started: now, paced: 0, swept: now, asking: true, book, road })
    }

    /// Readable when there is something to do.
    pub(super) fn descriptor(&self) -> &dyn AsFd {
        match &self.road {
            Road::Udp { socket, .. } => socket,
            Road::Tcp(tcp) => &tcp.epoll.0,
        }
    }

    /// When they have to do something by themselves.
    pub(super) fn next(&self) -> Option<Instant> {
        match self.load {
            Load::Pace(rate) if self.asking => {
                Some(self.started + Duration::from_secs(1) * (self.paced as u32 + 1) / rate)
            }
            Load::Pace(_) | Load::Window(_) => None,
        }
    }

    /// Does what there is to do; says whether there was anything.
    pub(super) fn turn(&mut self, now: Instant) -> Result<bool> {
        if now - self.swept > Duration::from_millis(100) {
            self.book.give_up(now);
            self.swept = now;
        }
        let received = match &mut self.road {
            Road::Udp { socket, receive, .. } => {
                receive_datagrams(socket, receive, &mut self.book)?
            }
            Road::Tcp(tcp) => tcp.receive(&mut self.book)?,
        };
        let wanted = if self.asking { self.wanted(now) } else { 0 };
        match &mut self.road {
            Road::Udp { socket, send, .. } => {
                send_datagrams(socket, send, wanted, &mut self.book)?;
            }
            Road::Tcp(tcp) => tcp.send(wanted, &mut self.book)?,
        }
        Ok(received > 0 || wanted > 0)
    }

    fn wanted(&mut self, now: Instant) -> usize {
        match self.load {
            Load::Window(window) => window.saturating_sub(self.book.open()),
            Load::Pace(rate) => {
                let due = (now - self.started).as_nanos() as u64 * u64::from(rate) / 1_000_000_000;
                let wanted = due - self.paced;
                self.paced = due;
                wanted as usize
            }
        }
    }
}

fn receive_datagrams(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<()>,
    book: &mut Book,
) -> Result<usize> {
    let mut buffers = [[0; ANSWER]; BATCH];
    let mut slices: Vec<_> = buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
    let fd = socket.as_raw_fd();
    let lengths: Vec<usize> = match recvmmsg(fd, headers, &mut slices, MsgFlags::MSG_DONTWAIT, None)
    {
        Ok(received) => received.map(|message| message.bytes).collect(),
        Err(nix::Error::EAGAIN | nix::Error::ECONNREFUSED) => return Ok(0),
        Err(error) => return Err(error).context("receive answers"),
    };
    let now = Instant::now();
    for (buffer, len) in buffers.iter().zip(&lengths) {
        book.answered(&buffer[..*len], now);
    }
    Ok(lengths.len())
}

fn send_datagrams(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<()>,
    mut wanted: usize,
    book: &mut Book,
) -> Result<()> {
    while wanted > 0 {
        let count = wanted.min(BATCH);
        let now = Instant::now();
        let queries: Vec<_> = (0..count).map(|_| book.ask(now)).collect();
        let slices: Vec<_> = queries.iter().map(|query| [IoSlice::new(query)]).collect();
        let addresses = vec![None; count];
        match sendmmsg(socket.as_raw_fd(), headers, &slices, &addresses, [], MsgFlags::empty()) {
            // What the socket had no room for is lost, as on any road.
            Ok(_) | Err(nix::Error::EAGAIN | nix::Error::ECONNREFUSED) => {}
            Err(error) => return Err(error).context("send queries"),
        }
        wanted -= count;
    }
    Ok(())
}

impl Tcp {
    fn new(to: SocketAddr, kept: Option<usize>) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { to, epoll, kept, streams: Vec::new(), turn: 0 })
    }

    fn open(&mut self) -> Result<usize> {
        let stream = TcpStream::connect(self.to).context("connect over TCP")?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let free = self.streams.iter().position(Option::is_none);
        let index = free.unwrap_or(self.streams.len());
        self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        if free.is_none() {
            self.streams.push(None);
        }
        self.streams[index] = Some((stream, Vec::new()));
        Ok(index)
    }

    fn send(&mut self, wanted: usize, book: &mut Book) -> Result<()> {
        for _ in 0..wanted {
            let index = match self.kept {
                Some(kept) if self.streams.iter().flatten().count() >= kept => {
                    self.turn = (self.turn + 1) % self.streams.len();
                    self.turn
                }
                _ => self.open()?,
            };
            let query = message::framed(&book.ask(Instant::now()));
            if let Some((stream, _)) = &mut self.streams[index] {
                stream.write_all(&query).context("ask over TCP")?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, book: &mut Book) -> Result<usize> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO)?;
        for event in &events[..count] {
            let slot = &mut self.streams[event.data() as usize];
            let Some((stream, inbox)) = slot else {
                continue;
            };
            let mut chunk = [0; 16 * 1024];
            let open = match stream.read(&mut chunk) {
                Ok(len) => {
                    inbox.extend_from_slice(&chunk[..len]);
                    len > 0
                }
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
            let now = Instant::now();
            let mut rest = &inbox[..];
            let mut answered = false;
            while let Some((answer, tail)) = message::split_frame(rest) {
                book.answered(answer, now);
                rest = tail;
                answered = true;
            }
            *inbox = rest.to_vec();
            if !open || (answered && self.kept.is_none()) {
                *slot = None;
            }
        }
        Ok(count)
    }
}
