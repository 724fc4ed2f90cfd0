//! Addresses, each kind its own type, parsed once from what people write.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use rustls::pki_types::DnsName;
use thiserror::Error;

/// DNS-over-TLS (RFC 7858 section 3.1).
pub const DOT_PORT: u16 = 853;

/// What the certificate of an upstream must hold (RFC 8310 section 8).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerIdentity {
    /// This name, as a DNS subject alternative name.
    Name(DnsName<'static>),
    /// This address, as an IP subject alternative name.
    Address(IpAddr),
}

/// An upstream server: `[tls://]ADDR[:PORT][#NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamAddr {
    socket: SocketAddr,
    identity: ServerIdentity,
}

/// Why a text is not an upstream. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UpstreamAddrError {
    /// Another protocol than DNS-over-TLS.
    #[error("`{0}` names another protocol; upstreams are tls:// only")]
    Scheme(String),
    /// Not an IP address.
    #[error(
        "`{0}` is not an IP address; write ADDR[:PORT][#NAME], such as 1.1.1.1, \
         9.9.9.9:853#dns.quad9.net or [2620:fe::fe]:853#dns.quad9.net \
         (a name alone would have to be looked up in plaintext: put its address in front, ADDR#NAME)"
    )]
    Address(String),
    /// Port 0.
    #[error("`{0}`: port 0 cannot be connected to")]
    Port(String),
    /// The part behind `#` is not a host name.
    #[error("`{0}` is not a host name that a certificate could hold")]
    Name(String),
}

/// Whether an address means something else in every network, or nothing outside one host: loopback,
/// private (RFC 1918), link-local (RFC 3927), shared (RFC 6598), and their IPv6 kin (RFC 4193, RFC
/// 4291).
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let is_shared = matches!(v4.octets(), [100, 64..128, ..]);
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || is_shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// An IP address, in brackets or not.
pub fn ip(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok()
}

impl UpstreamAddr {
    /// The server at `socket`, authenticated by its address.
    pub fn by_address(socket: SocketAddr) -> Self {
        Self { socket, identity: ServerIdentity::Address(socket.ip()) }
    }

    /// Where to connect to.
    pub fn socket_addr(&self) -> SocketAddr {
        self.socket
    }

    /// What to expect of the certificate.
    pub fn identity(&self) -> &ServerIdentity {
        &self.identity
    }
}

impl FromStr for UpstreamAddr {
    type Err = UpstreamAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = match text.split_once("://") {
            Some(("tls", rest)) => rest,
            Some(_) => return Err(UpstreamAddrError::Scheme(text.to_owned())),
            None => text,
        };
        let (addr, name) = match rest.split_once('#') {
            Some((addr, name)) => (addr, Some(name)),
            None => (rest, None),
        };
        let socket = ip(addr)
            .map(|ip| SocketAddr::new(ip, DOT_PORT))
            .or_else(|| addr.parse().ok())
            .ok_or_else(|| UpstreamAddrError::Address(addr.to_owned()))?;
        if socket.port() == 0 {
            return Err(UpstreamAddrError::Port(text.to_owned()));
        }
        let Some(name) = name else {
            return Ok(Self::by_address(socket));
        };
        let name = DnsName::try_from(name.to_owned())
            .map_err(|_| UpstreamAddrError::Name(name.to_owned()))?;
        Ok(Self { socket, identity: ServerIdentity::Name(name) })
    }
}

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            ServerIdentity::Name(name) => write!(f, "{}#{}", self.socket, name.as_ref()),
            ServerIdentity::Address(_) => write!(f, "{}", self.socket),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_is_understood() {
        let cases = [
            ("1.1.1.1", "1.1.1.1:853"),
            ("1.1.1.1:8853", "1.1.1.1:8853"),
            ("tls://9.9.9.9#dns.quad9.net", "9.9.9.9:853#dns.quad9.net"),
            ("[2620:fe::fe]:853#dns.quad9.net", "[2620:fe::fe]:853#dns.quad9.net"),
            ("[2620:fe::fe]", "[2620:fe::fe]:853"),
            ("2620:fe::fe#dns.quad9.net", "[2620:fe::fe]:853#dns.quad9.net"),
        ];
        for (text, shown) in cases {
            let parsed: UpstreamAddr = text.parse().expect(text);
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(shown.parse(), Ok(parsed), "what is shown can be read back");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        use UpstreamAddrError as Error;
        let cases = [
            ("", Error::Address(String::new())),
            ("dns.quad9.net", Error::Address("dns.quad9.net".to_owned())),
            ("1.1.1", Error::Address("1.1.1".to_owned())),
            ("1.1.1.1:99999", Error::Address("1.1.1.1:99999".to_owned())),
            ("https://1.1.1.1", Error::Scheme("https://1.1.1.1".to_owned())),
            ("1.1.1.1:0", Error::Port("1.1.1.1:0".to_owned())),
            ("1.1.1.1#", Error::Name(String::new())),
            ("1.1.1.1#no spaces", Error::Name("no spaces".to_owned())),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<UpstreamAddr>(), Err(error), "{text}");
        }
    }
}
