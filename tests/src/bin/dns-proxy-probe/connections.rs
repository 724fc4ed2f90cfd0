//! UDP sockets that are connected more than once, or to somebody else than they ask.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::{errno::Errno, libc};
use socket2::{Domain, Socket, Type};

use crate::shapes::{Ask, receive, server, udp_socket};

/// Takes one socket through these steps: `ADDRESS` connects and asks there, `ADDRESS:PORT` only
/// connects, `dissolve` takes the connection away.
pub(crate) fn steps(name: &str, steps: &[&str], limit: Duration) -> Result<bool> {
    let Some(first) = steps.first() else { bail!("no step") };
    let socket = udp_socket(server(first)?, limit)?;
    for step in steps {
        if *step == "dissolve" {
            dissolve(&socket)?;
            println!("dissolved peer={:?}", socket.peer_addr().map_err(|error| error.kind()));
            continue;
        }
        let server = server(step)?;
        if let Err(error) = socket.connect(server) {
            println!(
                "server={server} errno={:?}",
                Errno::from_raw(error.raw_os_error().unwrap_or(0))
            );
            return Ok(false);
        }
        let (peer, local) = (socket.peer_addr()?, socket.local_addr()?.ip());
        println!("server={server} peer={peer} local={local}");
        if peer != server {
            return Ok(false);
        }
        let ask = Ask { name, servers: &[server], limit };
        if server.port() == 53 && !ask_connected(&socket, &ask)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn ask_connected(socket: &UdpSocket, ask: &Ask<'_>) -> Result<bool> {
    let (started, query) = (Instant::now(), ask.query()?);
    socket.send(&query)?;
    receive(socket, ask.server()?, &query, started)
}

/// `connect` to `AF_UNSPEC`, see connect(2).
fn dissolve(socket: &UdpSocket) -> Result<()> {
    let nobody =
        libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of_val(&nobody).try_into()?;
    // SAFETY: connect(2) reads `length` bytes, which is the size of `nobody`.
    let done = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    Ok(Errno::result(done).map(drop)?)
}

/// Connects to the first server and sends to the last, with its address.
pub(crate) fn elsewhere(ask: &Ask<'_>) -> Result<bool> {
    let [connected, asked] = *ask.servers else { bail!("two servers, please") };
    let socket = udp_socket(connected, ask.limit)?;
    socket.connect(connected)?;
    let (started, query) = (Instant::now(), ask.query()?);
    socket.send_to(&query, asked)?;
    receive(&socket, asked, &query, started)
}

/// Two sockets on one port (`SO_REUSEPORT`), each connected to a server of its own; both have asked
/// before either looks for its answer.
pub(crate) fn shared_port(ask: &Ask<'_>) -> Result<bool> {
    let started = Instant::now();
    let mut open = Vec::new();
    let mut port = 0;
    for &server in ask.servers {
        let domain = Domain::for_address(server);
        let socket = Socket::new(domain, Type::DGRAM, None)?;
        socket.set_reuse_port(true)?;
        socket.bind(&any(server, port).into())?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(ask.limit))?;
        port = socket.local_addr()?.port();
        socket.connect(server)?;
        let query = ask.query()?;
        socket.send(&query)?;
        open.push((socket, server, query));
    }
    let mut good = true;
    for (socket, server, query) in open {
        good &= receive(&socket, server, &query, started)?;
    }
    Ok(good)
}

fn any(server: SocketAddr, port: u16) -> SocketAddr {
    if server.is_ipv4() { ([0, 0, 0, 0], port).into() } else { ([0; 16], port).into() }
}

/// What an IPv6-only socket (`IPV6_V6ONLY`) says to each way of asking.
pub(crate) fn only_v6(ask: &Ask<'_>) -> Result<bool> {
    let server = ask.server()?.into();
    let socket = |kind| -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV6, kind, None)?;
        socket.set_only_v6(true)?;
        Ok(socket)
    };
    let query = ask.query()?;
    let connected = socket(Type::DGRAM)?.connect(&server);
    let sent = socket(Type::DGRAM)?.send_to(&query, &server).map(drop);
    let stream = socket(Type::STREAM)?.connect(&server);
    for (what, done) in [("connect", connected), ("sendto", sent), ("tcp", stream)] {
        println!("{what}={done:?}");
    }
    Ok(true)
}
