//! What leaves network namespaces for port 53, seen on their interfaces, behind everything that might
//! redirect or refuse it.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
};

use dns_proxy_common::DNS_PORT;
use nix::libc;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{
    control::netns::Netns,
    escape,
    wire::{HEADER_LEN, Question},
};

/// Octets of packets that may wait in one namespace until we look, which is once a second.
const BUFFER: usize = 8 << 20;
/// Packets that are kept.
const MAX_PACKETS: usize = 100_000;
/// Enough of a packet for its question.
const SNAPSHOT: usize = 600;

/// Sockets that see everything, in namespaces that are not ours.
#[derive(Default)]
pub(super) struct Wire {
    sockets: HashMap<u64, Socket>,
    /// What was seen.
    pub(super) packets: Vec<Packet>,
    /// Packets beyond those.
    pub(super) beyond: u64,
    /// Packets that no socket had room for.
    pub(super) lost: u64,
    /// Namespaces that are not watched.
    pub(super) unwatched: usize,
}

/// A packet to port 53.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// Whom it is for.
    pub(super) to: SocketAddr,
    /// What it asks for, in presentation form and lower case, if it can be told.
    pub(super) name: Option<String>,
    from: IpAddr,
    netns: u64,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("(TCP)");
        write!(f, "{} -> {} {name} in namespace {}", self.from, self.to, self.netns)
    }
}

impl Wire {
    /// Whether it watches a namespace.
    pub(super) fn watches(&self, id: u64) -> bool {
        self.sockets.contains_key(&id)
    }

    /// How many it watches, or did.
    pub(super) fn namespaces(&self) -> usize {
        self.sockets.len()
    }

    /// Watches a namespace from now on.
    pub(super) fn watch(&mut self, netns: &Netns) -> io::Result<()> {
        let socket = netns.enter(|| -> io::Result<Socket> {
            // Nothing comes before there is a filter.
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
            socket.attach_filter(&filter())?;
            bind_to_all(&socket)?;
            Ok(socket)
        })??;
        socket.set_nonblocking(true)?;
        let _best_effort = socket.set_recv_buffer_size(BUFFER);
        self.sockets.insert(netns.id().0, socket);
        Ok(())
    }

    /// Forgets what was seen so far.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.look()?;
        (self.packets, self.beyond, self.lost) = (Vec::new(), 0, 0);
        Ok(())
    }

    /// Takes what came.
    pub(super) fn look(&mut self) -> io::Result<()> {
        for (netns, socket) in &self.sockets {
            let mut buffer = [0; SNAPSHOT];
            loop {
                match (&*socket).read(&mut buffer) {
                    Ok(length) if self.packets.len() < MAX_PACKETS => {
                        self.packets.extend(packet(&buffer[..length], *netns));
                    }
                    Ok(_) => self.beyond += 1,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An interface went down.
                    Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                    Err(error) => return Err(error),
                }
            }
            self.lost += dropped(socket)?;
        }
        Ok(())
    }
}

