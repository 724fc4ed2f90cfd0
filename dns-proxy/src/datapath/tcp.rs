//! DNS over TCP (RFC 7766): pipelined, answered out of order, bounded in every direction.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, TcpListener as StdTcpListener},
    rc::Rc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use super::{
    gate::Gate,
    handler::{Handler, InFlight},
    stream::Conversation,
};

/// Connections of one listener. For a further one, the one that has been idle longest must go; if
/// all are busy, it waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;

/// Accepts connections of a listening socket, which must be non-blocking, until dropped.
///
/// # Errors
/// The socket failed for good.
pub async fn serve(
    listener: StdTcpListener,
    gate: Rc<Gate>,
    handler: Rc<Handler>,
    in_flight: InFlight,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    let mut seats = Seats::default();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            seats.vacate(|_| true);
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            // Out of descriptors, or the client is gone: neither is the listener's end.
            Err(error) => {
                warn!(%error, "cannot accept a TCP connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let local = stream.local_addr().ok();
        let Some(asker) = local.and_then(|local| gate.admit(client, local.ip())) else {
            handler.stats().denied.add();
            continue;
        };
        let asking = asker.client;
        if !seats.has_room(asking) && !seats.vacate(|seat| seat.client == asking) {
            debug!(%client, "TCP client has as many connections as it may");
            continue;
        }
        let conversation = Conversation::new(asker.into(), Rc::clone(&handler), in_flight.clone());
        let idle_since = conversation.idle_since();
        let task = connections.spawn_local(async move {
            if let Err(error) = conversation.hold(stream).await {
                debug!(%error, %client, "TCP client");
            }
        });
        seats.0.push(Seat { client: asking, idle_since, task });
    }
}

/// The connections, as the listener sees them; some of them may have ended.
#[derive(Default)]
struct Seats(Vec<Seat>);

struct Seat {
    client: IpAddr,
    /// Since when it has had no query in flight; `None` if it has one.
    idle_since: Rc<Cell<Option<Instant>>>,
    task: AbortHandle,
}

impl Seats {
    /// Whether a client may have one more: nobody may have more than there is room left for all
    /// others.
    fn has_room(&mut self, client: IpAddr) -> bool {
        if self.0.len() < MAX_CONNECTIONS / 2 {
            return true;
        }
        self.0.retain(|seat| !seat.task.is_finished());
        let own = self.0.iter().filter(|seat| seat.client == client).count();
        own < MAX_CONNECTIONS.saturating_sub(self.0.len())
    }

    /// Ends the connection that has been idle longest of those that are asked for; whether one was
    /// idle.
    fn vacate(&mut self, which: impl Fn(&Seat) -> bool) -> bool {
        self.0.retain(|seat| !seat.task.is_finished());
        let idle = self.0.iter().enumerate().filter(|(_, seat)| which(seat));
        let idle = idle.filter_map(|(index, seat)| Some((seat.idle_since.get()?, index))).min();
        if let Some((_, index)) = idle {
            self.0.swap_remove(index).task.abort();
        }
        idle.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[tokio::test]
    async fn whoever_has_half_of_the_connections_gets_no_more_and_leaves_some_for_others() {
        let (mut seats, mut tasks) = (Seats::default(), JoinSet::new());
        let mut sit = |seats: &mut Seats, client, idle_since| {
            let task = tasks.spawn(std::future::pending::<()>());
            seats.0.push(Seat { client, idle_since: Rc::new(Cell::new(idle_since)), task });
        };
        while seats.has_room(ONE) {
            sit(&mut seats, ONE, None);
        }
        assert_eq!(seats.0.len(), MAX_CONNECTIONS / 2);
        assert!(!seats.vacate(|seat| seat.client == ONE), "none of them is idle");
        while seats.has_room(TWO) {
            sit(&mut seats, TWO, Some(Instant::now()));
        }
        assert_eq!(seats.0.len(), MAX_CONNECTIONS * 3 / 4);
        assert!(!seats.vacate(|seat| seat.client == ONE) && seats.vacate(|_| true));
        assert!(seats.has_room(TWO) && !seats.has_room(ONE));
    }
}
