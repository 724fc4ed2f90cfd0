//! Sockets that insist on a device, in each of the ways there are.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::Result;
use dns_proxy_tests::{
    sockopt,
    wire::{query, random_id},
};
use hickory_proto::rr::RecordType;
use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket,
        sockopt::{BindToDevice, ReceiveTimeout, SendTimeout},
    },
    sys::time::{TimeVal, TimeValLike},
};

use crate::{
    shapes::{ask_tcp, is_good, receive, report, udp_socket},
    sources::send_by,
};

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
    receive(&socket, server, &query, started)
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
            let any = match server.ip() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            send_by(&socket, &query, Some(&server.into()), any, index)?;
            return receive(&socket, server, &query, started);
        }
    }
    socket.send_to(&query, server)?;
    receive(&socket, server, &query, started)
}

fn unicast_if(socket: &UdpSocket, server: IpAddr, index: u32) -> Result<()> {
    let (level, option) = match server {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_UNICAST_IF),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF),
    };
    let index = index.to_be(); // as ip(7) wants it
    sockopt::set(socket, level, option, &index.to_ne_bytes())
}
