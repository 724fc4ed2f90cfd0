//! A real DNS-over-TLS server (RFC 7858) that does what a test orders, and remembers what it saw.
//!
//! It answers as [`Zone::Encrypted`](crate::Zone::Encrypted), out of order when answers differ in
//! delay, as RFC 7766 section 6.2.1.1 wants. Sessions can be resumed.

mod connection;
mod journal;
mod orders;
mod reply;
mod shared;

pub use journal::{Handshake, Journal, Seen};
pub use orders::{Close, Craft, HOLD_LIMIT, Orders, Reply};

use crate::netns::Netns;
use crate::pki::Identity;
use crate::runtime::Runtime;
use anyhow::{Context, Result};
use rustls::crypto::ring;
use rustls::{ALL_VERSIONS, ServerConfig, SupportedProtocolVersion};
use shared::Shared;
use std::net::SocketAddr;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// How a server speaks TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The versions it knows.
    pub versions: Vec<&'static SupportedProtocolVersion>,
    /// The application protocols it knows; `dot` is the registered one. Empty: it has no ALPN.
    pub alpn: Vec<String>,
}

impl Default for Tls {
    fn default() -> Self {
        Self { versions: ALL_VERSIONS.to_vec(), alpn: vec!["dot".to_owned()] }
    }
}

/// A running server; dropping it ends it and all its connections.
#[derive(Debug)]
pub struct DotServer {
    addresses: Vec<SocketAddr>,
    acceptor: Acceptor,
    listeners: Mutex<Vec<JoinHandle<()>>>,
    runtime: Runtime,
}

/// What it takes to accept a connection.
#[derive(Clone, Debug)]
struct Acceptor {
    tls: Arc<ServerConfig>,
    shared: Arc<Shared>,
    disconnect: broadcast::Sender<Close>,
}

impl DotServer {
    /// Starts one in the namespace on each of the addresses; it is listening when this returns.
    pub fn start(netns: &Netns, addresses: &[SocketAddr], identity: &Identity) -> Result<Self> {
        Self::start_with(netns, addresses, identity, &Tls::default())
    }

    /// Starts one that speaks TLS in a way of its own.
    pub fn start_with(
        netns: &Netns,
        addresses: &[SocketAddr],
        identity: &Identity,
        tls: &Tls,
    ) -> Result<Self> {
        let (disconnect, _) = broadcast::channel(16);
        let tls = Arc::new(server_config(identity, tls)?);
        let server = Self {
            addresses: addresses.to_vec(),
            acceptor: Acceptor { tls, shared: Arc::default(), disconnect },
            listeners: Mutex::default(),
            runtime: Runtime::inside(netns)?,
        };
        server.listen()?;
        Ok(server)
    }

    /// How to behave from now on, also on connections that are open.
    pub fn order(&self, orders: Orders) {
        self.acceptor.shared.order(orders);
    }

    /// What it has seen.
    pub fn journal(&self) -> Journal {
        self.acceptor.shared.journal().clone()
    }

    /// Ends the connections that are open now.
    pub fn disconnect(&self, close: Close) {
        // It fails when there are none.
        let _ = self.acceptor.disconnect.send(close);
    }

    /// Refuses new connections; open ones go on.
    pub fn refuse(&self) -> Result<()> {
        let listeners = std::mem::take(&mut *self.lock());
        self.runtime.run(async move {
            for listener in listeners {
                listener.abort();
                // The error says that it was aborted: now its socket is closed.
                let _ = listener.await;
            }
        })
    }

    /// Listens, at first and again after [`refuse`](Self::refuse).
    pub fn listen(&self) -> Result<()> {
        for &address in &self.addresses {
            let listener = self.runtime.run(TcpListener::bind(address))?;
            let listener = listener.with_context(|| format!("listen on {address}"))?;
            let accepting = self.runtime.spawn(self.acceptor.clone().accept(listener));
            self.lock().push(accepting);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Acceptor {
    async fn accept(self, listener: TcpListener) {
        // An error is a connection that ended before we saw it.
        loop {
            let Ok((tcp, _)) = listener.accept().await else {
                continue;
            };
            let _ = tcp.set_nodelay(true);
            let (shared, disconnect) = (Arc::clone(&self.shared), self.disconnect.subscribe());
            let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
            let number = shared.accepted();
            tokio::spawn(connection::serve(tcp, acceptor, shared, number, disconnect));
        }
    }
}

fn server_config(identity: &Identity, tls: &Tls) -> Result<ServerConfig> {
    let certificates = [slice::from_ref(&identity.certificate), &identity.chain].concat();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&tls.versions)?
        .with_no_client_auth()
        .with_single_cert(certificates, identity.key())?;
    config.max_early_data_size = 16 * 1024;
    config.alpn_protocols = tls.alpn.iter().map(|alpn| alpn.clone().into_bytes()).collect();
    Ok(config)
}
