//! Says why a server could not be authenticated: what its certificate holds, what was wanted, and
//! what to do about it.

use std::{fmt::Write as _, net::IpAddr, sync::Arc, time::Duration};

use rustls::{
    CertificateError, Error, OtherError,
    pki_types::{CertificateDer, UnixTime},
};
use thiserror::Error;
use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::{
    addr::{ServerIdentity, UpstreamAddr},
    pin::Fingerprint,
};

/// Names of a certificate that are shown.
const MAX_NAMES: usize = 8;
/// Characters of each that are shown.
const MAX_TEXT: usize = 100;

/// What is wrong.
pub(super) enum Reason {
    /// No certificate has a pinned key; this is the server's.
    NotPinned(Fingerprint),
    /// The TLS library's verdict.
    Verdict(Error),
}

/// The same in words.
#[derive(Clone, Debug, Error)]
#[error("{0}")]
pub(super) struct Refusal(String);

/// What a certificate says of itself. Whoever made it chose the words.
struct Held {
    /// Of DNS names and addresses, in the order of the certificate.
    names: Vec<GeneralName>,
    issuer: String,
    is_self_signed: bool,
    not_before: Moment,
    not_after: Moment,
}

struct Moment {
    since_1970: Duration,
    shown: String,
}

impl From<Error> for Reason {
    fn from(error: Error) -> Self {
        Self::Verdict(error)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

impl Refusal {
    /// There is nothing to know the server by.
    pub(super) fn no_certificate() -> Self {
        Self("it has no certificate".to_owned())
    }

    pub(super) fn new(
        upstream: &UpstreamAddr,
        leaf: &CertificateDer<'_>,
        reason: &Reason,
        now: UnixTime,
    ) -> Self {
        let socket = upstream.socket_addr();
        Self(match reason {
            Reason::NotPinned(own) => format!(
                "no certificate that it sent has a pinned key; its own is --pin {socket}={own}, if \
                 that is who it should be"
            ),
            Reason::Verdict(error) => match Held::read(leaf) {
                Some(held) => held.explain(upstream, error, now),
                None => format!("its certificate is malformed ({})", text(&error.to_string())),
            },
        })
    }
}

impl Held {
    fn read(leaf: &CertificateDer<'_>) -> Option<Self> {
        let certificate = Certificate::from_der(leaf).ok()?;
        let certificate = certificate.tbs_certificate();
        let names = certificate.get_extension::<SubjectAltName>().ok()?;
        let moment = |time: x509_cert::time::Time| Moment {
            since_1970: time.to_unix_duration(),
            shown: time.to_string(),
        };
        let validity = certificate.validity();
        Some(Self {
            names: names.map_or_else(Vec::new, |(_, names)| names.0),
            issuer: text(&certificate.issuer().to_string()),
            is_self_signed: certificate.issuer() == certificate.subject(),
            not_before: moment(validity.not_before),
            not_after: moment(validity.not_after),
        })
    }

    fn explain(&self, upstream: &UpstreamAddr, error: &Error, now: UnixTime) -> String {
        use CertificateError as Fault;
        let (socket, names, issuer) = (upstream.socket_addr(), self.names(), &self.issuer);
        let now = Duration::from_secs(now.as_secs());
        let fault = if let Error::InvalidCertificate(fault) = error { Some(fault) } else { None };
        if matches!(fault, Some(Fault::NotValidForName | Fault::NotValidForNameContext { .. })) {
            let wanted = match upstream.identity() {
                ServerIdentity::Name(name) => name.as_ref().to_owned(),
                ServerIdentity::Address(ip) => ip.to_string(),
            };
            let mut said = format!("the certificate is for {names}; wanted {wanted}");
            if let Some(name) = self.host_name() {
                // What cannot be written to a string?
                let _ = write!(said, "; write {socket}#{name} if that is who it should be");
            }
            return said;
        }
        if self.not_after.since_1970 < now {
            return format!("the certificate for {names} expired on {}", self.not_after.shown);
        }
        if self.not_before.since_1970 > now {
            let from = &self.not_before.shown;
            return format!(
                "the certificate for {names} is not valid before {from}; is this host's clock right?"
            );
        }
        if self.is_self_signed {
            return format!(
                "the certificate for {names} is self-signed; pin its key (--pin, for an upstream \
                 without #NAME) to trust it"
            );
        }
        // A root of the issuer's name whose key is another is none of its roots.
        if matches!(fault, Some(Fault::UnknownIssuer | Fault::BadSignature)) {
            return format!(
                "the certificate for {names} was issued by {issuer}, for which no trusted root \
                 vouches; name that root's file with --ca if it is to be trusted"
            );
        }
        let error = text(&error.to_string());
        format!("the certificate for {names}, issued by {issuer}, does not do: {error}")
    }

    /// Those that a server can be known by.
    fn names(&self) -> String {
        let mut shown = self.names.iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(text(name.as_ref())),
            GeneralName::IpAddress(octets) => address(octets.as_bytes()).map(|ip| ip.to_string()),
            GeneralName::OtherName(_)
            | GeneralName::Rfc822Name(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EdiPartyName(_)
            | GeneralName::UniformResourceIdentifier(_)
            | GeneralName::RegisteredId(_) => None,
        });
        let first: Vec<_> = shown.by_ref().take(MAX_NAMES).collect();
        let more = shown.count();
        match (first.len(), more) {
            (0, _) => "no name or address at all".to_owned(),
            (_, 0) => first.join(", "),
            _ => format!("{} and {more} more", first.join(", ")),
        }
    }

    /// One to ask for it by.
    fn host_name(&self) -> Option<&str> {
        self.names.iter().find_map(|name| match name {
            GeneralName::DnsName(name) => {
                let name: &str = name.as_ref();
                let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
                (name.len() <= MAX_TEXT && name.chars().all(is_plain)).then_some(name)
            }
            GeneralName::OtherName(_)
            | GeneralName::Rfc822Name(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EdiPartyName(_)
            | GeneralName::UniformResourceIdentifier(_)
            | GeneralName::IpAddress(_)
            | GeneralName::RegisteredId(_) => None,
        })
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// A stranger's text as it may stand in a log: bounded, and on one line.
fn text(foreign: &str) -> String {
    foreign.chars().take(MAX_TEXT).flat_map(char::escape_debug).collect()
}
