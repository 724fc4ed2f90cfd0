//! Connections: who may have one for how long.

use std::{
    io,
    net::TcpListener as StdTcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{debug, warn};

use super::{
    Site,
    http::{Head, MAX_HEAD},
};

/// Connections at a time. For a further one, the one that has been idle longest must go, else the
/// oldest: whoever holds connections open must not keep a probe out.
const MAX_CONNECTIONS: usize = 64;
/// How long the head of a request may take from its first octet.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be idle; scrapers come back every minute at the latest, usually.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a response may take to be taken.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a socket that fails is left alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection, as the listener sees it.
struct Seat {
    is_idle: Arc<AtomicBool>,
    task: AbortHandle,
}

/// Answers what comes in by a listening socket, until dropped.
pub(super) async fn serve(listener: StdTcpListener, site: Arc<Site>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    let mut seats: Vec<Seat> = Vec::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // Out of descriptors, or the client is gone: neither is the listener's end.
            Err(error) => {
                warn!(%error, "cannot accept a connection to --admin");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        seats.retain(|seat| !seat.task.is_finished());
        if seats.len() >= MAX_CONNECTIONS {
            let idle = seats.iter().position(|seat| seat.is_idle.load(Ordering::Relaxed));
            seats.remove(idle.unwrap_or(0)).task.abort();
        }
        let is_idle = Arc::new(AtomicBool::new(false));
        let (site, idle) = (Arc::clone(&site), Arc::clone(&is_idle));
        let task = connections.spawn(async move {
            if let Err(error) = converse(stream, &site, &idle).await {
                debug!(%error, "--admin client");
            }
        });
        seats.push(Seat { is_idle, task });
    }
}

/// One request after the other, until the client has no more.
async fn converse(mut stream: TcpStream, site: &Site, is_idle: &AtomicBool) -> io::Result<()> {
    let mut octets = Vec::new();
    loop {
        let Some(head) = next_head(&mut stream, &mut octets, is_idle).await? else {
            return Ok(());
        };
        let (answer, keep_alive) = match head {
            Head::Whole(request, len) => {
                octets.drain(..len);
                let response = site.answer(&request).await;
                (response.write(request.head_only, request.keep_alive), request.keep_alive)
            }
            Head::Wrong(response) => (response.write(false, false), false),
            Head::Partial => return Ok(()),
        };
        timeout(WRITE_TIMEOUT, stream.write_all(&answer)).await??;
        if !keep_alive {
            // Else what was not read would make the kernel reset the connection before the answer
            // is read.
            stream.shutdown().await?;
            let mut rest = [0; 1024];
            let _ = timeout(HEAD_TIMEOUT, async {
                while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
            })
            .await;
            return Ok(());
        }
    }
}

/// The head of the next request; nothing if the client has none.
async fn next_head(
    stream: &mut TcpStream,
    octets: &mut Vec<u8>,
    is_idle: &AtomicBool,
) -> io::Result<Option<Head>> {
    let mut limit = None;
    let mut chunk = [0; 1024];
    loop {
        if !octets.is_empty() {
            match Head::read(octets) {
                Head::Partial => {}
                head @ (Head::Whole(..) | Head::Wrong(_)) => return Ok(Some(head)),
            }
            limit.get_or_insert_with(|| Instant::now() + HEAD_TIMEOUT);
        }
        is_idle.store(limit.is_none(), Ordering::Relaxed);
        let until = limit.unwrap_or_else(|| Instant::now() + IDLE_TIMEOUT);
        let read = match timeout_at(until, stream.read(&mut chunk)).await {
            Ok(read) => read?,
            Err(_) => return Ok(None),
        };
        is_idle.store(false, Ordering::Relaxed);
        if read == 0 {
            return Ok(None);
        }
        // A little beyond what a head may have, so that it shows.
        octets.extend_from_slice(&chunk[..read.min(2 * MAX_HEAD - octets.len())]);
    }
}
