//! Which way a name goes: by the longest zone that it is in.
//!
//! Pure: it knows names and targets, no sockets and no clock. Whether a default route may be taken
//! depends on the nameserver that was asked, so the caller says that.

mod defaults;
mod resolv_conf;
mod target;
mod zone;

use std::{collections::BTreeSet, net::SocketAddr};

pub use resolv_conf::ResolvConf;
pub use target::{Route, RouteError, Target};
use thiserror::Error;
use zone::{Tree, label_count};
pub use zone::{Zone, ZoneError};

use crate::{addr::UpstreamAddr, wire::rr_type};

/// Where a name goes for which no route says otherwise.
const DEFAULT: Action = Action::Encrypted(Group(0));
/// Where names go that only an internal nameserver can know.
const NEAR: Action = Action::Original(Whose::Near);

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes to these upstreams over TLS.
    Encrypted(Group),
    /// It goes to the nameserver that was asked, in plaintext.
    Original(Whose),
    /// It goes to the first of these that answers, in plaintext.
    Plain(Box<[SocketAddr]>),
    /// It is answered here.
    Local(Local),
}

/// A number for a set of upstreams: 0 for `--upstream`, above it those of [`Routes::groups`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(pub usize);

/// Which original nameservers may be asked in plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Any: the operator said so.
    Any,
    /// Those that are near: a public one knows nothing of such names but would learn them.
    Near,
}

/// An answer of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The zone that it is for.
    pub zone: Zone,
    /// What it says.
    pub answer: Answer,
}

/// What an answer of our own says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The loopback addresses (RFC 6761 section 6.3).
    Loopback,
    /// That the name is `localhost`.
    Localhost,
    /// The name has no records of this type.
    NoData,
    /// There is no such name.
    NxDomain,
    /// The same, because the operator says so.
    Blocked,
    /// The query is refused, because the operator says so.
    Refused,
    /// It cannot be answered: whoever would know asks us.
    Circular,
}

/// Why routes contradict each other. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` has two routes that cannot both hold; only addresses, or only tls:// upstreams, can be \
     given several times for one zone"
)]
pub struct Contradiction(Zone);

/// All routes.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    tree: Tree<Action>,
    /// Single-label names have a default route.
    single_labels: bool,
    groups: Vec<Vec<UpstreamAddr>>,
    resolvers: Vec<SocketAddr>,
}

impl Routes {
    /// The routes that the operator gave; with `defaults`, the built-in ones and those that the
    /// host's resolver configuration suggests beside them.
    ///
    /// # Errors
    /// Two routes of one zone contradict each other.
    pub fn new(given: &[Route], defaults: bool, host: &ResolvConf) -> Result<Self, Contradiction> {
        let mut routes = Self {
            single_labels: defaults,
            resolvers: host.nameservers.clone(),
            ..Self::default()
        };
        for (zone, answer) in defaults::answers() {
            let entry = routes.tree.entry(&zone);
            *entry = Some(Action::Local(Local { zone, answer }));
        }
        if defaults {
            let search = host.search.iter().filter(|zone| !zone.is_root()).cloned();
            for zone in defaults::original().chain(search) {
                routes.tree.entry(&zone).get_or_insert(NEAR);
            }
        }
        // What the operator says of a zone replaces what is built in.
        for route in given {
            let of_zone = given.iter().filter(|other| other.zone == route.zone);
            let targets: Vec<_> = of_zone.map(|other| &other.target).collect();
            let action = routes.action(&route.zone, &targets)?;
            *routes.tree.entry(&route.zone) = Some(action);
        }
        Ok(routes)
    }

    /// Which way a name on the wire goes. `is_near` says whether the nameserver that was asked is
    /// near; it is called for names with a default route only.
    pub fn find(&self, name: &[u8], qtype: u16, is_near: impl FnOnce() -> bool) -> &Action {
        let (mut labels, mut longest, mut otherwise) = (0, &DEFAULT, &DEFAULT);
        for (depth, action) in self.tree.above(name) {
            (labels, longest) = (depth, action);
            if *action != NEAR {
                otherwise = action;
            }
        }
        if labels == 0 && self.single_labels && is_of_hosts(qtype) && label_count(name) == 1 {
            longest = &NEAR;
        }
        if *longest == NEAR && !is_near() { otherwise } else { longest }
    }

    /// The sets of upstreams beside `--upstream`, the first one being [`Group`] 1.
    pub fn groups(&self) -> &[Vec<UpstreamAddr>] {
        &self.groups
    }

    /// What `original` means to clients that were not redirected: the host's own nameservers, in
    /// order of preference.
    pub fn resolvers(&self) -> &[SocketAddr] {
        &self.resolvers
    }

