//! One function for each shape of socket.

use anyhow::{Context, Result, ensure};
use dns_proxy_tests::wire::{Answer, frame, query, random_id};
use hickory_proto::rr::RecordType;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, recvmsg, setsockopt, socket,
};
use std::fmt::Display;
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Longer than any answer.
pub(crate) const BUFFER: usize = 65_536;

/// A question, and who is to answer it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    /// The name whose A record is wanted.
    pub(crate) name: &'a str,
    pub(crate) servers: &'a [SocketAddr],
    /// How long to wait for each answer.
    pub(crate) limit: Duration,
}

/// Reads `ADDRESS`, `ADDRESS%INTERFACE` or `ADDRESS:PORT`.
pub(crate) fn server(text: &str) -> Result<SocketAddr> {
    if let Some((address, interface)) = text.split_once('%') {
        let index = if_nametoindex(interface).with_context(|| format!("no {interface}"))?;
        return Ok(SocketAddrV6::new(address.parse()?, 53, 0, index).into());
    }
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    address.or_else(|_| text.parse()).with_context(|| format!("{text} is no server"))
}

impl Ask<'_> {
    /// The first server.
    pub(crate) fn server(&self) -> Result<SocketAddr> {
        self.servers.first().copied().context("no server")
    }

    /// A query with an ID of its own.
    pub(crate) fn query(&self) -> Result<Vec<u8>> {
        query(random_id(), self.name, RecordType::A)
    }
}

pub(crate) fn udp_connected(server: SocketAddr, name: &str, limit: Duration) -> Result<bool> {
    let started = Instant::now();
    let socket = udp_socket(server, limit)?;
    socket.connect(server)?;
    let peer = socket.peer_addr()?;
    let query = query(random_id(), name, RecordType::A)?;
    socket.send(&query)?;
    let mut buffer = [0; BUFFER];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let answer = Answer::to(&query, &buffer[..length])?;
    report(&[("peer", &peer), ("from", &from)], &answer, started);
    Ok(peer == server && from == server && is_good(&answer))
}

/// Connects, and asks only when told to: what becomes of a socket from before the daemon.
pub(crate) fn early_udp(server: SocketAddr, name: &str, limit: Duration) -> Result<bool> {
    let socket = udp_socket(server, limit)?;
    socket.connect(server)?;
    wait_for_the_word()?;
    let started = Instant::now();
    let query = query(random_id(), name, RecordType::A)?;
    socket.send(&query)?;
    let mut buffer = [0; BUFFER];
    let length = socket.recv(&mut buffer)?;
    let answer = Answer::to(&query, &buffer[..length])?;
    report(&[], &answer, started);
    Ok(is_good(&answer))
}

/// The same with `IP_RECVERR`: what the error queue says of the other end if nobody listens there
/// any more.
pub(crate) fn error_queue(server: SocketAddr, name: &str, limit: Duration) -> Result<bool> {
    let socket = udp_socket(server, limit)?;
    if server.is_ipv4() {
        setsockopt(&socket, Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, Ipv6RecvErr, &true)?;
    }
    socket.connect(server)?;
    wait_for_the_word()?;
    socket.send(&query(random_id(), name, RecordType::A)?)?;
    let error = socket.recv(&mut [0; 512]).map_err(|error| error.kind());
    let mut buffer = [0; 512];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_ERRQUEUE;
    let queued = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, None, flags)?;
    let to = queued.address.map(|to| to.to_string()).unwrap_or_default();
    println!("error={error:?} queued={to} peer={}", socket.peer_addr()?);
    Ok(true)
}

/// The same over TCP.
pub(crate) fn early_tcp(server: SocketAddr, name: &str, limit: Duration) -> Result<bool> {
    let mut stream = TcpStream::connect_timeout(&server, limit)?;
    stream.set_read_timeout(Some(limit))?;
    wait_for_the_word()?;
    let started = Instant::now();
    let answer = ask_tcp(&mut stream, name)?;
    report(&[], &answer, started);
    Ok(is_good(&answer))
}

