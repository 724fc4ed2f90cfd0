//! One `--route`, as people write it: `ZONE=TARGET`.

use std::{net::SocketAddr, str::FromStr};

use dns_proxy_common::DNS_PORT;
use thiserror::Error;

use super::zone::{Zone, ZoneError};
use crate::addr::{self, UpstreamAddr, UpstreamAddrError};

/// What an operator says of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The zone.
    pub zone: Zone,
    /// Where its names go.
    pub target: Target,
}

/// Where names go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the nameserver that was asked, in plaintext.
    Original,
    /// To this one, in plaintext.
    Plain(SocketAddr),
    /// To this one, over TLS.
    Tls(UpstreamAddr),
    /// Nowhere: the query is refused.
    Refuse,
    /// Nowhere: there is no such name.
    NxDomain,
}

/// Why a text is no route. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RouteError {
    /// Not in two parts.
    #[error("`{0}` has no target; write ZONE=TARGET, such as corp.example=original")]
    NoTarget(String),
    /// Its first part.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// Its second part.
    #[error(
        "`{0}` is no target; write original, ADDR[:PORT], tls://ADDR[:PORT][#NAME], refuse or \
         nxdomain"
    )]
    Target(String),
    /// An address with port 0.
    #[error("`{0}`: port 0 cannot be asked")]
    Port(String),
    /// Its second part, which names an upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamAddrError),
}

impl Target {
    /// The nameserver to ask in plaintext, if it names one.
    pub fn address(&self) -> Option<SocketAddr> {
        if let Self::Plain(address) = self { Some(*address) } else { None }
    }

    /// The upstream to ask over TLS, if it names one.
    pub fn upstream(&self) -> Option<UpstreamAddr> {
        if let Self::Tls(upstream) = self { Some(upstream.clone()) } else { None }
    }
}

impl FromStr for Route {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let no_target = || RouteError::NoTarget(text.to_owned());
        let (zone, target) = text.split_once('=').ok_or_else(no_target)?;
        Ok(Self { zone: zone.parse()?, target: target.parse()? })
    }
}

impl FromStr for Target {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "original" => return Ok(Self::Original),
            "refuse" => return Ok(Self::Refuse),
            "nxdomain" => return Ok(Self::NxDomain),
            _ if text.contains("://") => return Ok(Self::Tls(text.parse()?)),
            _ => {}
        }
        let address = addr::ip(text)
            .map(|ip| SocketAddr::new(ip, DNS_PORT))
            .or_else(|| text.parse().ok())
            .ok_or_else(|| RouteError::Target(text.to_owned()))?;
        if address.port() == 0 {
            return Err(RouteError::Port(text.to_owned()));
        }
        Ok(Self::Plain(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_target_is_understood() {
        let plain = |addr: &str| Target::Plain(addr.parse().expect(addr));
        for (text, target) in [
            ("original", Target::Original),
            ("refuse", Target::Refuse),
            ("nxdomain", Target::NxDomain),
            ("10.0.0.1", plain("10.0.0.1:53")),
            ("127.0.0.1:8600", plain("127.0.0.1:8600")),
            ("fd00::1", plain("[fd00::1]:53")),
            ("[fd00::1]", plain("[fd00::1]:53")),
            ("[fd00::1]:5353", plain("[fd00::1]:5353")),
            (
                "tls://9.9.9.9#dns.quad9.net",
                Target::Tls("9.9.9.9#dns.quad9.net".parse().expect("")),
            ),
        ] {
            let route: Route = format!("corp.example={text}").parse().expect(text);
            assert_eq!(route.zone.to_string(), "corp.example");
            assert_eq!(route.target, target);
        }
    }

    #[test]
    fn every_mistake_is_named() {
        for (text, error) in [
            ("corp", RouteError::NoTarget("corp".to_owned())),
            ("=original", RouteError::Zone(ZoneError::Empty)),
            ("corp=", RouteError::Target(String::new())),
            ("corp=orginal", RouteError::Target("orginal".to_owned())),
            ("corp=ns.corp", RouteError::Target("ns.corp".to_owned())),
            ("corp=10.0.0.1:0", RouteError::Port("10.0.0.1:0".to_owned())),
            ("corp=10.0.0.1#name", RouteError::Target("10.0.0.1#name".to_owned())),
            (
                "corp=https://10.0.0.1",
                UpstreamAddrError::Scheme("https://10.0.0.1".to_owned()).into(),
            ),
        ] {
            assert_eq!(text.parse::<Route>(), Err(error), "{text}");
        }
    }
}
