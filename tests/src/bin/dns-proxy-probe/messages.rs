//! Datagrams as `sendmsg`, `sendmmsg` and their like send and receive them.

use std::{
    io::{IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::Instant,
};

use anyhow::{Context, Result};
use dns_proxy_tests::wire::Answer;
use nix::{
    cmsg_space, libc,
    net::if_::if_indextoname,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg,
        recvmsg, sendmmsg, sendmsg, setsockopt,
        sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo},
    },
};

use crate::shapes::{Ask, BUFFER, is_good, report, udp_socket};

/// Asks each server by a `sendmsg` with a control message, and receives by `recvmsg` with others.
pub(crate) fn one_by_one(ask: &Ask<'_>) -> Result<bool> {
    let socket = udp_socket(ask.server()?, ask.limit)?;
    if ask.server()?.is_ipv4() {
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    }
    let mut good = true;
    for &server in ask.servers {
        let (started, query) = (Instant::now(), ask.query()?);
        let hops = 5;
        let control = match server.ip().to_canonical() {
            IpAddr::V4(_) => ControlMessage::Ipv4Ttl(&hops),
            IpAddr::V6(_) => ControlMessage::Ipv6HopLimit(&hops),
        };
        let (slices, to) = ([IoSlice::new(&query)], SockaddrStorage::from(server));
        sendmsg(socket.as_raw_fd(), &slices, &[control], MsgFlags::empty(), Some(&to))?;
        good &= receive(&socket, server, &query, started)?;
    }
    Ok(good)
}

/// Receives one answer, and shows where it came in.
fn receive(socket: &UdpSocket, server: SocketAddr, query: &[u8], started: Instant) -> Result<bool> {
    let mut buffer = [0; BUFFER];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let mut control = cmsg_space!(libc::in6_pktinfo);
    let fd = socket.as_raw_fd();
    let received =
        recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut control), MsgFlags::empty())?;
    let from = received.address.and_then(socket_addr).context("no sender")?;
    let arrival = received.cmsgs()?.find_map(|message| {
        if let ControlMessageOwned::Ipv4PacketInfo(info) = message {
            let to = IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes());
            Some((to, info.ipi_ifindex.cast_unsigned()))
        } else if let ControlMessageOwned::Ipv6PacketInfo(info) = message {
            Some((IpAddr::from(info.ipi6_addr.s6_addr), info.ipi6_ifindex))
        } else {
            None
        }
    });
    let length = received.bytes;
    let (to, index) = arrival.context("no packet information")?;
    let device = if_indextoname(index)?.into_string()?;
    let answer = Answer::to(query, &buffer[..length])?;
    report(&[("from", &from), ("to", &to), ("device", &device)], &answer, started);
    Ok(from == server && is_good(&answer))
}

/// Asks all servers by one `sendmmsg`, and receives by `recvmmsg`.
pub(crate) fn all_at_once(ask: &Ask<'_>) -> Result<bool> {
    let started = Instant::now();
    let socket = udp_socket(ask.server()?, ask.limit)?;
    let fd = socket.as_raw_fd();
    let queries = ask.servers.iter().map(|_| ask.query()).collect::<Result<Vec<_>>>()?;
    let slices: Vec<_> = queries.iter().map(|query| [IoSlice::new(query)]).collect();
    let to: Vec<_> = ask.servers.iter().map(|&to| Some(SockaddrStorage::from(to))).collect();
    let mut headers = MultiHeaders::preallocate(queries.len(), None);
    let none: [ControlMessage<'_>; 0] = [];
    sendmmsg(fd, &mut headers, &slices, &to, none, MsgFlags::empty())?;

    let mut open: Vec<_> = ask.servers.iter().zip(&queries).collect();
    let mut good = true;
    while !open.is_empty() {
        let mut buffers = vec![[0; BUFFER]; open.len()];
        let mut slices: Vec<_> = buffers.iter_mut().map(|one| [IoSliceMut::new(one)]).collect();
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(open.len(), None);
        let flags = MsgFlags::MSG_WAITFORONE;
        let received: Vec<_> = recvmmsg(fd, &mut headers, &mut slices, flags, None)?
            .map(|one| (one.bytes, one.address))
            .collect();
        for ((length, from), buffer) in received.into_iter().zip(&buffers) {
            let from = from.and_then(socket_addr).context("no sender")?;
            let message = &buffer[..length];
            let asked = open.iter().position(|(_, query)| Answer::to(query, message).is_ok());
            let (server, query) = open.swap_remove(asked.context("no answer to a query of ours")?);
            let answer = Answer::to(query, message)?;
            report(&[("server", server), ("from", &from)], &answer, started);
            good &= from == *server && is_good(&answer);
        }
    }
    Ok(good)
}

fn socket_addr(address: SockaddrStorage) -> Option<SocketAddr> {
    if let Some(&v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::V4(v4.into()));
    }
    address.as_sockaddr_in6().map(|&v6| SocketAddr::V6(v6.into()))
}