fn wait_for_the_word() -> Result<()> {
    println!("connected");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

pub(crate) fn udp_unconnected(servers: &[SocketAddr], name: &str, limit: Duration) -> Result<bool> {
    let started = Instant::now();
    let socket = udp_socket(*servers.first().context("no server")?, limit)?;
    let first = random_id();
    let mut open = Vec::new();
    for (id, &server) in (0..).map(|n| first.wrapping_add(n)).zip(servers) {
        let query = query(id, name, RecordType::A)?;
        socket.send_to(&query, server)?;
        open.push((server, query));
    }
    let mut good = true;
    let mut buffer = [0; BUFFER];
    while !open.is_empty() {
        let left = limit.checked_sub(started.elapsed()).filter(|left| !left.is_zero());
        socket.set_read_timeout(Some(left.unwrap_or(Duration::from_nanos(1))))?;
        let received = socket.recv_from(&mut buffer);
        if received.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            break;
        }
        let (length, from) = received?;
        let asked = open.iter().position(|(_, query)| Answer::to(query, &buffer[..length]).is_ok());
        let (server, query) = open.swap_remove(asked.context("an answer to no query of ours")?);
        let answer = Answer::to(&query, &buffer[..length])?;
        report(&[("server", &server), ("from", &from)], &answer, started);
        good &= from == server && is_good(&answer);
    }
    for (server, _) in &open {
        println!("server={server} error=TimedOut");
    }
    Ok(good && open.is_empty())
}

pub(crate) fn tcp(server: SocketAddr, name: &str, limit: Duration) -> Result<bool> {
    let started = Instant::now();
    let mut stream = TcpStream::connect_timeout(&server, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let peer = stream.peer_addr()?;
    let answer = ask_tcp(&mut stream, name)?;
    report(&[("peer", &peer)], &answer, started);
    Ok(peer == server && is_good(&answer))
}

pub(crate) fn ask_tcp(stream: &mut TcpStream, name: &str) -> Result<Answer> {
    let query = query(random_id(), name, RecordType::A)?;
    stream.write_all(&frame(&query))?;
    read_answer(stream, &query)
}

pub(crate) fn read_answer(stream: &mut TcpStream, query: &[u8]) -> Result<Answer> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Answer::to(query, &message)
}

pub(crate) fn peer_names(servers: &[SocketAddr], limit: Duration) -> Result<bool> {
    ensure!(!servers.is_empty(), "no server");
    let mut good = true;
    for &server in servers {
        let socket = udp_socket(server, limit)?;
        socket.connect(server)?;
        let udp = socket.peer_addr()?;
        let tcp = TcpStream::connect_timeout(&server, limit)?.peer_addr()?;
        println!("udp={udp} tcp={tcp}");
        good &= udp == server && tcp == server;
    }
    Ok(good)
}

/// Waits for the answer to a query, which must show the server as its sender.
pub(crate) fn receive(
    socket: &UdpSocket,
    server: SocketAddr,
    query: &[u8],
    started: Instant,
) -> Result<bool> {
    let mut buffer = [0; BUFFER];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let answer = Answer::to(query, &buffer[..length])?;
    report(&[("from", &from)], &answer, started);
    Ok(from == server && is_good(&answer))
}

/// A socket that nobody has bound, as resolvers have them; `std` binds its own.
pub(crate) fn udp_socket(server: SocketAddr, limit: Duration) -> Result<UdpSocket> {
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(limit))?;
    Ok(socket)
}

pub(crate) fn is_good(answer: &Answer) -> bool {
    !answer.addresses.is_empty()
}

pub(crate) fn report(who: &[(&str, &dyn Display)], answer: &Answer, started: Instant) {
    let who: String = who.iter().map(|(key, value)| format!("{key}={value} ")).collect();
    let addresses: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
    let (rcode, took) = (u16::from(answer.rcode), started.elapsed().as_millis());
    println!("{who}rcode={rcode} answer={} ms={took}", addresses.join(","));
}
