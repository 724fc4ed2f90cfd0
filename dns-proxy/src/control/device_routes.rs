//! The routes by which sockets that insist on a device (`SO_BINDTODEVICE`, `IP_UNICAST_IF`,
//! `IP_PKTINFO` with an interface) reach the tokens: for each interface and family
//! `ip route append local 127.64.0.0/10 dev eth0 table local src ADDRESS`.
//!
//! A lookup that names a device passes over routes of other devices; one that names none takes the
//! route of `lo`, whose metric is lower. Local routes deliver over `lo` whatever device they name,
//! so nothing goes near a wire. The answer comes back to ADDRESS, which must be the interface's
//! own: the kernel takes an answer to have come in by the device that has its destination.
//!
//! The tokens of link-local nameservers have such routes only: who asks one names its device.
//!
//! No rules: they would slow every other lookup of the namespace down, and outlive the interface,
//! which its routes do not.

use std::{collections::BTreeSet, net::IpAddr};

use dns_proxy_common::{Device, Listener};

use super::{
    anyip::LOOPBACK,
    netlink::{Address, Link, TokenRoute, Tokens},
};

/// Above all metrics of the routes of `lo`, which are ports.
const METRIC_BASE: u32 = 1 << 16;

/// From what is there to what should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Right as they are.
    pub keep: BTreeSet<TokenRoute>,
    /// Ours, and no longer right: of a device that is down, of an address that is gone, or of a
    /// predecessor that was killed.
    pub remove: BTreeSet<TokenRoute>,
    /// Not there yet.
    pub add: BTreeSet<TokenRoute>,
}

impl Plan {
    /// What to do in a namespace whose listener has this port. Routes with the metric of another
    /// port belong to another daemon.
    pub fn new(port: u16, links: &[Link], addresses: &[Address], present: &[TokenRoute]) -> Self {
        let wanted = wanted(port, links, addresses);
        let present: BTreeSet<_> =
            present.iter().filter(|route| route.metric == metric(port)).copied().collect();
        Self {
            keep: wanted.intersection(&present).copied().collect(),
            remove: present.difference(&wanted).copied().collect(),
            add: wanted.difference(&present).copied().collect(),
        }
    }
}

/// How the kernel programs name the route's device.
pub fn device(netns: u64, route: &TokenRoute) -> Device {
    let family = match route.tokens {
        Tokens::V4 => Listener::V4.into(),
        Tokens::V6 => Listener::V6.into(),
        Tokens::LinkLocal => Device::LINK_LOCAL,
    };
    Device { netns, index: route.device, family }
}

fn metric(port: u16) -> u32 {
    METRIC_BASE | u32::from(port)
}

fn wanted(port: u16, links: &[Link], addresses: &[Address]) -> BTreeSet<TokenRoute> {
    if !links.iter().any(|link| link.index == LOOPBACK && link.up) {
        return BTreeSet::new(); // no token can be reached
    }
    let devices = links.iter().filter(|link| link.index != LOOPBACK && link.up);
    devices
        .flat_map(|link| {
            Tokens::ALL.into_iter().filter_map(|tokens| {
                let source = source(link.index, addresses, tokens)?;
                Some(TokenRoute { tokens, device: link.index, source, metric: metric(port) })
            })
        })
        .collect()
}

