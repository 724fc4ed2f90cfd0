//! Finds nameservers that send back to us what we send them: each is asked for a name that we make up,
//! in the zone that is routed there, and we see whether we are asked for it in turn.
//!
//! What goes in circles would do so for as long as somebody waits. So a nameserver that does is left
//! out of the routes until it has stopped, and named.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    time::{Instant, sleep},
};
use tracing::debug;

use crate::{
    datapath::echo::Echo,
    route::Zone,
    upstream::Exempt,
    wire::{HEADER_LEN, rr_type},
};

/// How long a name may be on its way back.
const LIMIT: Duration = Duration::from_millis(1_500);
/// How often it is looked whether it is there.
const LOOK: Duration = Duration::from_millis(20);
/// How many zones of one nameserver are tried.
const MAX_ZONES: usize = 64;

/// What is to be tried: a nameserver, and a zone that it is asked for.
pub(crate) type Suspect = (SocketAddr, Zone);

/// Those of the suspects that send back.
pub(crate) async fn find(
    suspects: &[Suspect],
    exempt: Option<&dyn Exempt>,
) -> BTreeSet<SocketAddr> {
    let mut sent = Vec::new();
    for (address, zone) in suspects.iter().take(MAX_ZONES) {
        let echo = Echo::new();
        let Some(name) = echo.name_in(zone) else {
            continue;
        };
        match ask(*address, &name, exempt).await {
            // The socket is kept: an error that comes back is nobody's.
            Ok(socket) => sent.push((*address, echo, socket)),
            Err(error) => debug!(%error, %address, "cannot see whether it leads back to us"),
        }
    }
    let mut found = BTreeSet::new();
    let end = Instant::now() + LIMIT;
    while !sent.is_empty() && Instant::now() < end {
        sleep(LOOK).await;
        sent.retain(|(address, echo, _)| {
            let came_back = echo.has_come_back();
            if came_back {
                found.insert(*address);
            }
            !came_back
        });
    }
    found
}

async fn ask(to: SocketAddr, name: &[u8], exempt: Option<&dyn Exempt>) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    // It must get there, and not to us because we are in the scope.
    exempt.map_or(Ok(()), |exempt| exempt.exempt(socket.as_fd()))?;
    let mut message = Vec::with_capacity(HEADER_LEN + name.len() + 4);
    message.extend_from_slice(&rand::random::<[u8; 2]>());
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]); // a query, recursion desired
    message.extend_from_slice(name);
    message.extend_from_slice(&rr_type::A.to_be_bytes());
    message.extend_from_slice(&[0, 1]); // class IN
    socket.send_to(&message, to).await?;
    Ok(socket)
}

/// Whether what is sent to `addr` comes to a listener at `own`: asking it would go round in circles.
pub(crate) fn is_ours(own: SocketAddr, addr: SocketAddr) -> bool {
    let of_this_host = || std::net::UdpSocket::bind((addr.ip(), 0)).is_ok();
    own.port() == addr.port()
        && own.is_ipv4() == addr.is_ipv4()
        && (own.ip() == addr.ip() || own.ip().is_unspecified() && of_this_host())
}
