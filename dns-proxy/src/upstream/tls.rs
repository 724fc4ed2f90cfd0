//! The only owner of rustls: whom we trust, and how.
//!
//! Strict privacy (RFC 8310 section 6.1): a server that cannot be authenticated gets no query.
//! TLS 1.3 or 1.2 (RFC 9325), ALPN `dot`, tickets for resumption, no early data.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use thiserror::Error;

use crate::addr::{ServerIdentity, UpstreamAddr};

/// Where trust comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// PEM files with further root certificates.
    pub ca_files: Vec<PathBuf>,
    /// Leave out the system's roots.
    pub no_system_roots: bool,
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
    Setup(#[from] rustls::Error),
}

impl Trust {
    /// The client configuration that all connections share, and with it their session tickets.
    ///
    /// # Errors
    /// A file that cannot be read, or no roots at all.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let mut roots = RootCertStore::empty();
        for path in &self.ca_files {
            let bad = |reason: String| TlsError::CaFile { path: path.clone(), reason };
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| bad(error.to_string()))?;
            if certificates.is_empty() {
                return Err(bad("no certificate in it".to_owned()));
            }
            for certificate in certificates {
                roots.add(certificate).map_err(|error| bad(error.to_string()))?;
            }
        }
        let mut missing = "system roots not asked".to_owned();
        if !self.no_system_roots {
            let system = rustls_native_certs::load_native_certs();
            missing = system.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            // Single certificates that rustls cannot use must not take the others away.
            roots.add_parsable_certificates(system.certs);
        }
        if roots.is_empty() {
            return Err(TlsError::NoRoots(missing));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"dot".to_vec()]; // RFC 7858, IANA ALPN registry
        config.enable_early_data = false; // no DoT profile allows 0-RTT
        Ok(Arc::new(config))
    }
}

/// What the server's certificate must hold.
pub(super) fn server_name(upstream: &UpstreamAddr) -> ServerName<'static> {
    match upstream.identity() {
        ServerIdentity::Name(name) => ServerName::DnsName(name.clone()),
        ServerIdentity::Address(ip) => ServerName::IpAddress((*ip).into()),
    }
}
