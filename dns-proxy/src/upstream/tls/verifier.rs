//! Decides whether a server is the one that was meant (RFC 8310 section 6).
//!
//! An upstream without pins is authenticated by a certificate that a root vouches for and that holds
//! its name, or without one its address. With pins one of them must match (RFC 7858 section 4.2): the
//! server's own key, which is all it takes if there is no name; or that of an authority in its chain,
//! which then stands for the roots, so that the certificate must be signed by it, be valid and hold
//! what was asked. If there is a name as well, both ways must succeed (RFC 8310 section 6.4).

use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::{
    DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::{
    Profile,
    refusal::{Reason, Refusal},
    roots::Roots,
};
use crate::{
    addr::{ServerIdentity, UpstreamAddr},
    pin::Fingerprint,
};

/// What is demanded of one upstream.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) upstream: UpstreamAddr,
    pub(super) pins: Vec<Fingerprint>,
    pub(super) roots: Arc<Roots>,
    pub(super) profile: Profile,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// What the certificate must hold.
    pub(super) fn name(&self) -> ServerName<'static> {
        match self.upstream.identity() {
            ServerIdentity::Name(name) => ServerName::DnsName(name.clone()),
            ServerIdentity::Address(ip) => ServerName::IpAddress((*ip).into()),
        }
    }

    /// Whether these certificates are those of the server that was meant.
    pub(super) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let checked = self.check_identity(leaf, chain, now);
        checked.map_err(|reason| Refusal::new(&self.upstream, leaf, &reason, now))
    }

    fn check_identity(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Reason> {
        if !self.pins.is_empty() {
            self.check_pins(leaf, chain, now)?;
            if let ServerIdentity::Address(_) = self.upstream.identity() {
                return Ok(());
            }
        }
        let vouched = self.check_signed(&self.roots.current(), leaf, chain, now);
        vouched.inspect_err(|_| self.roots.doubt())
    }

    fn check_pins(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Reason> {
        let own = fingerprint(leaf)?;
        if self.pins.contains(&own) {
            return Ok(());
        }
        // Anybody can send a pinned certificate along; it counts only if it vouches for the leaf.
        let mut pinned = RootCertStore::empty();
        for certificate in chain {
            if fingerprint(certificate).is_ok_and(|print| self.pins.contains(&print)) {
                pinned.add(certificate.clone().into_owned())?;
            }
        }
        if pinned.is_empty() {
            return Err(Reason::NotPinned(own));
        }
        self.check_signed(&pinned, leaf, chain, now)
    }

    fn check_signed(
        &self,
        roots: &RootCertStore,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Reason> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, roots, chain, now, algorithms)?;
        Ok(verify_server_name(&leaf, &self.name())?)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.profile {
            Profile::Strict => self.check(leaf, chain, now)?,
            // Checked after the handshake, to be told.
            Profile::Opportunistic => {}
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> Result<Fingerprint, Error> {
    let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    let mut octets = [0; 32];
    octets.copy_from_slice(digest(&SHA256, &key).as_ref());
    Ok(Fingerprint(octets))
}
