//! The DNS-over-TLS side (RFC 7858): messages in, answers out.
//!
//! ```text
//! Pool::exchange ─► which server? ─► Connection (dial, handshake, pipeline) ─► TLS record
//! ```
//!
//! It knows nothing of clients, namespaces or eBPF: a message comes with a deadline, and leaves
//! as the answer to its question or as an [`ExchangeError`].

mod connection;
mod dial;
mod outstanding;
mod pool;
mod rtt;
mod server;
mod tls;
mod watch;

use std::{os::fd::BorrowedFd, sync::Arc, time::Duration};

pub use connection::ConnectionError;
pub use pool::Pool;
use thiserror::Error;
pub use tls::{TlsError, Trust};

use crate::addr::UpstreamAddr;

/// Keeps the daemon's own sockets out of the daemon's own net.
pub trait Exempt: Send + Sync {
    /// Called for each socket before it connects.
    ///
    /// # Errors
    /// The socket could not be marked and must not be used.
    fn exempt(&self, socket: BorrowedFd<'_>) -> std::io::Result<()>;
}

/// Everything the upstream side is told.
#[derive(Clone)]
pub struct Settings {
    /// The upstreams, in order of preference; at least one.
    pub upstreams: Vec<UpstreamAddr>,
    /// The whole time that a query may take.
    pub timeout: Duration,
    /// How servers are authenticated.
    pub tls: Arc<rustls::ClientConfig>,
    /// Marks our own sockets.
    pub exempt: Arc<dyn Exempt>,
}

/// Why there is no answer to a message.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ExchangeError {
    /// Upstream's fault: it accepted the query but did not answer in time.
    #[error("no answer from upstream in time")]
    Timeout,
    /// Upstream's or the network's fault: there is no connection; the last reason why.
    #[error("no connection to upstream: {0}")]
    Connection(ConnectionError),
}
