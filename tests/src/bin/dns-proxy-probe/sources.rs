//! Sockets that choose the address they ask from.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::Instant,
};

use anyhow::Result;
use nix::{
    libc,
    sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg},
};
use socket2::{Domain, Socket, Type};

use crate::shapes::{Ask, ask_tcp, is_good, receive, report, udp_socket};

/// Binds to the source, then connects and asks over UDP.
pub(crate) fn connected(ask: &Ask<'_>, source: IpAddr) -> Result<bool> {
    let (started, server, query) = (Instant::now(), ask.server()?, ask.query()?);
    let socket = UdpSocket::bind((source, 0))?;
    socket.set_read_timeout(Some(ask.limit))?;
    socket.connect(server)?;
    println!("local={}", socket.local_addr()?.ip());
    socket.send(&query)?;
    receive(&socket, server, &query, started)
}

/// Binds to the source, and asks without connecting.
pub(crate) fn unconnected(ask: &Ask<'_>, source: IpAddr) -> Result<bool> {
    let (started, server, query) = (Instant::now(), ask.server()?, ask.query()?);
    let socket = UdpSocket::bind((source, 0))?;
    socket.set_read_timeout(Some(ask.limit))?;
    socket.send_to(&query, server)?;
    println!("local={}", socket.local_addr()?.ip());
    receive(&socket, server, &query, started)
}

/// Binds to the source, and asks over TCP.
pub(crate) fn tcp(ask: &Ask<'_>, source: IpAddr) -> Result<bool> {
    let (started, server) = (Instant::now(), ask.server()?);
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.set_read_timeout(Some(ask.limit))?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&server.into(), ask.limit)?;
    let mut stream = TcpStream::from(socket);
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?.ip());
    let answer = ask_tcp(&mut stream, ask.name)?;
    report(&[("peer", &peer), ("local", &local)], &answer, started);
    Ok(peer == server && is_good(&answer))
}

/// Names the source with the datagram (`IP_PKTINFO`, `IPV6_PKTINFO`), and no interface.
pub(crate) fn packet_info(ask: &Ask<'_>, source: IpAddr, connect: bool) -> Result<bool> {
    let (started, server, query) = (Instant::now(), ask.server()?, ask.query()?);
    let socket = udp_socket(server, ask.limit)?;
    if connect {
        socket.connect(server)?;
    }
    let to = (!connect).then(|| SockaddrStorage::from(server));
    send_by(&socket, &query, to.as_ref(), source, 0)?;
    receive(&socket, server, &query, started)
}

/// Sends from an address and by an interface that this one datagram names; the unspecified address
/// and 0 leave them to the kernel.
pub(crate) fn send_by(
    socket: &UdpSocket,
    query: &[u8],
    to: Option<&SockaddrStorage>,
    source: IpAddr,
    index: u32,
) -> Result<()> {
    let slices = [IoSlice::new(query)];
    let send = |control| sendmsg(socket.as_raw_fd(), &slices, &[control], MsgFlags::empty(), to);
    match source {
        IpAddr::V4(v4) => send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
            ipi_ifindex: index.try_into()?,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) },
            ipi_addr: libc::in_addr { s_addr: 0 },
        })),
        IpAddr::V6(v6) => send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr { s6_addr: v6.octets() },
            ipi6_ifindex: index,
        })),
    }?;
    Ok(())
}
