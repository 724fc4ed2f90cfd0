//! Those who are asked, over TLS (RFC 7858) or, where a route says so, in plaintext: messages in,
//! answers out.
//!
//! ```text
//! Pool::exchange ─► which server? ─► Connection (dial, handshake, pipeline) ─► TLS record
//! Plain::exchange ─► a socket for each query, where the client is ─► port 53
//! ```
//!
//! It knows nothing of clients, namespaces or eBPF: a message comes with a deadline, and leaves
//! as the answer to its question or as an [`ExchangeError`].

mod connection;
mod dial;
mod outlet;
mod outstanding;
mod plain;
mod pool;
mod probe;
mod report;
mod rtt;
mod server;
mod tls;
mod watch;

use std::{net::SocketAddr, os::fd::BorrowedFd, sync::Arc, time::Duration};

pub use connection::ConnectionError;
pub use outlet::{Interfaces, Network, Outlet, OwnNetwork, Side};
pub use plain::{Nameservers, Plain, PlainError, Transfer, Transport};
pub use pool::Pool;
pub use probe::{Reachable, probe};
pub use report::{ServerReport, ServerState};
use thiserror::Error;
pub use tls::{Profile, RootSources, Tls, TlsError, TlsVersion, Trust};

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
    pub tls: Arc<Tls>,
    /// Clients' subnets are not passed on.
    pub strip_subnets: bool,
    /// Marks our own sockets.
    pub exempt: Arc<dyn Exempt>,
}

/// The answer to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// A header at least.
    pub message: Vec<u8>,
    /// Whether the server is known to be the one that was meant.
    pub authenticated: bool,
    /// Which server.
    pub by: SocketAddr,
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
