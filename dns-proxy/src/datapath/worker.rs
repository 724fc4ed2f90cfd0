//! A thread of the query path: its own runtime, its own listeners, its own upstream connections.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::{TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinSet, LocalSet, spawn_local},
    time::{Instant, sleep},
};
use tracing::{error, warn};

use super::{
    batch::Buffers,
    gate::Gate,
    handler::{Handler, InFlight, Report},
    response::Room,
    stats::Stats,
    tap::Tap,
    tcp,
    udp::{Datagram, Datagrams},
};
use crate::{cache, confine, pulse::Pulse, route::Routes, upstream::Settings};

/// How long nothing must have been in flight when draining: what clients have sent is then taken
/// from the sockets, and what they were sent is read.
const QUIET: Duration = Duration::from_millis(50);

/// Names a group of listeners that come and go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u64);

/// Bound sockets, all non-blocking, the UDP ones with packet info on.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For datagrams.
    pub udp: Vec<UdpSocket>,
    /// For connections.
    pub tcp: Vec<TcpListener>,
}

impl Sockets {
    /// All of them.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let udp = self.udp.iter().map(AsFd::as_fd);
        udp.chain(self.tcp.iter().map(AsFd::as_fd))
    }
}

enum Command {
    Serve { id: ListenerId, sockets: Sockets, gate: Gate, room: Room },
    Answer { id: ListenerId, datagram: Datagram },
    Release { id: ListenerId },
    Reroute { routes: Arc<Routes> },
    Report { to: oneshot::Sender<Report> },
    Drain { limit: Duration, done: oneshot::Sender<()> },
}

/// A handle to the thread, which ends when the handle is dropped.
pub struct Worker {
    commands: mpsc::UnboundedSender<Command>,
    stats: Arc<Stats>,
    tap: Arc<Tap>,
    pulse: Arc<Pulse>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or runtime could be made.
    pub fn start(
        index: usize,
        settings: Settings,
        cache: cache::Settings,
        routes: Arc<Routes>,
    ) -> io::Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let stats = Arc::new(Stats::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker_stats = Arc::clone(&stats);
        let tap = Arc::new(Tap::default());
        let worker_tap = Arc::clone(&tap);
        let pulse = Arc::new(Pulse::new());
        let worker_pulse = Arc::clone(&pulse);
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            if let Err(error) = confine::worker() {
                warn!(%error, "a worker thread keeps privileges that it does not need");
            }
            // Who has gone does not wait for it.
            let _: Result<(), _> = started.send(());
            let handler = Rc::new(Handler::new(&settings, cache, routes, worker_stats, worker_tap));
            LocalSet::new().block_on(&runtime, async {
                spawn_local(async move { worker_pulse.keep().await });
                obey(inbox, handler).await;
            });
        })?;
        // Ready is who is confined, too.
        let _: Result<(), _> = start.recv();
        Ok(Self { commands, stats, tap, pulse, thread: Some(thread) })
    }

    /// Serves these sockets from now on.
    pub fn serve(&self, id: ListenerId, sockets: Sockets, gate: Gate, room: Room) {
        self.send(Command::Serve { id, sockets, gate, room });
    }

    /// Answers a datagram as if a socket served under `id` had received it.
    pub fn answer(&self, id: ListenerId, datagram: Datagram) {
        self.send(Command::Answer { id, datagram });
    }

    /// Closes the sockets served under `id`.
    pub fn release(&self, id: ListenerId) {
        self.send(Command::Release { id });
    }

    /// Follows these routes from now on, whose sets of upstreams are the same.
    pub fn reroute(&self, routes: Arc<Routes>) {
        self.send(Command::Reroute { routes });
    }

    /// Waits until nothing has been in flight for [`QUIET`], for `limit` at most; serving goes on
    /// meanwhile.
    pub async fn drain(workers: &[Self], limit: Duration) {
        let draining: Vec<_> = workers
            .iter()
            .map(|worker| {
                let (done, drained) = oneshot::channel();
                worker.send(Command::Drain { limit, done });
                drained
            })
            .collect();
        for drained in draining {
            // A worker that is gone has nothing in flight.
            let _: Result<(), _> = drained.await;
        }
    }

    /// What it did so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Where its queries can be looked at.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// What it has to say of itself; it does so between two other things. `None` if it is gone.
    pub async fn report(&self) -> Option<Report> {
        let (to, report) = oneshot::channel();
        self.send(Command::Report { to });
        report.await.ok()
    }

    /// When it last proved that it turns, on the clock of [`crate::pulse::now`].
    pub fn last_beat(&self) -> u64 {
        self.pulse.last()
    }

    fn send(&self, command: Command) {
        if self.commands.send(command).is_err() {
            error!("a worker thread is gone; restart dns-proxy and report this as a bug");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Closing the channel is the order to end.
        self.commands = mpsc::unbounded_channel().0;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("a worker thread ended in a panic; report this as a bug");
        }
    }
}

