//! rtnetlink: routes, links and addresses of one network namespace, and word of their changes.
//!
//! A netlink socket speaks for the namespace that it was opened in, wherever its user is. What is
//! not here: which routes there should be.

use std::{
    future::pending,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use dns_proxy_common::{
    TOKEN4_NET, TOKEN4_PREFIX_LEN, TOKEN6_LINK_LOCAL_NET, TOKEN6_NET, TOKEN6_PREFIX_LEN,
};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{LinkFlags, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{self, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType},
};
use tokio::io::unix::AsyncFd;
use tracing::debug;

use crate::polled::Polled;

/// The kernel's table of local addresses (rtnetlink(7)).
const RT_TABLE_LOCAL: u8 = 255;
/// Marks a route as ours; a number that iproute2 has no name for.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(83);
/// Octets of a message's length, with which it begins (netlink(7)), and of its whole header.
const LENGTH: usize = 4;
const HEADER: usize = 16;

/// Tokens that one route leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tokens {
    /// Of IPv4 nameservers.
    V4,
    /// Of IPv6 nameservers.
    V6,
    /// Of link-local ones, over IPv6.
    LinkLocal,
}

/// A route that makes tokens addresses of the namespace, reached by `device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenRoute {
    /// Which tokens.
    pub tokens: Tokens,
    /// The interface's index.
    pub device: u32,
    /// What its users have as their address, of the tokens' family.
    pub source: IpAddr,
    /// Routes with a lower one come first.
    pub metric: u32,
}

/// A network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Set up by its administrator.
    pub up: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Not known to be unique yet, or known not to be (RFC 4862 section 5.4).
    pub tentative: bool,
    /// Not for new connections (RFC 4862 section 5.5.4).
    pub deprecated: bool,
}

/// Asks and tells the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Speaks for the namespace that this thread is in.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Only what a dump asks for, rather than all there is.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Adds a route beside others of its metric.
    ///
    /// # Errors
    /// It is there, or the interface or the address is not.
    pub fn add(&mut self, route: &TokenRoute) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(route.message());
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND).map(|_| ())
    }

    /// Makes a route the one of its metric.
    ///
    /// # Errors
    /// The interface or the address is not there.
    pub fn set(&mut self, route: &TokenRoute) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(route.message());
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map(|_| ())
    }

    /// Removes a route.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove(&mut self, route: &TokenRoute) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelRoute(route.message());
        self.request(message, NLM_F_ACK).map(|_| ())
    }

    /// All routes to tokens, also those of other daemons. One that has lost its source shows the
    /// unspecified address.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn token_routes(&mut self) -> io::Result<Vec<TokenRoute>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut wanted = RouteMessage::default();
            wanted.header.address_family = family;
            wanted.header.table = RT_TABLE_LOCAL;
            wanted.header.protocol = PROTOCOL;
            match self.request(RouteNetlinkMessage::GetRoute(wanted), NLM_F_DUMP) {
                Ok(found) => routes.extend(found.iter().filter_map(TokenRoute::read)),
                Err(error) if family == AddressFamily::Inet6 => debug!(%error, "no IPv6 routes"),
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    /// Whether what is sent to an address stays in the namespace.
    ///
    /// # Errors
    /// It goes nowhere.
    pub fn is_local(&mut self, addr: IpAddr) -> io::Result<bool> {
        let (family, addr_attribute, length) = match addr {
            IpAddr::V4(v4) => (AddressFamily::Inet, RouteAddress::Inet(v4), 32),
            IpAddr::V6(v6) => (AddressFamily::Inet6, RouteAddress::Inet6(v6), 128),
        };
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = family;
        wanted.header.destination_prefix_length = length;
        wanted.attributes = vec![RouteAttribute::Destination(addr_attribute)];
        let found = self.request(RouteNetlinkMessage::GetRoute(wanted), NLM_F_ACK)?;
        Ok(found.iter().any(|message| {
            matches!(message, RouteNetlinkMessage::NewRoute(route)
                if route.header.kind == RouteType::Local)
        }))
    }

    /// All interfaces.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let found =
            self.request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let links = found.iter().filter_map(|message| {
            let RouteNetlinkMessage::NewLink(link) = message else { return None };
            Some(Link { index: link.header.index, up: link.header.flags.contains(LinkFlags::Up) })
        });
        Ok(links.collect())
    }

    /// All addresses of all interfaces.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn addresses(&mut self) -> io::Result<Vec<Address>> {
        let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        Ok(self.request(all, NLM_F_DUMP)?.iter().filter_map(Address::read).collect())
    }

    /// One request, and what comes back until the kernel says that this was all.
    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut found = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while rest.len() >= HEADER
                && let Some(length) = rest.first_chunk::<LENGTH>()
            {
                let length = (u32::from_ne_bytes(*length) as usize).clamp(HEADER, rest.len());
                let message = NetlinkMessage::deserialize(&rest[..length]);
                rest = rest.get(length.next_multiple_of(LENGTH)..).unwrap_or_default();
                let message = match message {
                    Ok(message) => message,
                    // Somebody's unusual interface must not hide the others.
                    Err(error) => {
                        debug!(%error, "netlink message not understood");
                        continue;
                    }
                };
                if message.header.sequence_number != self.sequence {
                    continue; // the rest of an answer that was given up
                }
                if let NetlinkPayload::InnerMessage(inner) = message.payload {
                    found.push(inner);
                } else if let NetlinkPayload::Error(error) = message.payload {
                    return if error.code.is_some() { Err(error.to_io()) } else { Ok(found) };
                } else if let NetlinkPayload::Done(_) = message.payload {
                    return Ok(found);
                }
            }
        }
    }
}

