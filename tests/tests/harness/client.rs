//! A DNS-over-TLS client that shows each thing a server does to it.

use anyhow::Result;
use dns_proxy_tests::wire::{frame, query};
use dns_proxy_tests::{Netns, Pki};
use hickory_proto::rr::RecordType;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// How long a server may be silent before it counts as silent.
const SILENCE: Duration = Duration::from_millis(500);

/// The name that the servers of these tests have.
pub(crate) const NAME: &str = "dns.test";

/// A connection after its handshake.
pub(crate) struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// A client's configuration that trusts the authority and remembers sessions.
pub(crate) fn config(pki: &Pki) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.ca_file())?)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"dot".to_vec()];
    Ok(Arc::new(config))
}

impl Client {
    pub(crate) fn connect(
        netns: &Netns,
        server: SocketAddr,
        config: &Arc<ClientConfig>,
    ) -> Result<Self> {
        let tcp = netns.run(|| TcpStream::connect(server))??;
        tcp.set_read_timeout(Some(SILENCE))?;
        let tls = ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME)?)?;
        let mut stream = StreamOwned::new(tls, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream })
    }

    /// Sends a query for the A record; gives the query.
    pub(crate) fn send(&mut self, id: u16, name: &str) -> Result<Vec<u8>> {
        let query = query(id, name, RecordType::A)?;
        self.stream.write_all(&frame(&query))?;
        Ok(query)
    }

    /// The next message.
    pub(crate) fn receive(&mut self) -> std::io::Result<Vec<u8>> {
        let mut length = [0; 2];
        self.stream.read_exact(&mut length)?;
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        self.stream.read_exact(&mut message)?;
        Ok(message)
    }

    /// Bytes that are there now, and how the stream goes on after them.
    pub(crate) fn read_to_end(&mut self) -> (Vec<u8>, std::io::Result<usize>) {
        let mut bytes = Vec::new();
        let end = self.stream.read_to_end(&mut bytes);
        (bytes, end)
    }
}
