//! One connection of a [`DotServer`](super::DotServer): reads queries, writes what the orders say.

use super::journal::{Handshake, Seen};
use super::orders::{Close, HOLD_LIMIT, Reply};
use super::reply::Outgoing;
use super::shared::Shared;
use crate::wire::take_message;
use std::future::pending;
use std::io;
use std::mem::take;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, sink};
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A connection after its handshake.
struct Connection {
    tls: TlsStream<TcpStream>,
    shared: Arc<Shared>,
    number: usize,
    inbox: Vec<u8>,
    finished: UnboundedSender<Outgoing>,
    outgoing: UnboundedReceiver<Outgoing>,
    held: Vec<Vec<u8>>,
    held_since: Option<Instant>,
    answered: usize,
    waiting: usize,
}

/// Whether to go on.
enum Next {
    Continue,
    Close(Close),
    /// Write nothing any more.
    Mute,
}

/// Serves a connection until either side ends it.
pub(super) async fn serve(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    number: usize,
    mut disconnect: broadcast::Receiver<Close>,
) {
    let _open = shared.opened();
    if shared.orders().stall_handshake {
        return stall(tcp, disconnect).await;
    }
    let late = shared.orders().delay_handshake;
    let accepted = tokio::select! {
        accepted = async { sleep(late).await; acceptor.accept(tcp).await } => accepted,
        _ = disconnect.recv() => return,
    };
    let mut tls = match accepted {
        Ok(tls) => tls,
        Err(error) => return shared.journal().failed_handshakes.push(error.to_string()),
    };
    shared.journal().handshakes.push(Handshake::of(tls.get_mut().1));
    let (finished, outgoing) = unbounded_channel();
    let (inbox, held) = (Vec::new(), Vec::new());
    let (held_since, answered, waiting) = (None, 0, 0);
    let mut connection = Connection {
        tls,
        shared,
        number,
        inbox,
        finished,
        outgoing,
        held,
        held_since,
        answered,
        waiting,
    };
    // An error is the peer's going away, which tests look for at the peer.
    let _ = connection.run(&mut disconnect).await;
}

/// Reads what comes and says nothing, until either side ends it.
async fn stall(mut tcp: TcpStream, mut disconnect: broadcast::Receiver<Close>) {
    let mut nowhere = sink();
    tokio::select! {
        _ = copy(&mut tcp, &mut nowhere) => {}
        _ = disconnect.recv() => {}
    }
}

impl Connection {
    async fn run(&mut self, disconnect: &mut broadcast::Receiver<Close>) -> io::Result<()> {
        // Once nothing is written any more, what comes is still read and recorded.
        let mut mute = false;
        loop {
            let flush = self.held_since.map(|since| since + HOLD_LIMIT);
            let orders = self.shared.orders();
            if orders.deaf && !orders.is_faithful(self.number) {
                let _ = disconnect.recv().await;
                return Ok(());
            }
            let next = tokio::select! {
                Ok(close) = disconnect.recv() => Next::Close(close),
                Some(outgoing) = self.outgoing.recv(), if !mute => self.send(outgoing).await?,
                () = sleep_maybe(flush), if !mute => self.flush().await?,
                read = self.tls.read_buf(&mut self.inbox) => {
                    self.take_queries();
                    if read? == 0 { Next::Close(Close::Orderly) } else { Next::Continue }
                }
            };
            match next {
                Next::Continue => {}
                Next::Mute => mute = true,
                Next::Close(Close::Half) => {
                    self.tls.shutdown().await?;
                    mute = true;
                }
                Next::Close(close) => return self.close(close).await,
            }
        }
    }

    /// Takes whole messages out of what has been read, and has their answers made.
    fn take_queries(&mut self) {
        while let Some(query) = take_message(&mut self.inbox) {
            let Some(seen) = Seen::of(&query, self.number) else {
                continue;
            };
            let orders = self.shared.orders();
            let (mut reply, delay) = orders.for_name(&seen.name);
            if orders.is_faithful(self.number) {
                reply = Reply::Faithful;
            }
            self.shared.asked(seen);
            self.waiting += 1;
            let Some(outgoing) = reply.to(&query) else {
                continue;
            };
            let finished = self.finished.clone();
            tokio::spawn(async move {
                if !delay.is_zero() {
                    sleep(delay).await;
                }
                // The connection may be gone by now.
                let _ = finished.send(outgoing);
            });
        }
    }

    async fn send(&mut self, outgoing: Outgoing) -> io::Result<Next> {
        match outgoing {
            Outgoing::Answer(answer) => {
                self.held.push(answer);
                self.held_since.get_or_insert_with(Instant::now);
                if self.held.len() >= self.shared.orders().hold {
                    self.flush().await
                } else {
                    Ok(Next::Continue)
                }
            }
            Outgoing::Torso(torso) => {
                self.tls.write_all(&torso).await?;
                self.tls.flush().await?;
                Ok(Next::Mute)
            }
            Outgoing::End(close) => Ok(Next::Close(close)),
        }
    }

    /// Sends what is held, the youngest first.
    async fn flush(&mut self) -> io::Result<Next> {
        self.held_since = None;
        let close_after = self.shared.orders().close_after;
        for answer in take(&mut self.held).into_iter().rev() {
            self.tls.write_all(&answer).await?;
            self.answered += 1;
            self.waiting -= 1;
            self.shared.answered(1);
            if let Some((limit, close)) = close_after
                && self.answered >= limit
            {
                self.tls.flush().await?;
                return Ok(Next::Close(close));
            }
        }
        self.tls.flush().await?;
        Ok(Next::Continue)
    }

    async fn close(&mut self, close: Close) -> io::Result<()> {
        match close {
            Close::Orderly | Close::Half => self.tls.shutdown().await,
            Close::Abrupt => self.tls.get_mut().0.shutdown().await,
            Close::Reset => self.tls.get_ref().0.set_zero_linger(),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.answered(self.waiting);
    }
}

async fn sleep_maybe(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}