    /// Leaves out nameservers that ask us in turn. A zone that has no other fails.
    pub fn avoid(&mut self, given: &[Route], circular: &BTreeSet<SocketAddr>) {
        self.resolvers.retain(|addr| !circular.contains(addr));
        for Route { zone, .. } in given {
            let entry = self.tree.entry(zone);
            let Some(Action::Plain(addrs)) = entry else {
                continue;
            };
            let left: Box<[_]> =
                addrs.iter().copied().filter(|addr| !circular.contains(addr)).collect();
            *entry = Some(match left.is_empty() {
                false => Action::Plain(left),
                true => Action::Local(Local { zone: zone.clone(), answer: Answer::Circular }),
            });
        }
    }

    fn action(&mut self, zone: &Zone, targets: &[&Target]) -> Result<Action, Contradiction> {
        let local = |answer| Ok(Action::Local(Local { zone: zone.clone(), answer }));
        if let Some(addresses) = targets.iter().map(|target| target.address()).collect() {
            return Ok(Action::Plain(addresses));
        }
        if let Some(upstreams) = targets.iter().map(|target| target.upstream()).collect() {
            return Ok(Action::Encrypted(self.group(upstreams)));
        }
        match targets {
            [Target::Original] => Ok(Action::Original(Whose::Any)),
            [Target::Refuse] => local(Answer::Refused),
            [Target::NxDomain] => local(Answer::Blocked),
            _ => Err(Contradiction(zone.clone())),
        }
    }

    /// The number of a set of upstreams, which zones may share, and with it the connections.
    fn group(&mut self, upstreams: Vec<UpstreamAddr>) -> Group {
        let known = self.groups.iter().position(|group| *group == upstreams);
        Group(
            1 + known.unwrap_or_else(|| {
                self.groups.push(upstreams);
                self.groups.len() - 1
            }),
        )
    }
}

