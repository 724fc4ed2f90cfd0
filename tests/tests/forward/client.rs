//! Clients that send exactly the bytes they are given, and show those that come back.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
};

use anyhow::{Context as _, Result, bail, ensure};
use dns_proxy_tests::{
    Netns, expected_a,
    wire::{Answer, frame, query},
};
use hickory_proto::rr::RecordType;
use nix::sys::socket::{setsockopt, sockopt};

use crate::{packets::id_of, place::LIMIT};

/// Octets; room for thousands of answers that come before the first is read.
const RECEIVE_BUFFER: usize = 8 << 20;

/// A connected UDP socket.
pub(crate) struct Udp {
    socket: UdpSocket,
}

/// A TCP connection.
pub(crate) struct Tcp {
    stream: TcpStream,
}

impl Udp {
    pub(crate) fn connect(netns: &Netns, server: SocketAddr) -> Result<Self> {
        let any = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::connect_from(netns, any, server)
    }

    /// One that has this address.
    pub(crate) fn connect_from(netns: &Netns, own: IpAddr, server: SocketAddr) -> Result<Self> {
        let socket = netns.run(|| {
            let socket = UdpSocket::bind((own, 0))?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(LIMIT))?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            io::Result::Ok(socket)
        })??;
        Ok(Self { socket })
    }

    pub(crate) fn send(&self, message: &[u8]) -> io::Result<()> {
        self.socket.send(message).map(drop)
    }

    pub(crate) fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Sends a message and gives the next one that comes.
    pub(crate) fn ask(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.send(message)?;
        self.receive().context("no answer")
    }

    /// Asks for an address, and checks that it is the right one.
    pub(crate) fn resolve(&self, name: &str) -> Result<()> {
        let asked = query(dns_proxy_tests::wire::random_id(), name, RecordType::A)?;
        check_address(name, &asked, &self.ask(&asked)?)
    }

    /// Sends what must not be answered: the next answer is to the query that follows.
    pub(crate) fn is_ignored(&self, message: &[u8]) -> Result<()> {
        self.send(message)?;
        self.resolve("after.example.test").context("not ignored")
    }
}

impl Tcp {
    pub(crate) fn connect(netns: &Netns, server: SocketAddr) -> Result<Self> {
        Self::on(netns.run(|| TcpStream::connect(server))??)
    }

    /// One that is connected already.
    pub(crate) fn on(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    pub(crate) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.stream.write_all(&frame(message))
    }

    /// Sends bytes without a length before them.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that no query will follow.
    pub(crate) fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    pub(crate) fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 2];
        self.stream.read_exact(&mut length)?;
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        self.stream.read_exact(&mut message)?;
        Ok(message)
    }

    pub(crate) fn ask(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        self.send(message)?;
        self.receive().context("no answer")
    }

    pub(crate) fn resolve(&mut self, name: &str) -> Result<()> {
        let asked = query(dns_proxy_tests::wire::random_id(), name, RecordType::A)?;
        check_address(name, &asked, &self.ask(&asked)?)
    }

    /// Whether the server has closed its side and sent nothing before that.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(length) => length == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn check_address(name: &str, asked: &[u8], answered: &[u8]) -> Result<()> {
    let answer = Answer::to(asked, answered)?;
    ensure!(answer.addresses == [expected_a(name)], "{name}: {answer:?}");
    Ok(())
}

/// Many queries at once, each for a name of its own.
pub(crate) struct Burst {
    waiting: HashMap<u16, (String, Vec<u8>)>,
    order: Vec<u16>,
}

impl Burst {
    /// `count` queries for names that begin with `prefix`.
    pub(crate) fn new(prefix: &str, count: u16) -> Result<Self> {
        let waiting = (1..=count)
            .map(|id| {
                let name = format!("{prefix}{id}.example.test");
                let message = query(id, &name, RecordType::A)?;
                Ok((id, (name, message)))
            })
            .collect::<Result<_>>()?;
        Ok(Self { waiting, order: Vec::new() })
    }

    /// The queries, in the order of their ids.
    pub(crate) fn queries(&self) -> Vec<Vec<u8>> {
        let mut queries: Vec<_> = self.waiting.values().map(|(_, query)| query.clone()).collect();
        queries.sort();
        queries
    }

    /// Takes answers until each query has its own; gives the order of their ids.
    pub(crate) fn collect(
        mut self,
        mut receive: impl FnMut() -> io::Result<Vec<u8>>,
    ) -> Result<Vec<u16>> {
        while !self.waiting.is_empty() {
            let answer = receive().with_context(|| format!("{} lost", self.waiting.len()))?;
            let id = id_of(&answer)?;
            let Some((name, asked)) = self.waiting.remove(&id) else {
                bail!("nobody asked with id {id}");
            };
            check_address(&name, &asked, &answer)?;
            self.order.push(id);
        }
        Ok(self.order)
    }
}
