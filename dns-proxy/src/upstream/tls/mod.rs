//! The only owner of rustls: whom we trust, and how.
//!
//! Strict privacy (RFC 8310 section 6.6) unless the operator wants it opportunistic (section 6.5): a
//! server that cannot be authenticated gets no query. TLS 1.3 or 1.2 (RFC 9325), ALPN `dot`, which a
//! server need not know but must not answer with another, tickets for resumption, no early data.

mod refusal;
mod roots;
mod verifier;

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use refusal::Refusal;
pub use roots::RootSources;
use roots::Roots;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error, HandshakeKind,
    InvalidMessage, PeerIncompatible, RootCertStore, client::Resumption, pki_types::UnixTime,
};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use verifier::Verifier;
use x509_cert::{Certificate, der::Decode as _};

use crate::{addr::UpstreamAddr, pin::Pin};

/// Sessions that are kept for one upstream; rustls counts eight for each name.
const SESSIONS: usize = 8;

/// What becomes of a server that cannot be authenticated (RFC 8310 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// It gets no query.
    #[default]
    Strict,
    /// It is used all the same, over TLS.
    Opportunistic,
}

/// The oldest TLS that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2, the floor of RFC 9325.
    #[default]
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Whom to trust, as the operator says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Where roots come from.
    pub roots: RootSources,
    /// Fingerprints of upstreams' keys.
    pub pins: Vec<Pin>,
    /// What becomes of the others.
    pub profile: Profile,
    /// The oldest TLS.
    pub min_version: TlsVersion,
}

/// Why there is no trust to build on. Always the operator's to mend.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read or holds something else.
    #[error("--ca {}: {reason}; it must hold PEM certificates", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The system has no roots and no file was named.
    #[error(
        "no trusted root certificates: install ca-certificates, or name a PEM file with --ca ({0})"
    )]
    NoRoots(String),
    /// The TLS library refused the settings.
    #[error("TLS set-up: {0}")]
    Setup(#[from] Error),
}

/// Makes TLS connections; all workers share it, and with it session tickets.
#[derive(Debug)]
pub struct Tls {
    roots: Arc<Roots>,
    pins: Vec<Pin>,
    profile: Profile,
    /// Lacks the verifier, which is the upstream's.
    config: ClientConfig,
    clients: Mutex<HashMap<UpstreamAddr, Arc<TlsClient>>>,
}

/// Makes TLS connections to one upstream.
#[derive(Debug)]
pub(super) struct TlsClient {
    verifier: Arc<Verifier>,
    /// With tickets of this upstream only: one may be trusted for other reasons than the next.
    config: Mutex<Arc<ClientConfig>>,
}

/// A connection, and why the server at its other end is not authenticated, if it is not.
pub(super) type Secured = (TlsStream<TcpStream>, Option<String>);

impl Tls {
    /// Reads the roots.
    ///
    /// # Errors
    /// A file that cannot be read, or no roots at all.
    pub fn new(trust: Trust) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = match trust.min_version {
            TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12][..],
            TlsVersion::V1_3 => &[&rustls::version::TLS13],
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"dot".to_vec()]; // RFC 7858, IANA ALPN registry
        config.enable_early_data = false; // no DoT profile allows 0-RTT
        Ok(Self {
            roots: Arc::new(Roots::read(trust.roots)?),
            pins: trust.pins,
            profile: trust.profile,
            config,
            clients: Mutex::default(),
        })
    }

    /// Reads the roots again; connections stay.
    pub fn reload(&self) {
        self.roots.reload();
    }

    /// Reads the roots again when they may have changed, until cancelled.
    pub async fn follow(&self) -> Infallible {
        self.roots.follow().await
    }

    /// What a server that shows this certificate, and no other with it, would be told.
    ///
    /// # Errors
    /// Why it would not be taken for the upstream.
    pub fn judge(&self, upstream: &UpstreamAddr, certificate: &[u8]) -> Result<(), String> {
        let judged =
            self.client(upstream).verifier.check(&certificate.into(), &[], UnixTime::now());
        judged.map_err(|refusal| refusal.to_string())
    }

    /// What makes connections to this upstream.
    pub(super) fn client(&self, upstream: &UpstreamAddr) -> Arc<TlsClient> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let client = clients.entry(upstream.clone()).or_insert_with(|| {
            let pins = self.pins.iter().filter(|pin| pin.is_for(upstream));
            let verifier = Arc::new(Verifier {
                upstream: upstream.clone(),
                pins: pins.map(|pin| pin.fingerprint).collect(),
                roots: Arc::clone(&self.roots),
                profile: self.profile,
                algorithms: self.config.crypto_provider().signature_verification_algorithms,
            });
            let mut config = self.config.clone();
            config.dangerous().set_certificate_verifier(Arc::<Verifier>::clone(&verifier));
            config.resumption = Resumption::in_memory_sessions(SESSIONS);
            Arc::new(TlsClient { verifier, config: Mutex::new(Arc::new(config)) })
        });
        Arc::clone(client)
    }
}

impl TlsClient {
    /// Shakes hands and authenticates.
    pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<Secured> {
        let connector = TlsConnector::from(self.config());
        let stream = connector.connect(self.verifier.name(), stream).await?;
        match (self.check_again(stream.get_ref().1), self.verifier.profile) {
            (Ok(()), _) => Ok((stream, None)),
            (Err(refusal), Profile::Opportunistic) => Ok((stream, Some(refusal.to_string()))),
            (Err(refusal), Profile::Strict) => {
                self.forget_sessions();
                Err(io::Error::other(Error::from(refusal)))
            }
        }
    }

    /// Checks what the handshake did not: a session that is resumed was trusted when it began.
    fn check_again(&self, connection: &ClientConnection) -> Result<(), Refusal> {
        if !is_resumed(connection) && self.verifier.profile == Profile::Strict {
            return Ok(());
        }
        match connection.peer_certificates() {
            Some([leaf, chain @ ..]) => self.verifier.check(leaf, chain, UnixTime::now()),
            Some([]) | None => Err(Refusal::no_certificate()),
        }
    }

    fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn forget_sessions(&self) {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let mut without = ClientConfig::clone(&config);
        without.resumption = Resumption::in_memory_sessions(SESSIONS);
        *config = Arc::new(without);
    }
}

/// Whether a session was resumed.
pub(super) fn is_resumed(connection: &ClientConnection) -> bool {
    connection.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// When the server's certificate expires.
pub(super) fn expires(connection: &ClientConnection) -> Option<SystemTime> {
    let [leaf, ..] = connection.peer_certificates()? else {
        return None;
    };
    let certificate = Certificate::from_der(leaf).ok()?;
    let since_1970 = certificate.tbs_certificate().validity().not_after.to_unix_duration();
    SystemTime::UNIX_EPOCH.checked_add(since_1970)
}

/// What went wrong in TLS, if that is what an I/O error is about.
pub(super) fn reason(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    if let Error::InvalidCertificate(CertificateError::Other(refusal)) = error {
        return Some(refusal.to_string());
    }
    let version = "the server speaks none of the versions that --tls-min allows";
    let known = [
        (Error::AlertReceived(AlertDescription::ProtocolVersion), version),
        (PeerIncompatible::ServerDoesNotSupportTls12Or13.into(), version),
        (PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into(), version),
        (Error::AlertReceived(AlertDescription::NoApplicationProtocol), "no DNS there (ALPN dot)"),
        (InvalidMessage::InvalidContentType.into(), "the server does not speak it"),
    ];
    let words = known.iter().find(|(known, _)| known == error).map(|(_, words)| *words);
    Some(words.map_or_else(|| error.to_string(), str::to_owned))
}
