//! DNS over UDP: one task for each socket, which receives, waits for answers and sends them in
//! batches.

use std::{
    cell::RefCell,
    io,
    net::UdpSocket,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{io::unix::AsyncFd, task::yield_now, time::sleep};
use tracing::{debug, warn};

use super::{
    batch::{BATCH, Buffers, Path},
    gate::Gate,
    handler::{Handler, InFlight},
    original::{Admitted, Asker},
    response::Room,
};
use crate::polled::Polled;

/// How long a socket that fails is left alone.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// An answer and where it goes.
type Answer = (Vec<u8>, Path);

/// A datagram that somebody else received.
#[derive(Debug)]
pub struct Datagram {
    /// Its way.
    pub path: Path,
    /// What was in it.
    pub message: Vec<u8>,
}

/// A bound socket and all that its queries are answered with.
pub struct Datagrams {
    socket: AsyncFd<Polled<UdpSocket>>,
    buffers: Rc<RefCell<Buffers>>,
    gate: Rc<Gate>,
    handler: Rc<Handler>,
    room: Room,
    in_flight: InFlight,
}

impl Datagrams {
    /// The socket must be non-blocking and have `IP_PKTINFO` or `IPV6_RECVPKTINFO` on.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub fn new(
        socket: UdpSocket,
        buffers: Rc<RefCell<Buffers>>,
        gate: Rc<Gate>,
        handler: Rc<Handler>,
        room: Room,
        in_flight: InFlight,
    ) -> io::Result<Self> {
        Ok(Self { socket: Polled::register(socket)?, buffers, gate, handler, room, in_flight })
    }

    /// Whether the socket is an IPv4 one.
    pub fn is_ipv4(&self) -> bool {
        self.socket.get_ref().local_addr().is_ok_and(|addr| addr.is_ipv4())
    }

    /// Answers a datagram as if the socket had received it.
    pub async fn answer(self: Rc<Self>, Datagram { path, message }: Datagram) {
        let (mut answers, came) = (Vec::new(), Instant::now());
        if let Some(asker) = self.admit(&path)
            && let Some(query) = self.ask(&message, path, came, asker, &mut answers)
        {
            answers.extend(query.await);
        }
        if let Err(error) = self.send(&mut answers).await {
            debug!(%error, client = %path.client, "answer not sent");
        }
        self.handler.sent(came);
    }

    /// Serves the socket until the task is dropped, and with it every query that came this way.
    ///
    /// # Errors
    /// The runtime can no longer watch the socket.
    pub async fn serve(self: Rc<Self>) -> io::Result<()> {
        let mut queries = FuturesUnordered::new();
        let mut answers: Vec<Answer> = Vec::new();
        let mut came = Instant::now();
        loop {
            let received = tokio::select! {
                received = self.receive() => Some(received?),
                Some(answer) = queries.next() => {
                    answers.extend(answer);
                    None
                }
            };
            if received.is_some() {
                came = Instant::now();
                queries.extend(self.take(came, &mut answers));
            }
            // Queries that have just come are sent on, and answers that are there leave together.
            while let Some(Some(answer)) = queries.next().now_or_never() {
                answers.extend(answer);
            }
            self.send(&mut answers).await?;
            self.handler.sent(came);
            if received == Some(BATCH) {
                yield_now().await; // the upstream connections must get their turn
            }
        }
    }

    /// Answers what was received, as far as that can be done at once. The rest has to be waited for.
    fn take(
        self: &Rc<Self>,
        came: Instant,
        answers: &mut Vec<Answer>,
    ) -> Vec<impl Future<Output = Option<Answer>> + use<>> {
        let Buffers { inbox, outbox } = &mut *self.buffers.borrow_mut();
        let mut queries = Vec::new();
        for (message, path) in inbox.datagrams() {
            let Some(asker) = self.admit(&path) else {
                continue;
            };
            let answer = |octets: &mut Vec<u8>| {
                self.handler.answer_at_once(message, self.room, asker, came, octets)
            };
            if !outbox.take(path, answer) {
                queries.extend(self.ask(message, path, came, asker, answers));
            }
        }
        answers.extend(outbox.send(self.socket.get_ref()));
        queries
    }

    /// Receives what there is; how many datagrams.
    async fn receive(&self) -> io::Result<usize> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| self.buffers.borrow_mut().inbox.receive(socket.get_ref())) {
                Ok(Ok(count)) => {
                    if count < BATCH {
                        ready.clear_ready();
                    }
                    return Ok(count);
                }
                // An ICMP error for an answer that a client no longer wanted.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => {
                    // Short of memory, or the network is going: neither is the listener's end.
                    warn!(%error, "cannot receive");
                    sleep(RECEIVE_PAUSE).await;
                }
                Err(_would_block) => {}
            }
        }
    }

    /// Who asks; nothing if he may not.
    fn admit(&self, path: &Path) -> Option<Admitted<'_>> {
        let admitted = self.gate.admit(path.client, path.local);
        if admitted.is_none() {
            self.handler.stats().denied.add();
        }
        admitted
    }

    /// What answers a message that has to be asked; nothing if there is no place left for it, which it
    /// is told.
    fn ask(
        self: &Rc<Self>,
        message: &[u8],
        path: Path,
        came: Instant,
        asker: Admitted<'_>,
        answers: &mut Vec<Answer>,
    ) -> Option<impl Future<Output = Option<Answer>> + use<>> {
        let Some(place) = self.in_flight.enter(asker.client) else {
            answers.extend(self.handler.refuse(message, self.room).map(|answer| (answer, path)));
            return None;
        };
        let (this, message, asker) = (Rc::clone(self), message.to_vec(), Asker::from(asker));
        Some(async move {
            let _place = place;
            let reply = this.handler.handle(&message, came, this.room, &asker).await?;
            Some((reply.message, path))
        })
    }

    /// Sends answers, for which the socket may have no room yet; one that cannot be sent is given up.
    async fn send(&self, answers: &mut Vec<Answer>) -> io::Result<()> {
        while !answers.is_empty() {
            let mut ready = self.socket.writable().await?;
            let Buffers { outbox, .. } = &mut *self.buffers.borrow_mut();
            for (answer, path) in answers.drain(..) {
                outbox.take(path, |octets| {
                    octets.extend_from_slice(&answer);
                    true
                });
            }
            *answers = outbox.send(self.socket.get_ref());
            if !answers.is_empty() {
                ready.clear_ready();
            }
        }
        Ok(())
    }
}
