//! Root certificates: the system's and the operator's, read again when they may have changed.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::{sync::Notify, task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use super::TlsError;

/// How often certificates that no root has signed may have the roots read again.
const READ_EVERY: Duration = Duration::from_secs(60);

/// Where roots come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootSources {
    /// PEM files with further root certificates.
    pub ca_files: Vec<PathBuf>,
    /// Leave out the system's roots.
    pub no_system_roots: bool,
    /// There need not be any: upstreams are known by their keys.
    pub optional: bool,
}

/// The roots as they were when they were last read.
#[derive(Debug)]
pub(super) struct Roots {
    sources: RootSources,
    current: RwLock<Arc<RootCertStore>>,
    doubted: Notify,
}

impl Roots {
    /// Reads them for the first time.
    pub(super) fn read(sources: RootSources) -> Result<Self, TlsError> {
        let current = RwLock::new(Arc::new(sources.read()?));
        Ok(Self { sources, current, doubted: Notify::new() })
    }

    /// Those that count now.
    pub(super) fn current(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Somebody has a certificate that they do not vouch for: perhaps they have changed.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Reads them again; those from before stay if they cannot be read.
    pub(super) fn reload(&self) {
        match self.sources.read() {
            Ok(roots) => {
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                if current.roots != roots.roots {
                    info!(roots = roots.len(), "root certificates have changed");
                    *current = Arc::new(roots);
                }
            }
            Err(error) => warn!(%error, "root certificates stay as they are"),
        }
    }

    /// Reads them again when they are doubted, though not too often, until cancelled.
    pub(super) async fn follow(self: &Arc<Self>) -> Infallible {
        loop {
            self.doubted.notified().await;
            let roots = Arc::clone(self);
            if let Err(error) = spawn_blocking(move || roots.reload()).await {
                warn!(%error, "root certificates were not read again");
            }
            sleep(READ_EVERY).await;
        }
    }
}

impl RootSources {
    fn read(&self) -> Result<RootCertStore, TlsError> {
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
        if roots.is_empty() && !self.optional {
            return Err(TlsError::NoRoots(missing));
        }
        Ok(roots)
    }
}
