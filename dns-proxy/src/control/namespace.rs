//! One network namespace in service: its listeners, its route, its place in the ready map.
//!
//! Order matters. Going up: sockets, route, worker, ready. Going down: ready, worker, route. Nobody
//! is ever sent to a listener that is not there.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, UdpSocket},
};

use dns_proxy_common::{Listener, Token};
use tracing::debug;

use super::{
    anyip,
    netns::{self, Netns, NetnsId},
    sockets::{self, Opened},
    stale,
};
use crate::datapath::worker::Sockets;

/// What is set up inside one namespace. Dropping it removes the route; the sockets belong to a
/// worker by then.
#[derive(Debug)]
pub struct Namespace {
    netns: Netns,
    cookie: u64,
    /// What the kernel may use now.
    listener: Listener,
    /// What there are sockets for.
    families: u16,
}

impl Namespace {
    /// Opens the listeners inside and adds the route.
    ///
    /// # Errors
    /// The namespace cannot be entered, or has no free port.
    pub fn open(netns: Netns) -> io::Result<(Self, Sockets)> {
        let Opened { sockets, listener } = netns.enter(sockets::open_in_namespace)??;
        let any = sockets.udp.first().ok_or(io::ErrorKind::Unsupported)?;
        let cookie = netns::cookie(any)?;
        let families = listener.families;
        let listener = Listener { families: 0, ..listener };
        let mut namespace = Self { netns, cookie, listener, families };
        namespace.refresh();
        Ok((namespace, sockets))
    }

    /// Looks which tokens can be reached inside, now that `lo` may have come up or gone down, which
    /// takes the IPv6 route along. `true` if the ready map must hear of it.
    pub fn refresh(&mut self) -> bool {
        let port = self.port();
        let reachable = self.netns.enter(|| {
            let v4 = UdpSocket::bind((Ipv4Addr::from(Token(1).v4()), 0)).map(|_| Listener::V4);
            let v6 = anyip::add(port).map(|()| Listener::V6);
            [v4, v6].map(|family| family.inspect_err(|error| debug!(%error, "no tokens")))
        });
        let reachable = reachable.into_iter().flatten().flatten();
        let families = self.families & reachable.fold(0, |families, family| families | family);
        let changed = families != self.listener.families;
        self.listener.families = families;
        changed
    }

    /// Breaks connections of these cgroups that are older than the redirection; how many.
    ///
    /// # Errors
    /// The kernel cannot do it.
    pub fn break_stale(&self, cgroups: &HashSet<u64>) -> io::Result<usize> {
        self.netns.enter(|| stale::destroy(cgroups))?
    }

    /// Every family that there are sockets for can be reached.
    pub fn is_complete(&self) -> bool {
        self.listener.families == self.families
    }

    /// Which namespace.
    pub fn id(&self) -> NetnsId {
        self.netns.id()
    }

    /// Its cookie.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Where the kernel programs find it.
    pub fn listener(&self) -> Listener {
        self.listener
    }

    /// The listeners' port.
    pub fn port(&self) -> u16 {
        u16::from_be(self.listener.port_be)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.listener.families & Listener::V6 != 0 {
            let port = self.port();
            if let Err(error) = self.netns.enter(|| anyip::remove(port)).flatten() {
                debug!(%error, netns = self.netns.id().0, "IPv6 route not removed");
            }
        }
    }
}
