//! The routes that make every token an address of the namespace (AnyIP):
//! `ip route add local 127.64.0.0/10 dev lo table local src 127.0.0.1` and
//! `ip -6 route add local fd90:2c8e:591c:53::/64 dev lo table local src ::1`.
//!
//! Without them IPv6 tokens would follow the default route. IPv4 ones are local as all of 127/8 is,
//! but the routes of `device_routes` are more specific than that.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::netlink::{Netlink, TokenRoute, Tokens};

/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

/// The sources of the two routes, each by its family.
pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// As above.
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Adds one of the routes, or finds it there.
///
/// `port` is the listener's and becomes the route's metric: two daemons that serve one namespace
/// have a route each, and one that was killed finds its own again.
///
/// # Errors
/// `lo` is down, or the family is disabled.
pub fn add(netlink: &mut Netlink, port: u16, family: IpAddr) -> io::Result<()> {
    netlink.set(&route(port, family))
}

/// Removes it again.
///
/// # Errors
/// It is not there.
pub fn remove(netlink: &mut Netlink, port: u16, family: IpAddr) -> io::Result<()> {
    netlink.remove(&route(port, family))
}

fn route(port: u16, source: IpAddr) -> TokenRoute {
    // With a source, else it would be the client's global address over IPv6, whose answers need not
    // come back over `lo`.
    let tokens = if source.is_ipv4() { Tokens::V4 } else { Tokens::V6 };
    TokenRoute { tokens, device: LOOPBACK, source, metric: port.into() }
}