/// Whether a query can be for a host. Validating and recursive resolvers ask others for top-level
/// domains, whose names have a single label too.
fn is_of_hosts(qtype: u16) -> bool {
    !matches!(qtype, rr_type::NS | rr_type::SOA | rr_type::DS | rr_type::DNSKEY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u16 = 1;

    fn routes(given: &[&str], defaults: bool, host: &str) -> Routes {
        let given: Vec<Route> = given.iter().map(|route| route.parse().expect(route)).collect();
        Routes::new(&given, defaults, &ResolvConf::parse(host, |_| None)).expect("no contradiction")
    }

    fn name(text: &str) -> Vec<u8> {
        text.parse::<Zone>().expect(text).wire().to_vec()
    }

    /// What becomes of the address of a name, by the nameserver that was asked.
    fn way(routes: &Routes, text: &str) -> [String; 2] {
        [true, false].map(|is_near| match routes.find(&name(text), A, || is_near) {
            Action::Encrypted(Group(group)) => format!("tls {group}"),
            Action::Original(_) => "original".to_owned(),
            Action::Plain(addresses) => format!("{addresses:?}"),
            Action::Local(local) => format!("{:?}", local.answer),
        })
    }

    #[test]
    fn names_that_only_an_internal_nameserver_knows_go_there_if_it_is_near() {
        let routes = routes(&[], true, "search corp.example.com eu.compute.internal .\n");
        for original in [
            "db.internal",
            "DB.Internal",
            "internal",
            "ip-10-0-0-1.ec2.internal",
            "kubernetes.default.svc.cluster.local",
            "printer.local",
            "nas.home.arpa",
            "router.lan",
            "host.localdomain",
            "wiki.intranet",
            "a.b.corp",
            "x.private",
            "web.docker",
            "db.dns.podman",
            "c1.lxd",
            "c1.incus",
            "db",
            "_gateway",
            "www.corp.example.com",
            "ipv4only.arpa",
            "1.0.0.10.in-addr.arpa",
            "7.0.31.172.in-addr.arpa",
            "1.2.168.192.in-addr.arpa",
            "169.169.254.169.in-addr.arpa",
            "1.0.127.100.in-addr.arpa",
            "1.0.0.d.f.ip6.arpa",
            "1.b.e.f.ip6.arpa",
        ] {
            assert_eq!(way(&routes, original), ["original", "tls 0"], "{original}");
        }
        for encrypted in [
            ".",
            "example.com",
            "internal.example.com",
            "xinternal.net",
            "use-application-dns.net",
            "7.0.32.172.in-addr.arpa",
            "1.0.63.100.in-addr.arpa",
            "8.8.8.8.in-addr.arpa",
            "1.0.0.e.f.ip6.arpa",
        ] {
            assert_eq!(way(&routes, encrypted), ["tls 0"; 2], "{encrypted}");
        }
    }

    #[test]
    fn special_names_are_answered_here_even_without_default_routes() {
        for defaults in [true, false] {
            let routes = routes(&[], defaults, "search localhost\n");
            for (text, answer) in [
                ("localhost", "Loopback"),
                ("a.LOCALHOST", "Loopback"),
                ("1.0.0.127.in-addr.arpa", "Localhost"),
                ("2.0.0.127.in-addr.arpa", "NxDomain"),
                ("resolver.arpa", "NoData"),
                ("_dns.resolver.arpa", "NoData"),
                ("duckduckgo.onion", "NxDomain"),
                ("any.invalid", "NxDomain"),
            ] {
                assert_eq!(way(&routes, text), [answer; 2], "{text}");
            }
            let reverse = format!("1.{}ip6.arpa", "0.".repeat(31));
            assert_eq!(way(&routes, &reverse), ["Localhost"; 2]);
        }
    }

    #[test]
    fn without_default_routes_all_that_is_left_is_encrypted() {
        let routes = routes(&[], false, "search corp.example.com\n");
        for text in ["db.internal", "db", "www.corp.example.com", "1.0.0.10.in-addr.arpa"] {
            assert_eq!(way(&routes, text), ["tls 0"; 2], "{text}");
        }
    }

    #[test]
    fn the_operators_routes_win_and_the_longest_of_them() {
        let given = [
            "corp.example=10.0.0.1",
            "corp.example=[fd00::1]:5353",
            "db.corp.example=original",
            "lab.example=tls://9.9.9.9#dns.quad9.net",
            "test.lab.example=nxdomain",
            "other.example=tls://9.9.9.9#dns.quad9.net",
            "ads.example=refuse",
            "internal=tls://1.1.1.1",
            "onion=original",
        ];
        let routes = routes(&given, true, "");
        for (text, expected) in [
            ("www.corp.example", "[10.0.0.1:53, [fd00::1]:5353]"),
            ("x.db.corp.example", "original"),
            ("lab.example", "tls 1"),
            ("a.test.lab.example", "Blocked"),
            ("other.example", "tls 1"),
            ("ads.example", "Refused"),
            ("db.internal", "tls 2"),
            ("a.onion", "original"),
        ] {
            assert_eq!(way(&routes, text), [expected; 2], "{text}");
        }
        assert_eq!(routes.groups().len(), 2, "equal sets of upstreams are one");
    }

    #[test]
    fn where_a_default_route_does_not_hold_the_next_longest_zone_counts() {
        let routes = routes(&[".=10.0.0.1", "deep.internal=refuse"], true, "");
        assert_eq!(way(&routes, "db.internal"), ["original", "[10.0.0.1:53]"]);
        assert_eq!(way(&routes, "db"), ["original", "[10.0.0.1:53]"]);
        assert_eq!(way(&routes, "example.com"), ["[10.0.0.1:53]"; 2]);
        assert_eq!(way(&routes, "a.deep.internal"), ["Refused"; 2]);
    }

    #[test]
    fn nameservers_that_ask_us_are_left_out() {
        let given = ["corp=10.0.0.1", "corp=10.0.0.2", "lab=10.0.0.1", "x.lab=refuse"];
        let given = given.map(|route| route.parse::<Route>().expect(route));
        let host = ResolvConf::parse("nameserver 10.0.0.1\nnameserver 10.0.0.3\n", |_| None);
        let mut routes = Routes::new(&given, true, &host).expect("no contradiction");
        routes.avoid(&given, &["10.0.0.1:53".parse().expect("an address")].into());
        assert_eq!(way(&routes, "a.corp"), ["[10.0.0.2:53]"; 2]);
        assert_eq!(way(&routes, "a.lab"), ["Circular"; 2]);
        assert_eq!(way(&routes, "x.lab"), ["Refused"; 2]);
        assert_eq!(routes.resolvers(), ["10.0.0.3:53".parse().expect("an address")]);
    }

    #[test]
    fn top_level_domains_are_no_hosts() {
        let routes = routes(&[], true, "");
        for qtype in [rr_type::NS, rr_type::SOA, rr_type::DS, rr_type::DNSKEY] {
            assert_eq!(*routes.find(&name("com"), qtype, || true), DEFAULT);
        }
    }

    #[test]
    fn contradictions_are_named() {
        for given in [
            ["corp=original", "corp=10.0.0.1"],
            ["corp=10.0.0.1", "corp=tls://10.0.0.1"],
            ["corp=refuse", "Corp.=nxdomain"],
        ] {
            let given = given.map(|route| route.parse().expect(route));
            let error = Routes::new(&given, true, &ResolvConf::default()).expect_err("no sense");
            assert!(error.to_string().starts_with("`corp` has two routes"), "{error}");
        }
    }
}
