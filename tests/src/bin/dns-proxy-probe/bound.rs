//! Sockets that insist on a device, in each of the ways there are.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use dns_proxy_tests::wire::{Answer, query, random_id};
use hickory_proto::rr::RecordType;
use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, connect,
        sendmsg, setsockopt, socket,
        sockopt::{BindToDevice, ReceiveTimeout, SendTimeout},
    },
    sys::time::{TimeVal, TimeValLike},
};

use crate::shapes::{ask_tcp, is_good, report, udp_socket};

/// How an unconnected socket names its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    BindToDevice,
    UnicastIf,
    PacketInfo,
}

pub(crate) fn connected(
    server: SocketAddr,
    name: &str,
    device: &str,
    limit: Duration,
) -> Result<bool> {
    let started = Instant::now();
    let socket = udp_socket(server, limit)?;
    setsockopt(&socket, BindToDevice, &device.into())?;
    socket.connect(server)?;
    let query = query(random_id(), name, RecordType::A)?;
    socket.send(&query)?;
    finish(&socket, server, &query, started)
}

pub(crate) fn tcp(server: SocketAddr, name: &str, device: &str, limit: Duration) -> Result<bool> {
    let started = Instant::now();
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, BindToDevice, &device.into())?;
    let limit = TimeVal::microseconds(limit.as_micros().try_into()?);
    setsockopt(&socket, SendTimeout, &limit)?;
    setsockopt(&socket, ReceiveTimeout, &limit)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(server))?;
    let mut stream = TcpStream::from(socket);
    let peer = stream.peer_addr()?;
    let answer = ask_tcp(&mut stream, name)?;
    report(&[("peer", &peer)], &answer, started);
    Ok(peer == server && is_good(&answer))
}

pub(crate) fn unconnected(
    how: How,
    server: SocketAddr,
    name: &str,
    device: &str,
    limit: Duration,
) -> Result<bool> {
    let started = Instant::now();
    let socket = udp_socket(server, limit)?;
    let index = if_nametoindex(device)?;
    let query = query(random_id(), name, RecordType::A)?;
    match how {
        How::BindToDevice => setsockopt(&socket, BindToDevice, &device.into())?,
        How::UnicastIf => unicast_if(&socket, server.ip(), index)?,
        How::PacketInfo => {
            send_by(&socket, &query, server, index)?;
            return finish(&socket, server, &query, started);
        }
    }
    socket.send_to(&query, server)?;
    finish(&socket, server, &query, started)
}

pub(crate) fn finish(
    socket: &UdpSocket,
    server: SocketAddr,
    query: &[u8],
    started: Instant,
) -> Result<bool> {
    let mut buffer = [0; 4096];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let answer = Answer::to(query, &buffer[..length])?;
    report(&[("from", &from)], &answer, started);
    Ok(from == server && is_good(&answer))
}

fn unicast_if(socket: &UdpSocket, server: IpAddr, index: u32) -> Result<()> {
    let (level, option) = match server {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_UNICAST_IF),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF),
    };
    let index = index.to_be(); // as ip(7) wants it
    // SAFETY: the kernel reads the one integer that it is given the size of.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const index).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result != 0 {
        bail!(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Sends by an interface that this one datagram names.
fn send_by(socket: &UdpSocket, query: &[u8], server: SocketAddr, index: u32) -> Result<()> {
    let to = SockaddrStorage::from(server);
    let slices = [IoSlice::new(query)];
    match server.ip() {
        IpAddr::V4(_) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: index.try_into()?,
                ipi_spec_dst: libc::in_addr { s_addr: 0 },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&to))?;
        }
        IpAddr::V6(_) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: [0; 16] },
                ipi6_ifindex: index,
            };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&to))?;
        }
    }
    Ok(())
}
