//! Sockets and packets that claim to be what they are not.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use dns_proxy_tests::{
    sockopt::freebind,
    wire::{query, random_id},
};
use hickory_proto::rr::RecordType;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, sendto,
    setsockopt, socket, sockopt::Mark,
};

use crate::shapes::{receive, udp_socket};

/// Any port; nobody is to answer there.
const SOURCE_PORT: u16 = 40_053;
const UDP: u8 = 17;

/// With a firewall mark, which could stand for somebody whom the daemon leaves alone.
pub(crate) fn marked(server: SocketAddr, name: &str, mark: u32, limit: Duration) -> Result<bool> {
    let started = Instant::now();
    let socket = udp_socket(server, limit)?;
    setsockopt(&socket, Mark, &mark)?;
    socket.connect(server)?;
    let query = query(random_id(), name, RecordType::A)?;
    socket.send(&query)?;
    receive(&socket, server, &query, started)
}

/// From an address that need not be ours (`IP_FREEBIND`), which takes no privilege.
pub(crate) fn borrowed(
    server: SocketAddr,
    name: &str,
    source: IpAddr,
    limit: Duration,
) -> Result<bool> {
    let started = Instant::now();
    let socket = udp_socket(server, limit)?;
    freebind(&socket, source)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, SOURCE_PORT)))?;
    let query = query(random_id(), name, RecordType::A)?;
    socket.send_to(&query, server)?;
    receive(&socket, server, &query, started)
}

/// With headers of our own making, whatever they say.
pub(crate) fn raw(server: SocketAddr, name: &str, source: IpAddr) -> Result<bool> {
    let payload = query(random_id(), name, RecordType::A)?;
    let (family, packet) = match (source, server.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let datagram =
                datagram(&[from.octets(), to.octets()].concat(), server.port(), &payload)?;
            // Version and header length, TTL 64; the kernel fills in lengths and checksums (raw(7)).
            let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0];
            packet.extend([from.octets(), to.octets()].concat());
            packet.extend(datagram);
            (AddressFamily::Inet, packet)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let datagram =
                datagram(&[from.octets(), to.octets()].concat(), server.port(), &payload)?;
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(u16::try_from(datagram.len())?.to_be_bytes());
            packet.extend([UDP, 64]);
            packet.extend([from.octets(), to.octets()].concat());
            packet.extend(datagram);
            (AddressFamily::Inet6, packet)
        }
        _ => bail!("{source} and {server} are of two families"),
    };
    let raw = Some(SockProtocol::Raw);
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, raw)?;
    // Raw sockets want no port (raw(7)).
    let to = SockaddrStorage::from(SocketAddr::new(server.ip(), 0));
    sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
    Ok(true)
}

/// A UDP datagram between two addresses (RFC 768; RFC 8200 section 8.1).
fn datagram(addresses: &[u8], port: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(8 + payload.len())?;
    let mut datagram = [SOURCE_PORT, port, length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    let words = |bytes: &[u8]| -> u32 {
        let word =
            |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
        bytes.chunks(2).map(word).sum()
    };
    let mut sum = words(addresses) + words(&datagram) + u32::from(UDP) + u32::from(length);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum)?;
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    Ok(datagram)
}
