//! DNS over TCP (RFC 7766): pipelined, answered out of order, bounded in every direction.

use std::{cell::Cell, io, net::TcpListener as StdTcpListener, rc::Rc, time::Duration};

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
    let mut seats: Vec<Seat> = Vec::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            seats.retain(|seat| !seat.task.is_finished());
            if let Some(idle) = seats
                .iter()
                .filter(|seat| seat.idle_since.get().is_some())
                .min_by_key(|seat| seat.idle_since.get())
            {
                idle.task.abort();
            }
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
        let conversation = Conversation::new(asker.into(), Rc::clone(&handler), in_flight.clone());
        let idle_since = conversation.idle_since();
        let task = connections.spawn_local(async move {
            if let Err(error) = conversation.hold(stream).await {
                debug!(%error, %client, "TCP client");
            }
        });
        seats.push(Seat { idle_since, task });
        if seats.len() > 2 * MAX_CONNECTIONS {
            seats.retain(|seat| !seat.task.is_finished());
        }
    }
}

/// A connection, as the listener sees it.
struct Seat {
    /// Since when it has had no query in flight; `None` if it has one.
    idle_since: Rc<Cell<Option<Instant>>>,
    task: AbortHandle,
}
