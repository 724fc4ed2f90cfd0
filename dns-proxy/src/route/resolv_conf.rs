//! The host's own resolver configuration (resolv.conf(5)), as the C library reads it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use dns_proxy_common::DNS_PORT;

use super::zone::Zone;

/// Nameservers that are taken (`MAXNS` of resolv.h).
const MAX_NAMESERVERS: usize = 3;
/// Search domains that are taken; glibc has no limit.
const MAX_SEARCH: usize = 32;

/// What of it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Nameservers, in order of preference.
    pub nameservers: Vec<SocketAddr>,
    /// Domains in which short names are looked for.
    pub search: Vec<Zone>,
}

impl ResolvConf {
    /// Reads a configuration; what cannot be understood is left out, as the C library does.
    /// `index_of` knows the index of a network interface.
    pub fn parse(text: &str, index_of: impl Fn(&str) -> Option<u32>) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next().and_then(|word| nameserver(word, &index_of));
                    conf.nameservers.extend(server);
                }
                // The last one counts.
                Some("search" | "domain") => {
                    conf.search = words.filter_map(|word| word.parse().ok()).collect();
                }
                _ => {}
            }
        }
        if conf.nameservers.is_empty() {
            conf.nameservers.push((Ipv4Addr::LOCALHOST, DNS_PORT).into());
        }
        conf.nameservers.truncate(MAX_NAMESERVERS);
        conf.search.truncate(MAX_SEARCH);
        conf
    }
}

fn nameserver(word: &str, index_of: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    match word.split_once('%') {
        None => word.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, DNS_PORT)),
        Some((ip, interface)) => {
            let scope = interface.parse().ok().or_else(|| index_of(interface))?;
            Some(SocketAddrV6::new(ip.parse().ok()?, DNS_PORT, 0, scope).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ResolvConf {
        ResolvConf::parse(text, |name| (name == "eth0").then_some(7))
    }

    #[test]
    fn nameservers_and_the_last_search_line_are_taken() {
        let conf = parse(
            "# comment\n; comment\ndomain old.example\nsearch corp.example  eu.corp.example. \n\
             nameserver 10.0.0.2\nnameserver nonsense\nnameserver fd00::1 # more\n\
             nameserver fe80::1%eth0\nnameserver 10.0.0.3\noptions ndots:5\n",
        );
        let servers: Vec<_> = conf.nameservers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.2:53", "[fd00::1]:53", "[fe80::1%7]:53"]);
        let search: Vec<_> = conf.search.iter().map(ToString::to_string).collect();
        assert_eq!(search, ["corp.example", "eu.corp.example"]);
    }

    #[test]
    fn without_a_nameserver_it_is_this_host() {
        let localhost = ["127.0.0.1:53".parse().expect("an address")];
        assert_eq!(parse("nameserver fe80::1%gone\n").nameservers, localhost);
        assert_eq!(parse("").nameservers, localhost);
    }
}