/// The best address of an interface; of several as good the one that the kernel has first.
fn source(device: u32, addresses: &[Address], tokens: Tokens) -> Option<IpAddr> {
    let usable = addresses.iter().filter(|address| {
        let family = address.ip.is_ipv4() == tokens.is_v4();
        address.index == device && family && !address.tentative
    });
    let best = usable.min_by_key(|address| {
        // An answer to an address that two interfaces have comes in by one of them.
        let elsewhere = |other: &&Address| other.ip == address.ip && other.index != device;
        let link_local = matches!(address.ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let other_scope = link_local != (tokens == Tokens::LinkLocal);
        (addresses.iter().any(|other| elsewhere(&other)), other_scope, address.deprecated)
    });
    best.map(|address| address.ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 61_053;
    const LO: Link = Link { index: LOOPBACK, up: true };

    fn link(index: u32) -> Link {
        Link { index, up: true }
    }

    fn address(index: u32, ip: &str) -> Address {
        let ip = ip.parse().expect("an address");
        Address { index, ip, tentative: false, deprecated: false }
    }

    fn route_to(tokens: Tokens, device: u32, source: &str) -> TokenRoute {
        let source = source.parse().expect("an address");
        TokenRoute { tokens, device, source, metric: metric(PORT) }
    }

    fn v4(device: u32, source: &str) -> TokenRoute {
        route_to(Tokens::V4, device, source)
    }

    fn v6(device: u32, source: &str, link_local: &str) -> [TokenRoute; 2] {
        [route_to(Tokens::V6, device, source), route_to(Tokens::LinkLocal, device, link_local)]
    }

    #[track_caller]
    fn check(links: &[Link], addresses: &[Address], expected: &[TokenRoute]) {
        let plan = Plan::new(PORT, links, addresses, &[]);
        assert_eq!(plan.add, expected.iter().copied().collect());
    }

    #[test]
    fn each_interface_has_a_route_for_each_family_that_it_has_an_address_of() {
        let addresses = [
            address(1, "127.0.0.1"),
            address(2, "10.0.0.2"),
            address(2, "fd88::2"),
            address(3, "10.0.1.2"),
        ];
        let expected = [v4(2, "10.0.0.2"), v4(3, "10.0.1.2")];
        let expected = [&expected[..], &v6(2, "fd88::2", "fd88::2")].concat();
        check(&[LO, link(2), link(3), link(4)], &addresses, &expected);
    }

    #[test]
    fn the_source_is_the_address_that_answers_come_back_to_most_surely() {
        let global = [address(2, "fe80::2"), address(2, "fd88::2")];
        check(&[LO, link(2)], &global, &v6(2, "fd88::2", "fe80::2"));
        let shared = [address(2, "10.0.0.2"), address(2, "10.0.0.3"), address(3, "10.0.0.2")];
        check(&[LO, link(2)], &shared, &[v4(2, "10.0.0.3")]);
        let tentative = [Address { tentative: true, ..address(2, "fd88::2") }];
        check(&[LO, link(2)], &tentative, &[]);
        let old = [Address { deprecated: true, ..address(2, "fd88::2") }, address(2, "fd88::3")];
        check(&[LO, link(2)], &old, &v6(2, "fd88::3", "fd88::3"));
    }

    #[test]
    fn nothing_is_wanted_of_an_interface_that_is_down_nor_without_loopback() {
        let addresses = [address(2, "10.0.0.2")];
        check(&[LO, Link { index: 2, up: false }], &addresses, &[]);
        check(&[Link { up: false, ..LO }, link(2)], &addresses, &[]);
    }

    #[test]
    fn what_is_right_stays_and_other_daemons_are_left_alone() {
        let other = TokenRoute { metric: metric(PORT + 1), ..v4(2, "10.0.0.9") };
        let loopback = TokenRoute { metric: PORT.into(), ..v4(LOOPBACK, "127.0.0.1") };
        let present = [v4(2, "10.0.0.2"), v4(3, "10.0.1.2"), other, loopback];
        let addresses = [address(2, "10.0.0.2"), address(3, "10.0.1.3")];
        let plan = Plan::new(PORT, &[LO, link(2), link(3)], &addresses, &present);
        assert_eq!(plan.keep, BTreeSet::from([v4(2, "10.0.0.2")]));
        assert_eq!(plan.remove, BTreeSet::from([v4(3, "10.0.1.2")]));
        assert_eq!(plan.add, BTreeSet::from([v4(3, "10.0.1.3")]));
    }
}