/// One group of listeners: dropping it ends their tasks and closes their sockets.
struct Served {
    tasks: JoinSet<()>,
    datagrams: Vec<Rc<Datagrams>>,
    in_flight: InFlight,
}

impl Served {
    fn answer(&mut self, datagram: Datagram) {
        while self.tasks.try_join_next().is_some() {}
        let family = |socket: &&Rc<Datagrams>| socket.is_ipv4() == datagram.path.local.is_ipv4();
        if let Some(socket) = self.datagrams.iter().find(family) {
            self.tasks.spawn_local(Rc::clone(socket).answer(datagram));
        }
    }
}

async fn obey(mut inbox: mpsc::UnboundedReceiver<Command>, handler: Rc<Handler>) {
    let mut served = HashMap::new();
    let buffers = Rc::default();
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Serve { id, sockets, gate, room } => {
                served.insert(id, serve(sockets, gate, room, &handler, &buffers));
            }
            Command::Answer { id, datagram } => {
                if let Some(served) = served.get_mut(&id) {
                    served.answer(datagram);
                }
            }
            Command::Release { id } => {
                served.remove(&id);
            }
            Command::Reroute { routes } => handler.reroute(routes),
            Command::Report { to } => {
                // Nobody may be waiting any more.
                let _: Result<(), Report> = to.send(handler.report());
            }
            Command::Drain { limit, done } => {
                let end = Instant::now() + limit;
                let mut busy = Instant::now();
                while Instant::now() < end && busy.elapsed() < QUIET {
                    if served.values().any(|served: &Served| served.in_flight.count() > 0) {
                        busy = Instant::now();
                    }
                    sleep(QUIET / 10).await;
                }
                // Nobody may be waiting any more.
                let _: Result<(), ()> = done.send(());
            }
        }
    }
}

fn serve(
    sockets: Sockets,
    gate: Gate,
    room: Room,
    handler: &Rc<Handler>,
    buffers: &Rc<RefCell<Buffers>>,
) -> Served {
    let gate = Rc::new(gate);
    let in_flight = InFlight::default();
    let mut tasks = JoinSet::new();
    let mut datagrams = Vec::new();
    for socket in sockets.udp {
        let (buffers, gate, handler) = (Rc::clone(buffers), Rc::clone(&gate), Rc::clone(handler));
        match Datagrams::new(socket, buffers, gate, handler, room, in_flight.clone()) {
            Ok(socket) => {
                let socket = Rc::new(socket);
                datagrams.push(Rc::clone(&socket));
                tasks.spawn_local(async move { report("UDP", socket.serve().await) });
            }
            Err(error) => report("UDP", Err(error)),
        }
    }
    for socket in sockets.tcp {
        let serving = tcp::serve(socket, Rc::clone(&gate), Rc::clone(handler), in_flight.clone());
        tasks.spawn_local(async move { report("TCP", serving.await) });
    }
    Served { tasks, datagrams, in_flight }
}

fn report(transport: &str, result: io::Result<()>) {
    if let Err(error) = result {
        error!(%error, "a {transport} listener failed and is closed");
    }
}
