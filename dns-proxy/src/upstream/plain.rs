//! Plaintext DNS (RFC 1035 section 4.2), for names that a route sends to a nameserver of a network
//! that is not ours to encrypt.
//!
//! Each query has a socket of its own, connected to the nameserver: an answer must come from there,
//! to a port and with an id that nobody can guess (RFC 5452 section 4). The sockets belong to the
//! network in which the client is, so that the nameserver is reached, and judges, as it would without
//! us.

use std::{io, net::SocketAddr, os::fd::AsFd as _, sync::Arc, time::Duration};

use socket2::{Domain, Socket, Type};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, UdpSocket},
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Exempt, Settings,
    outlet::{Outlet, Side},
};
use crate::wire::{self, HEADER_LEN, MAX_MESSAGE_LEN, Question, flag};

/// When a datagram without an answer is sent again.
const RETRANSMIT: Duration = Duration::from_millis(400);
/// How long a nameserver may be silent in the middle of a zone transfer.
const TRANSFER_SILENCE: Duration = Duration::from_secs(10);

/// Asks in plaintext.
pub struct Plain {
    timeout: Duration,
    exempt: Arc<dyn Exempt>,
}

/// Whom to ask, and from where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Nameservers {
    /// In order of preference.
    pub addrs: Vec<SocketAddr>,
    /// Whose network they are in.
    pub side: Side,
}

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP, and TCP for what does not fit.
    Datagram,
    /// TCP.
    Stream,
}

/// An answer of many messages, over TCP.
pub struct Transfer {
    server: SocketAddr,
    stream: TcpStream,
    _turn: OwnedSemaphorePermit,
}

/// Why there is no answer to a message.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlainError {
    /// The nameserver's fault, or the network's.
    #[error("{server}: no answer in time")]
    Timeout {
        /// Which one.
        server: SocketAddr,
    },
    /// The network's fault, or the nameserver's.
    #[error("{server}: {reason}")]
    Io {
        /// Which one.
        server: SocketAddr,
        /// The operating system's words.
        reason: String,
    },
    /// There is nobody to ask.
    #[error("no nameserver to ask")]
    NoServer,
    /// Our side: no turn came.
    #[error("too many queries are under way already")]
    Busy,
}

impl Plain {
    /// Asks with the same time limit as upstreams are asked.
    pub fn new(settings: &Settings) -> Self {
        Self { timeout: settings.timeout, exempt: Arc::clone(&settings.exempt) }
    }

    /// Asks the first of the nameservers, and the next ones if it fails, until there is an answer or
    /// no time is left; who gave it.
    ///
    /// # Errors
    /// No answer within the configured time, and why.
    pub async fn exchange(
        &self,
        outlet: &Outlet,
        nameservers: &Nameservers,
        message: &[u8],
        transport: Transport,
    ) -> Result<(Vec<u8>, SocketAddr), PlainError> {
        let deadline = Instant::now() + self.timeout;
        let _turn = outlet.turn(deadline).await.ok_or(PlainError::Busy)?;
        let message = with_random_id(message);
        let mut last = PlainError::NoServer;
        for (index, &server) in nameservers.addrs.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let until = Instant::now() + left / (nameservers.addrs.len() - index) as u32;
            let errand = Errand { plain: self, outlet, side: nameservers.side, server, until };
            match timeout_at(until, errand.ask(&message, transport)).await {
                Ok(Ok(answer)) => return Ok((answer, server)),
                Ok(Err(error)) => last = PlainError::Io { server, reason: error.to_string() },
                Err(_) => last = PlainError::Timeout { server },
            }
        }
        Err(last)
    }

    /// Asks for a zone transfer (RFC 5936, RFC 1995).
    ///
    /// # Errors
    /// No connection within the configured time, and why.
    pub async fn transfer(
        &self,
        outlet: &Outlet,
        nameservers: &Nameservers,
        message: &[u8],
    ) -> Result<Transfer, PlainError> {
        let until = Instant::now() + self.timeout;
        let turn = outlet.turn_for_transfer(until).await.ok_or(PlainError::Busy)?;
        let &server = nameservers.addrs.first().ok_or(PlainError::NoServer)?;
        let errand = Errand { plain: self, outlet, side: nameservers.side, server, until };
        match timeout_at(until, errand.send_tcp(&with_random_id(message))).await {
            Ok(Ok(stream)) => Ok(Transfer { server, stream, _turn: turn }),
            Ok(Err(error)) => Err(PlainError::Io { server, reason: error.to_string() }),
            Err(_) => Err(PlainError::Timeout { server }),
        }
    }
}

