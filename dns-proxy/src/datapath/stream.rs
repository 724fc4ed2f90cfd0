//! One TCP connection of a client: queries in, answers out, in one task.

use std::{
    cell::Cell,
    future::ready,
    io,
    pin::pin,
    rc::Rc,
    time::{self, Duration},
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, tcp::WriteHalf},
    time::{Instant, sleep, timeout},
};

use super::{
    handler::{Handler, InFlight, Reply},
    original::Asker,
    response::Room,
};
use crate::wire::split_frame;

/// Queries in flight on one connection; then it is not read until one is answered.
const MAX_PIPELINED: usize = 128;
/// How long a client may think before its next query, or be slow in sending one or in taking an
/// answer (RFC 7766 section 6.2.3).
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Octets read at once.
const READ_BUFFER: usize = 4 * 1024;
/// With so many octets to write, nothing more is answered before they are.
const WRITE_AT: usize = 64 * 1024;

/// A client's connection and all that it is answered with.
pub struct Conversation {
    asker: Asker,
    handler: Rc<Handler>,
    in_flight: InFlight,
    /// Since when it has had no query in flight; `None` if it has one.
    idle_since: Rc<Cell<Option<Instant>>>,
}

impl Conversation {
    /// One in which nothing was asked yet.
    pub fn new(asker: Asker, handler: Rc<Handler>, in_flight: InFlight) -> Self {
        Self { asker, handler, in_flight, idle_since: Rc::new(Cell::new(Some(Instant::now()))) }
    }

    /// Since when it has had no query in flight; `None` if it has one.
    pub fn idle_since(&self) -> Rc<Cell<Option<Instant>>> {
        Rc::clone(&self.idle_since)
    }

    /// Answers until the client has sent its last query and has every answer, or is idle.
    ///
    /// # Errors
    /// The connection is lost, or the client takes too long for a message or an answer.
    pub async fn hold(self, mut stream: TcpStream) -> io::Result<()> {
        let (mut reader, mut writer) = stream.split();
        let (mut inbox, mut out) = (Vec::with_capacity(READ_BUFFER), Vec::new());
        let mut queries = FuturesUnordered::new();
        let mut more = true;
        let mut idle = pin!(sleep(IDLE_TIMEOUT));
        // Messages that wait although they may be taken: more came at once than may be in flight.
        let mut behind = false;
        while more || behind || !queries.is_empty() {
            let may_read = more && queries.len() < MAX_PIPELINED;
            let reply = tokio::select! {
                read = reader.read_buf(&mut inbox), if may_read => {
                    more = read? > 0;
                    None
                }
                Some(reply) = queries.next() => reply,
                () = ready(()), if behind => None,
                // It has begun a message and must go on, or it has nothing to wait for.
                () = &mut idle, if queries.is_empty() || !inbox.is_empty() => {
                    let slow = !inbox.is_empty();
                    return if slow { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) };
                }
            };
            let came = Instant::now();
            let mut rest = &inbox[..];
            while queries.len() < MAX_PIPELINED
                && out.len() < WRITE_AT
                && let Some((message, tail)) = split_frame(rest)
            {
                if !self.answer_at_once(message, came.into_std(), &mut out) {
                    queries.extend(self.take(message, came, &mut out));
                }
                rest = tail;
            }
            let taken = inbox.len() - rest.len();
            if taken > 0 || reply.is_some() {
                inbox.drain(..taken);
                idle.as_mut().reset(came + IDLE_TIMEOUT);
            }
            // Queries that have just come are sent on, and answers that are there leave together.
            let mut next = Some(reply);
            while let Some(reply) = next {
                if let Some(reply) = reply {
                    queue(&mut writer, &mut out, reply).await?;
                }
                if out.len() >= WRITE_AT {
                    // Of the others nobody makes an answer before the client takes these.
                    write(&mut writer, &mut out).await?;
                }
                next = queries.next().now_or_never().flatten();
            }
            write(&mut writer, &mut out).await?;
            self.handler.sent(came.into_std());
            behind = queries.len() < MAX_PIPELINED && split_frame(&inbox).is_some();
            self.idle_since.set(queries.is_empty().then(Instant::now));
        }
        Ok(())
    }

    /// Queues the answer to a message, if that is known; whether it is.
    fn answer_at_once(&self, message: &[u8], now: time::Instant, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.extend_from_slice(&[0; 2]);
        let asker = self.asker.admitted();
        if !self.handler.answer_at_once(message, Room::Stream, asker, now, out) {
            out.truncate(start);
            return false;
        }
        let len = (out.len() - start - 2) as u16;
        out[start..start + 2].copy_from_slice(&len.to_be_bytes());
        true
    }

    /// What answers a message; nothing if there is no place left for it, which it is told.
    fn take(
        &self,
        message: &[u8],
        came: Instant,
        out: &mut Vec<u8>,
    ) -> Option<impl Future<Output = Option<Reply>> + use<>> {
        let Some(place) = self.in_flight.enter(self.asker.client()) else {
            if let Some(answer) = self.handler.refuse(message, Room::Stream) {
                frame(out, &answer);
            }
            return None;
        };
        let (handler, asker, message) =
            (Rc::clone(&self.handler), self.asker.clone(), message.to_vec());
        Some(async move {
            let _place = place;
            handler.handle(&message, came.into_std(), Room::Stream, &asker).await
        })
    }
}

/// Queues a reply; of a zone transfer, all but the last message is written as it comes.
async fn queue(writer: &mut WriteHalf<'_>, out: &mut Vec<u8>, reply: Reply) -> io::Result<()> {
    frame(out, &reply.message);
    let Some(mut rest) = reply.rest else {
        return Ok(());
    };
    while let Some(message) = rest.next().await {
        write(writer, out).await?;
        frame(out, &message);
    }
    Ok(())
}

/// Appends a message behind its two-octet length (RFC 1035 section 4.2.2).
fn frame(out: &mut Vec<u8>, message: &[u8]) {
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
}

/// Writes what there is, in one piece.
async fn write(writer: &mut WriteHalf<'_>, out: &mut Vec<u8>) -> io::Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    // There nearly always is room, and then no need of a clock.
    let written = match writer.try_write(out) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        written => written?,
    };
    if written < out.len() {
        timeout(IDLE_TIMEOUT, writer.write_all(&out[written..])).await??;
    }
    out.clear();
    out.shrink_to(WRITE_AT);
    Ok(())
}
