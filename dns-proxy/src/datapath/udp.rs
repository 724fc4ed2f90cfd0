//! Datagrams in and out of one socket, each with its local address (IP_PKTINFO): the query's tells
//! which nameserver was meant, and the answer must leave from the same.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    rc::Rc,
    time::Duration,
};

use nix::{
    cmsg_space,
    libc::{in_pktinfo, in6_pktinfo},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
    },
};
use tokio::{
    io::unix::AsyncFd,
    task::{JoinSet, yield_now},
    time::sleep,
};
use tracing::{debug, warn};

use super::{
    gate::Gate,
    handler::{Handler, InFlight},
    query::MAX_QUERY_LEN,
    response::Room,
};
use crate::polled::Polled;

/// Datagrams handled before other tasks of the worker get their turn.
const BATCH: usize = 64;
/// How long a socket that fails is left alone.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// A datagram's way: who sent it to which of our addresses.
#[derive(Clone, Copy)]
struct Path {
    client: SocketAddr,
    local: IpAddr,
    /// Device it came in by; the way back to a link-local client.
    ifindex: u32,
}

/// Serves a bound socket, which must be non-blocking and have `IP_PKTINFO` or `IPV6_RECVPKTINFO`
/// on, until the task is dropped, and with it every query that came this way.
///
/// # Errors
/// The runtime cannot watch the socket.
pub async fn serve(
    socket: UdpSocket,
    gate: Rc<Gate>,
    handler: Rc<Handler>,
    room: Room,
    in_flight: InFlight,
) -> io::Result<()> {
    let socket = Rc::new(Polled::register(socket)?);
    let mut queries = JoinSet::new();
    loop {
        let mut ready = socket.readable().await?;
        for _ in 0..BATCH {
            // One octet more than a query may have, so that a longer one shows.
            let mut buffer = [0; MAX_QUERY_LEN + 1];
            let (len, path) = match ready.try_io(|socket| receive(socket.get_ref(), &mut buffer)) {
                Ok(Ok(Some(received))) => received,
                Ok(Ok(None)) => continue,
                Ok(Err(error)) => {
                    // Short of memory, or the network is going: neither is the listener's end.
                    warn!(%error, "cannot receive");
                    sleep(RECEIVE_PAUSE).await;
                    break;
                }
                Err(_would_block) => break,
            };
            if !gate.admits(path.client.ip(), path.local) {
                handler.stats().denied.add();
                continue;
            }
            let Some(place) = in_flight.enter() else {
                if let Some(answer) = handler.refuse(&buffer[..len]) {
                    // Whoever floods us may miss it.
                    let _: io::Result<()> = send_now(ready.get_inner(), &answer, path);
                }
                continue;
            };
            let message = buffer[..len].to_vec();
            let (socket, handler) = (Rc::clone(&socket), Rc::clone(&handler));
            queries.spawn_local(async move {
                let _place = place;
                if let Some(answer) = handler.handle(&message, room).await
                    && let Err(error) = send(&socket, &answer, path).await
                {
                    debug!(%error, client = %path.client, "answer not sent");
                }
            });
        }
        while queries.try_join_next().is_some() {}
        yield_now().await;
    }
}

/// One datagram; `None` for one whose addresses are missing.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<(usize, Path)>> {
    let mut control = cmsg_space!(in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let fd = socket.as_raw_fd();
    let received =
        match recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut control), MsgFlags::empty()) {
            Ok(received) => received,
            // An ICMP error for an answer that a client no longer wanted.
            Err(nix::Error::ECONNREFUSED | nix::Error::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
    let local = received.cmsgs()?.find_map(|message| {
        if let ControlMessageOwned::Ipv4PacketInfo(info) = message {
            let addr = IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes());
            Some((addr, info.ipi_ifindex as u32))
        } else if let ControlMessageOwned::Ipv6PacketInfo(info) = message {
            Some((IpAddr::from(info.ipi6_addr.s6_addr), info.ipi6_ifindex))
        } else {
            None
        }
    });
    let (Some(client), Some((local, ifindex))) =
        (received.address.as_ref().and_then(socket_addr), local)
    else {
        return Ok(None);
    };
    Ok(Some((received.bytes, Path { client, local, ifindex })))
}

/// Sends an answer from the address that the query was sent to.
async fn send(socket: &AsyncFd<Polled<UdpSocket>>, answer: &[u8], path: Path) -> io::Result<()> {
    loop {
        let mut ready = socket.writable().await?;
        match ready.try_io(|socket| send_now(socket.get_ref(), answer, path)) {
            Ok(sent) => return sent,
            Err(_would_block) => {}
        }
    }
}

fn send_now(socket: &UdpSocket, answer: &[u8], path: Path) -> io::Result<()> {
    let slices = [IoSlice::new(answer)];
    let to = SockaddrStorage::from(path.client);
    let fd = socket.as_raw_fd();
    let sent = match path.local {
        IpAddr::V4(local) => {
            let mut info = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: nix::libc::in_addr { s_addr: u32::from_ne_bytes(local.octets()) },
                ipi_addr: nix::libc::in_addr { s_addr: 0 },
            };
            if local.is_link_local() {
                info.ipi_ifindex = path.ifindex as i32;
            }
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(fd, &slices, &control, MsgFlags::empty(), Some(&to))
        }
        IpAddr::V6(local) => {
            let mut info = in6_pktinfo {
                ipi6_addr: nix::libc::in6_addr { s6_addr: local.octets() },
                ipi6_ifindex: 0,
            };
            if local.is_unicast_link_local() {
                info.ipi6_ifindex = path.ifindex;
            }
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(fd, &slices, &control, MsgFlags::empty(), Some(&to))
        }
    };
    sent.map(|_| ()).map_err(io::Error::from)
}

fn socket_addr(addr: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = addr.as_sockaddr_in() {
        return Some(SocketAddr::from((v4.ip(), v4.port())));
    }
    addr.as_sockaddr_in6().map(|v6| {
        std::net::SocketAddrV6::new(v6.ip(), v6.port(), v6.flowinfo(), v6.scope_id()).into()
    })
}
