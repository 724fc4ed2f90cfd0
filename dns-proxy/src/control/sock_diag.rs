//! Sockets of one network namespace that are connected somewhere (sock_diag(7)): who they are, and
//! an end to them.
//!
//! Listing UDP sockets takes `CONFIG_INET_UDP_DIAG`; destroying takes Linux 4.5 with
//! `CONFIG_INET_DIAG_DESTROY`. What is not here: which sockets are meant.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::libc;

/// Message types (linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct nlmsghdr` (linux/netlink.h).
const HEADER_LEN: usize = 16;
/// `struct inet_diag_req_v2` and, within it, `struct inet_diag_sockid` (linux/inet_diag.h).
const REQUEST_LEN: usize = 56;
const ID_LEN: usize = 48;
/// `struct inet_diag_msg`: four octets, the id, five words.
const MESSAGE_LEN: usize = 4 + ID_LEN + 20;
/// Attribute that holds the id of the socket's cgroup (5.8).
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Room for one read of a dump; the kernel fills 32 KiB at most.
const READ_BUFFER: usize = 64 * 1024;

/// States of sockets, as bits (net/tcp_states.h). A connected UDP socket is established.
pub const ESTABLISHED: u32 = 1 << 1;
/// Has begun to connect.
pub const SYN_SENT: u32 = 1 << 2;
/// Has a peer that may still say something, or be told: all but TIME_WAIT, CLOSE and LISTEN.
pub const ALIVE: u32 =
    ESTABLISHED | SYN_SENT | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// A connected socket, as the kernel names it.
#[derive(Debug)]
pub struct Connected {
    family: u8,
    protocol: u8,
    state: u8,
    id: [u8; ID_LEN],
    /// The cgroup that it was made in, if the kernel tells (5.8).
    pub cgroup: Option<u64>,
}

/// The UDP and TCP sockets that are connected to `port` anywhere, in the namespace that this thread
/// is in, and in one of `states`.
///
/// # Errors
/// The kernel does not know sock_diag, or may not be asked.
pub fn connected_to(port: u16, states: u32) -> io::Result<Vec<Connected>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
            found.extend(list(family as u8, protocol as u8, port, states)?);
        }
    }
    Ok(found)
}

fn list(family: u8, protocol: u8, port: u16, states: u32) -> io::Result<Vec<Connected>> {
    let mut id = [0; ID_LEN];
    id[2..4].copy_from_slice(&port.to_be_bytes());
    let netlink = send(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family, protocol, states, &id)?;
    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(READ_BUFFER);
    loop {
        buffer.clear();
        netlink.recv(&mut buffer, 0)?;
        let mut rest = &buffer[..];
        while let Some((kind, payload, tail)) = split_message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => return error_of(payload).map(|()| found),
                _ => found.extend(Connected::read(protocol, payload)),
            }
            rest = tail;
        }
    }
}

impl Connected {
    fn read(protocol: u8, payload: &[u8]) -> Option<Self> {
        let message = payload.get(..MESSAGE_LEN)?;
        let mut cgroup = None;
        let mut rest = &payload[MESSAGE_LEN..];
        // `struct nlattr`: length with header, type, value; aligned to four octets.
        while let [l0, l1, t0, t1, ..] = *rest {
            let len = usize::from(u16::from_ne_bytes([l0, l1]));
            let value = rest.get(4..len)?;
            if u16::from_ne_bytes([t0, t1]) == INET_DIAG_CGROUP_ID {
                cgroup = value.try_into().ok().map(u64::from_ne_bytes);
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        let id = message[4..4 + ID_LEN].try_into().ok()?;
        Some(Self { family: message[0], protocol, state: message[1], id, cgroup })
    }

    /// The address that it is connected to.
    pub fn peer(&self) -> IpAddr {
        let octets: [u8; 16] = std::array::from_fn(|index| self.id[20 + index]);
        if i32::from(self.family) == libc::AF_INET {
            let [a, b, c, d, ..] = octets;
            return Ipv4Addr::new(a, b, c, d).into();
        }
        IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
    }

    /// Breaks it; `false` if it was gone already.
    ///
    /// # Errors
    /// The kernel cannot, or may not be told to (CAP_NET_ADMIN).
    pub fn destroy(&self) -> io::Result<bool> {
        let (family, protocol, states) = (self.family, self.protocol, 1 << self.state);
        let netlink = send(SOCK_DESTROY, libc::NLM_F_ACK, family, protocol, states, &self.id)?;
        let mut reply = Vec::with_capacity(READ_BUFFER);
        netlink.recv(&mut reply, 0)?;
        let Some((_, payload, _)) = split_message(&reply) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match error_of(payload) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            other => other.map(|()| true),
        }
    }
}

/// Sends one request on a socket of its own.
fn send(
    kind: u16,
    flags: libc::c_int,
    family: u8,
    protocol: u8,
    states: u32,
    id: &[u8; ID_LEN],
) -> io::Result<Socket> {
    let mut message = Vec::with_capacity(HEADER_LEN + REQUEST_LEN);
    message.extend_from_slice(&((HEADER_LEN + REQUEST_LEN) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence number and port
    message.extend_from_slice(&[family, protocol, 0, 0]);
    message.extend_from_slice(&states.to_ne_bytes());
    message.extend_from_slice(id);
    let netlink = Socket::new(NETLINK_SOCK_DIAG)?;
    netlink.connect(&SocketAddr::new(0, 0))?;
    netlink.send(&message, 0)?;
    Ok(netlink)
}

/// Type and payload of the first message, and what follows it.
fn split_message(buffer: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let header = buffer.get(..HEADER_LEN)?;
    let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let payload = buffer.get(HEADER_LEN..len)?;
    Some((kind, payload, buffer.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// What `struct nlmsgerr` says: 0 is an acknowledgement.
fn error_of(payload: &[u8]) -> io::Result<()> {
    match payload {
        [a, b, c, d, ..] => match i32::from_ne_bytes([*a, *b, *c, *d]) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
