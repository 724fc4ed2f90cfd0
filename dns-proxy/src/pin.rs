//! Pins: fingerprints of the public keys that a server may have.

use std::{fmt, net::IpAddr, net::SocketAddr, str::FromStr};

use data_encoding::BASE64;
use thiserror::Error;

use crate::addr::{self, UpstreamAddr};

/// What stands in front of a fingerprint (RFC 7469 section 2.1.1 knows no other hash either).
const SHA256: &str = "sha256/";

/// The SHA-256 digest of a SubjectPublicKeyInfo (RFC 7858 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// A fingerprint for an upstream: `ADDR[:PORT]=sha256/BASE64`. Without a port it is for all upstreams
/// at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    ip: IpAddr,
    port: Option<u16>,
    /// The fingerprint.
    pub fingerprint: Fingerprint,
}

/// Why a text is no pin. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PinError {
    /// Not in two parts.
    #[error("`{0}` has no fingerprint; write ADDR[:PORT]=sha256/BASE64")]
    NoFingerprint(String),
    /// Its first part.
    #[error(
        "`{0}` is not the address of an upstream; write ADDR[:PORT], such as 9.9.9.9 or \
         [2620:fe::fe]:853"
    )]
    Address(String),
    /// Its second part.
    #[error("`{0}` is not sha256/ and the base64 of 32 octets")]
    Fingerprint(String),
}

impl Pin {
    /// Whether it is for this upstream.
    pub fn is_for(&self, upstream: &UpstreamAddr) -> bool {
        let socket = upstream.socket_addr();
        self.ip == socket.ip() && self.port.is_none_or(|port| port == socket.port())
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let missing = || PinError::NoFingerprint(text.to_owned());
        let (at, fingerprint) = text.split_once('=').ok_or_else(missing)?;
        let fingerprint = fingerprint.parse()?;
        let (ip, port) = addr::ip(at)
            .map(|ip| (ip, None))
            .or_else(|| at.parse().ok().map(|at: SocketAddr| (at.ip(), Some(at.port()))))
            .ok_or_else(|| PinError::Address(at.to_owned()))?;
        Ok(Self { ip, port, fingerprint })
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}={}", SocketAddr::new(self.ip, port), self.fingerprint),
            None => write!(f, "{}={}", self.ip, self.fingerprint),
        }
    }
}

impl FromStr for Fingerprint {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let octets = text.strip_prefix(SHA256).and_then(|hash| BASE64.decode(hash.as_bytes()).ok());
        octets
            .and_then(|octets| octets.try_into().ok())
            .map(Self)
            .ok_or_else(|| PinError::Fingerprint(text.to_owned()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SHA256}{}", BASE64.encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn a_pin_is_for_the_upstreams_at_its_address() {
        for (at, upstream, expected) in [
            ("9.9.9.9", "9.9.9.9", true),
            ("9.9.9.9", "9.9.9.9:8853#dns.quad9.net", true),
            ("9.9.9.9:853", "9.9.9.9", true),
            ("9.9.9.9:853", "9.9.9.9:8853", false),
            ("9.9.9.9", "1.1.1.1", false),
            ("2620:fe::fe", "2620:fe::fe", true),
            ("[2620:fe::fe]", "2620:fe::fe", true),
            ("[2620:fe::fe]:853", "2620:fe::fe", true),
        ] {
            let pin: Pin = format!("{at}={HASH}").parse().expect(at);
            assert_eq!(pin.is_for(&upstream.parse().expect(upstream)), expected, "{at} {upstream}");
            assert_eq!(pin.to_string().parse(), Ok(pin), "what is shown can be read back");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        let fingerprint = |text: &str| PinError::Fingerprint(text.to_owned());
        for (text, error) in [
            ("9.9.9.9", PinError::NoFingerprint("9.9.9.9".to_owned())),
            ("9.9.9.9=", fingerprint("")),
            ("9.9.9.9=sha1/AAAA", fingerprint("sha1/AAAA")),
            ("9.9.9.9=sha256/AAAA", fingerprint("sha256/AAAA")),
            ("9.9.9.9=sha256/????", fingerprint("sha256/????")),
        ] {
            assert_eq!(text.parse::<Pin>(), Err(error), "{text}");
        }
        let named = format!("dns.quad9.net={HASH}");
        assert_eq!(named.parse::<Pin>(), Err(PinError::Address("dns.quad9.net".to_owned())));
    }
}
