//! A nameserver as before: plain UDP and TCP on port 53, for those whose DNS nobody redirects.
//!
//! On the internet it answers as [`Zone::Plaintext`], so that a test sees which road a query took.

use crate::netns::Netns;
use crate::runtime::Runtime;
use crate::wire::{Question, frame, take_message};
use crate::world::NAMESERVERS;
use crate::zone::{Transport, Zone};
use anyhow::{Context, Result};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// A query that came in plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainQuery {
    /// What was asked.
    pub question: Question,
    /// How it came.
    pub transport: Transport,
    /// Who asked.
    pub client: SocketAddr,
    /// Which of our addresses was asked.
    pub server: SocketAddr,
}

/// A running nameserver; dropping it ends it.
#[derive(Debug)]
pub struct PlainServer {
    queries: Queries,
    _runtime: Runtime,
}

/// What is answered and what has come, shared by all sockets.
#[derive(Clone, Debug)]
struct Queries {
    zone: Zone,
    seen: Arc<Mutex<Vec<PlainQuery>>>,
}

impl PlainServer {
    /// Starts one on port 53 of all nameserver addresses of the internet.
    pub fn start(internet: &Netns) -> Result<Self> {
        let addresses = NAMESERVERS.map(|address| SocketAddr::new(address, 53));
        Self::start_on(internet, &addresses, Zone::Plaintext)
    }

    /// Starts one on these addresses; it is listening when this returns.
    pub fn start_on(netns: &Netns, addresses: &[SocketAddr], zone: Zone) -> Result<Self> {
        let runtime = Runtime::inside(netns)?;
        let seen = Arc::default();
        let queries = Queries { zone, seen };
        for &address in addresses {
            // A socket for each address, so that answers leave from the one that was asked.
            let udp = runtime.run(UdpSocket::bind(address))?;
            let tcp = runtime.run(TcpListener::bind(address))?;
            let listening = || format!("listen on {address}");
            runtime.spawn(queries.clone().serve_udp(udp.with_context(listening)?));
            runtime.spawn(queries.clone().serve_tcp(tcp.with_context(listening)?));
        }
        Ok(Self { queries, _runtime: runtime })
    }

    /// The queries so far.
    pub fn queries(&self) -> Vec<PlainQuery> {
        self.queries.seen().clone()
    }
}

impl Queries {
    async fn serve_udp(self, socket: UdpSocket) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let Ok(server) = socket.local_addr() else {
            return;
        };
        loop {
            // An error is about an earlier answer that somebody did not want.
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
                continue;
            };
            let query = &buffer[..length];
            if let Some(answer) = self.answer(query, Transport::Udp, client, server) {
                let _ = socket.send_to(&answer, client).await;
            }
        }
    }

    async fn serve_tcp(self, listener: TcpListener) {
        loop {
            let Ok((stream, client)) = listener.accept().await else {
                continue;
            };
            let queries = self.clone();
            tokio::spawn(async move { queries.serve_stream(stream, client).await });
        }
    }

    async fn serve_stream(self, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
        let server = stream.local_addr()?;
        let mut inbox = Vec::new();
        while stream.read_buf(&mut inbox).await? > 0 {
            while let Some(query) = take_message(&mut inbox) {
                if let Some(answer) = self.answer(&query, Transport::Tcp, client, server) {
                    stream.write_all(&frame(&answer)).await?;
                }
            }
        }
        Ok(())
    }

    /// Records a query before its answer is on the way.
    fn answer(
        &self,
        query: &[u8],
        transport: Transport,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Option<Vec<u8>> {
        let question = Question::of(query)?;
        let seen = PlainQuery { question, transport, client, server };
        self.seen().push(seen);
        self.zone.answer(query, transport)
    }

    fn seen(&self) -> MutexGuard<'_, Vec<PlainQuery>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
