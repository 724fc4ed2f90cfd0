//! DNS over TCP (RFC 7766): pipelined, answered out of order, bounded in every direction.

use std::{cell::Cell, io, net::TcpListener as StdTcpListener, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc::{self, OwnedPermit},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    gate::Gate,
    handler::{Handler, InFlight, Reply},
    original::Asker,
    response::Room,
};

/// Connections of one listener. For a further one, the one that has been idle longest must go; if
/// all are busy, it waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;
/// Queries in flight on one connection; then it is not read until one is answered.
const MAX_PIPELINED: usize = 128;
/// How long a client may think before its next query, or be slow in sending one or in taking an
/// answer (RFC 7766 section 6.2.3).
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

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
        let Some(asker) = local.and_then(|local| gate.admit(client.ip(), local.ip())) else {
            handler.stats().denied.add();
            continue;
        };
        let idle_since = Rc::new(Cell::new(Some(Instant::now())));
        let conversation =
            converse(stream, asker, Rc::clone(&handler), in_flight.clone(), Rc::clone(&idle_since));
        let task = connections.spawn_local(conversation);
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

async fn converse(
    stream: TcpStream,
    asker: Asker,
    handler: Rc<Handler>,
    in_flight: InFlight,
    idle_since: Rc<Cell<Option<Instant>>>,
) {
    // Answers are written whole; waiting for more to send would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP client");
    }
    let (reader, writer) = stream.into_split();
    let (answers, queue) = mpsc::channel(MAX_PIPELINED);
    // Ends once the client has sent its last query and every answer is written.
    let (read, written) = tokio::join!(
        read_queries(reader, answers, &asker, handler, in_flight, &idle_since),
        write_answers(writer, queue),
    );
    if let Err(error) = read.and(written) {
        debug!(%error, "TCP client");
    }
}

/// Reads queries until the client's last, or until it is idle, and waits for their answers.
async fn read_queries(
    reader: OwnedReadHalf,
    answers: mpsc::Sender<Vec<u8>>,
    asker: &Asker,
    handler: Rc<Handler>,
    in_flight: InFlight,
    idle_since: &Rc<Cell<Option<Instant>>>,
) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut queries = JoinSet::new();
    let waiting = Rc::new(Cell::new(0_usize));
    loop {
        // Held until the answer is queued: the bound on what one connection may have in flight.
        let Ok(permit) = answers.clone().reserve_owned().await else {
            return Ok(()); // the client takes no more answers
        };
        while queries.try_join_next().is_some() {}
        match timeout(IDLE_TIMEOUT, reader.fill_buf()).await {
            Ok(Ok([])) => break,
            Ok(more) => more.map(|_| ())?,
            // Idle only because it waits for us.
            Err(_) if !queries.is_empty() => continue,
            Err(_) => break,
        }
        // It has begun a message and must go on: there is no way back into the middle of one.
        let message = timeout(IDLE_TIMEOUT, read_message(&mut reader)).await??;
        let Some(place) = in_flight.enter() else {
            if let Some(answer) = handler.refuse(&message) {
                permit.send(answer);
            }
            continue;
        };
        let (handler, waiting) = (Rc::clone(&handler), Rc::clone(&waiting));
        let asker = asker.clone();
        let idle_since = Rc::clone(idle_since);
        waiting.set(waiting.get() + 1);
        idle_since.set(None);
        queries.spawn_local(async move {
            let _place = place;
            if let Some(reply) = handler.handle(&message, Room::Stream, &asker).await {
                send(reply, permit).await;
            }
            waiting.set(waiting.get() - 1);
            if waiting.get() == 0 {
                idle_since.set(Some(Instant::now()));
            }
        });
    }
    drop(answers);
    while queries.join_next().await.is_some() {}
    Ok(())
}

/// Queues a reply. Messages behind the first one wait for room in the queue.
async fn send(reply: Reply, permit: OwnedPermit<Vec<u8>>) {
    let answers = permit.send(reply.message);
    let Some(mut rest) = reply.rest else {
        return;
    };
    while let Some(message) = rest.next().await {
        if answers.send(message).await.is_err() {
            return; // the client takes no more
        }
    }
}

/// One message behind its two-octet length (RFC 1035 section 4.2.2).
async fn read_message(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(reader.read_u16().await?)];
    reader.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes answers as they come, those that are ready together in one write.
async fn write_answers(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut ready = Vec::with_capacity(MAX_PIPELINED);
    let mut out = Vec::new();
    while queue.recv_many(&mut ready, MAX_PIPELINED).await > 0 {
        for answer in ready.drain(..) {
            out.extend_from_slice(&(answer.len() as u16).to_be_bytes());
            out.extend_from_slice(&answer);
        }
        timeout(IDLE_TIMEOUT, writer.write_all(&out)).await??;
        out.clear();
    }
    Ok(())
}