impl Tokens {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::LinkLocal];

    /// Whether they are IPv4 addresses.
    pub fn is_v4(self) -> bool {
        self == Self::V4
    }

    fn family(self) -> AddressFamily {
        if self.is_v4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
    }

    fn network(self) -> RouteAddress {
        match self {
            Self::V4 => RouteAddress::Inet(Ipv4Addr::from(TOKEN4_NET)),
            Self::V6 => RouteAddress::Inet6(Ipv6Addr::from(TOKEN6_NET)),
            Self::LinkLocal => RouteAddress::Inet6(Ipv6Addr::from(TOKEN6_LINK_LOCAL_NET)),
        }
    }

    /// Stands for no address of theirs.
    fn unspecified(self) -> IpAddr {
        if self.is_v4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
    }
}

impl TokenRoute {
    fn message(&self) -> RouteMessage {
        let (source, length, scope) = match self.source {
            IpAddr::V4(v4) => (RouteAddress::Inet(v4), TOKEN4_PREFIX_LEN, RouteScope::Host),
            IpAddr::V6(v6) => (RouteAddress::Inet6(v6), TOKEN6_PREFIX_LEN, RouteScope::Universe),
        };
        let mut route = RouteMessage::default();
        route.header.address_family = self.tokens.family();
        route.header.destination_prefix_length = length;
        route.header.table = RT_TABLE_LOCAL;
        route.header.protocol = PROTOCOL;
        route.header.scope = scope;
        route.header.kind = RouteType::Local;
        route.attributes = vec![
            RouteAttribute::Destination(self.tokens.network()),
            RouteAttribute::Oif(self.device),
            RouteAttribute::Priority(self.metric),
        ];
        if !self.source.is_unspecified() {
            route.attributes.push(RouteAttribute::PrefSource(source));
        }
        route
    }

    fn read(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(route) = message else { return None };
        let (mut device, mut metric, mut source, mut tokens) = (None, None, None, None);
        for attribute in &route.attributes {
            if let RouteAttribute::Destination(destination) = attribute {
                tokens = Tokens::ALL.into_iter().find(|all| all.network() == *destination);
            } else if let RouteAttribute::Oif(index) = attribute {
                device = Some(*index);
            } else if let RouteAttribute::Priority(priority) = attribute {
                metric = Some(*priority);
            } else if let RouteAttribute::PrefSource(RouteAddress::Inet(v4)) = attribute {
                source = Some(IpAddr::from(*v4));
            } else if let RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) = attribute {
                source = Some(IpAddr::from(*v6));
            }
        }
        let tokens = tokens?;
        let source = source.unwrap_or_else(|| tokens.unspecified());
        let ours = route.header.protocol == PROTOCOL
            && route.header.kind == RouteType::Local
            && route.header.table == RT_TABLE_LOCAL;
        ours.then_some(Self { tokens, device: device?, source, metric: metric? })
    }
}

impl Address {
    fn read(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewAddress(address) = message else { return None };
        let (mut own, mut peer) = (None, None);
        for attribute in &address.attributes {
            if let AddressAttribute::Local(ip) = attribute {
                own = Some(*ip);
            } else if let AddressAttribute::Address(ip) = attribute {
                peer = Some(*ip);
            }
        }
        let flags = address.header.flags;
        let not_unique = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
        Some(Self {
            index: address.header.index,
            // IPv6 names its own address only where there is a peer.
            ip: own.or(peer)?,
            tentative: own.or(peer)?.is_ipv6() && flags.intersects(not_unique),
            deprecated: flags.contains(AddressHeaderFlags::Deprecated),
        })
    }
}

/// Hears when links or addresses of a namespace change.
#[derive(Debug)]
pub struct Monitor(OwnedFd);

/// A [`Monitor`] that wakes its task.
pub struct Changes(AsyncFd<Polled<OwnedFd>>);

impl Monitor {
    /// Listens in the namespace that this thread is in.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn open() -> io::Result<Self> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let socket = socket::socket(
            socket::AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
        Ok(Self(socket))
    }

    /// Hands it to the current runtime.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn watch(self) -> io::Result<Changes> {
        Polled::register(self.0).map(Changes)
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Changes").field(&self.0.as_raw_fd()).finish()
    }
}

impl Changes {
    /// Waits until something has changed, and takes all that has.
    pub async fn wait(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                return pending().await; // the runtime is going
            };
            let mut changed = false;
            let mut message = [0; 64]; // what it says is not read, so it may be cut off
            loop {
                match socket::recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty()) {
                    // Out of buffer: who knows what was missed.
                    Ok(_) | Err(Errno::ENOBUFS) => changed = true,
                    Err(Errno::EINTR) => {}
                    Err(_would_block) => break,
                }
            }
            ready.clear_ready();
            if changed {
                return;
            }
        }
    }
}
