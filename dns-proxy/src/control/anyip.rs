//! The route that makes every IPv6 token an address of the namespace (AnyIP):
//! `ip -6 route add local fd90:2c8e:591c:53::/64 dev lo src ::1`.
//!
//! IPv4 needs none: all of 127/8 is local already.

use std::{io, net::Ipv6Addr};

use dns_proxy_common::{TOKEN6_NET, TOKEN6_PREFIX_LEN};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The kernel's table of local addresses (rtnetlink(7)).
const RT_TABLE_LOCAL: u8 = 255;
/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
/// Holds the acknowledgement of one request: an error header around the request itself.
const REPLY_BUFFER: usize = 4_096;

/// Adds the route in the namespace that this thread is in, or finds it there.
///
/// `port` is the listener's and becomes the route's metric: two daemons that serve one namespace
/// have a route each, and one that was killed finds its own again.
///
/// # Errors
/// `lo` is down, or IPv6 is disabled.
pub fn add(port: u16) -> io::Result<()> {
    request(RouteNetlinkMessage::NewRoute(route(port)), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Removes it again.
///
/// # Errors
/// It is not there.
pub fn remove(port: u16) -> io::Result<()> {
    request(RouteNetlinkMessage::DelRoute(route(port)), 0)
}

fn route(port: u16) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet6;
    route.header.destination_prefix_length = TOKEN6_PREFIX_LEN;
    route.header.table = RT_TABLE_LOCAL;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Local;
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet6(Ipv6Addr::from(TOKEN6_NET))),
        RouteAttribute::Oif(LOOPBACK),
        RouteAttribute::Priority(u32::from(port)),
        // Else the source would be the client's global address, whose answers need not come back
        // over `lo`.
        RouteAttribute::PrefSource(RouteAddress::Inet6(Ipv6Addr::LOCALHOST)),
    ];
    route
}

/// One request and its acknowledgement.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let mut reply = Vec::with_capacity(REPLY_BUFFER);
    socket.recv(&mut reply, 0)?;
    let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    if let NetlinkPayload::Error(error) = reply.payload
        && error.code.is_some()
    {
        return Err(error.to_io());
    }
    Ok(())
}
