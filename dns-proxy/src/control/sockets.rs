//! Opens listeners: inside a network namespace, closed to all but its own loopback, and plain ones.

use std::{
    io,
    iter::once,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    os::fd::AsFd as _,
};

use dns_proxy_common::Listener;
use nix::{
    errno::Errno,
    libc,
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::bpf::{Bpf, Door};
use crate::datapath::worker::Sockets;

/// Ports tried inside a namespace. Above the usual ephemeral range (32768-60999), so that no
/// connection of an application is in the way.
pub const PORTS: RangeInclusive<u16> = FIRST_PORT..=61_999;
/// The one that is tried first unless another is wanted.
pub const FIRST_PORT: u16 = 61_053;
/// Receive buffer of a UDP socket: room for a burst of 2,000 queries, at about 1,300 octets of
/// kernel memory each.
const UDP_RECEIVE_BUFFER: libc::c_int = 4 << 20;
/// Connections that may wait to be accepted.
const TCP_BACKLOG: i32 = 1_024;

/// Sockets bound inside a namespace, and how the kernel programs reach them.
#[derive(Debug)]
pub struct Opened {
    /// The sockets.
    pub sockets: Sockets,
    /// Their port and families.
    pub listener: Listener,
}

/// Opens UDP and TCP listeners in the namespace that this thread is in, all on one port, `wanted` if
/// it is free, for IPv4 and, where the kernel has it, IPv6.
///
/// They are bound to the wildcard address, since a token can be any of a whole network; what keeps
/// the neighbours out is a filter ([`Bpf::close`]). `SO_BINDTODEVICE` would not do: it breaks answers
/// to IPv6 clients whose source is not ::1.
///
/// # Errors
/// No port is free, or the sockets cannot be made.
pub fn open_in_namespace(wanted: u16, bpf: &Bpf) -> io::Result<Opened> {
    for port in once(wanted).chain(PORTS) {
        match open_on(port, bpf) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {}
            other => return other,
        }
    }
    Err(Errno::EADDRINUSE.into())
}

/// Opens plain listeners at `addr`; with `shared`, other workers bind the same address.
///
/// # Errors
/// The address is taken, or not ours.
pub fn open_plain(addr: SocketAddr, udp: bool, tcp: bool, shared: bool) -> io::Result<Sockets> {
    let mut sockets = Sockets::default();
    if udp {
        let socket = datagram(addr, shared)?;
        sockets.udp.push(socket.into());
    }
    if tcp {
        let socket = stream(addr, shared, None)?;
        sockets.tcp.push(socket.into());
    }
    Ok(sockets)
}

fn open_on(port: u16, bpf: &Bpf) -> io::Result<Opened> {
    let mut opened = Opened {
        sockets: Sockets::default(),
        listener: Listener { port_be: port.to_be(), families: 0 },
    };
    let families = [
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), Listener::V4),
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), Listener::V6),
    ];
    for (wildcard, family) in families {
        let addr = SocketAddr::new(wildcard, port);
        let udp = match datagram(addr, false) {
            // A kernel without IPv6 has no IPv6 traffic either.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
            other => other?,
        };
        close_to_strangers(&udp, bpf, Door::Datagram)?;
        let tcp = stream(addr, false, Some(bpf))?;
        opened.sockets.udp.push(udp.into());
        opened.sockets.tcp.push(tcp.into());
        opened.listener.families |= family;
    }
    Ok(opened)
}

fn datagram(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = new_socket(addr, Type::DGRAM, Protocol::UDP, shared)?;
    match addr {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    // Beyond net.core.rmem_max if we may (CAP_NET_ADMIN), else as far as that goes.
    if setsockopt(&socket, sockopt::RcvBufForce, &(UDP_RECEIVE_BUFFER as usize)).is_err() {
        socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER as usize)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn stream(addr: SocketAddr, shared: bool, filter: Option<&Bpf>) -> io::Result<Socket> {
    let socket = new_socket(addr, Type::STREAM, Protocol::TCP, shared)?;
    // Connections of a predecessor in TIME_WAIT must not keep us out.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    if let Some(bpf) = filter {
        close_to_strangers(&socket, bpf, Door::Segment)?;
    }
    // Connections inherit it: answers are written whole, and waiting for more would only delay them.
    socket.set_tcp_nodelay(true)?;
    socket.listen(TCP_BACKLOG)?;
    Ok(socket)
}

fn new_socket(addr: SocketAddr, kind: Type, proto: Protocol, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind, Some(proto))?;
    socket.set_nonblocking(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
        // Answers leave from token addresses, which are on no interface.
        socket.set_freebind_v6(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    Ok(socket)
}

/// Nobody can take the filter off again.
fn close_to_strangers(socket: &Socket, bpf: &Bpf, door: Door) -> io::Result<()> {
    bpf.close(socket.as_fd(), door)?;
    lock_filter(socket)
}

fn lock_filter(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;

    let on: libc::c_int = 1;
    // SAFETY: the kernel reads the one integer that it is given the size of.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LOCK_FILTER,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