/// One query to one nameserver.
struct Errand<'a> {
    plain: &'a Plain,
    outlet: &'a Outlet,
    side: Side,
    server: SocketAddr,
    until: Instant,
}

impl Errand<'_> {
    async fn ask(&self, message: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        if transport == Transport::Stream {
            return self.ask_tcp(message).await;
        }
        let answer = self.ask_udp(message).await?;
        if answer[2] & flag::TC == 0 {
            return Ok(answer);
        }
        // Some nameservers do not take TCP; what there is says that there would be more.
        let whole = timeout_at(self.until, self.ask_tcp(message)).await;
        Ok(whole.ok().and_then(Result::ok).unwrap_or(answer))
    }

    async fn ask_udp(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.open(Type::DGRAM)?;
        socket.connect(&self.server.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        loop {
            socket.send(message).await?;
            // Again by the same socket: the answer to either will do.
            if let Ok(answer) = timeout(RETRANSMIT, receive(&socket, message)).await {
                return answer;
            }
        }
    }

    async fn ask_tcp(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = self.send_tcp(message).await?;
        let answer = read_message(&mut stream).await?;
        if is_answer(&answer, message) {
            Ok(answer)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    async fn send_tcp(&self, message: &[u8]) -> io::Result<TcpStream> {
        let socket = TcpSocket::from_std_stream(self.open(Type::STREAM)?.into());
        let mut stream = socket.connect(self.server).await?;
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        // One write, and so one segment (RFC 7766 section 8).
        stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
        Ok(stream)
    }

    fn open(&self, kind: Type) -> io::Result<Socket> {
        let socket = self.outlet.socket(self.side, Domain::for_address(self.server), kind)?;
        socket.set_nonblocking(true)?;
        self.plain.exempt.exempt(socket.as_fd())?;
        Ok(socket)
    }
}

impl Transfer {
    /// The next message.
    ///
    /// # Errors
    /// The nameserver has closed the connection, or is silent for too long.
    pub async fn next(&mut self) -> Result<Vec<u8>, PlainError> {
        let server = self.server;
        match timeout(TRANSFER_SILENCE, read_message(&mut self.stream)).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(error)) => Err(PlainError::Io { server, reason: error.to_string() }),
            Err(_) => Err(PlainError::Timeout { server }),
        }
    }
}

/// The first answer that comes; anything else that comes is not looked at twice.
async fn receive(socket: &UdpSocket, message: &[u8]) -> io::Result<Vec<u8>> {
    loop {
        socket.readable().await?;
        let mut answer = Vec::with_capacity(MAX_MESSAGE_LEN);
        match socket.try_recv_buf(&mut answer) {
            Ok(_) if is_answer(&answer, message) => return Ok(answer),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// One message behind its two-octet length (RFC 1035 section 4.2.2).
async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// The message with a transaction id that nobody can guess (RFC 5452 section 4.3).
fn with_random_id(message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[..2].copy_from_slice(&rand::random::<[u8; 2]>());
    message
}

/// Whether `received` is the response to `message` (RFC 5452 section 9.1).
fn is_answer(received: &[u8], message: &[u8]) -> bool {
    let question = Question::read(message).map_or(&[][..], |q| &message[HEADER_LEN..q.end]);
    wire::u16_at(received, 0) == wire::u16_at(message, 0)
        && received.len() >= HEADER_LEN
        && received[2] & flag::QR != 0
        && wire::answers(received, question)
}
