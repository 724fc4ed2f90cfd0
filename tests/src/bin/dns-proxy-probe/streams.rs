//! TCP as few make it: with the query in the first segment, and over several paths.

use std::{
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use dns_proxy_tests::wire::frame;
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::TcpFastOpenConnect},
};
use socket2::{Domain, MsgHdr, Protocol, Socket, Type};

use crate::shapes::{Ask, ask_tcp, is_good, read_answer, report};

/// How the connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// `sendto` with `MSG_FASTOPEN`, which connects.
    SendTo,
    /// `sendmsg`, the same.
    SendMsg,
    /// `TCP_FASTOPEN_CONNECT`: `connect` leaves it to the first write.
    Connect,
}

/// TCP Fast Open (RFC 7413).
pub(crate) fn fast_open(ask: &Ask<'_>, opening: Opening) -> Result<bool> {
    let (started, server, query) = (Instant::now(), ask.server()?, ask.query()?);
    let socket = stream(ask, server, Protocol::TCP)?;
    let (first, to) = (frame(&query), server.into());
    let sent = match opening {
        Opening::SendTo => socket.send_to_with_flags(&first, &to, libc::MSG_FASTOPEN)?,
        Opening::SendMsg => {
            let buffers = [std::io::IoSlice::new(&first)];
            let message = MsgHdr::new().with_addr(&to).with_buffers(&buffers);
            socket.sendmsg(&message, libc::MSG_FASTOPEN)?
        }
        Opening::Connect => {
            setsockopt(&socket, TcpFastOpenConnect, &true)?;
            socket.connect(&to)?;
            socket.send(&first)?
        }
    };
    ensure!(sent == first.len(), "sent {sent} of {} bytes", first.len());
    let mut stream = TcpStream::from(socket);
    let answer = read_answer(&mut stream, &query)?;
    let peer = stream.peer_addr()?;
    report(&[("peer", &peer)], &answer, started);
    Ok(peer == server && is_good(&answer))
}

/// Multipath TCP (RFC 8684).
pub(crate) fn multipath(ask: &Ask<'_>) -> Result<bool> {
    let (started, server) = (Instant::now(), ask.server()?);
    let socket = stream(ask, server, Protocol::MPTCP)
        .context("no MPTCP in this kernel: CONFIG_MPTCP, net.mptcp.enabled")?;
    ensure!(socket.protocol()? == Some(Protocol::MPTCP), "not an MPTCP socket");
    socket.connect(&server.into())?;
    let mut stream = TcpStream::from(socket);
    let peer = stream.peer_addr()?;
    let answer = ask_tcp(&mut stream, ask.name)?;
    report(&[("peer", &peer)], &answer, started);
    Ok(peer == server && is_good(&answer))
}

fn stream(ask: &Ask<'_>, server: SocketAddr, protocol: Protocol) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(protocol))?;
    socket.set_read_timeout(Some(ask.limit))?;
    socket.set_write_timeout(Some(ask.limit))?;
    Ok(socket)
}