/// Packets on their way out, to port 53, over UDP or TCP, by another interface than `lo`.
fn filter() -> Vec<SockFilter> {
    const LD_W: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const LD_H: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const LD_B: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const LD_H_X: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
    const LDX_IHL: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
    const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const JSET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let special = |what: libc::c_int| (libc::SKF_AD_OFF + what) as u32;
    let op = |code, jt, jf, k| SockFilter::new(code, jt, jf, k);
    let udp = libc::IPPROTO_UDP as u32;
    let tcp = libc::IPPROTO_TCP as u32;
    vec![
        /*  0 */ op(LD_W, 0, 0, special(libc::SKF_AD_PKTTYPE)),
        /*  1 */ op(JEQ, 0, 19, u32::from(libc::PACKET_OUTGOING)),
        /*  2 */ op(LD_W, 0, 0, special(libc::SKF_AD_IFINDEX)),
        /*  3 */ op(JEQ, 17, 0, 1), // lo
        /*  4 */ op(LD_W, 0, 0, special(libc::SKF_AD_PROTOCOL)),
        /*  5 */ op(JEQ, 0, 8, libc::ETH_P_IP as u32),
        /*  6 */ op(LD_B, 0, 0, 9),
        /*  7 */ op(JEQ, 1, 0, udp),
        /*  8 */ op(JEQ, 0, 12, tcp),
        /*  9 */ op(LD_H, 0, 0, 6),
        /* 10 */ op(JSET, 10, 0, 0x1fff), // a later fragment has no ports
        /* 11 */ op(LDX_IHL, 0, 0, 0),
        /* 12 */ op(LD_H_X, 0, 0, 2),
        /* 13 */ op(JEQ, 6, 7, DNS_PORT.into()),
        /* 14 */ op(JEQ, 0, 6, libc::ETH_P_IPV6 as u32),
        /* 15 */ op(LD_B, 0, 0, 6),
        /* 16 */ op(JEQ, 1, 0, udp),
        /* 17 */ op(JEQ, 0, 3, tcp),
        /* 18 */ op(LD_H, 0, 0, 42),
        /* 19 */ op(JEQ, 0, 1, DNS_PORT.into()),
        /* 20 */ op(RET, 0, 0, SNAPSHOT as u32),
        /* 21 */ op(RET, 0, 0, 0),
    ]
}

/// Lets packets of all interfaces come.
fn bind_to_all(socket: &Socket) -> io::Result<()> {
    let addr = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::c_ushort,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `addr` is a sockaddr_ll (packet(7)), and its size is given with it.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const addr).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many packets a socket had no room for since this was last asked.
fn dropped(socket: &Socket) -> io::Result<u64> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` octets, and `stats` has as many (packet(7),
    // PACKET_STATISTICS).
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(stats.tp_drops.into()) } else { Err(io::Error::last_os_error()) }
}

/// What a packet says, from its network header on.
fn packet(octets: &[u8], netns: u64) -> Option<Packet> {
    let address = |at: usize, len: usize| -> Option<IpAddr> {
        let octets = octets.get(at..at + len)?;
        match len {
            4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into()),
            _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into()),
        }
    };
    let (from, to, protocol, transport) = match octets.first()? >> 4 {
        4 => {
            let length = usize::from(octets[0] & 0xf) * 4;
            (address(12, 4)?, address(16, 4)?, *octets.get(9)?, length)
        }
        _ => (address(8, 16)?, address(24, 16)?, *octets.get(6)?, 40),
    };
    let name = (i32::from(protocol) == libc::IPPROTO_UDP).then(|| {
        let message = octets.get(transport + 8..).unwrap_or_default();
        let question = Question::read(message);
        let name = question.and_then(|question| message.get(HEADER_LEN..question.end - 4));
        name.map_or_else(|| "(no DNS)".to_owned(), |name| escape::name(name).to_ascii_lowercase())
    });
    Some(Packet { to: SocketAddr::new(to, DNS_PORT), name, from, netns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_far_as_they_go() {
        let mut v4 = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 8, 8, 8, 8];
        v4.extend([0x12, 0x34, 0, 53, 0, 0, 0, 0]);
        v4.extend(b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01A\x04Test\0\0\x01\0\x01");
        let seen = packet(&v4, 3).expect("a packet");
        assert_eq!(seen.to_string(), "10.0.0.1 -> 8.8.8.8:53 a.test in namespace 3");
        for length in 0..v4.len() {
            // Whatever it is, it is no panic.
            let _ = packet(&v4[..length], 3);
        }
        let tcp: Vec<_> =
            v4.iter().enumerate().map(|(at, o)| if at == 9 { 6 } else { *o }).collect();
        assert_eq!(packet(&tcp, 3).and_then(|packet| packet.name), None);
    }
}
