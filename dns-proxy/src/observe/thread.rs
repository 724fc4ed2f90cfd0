//! The thread on which the daemon is looked at: the control socket's connections, and the hub.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
};
use tracing::error;

use super::{hub::Hub, sink::Sink};
use crate::{
    control_socket::server::ControlSocket, datapath::worker::Worker, status::gather::Gatherer,
};

/// A handle to the thread, which ends when the handle is dropped.
#[derive(Debug)]
pub struct Observer {
    orders: mpsc::UnboundedSender<Order>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Reopen,
}

/// Makes a sink on the thread that gives it work.
pub type Sinks = Vec<Box<dyn Sink + Send>>;

impl Observer {
    /// Starts it.
    ///
    /// # Errors
    /// No thread or runtime could be made.
    pub fn start(
        socket: Option<ControlSocket>,
        workers: Arc<[Worker]>,
        gatherer: Arc<Gatherer>,
        sinks: Sinks,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, mut inbox) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        let thread = thread::Builder::new().name("observer".to_owned()).spawn(move || {
            let sinks = sinks.into_iter().map(|sink| -> Box<dyn Sink> { sink }).collect();
            let hub = std::rc::Rc::new(Hub::new(workers, Arc::clone(&gatherer), sinks));
            let obeying = async {
                while let Some(Order::Reopen) = inbox.recv().await {
                    hub.reopen();
                }
            };
            let serving = async {
                match socket {
                    Some(socket) => socket.serve(&gatherer, &hub).await,
                    None => std::future::pending().await,
                }
            };
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    // Whoever holds the other end has dropped it.
                    _ = ended => {}
                    () = hub.run() => {}
                    () = obeying => {}
                    () = serving => {}
                }
            });
            // What was shown until now is for the sinks too.
            hub.turn();
        })?;
        Ok(Self { orders, end: Some(end), thread: Some(thread) })
    }

    /// Has files opened anew.
    pub fn reopener(&self) -> Reopen {
        Reopen(self.orders.clone())
    }
}

/// Has files opened anew, which may have been moved.
#[derive(Clone, Debug)]
pub struct Reopen(mpsc::UnboundedSender<Order>);

impl Reopen {
    /// Now.
    pub fn now(&self) {
        // If nobody is there any more, nothing is written either.
        let _: Result<(), _> = self.0.send(Order::Reopen);
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the observer's thread ended in a panic; report this as a bug");
        }
    }
}
