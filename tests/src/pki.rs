//! A certificate authority that lives as long as a test, and the server certificates it signs.

use crate::leftovers::scratch_dir;
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// The authority, with its files in a directory that goes with it.
#[derive(Debug)]
pub struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
    issued: AtomicU32,
}

/// A server's certificate and key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// The certificate's file, PEM.
    pub certificate_file: PathBuf,
    /// The key's file, PEM.
    pub key_file: PathBuf,
    /// The public key as it stands in the certificate (SubjectPublicKeyInfo), for pins.
    pub spki: Vec<u8>,
    key: Vec<u8>,
}

impl Pki {
    /// A new authority.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "dns-proxy test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let dir = scratch_dir()?;
        fs::write(dir.path().join("ca.pem"), issuer.pem()).context("write ca.pem")?;
        Ok(Self { issuer, dir, issued: AtomicU32::new(0) })
    }

    /// The authority's certificate, PEM: for `--ca`.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The directory of all its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A valid certificate for these DNS names and IP addresses.
    pub fn server(&self, names: &[&str]) -> Result<Identity> {
        self.sign(&params(names)?)
    }

    /// One that ran out in 2020.
    pub fn expired_server(&self, names: &[&str]) -> Result<Identity> {
        let mut params = params(names)?;
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| self.dir.path().join(format!("server-{number}-{kind}.pem"));
        let (certificate_file, key_file) = (file("cert"), file("key"));
        fs::write(&certificate_file, certificate.pem()).context("write a certificate")?;
        fs::write(&key_file, key.serialize_pem()).context("write a key")?;
        Ok(Identity {
            certificate: certificate.der().clone(),
            certificate_file,
            key_file,
            spki: rcgen::PublicKeyData::subject_public_key_info(&key),
            key: key.serialize_der(),
        })
    }
}

impl Identity {
    /// The private key, for a TLS server.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

fn params(names: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "dns-proxy test server");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
