//! A certificate authority that lives as long as a test, and the server certificates it signs.

use crate::leftovers::scratch_dir;
use anyhow::{Context, Result};
use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};
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
    /// What is sent with it: certificates of authorities.
    pub chain: Vec<CertificateDer<'static>>,
    /// The file of all these, PEM.
    pub certificate_file: PathBuf,
    /// The key's file, PEM.
    pub key_file: PathBuf,
    /// The fingerprint of the public key, as `--pin` takes it.
    pub pin: String,
    key: Vec<u8>,
}

impl Pki {
    /// A new authority.
    pub fn new() -> Result<Self> {
        let params = authority("dns-proxy test authority");
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

    /// One that runs out so many seconds from now.
    pub fn server_for_seconds(&self, names: &[&str], seconds: u64) -> Result<Identity> {
        let mut params = params(names)?;
        params.not_after = (SystemTime::now() + Duration::from_secs(seconds)).into();
        self.sign(&params)
    }

    /// One that is not valid before the year 4000.
    pub fn early_server(&self, names: &[&str]) -> Result<Identity> {
        let mut params = params(names)?;
        params.not_before = date_time_ymd(4000, 1, 1);
        params.not_after = date_time_ymd(4001, 1, 1);
        self.sign(&params)
    }

    /// One that nobody has signed but the server itself.
    pub fn self_signed_server(&self, names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        self.identity(&key, &params(names)?.self_signed(&key)?, None)
    }

    /// One that an authority has signed which is itself signed by this one, and that authority's pin.
    pub fn chained_server(&self, names: &[&str]) -> Result<(Identity, String)> {
        let middle = KeyPair::generate()?;
        let pin = pin(&middle);
        let params_of_middle = authority("dns-proxy test authority in between");
        let middle = CertifiedIssuer::signed_by(params_of_middle, middle, &self.issuer)?;
        let key = KeyPair::generate()?;
        let certificate = params(names)?.signed_by(&key, &middle)?;
        Ok((self.identity(&key, &certificate, Some(middle.as_ref()))?, pin))
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        self.identity(&key, &params.signed_by(&key, &self.issuer)?, None)
    }

    fn identity(
        &self,
        key: &KeyPair,
        certificate: &Certificate,
        middle: Option<&Certificate>,
    ) -> Result<Identity> {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| self.dir.path().join(format!("server-{number}-{kind}.pem"));
        let (certificate_file, key_file) = (file("cert"), file("key"));
        let pem = certificate.pem() + &middle.map(Certificate::pem).unwrap_or_default();
        fs::write(&certificate_file, pem).context("write a certificate")?;
        fs::write(&key_file, key.serialize_pem()).context("write a key")?;
        Ok(Identity {
            certificate: certificate.der().clone(),
            chain: middle.iter().map(|middle| middle.der().clone()).collect(),
            certificate_file,
            key_file,
            pin: pin(key),
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

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// RFC 7858 section 4.2.
fn pin(key: &KeyPair) -> String {
    let spki = rcgen::PublicKeyData::subject_public_key_info(key);
    format!("sha256/{}", BASE64.encode(digest(&SHA256, &spki).as_ref()))
}

fn params(names: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "dns-proxy test server");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
