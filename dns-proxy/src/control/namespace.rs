//! One network namespace in service: its listeners, its routes, its place in the ready map.
//!
//! Order matters. Going up: sockets, routes, worker, ready. Going down: ready, worker, routes.
//! Nobody is ever sent to a listener that is not there.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::Arc,
};

use dns_proxy_common::{Device, Listener, Sources, Token};
use nix::libc;
use tracing::debug;

use super::{
    anyip,
    bpf::Bpf,
    device_routes::{self, Plan},
    locals::Addresses,
    netlink::{Changes, Monitor, Netlink},
    netns::{self, Netns, NetnsId},
    sock_diag,
    sockets::{self, Opened},
    stale,
};
use crate::{datapath::worker::Sockets, upstream::Network};

/// The unspecified address, and one of the many that only the default route leads to (RFC 5737,
/// RFC 3849).
const OUTSIDE_V4: (IpAddr, IpAddr) =
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)));
/// As above.
const OUTSIDE_V6: (IpAddr, IpAddr) = (
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
);
/// The port where nobody answers (RFC 863).
const DISCARD: u16 = 9;

/// What is set up inside one namespace. Dropping it removes the routes; the sockets belong to a
/// worker by then.
#[derive(Debug)]
pub struct Namespace {
    netns: Arc<Netns>,
    cookie: u64,
    netlink: Netlink,
    /// What the kernel may use now.
    listener: Listener,
    /// What there are sockets for.
    families: u16,
    /// The leak guard stops tokens that `lo` does not take.
    guarded: bool,
    /// The devices that the kernel programs know to have a route.
    devices: BTreeSet<Device>,
}

/// What is about to change of the routes by device.
#[derive(Debug)]
pub struct DeviceChange {
    plan: Plan,
    /// Devices that have no route any more, or will not for a moment.
    pub gone: Vec<Device>,
}

impl Namespace {
    /// Opens the listeners inside, on `port` if it is free, and adds the routes over `lo`. From then on
    /// it hears of changes of its links and addresses.
    ///
    /// # Errors
    /// The namespace cannot be entered, or has no free port.
    pub fn open(
        netns: Netns,
        port: u16,
        bpf: &Bpf,
    ) -> io::Result<(Self, Sockets, Addresses, Changes)> {
        let (opened, addresses, netlink, monitor) = netns.enter(|| {
            let opened = sockets::open_in_namespace(port, bpf)?;
            io::Result::Ok((opened, Addresses::open()?, Netlink::open()?, Monitor::open()?))
        })??;
        let Opened { sockets, listener } = opened;
        let any = sockets.udp.first().ok_or(io::ErrorKind::Unsupported)?;
        let cookie = netns::cookie(any)?;
        let changes = monitor.watch()?;
        let (families, guarded) = (listener.families, bpf.is_guarded());
        let listener = Listener { families: 0, ..listener };
        let (netns, devices) = (Arc::new(netns), BTreeSet::new());
        let mut namespace = Self { netns, cookie, netlink, listener, families, guarded, devices };
        namespace.refresh();
        Ok((namespace, sockets, addresses, changes))
    }

    /// Looks which tokens can be reached inside, now that `lo` may have come up or gone down, which
    /// takes the routes along. `true` if the ready map must hear of it.
    pub fn refresh(&mut self) -> bool {
        let port = self.port();
        let mut reachable = 0;
        // Neither waits for the lock under which the host's interfaces change, as adding an IPv4
        // route does.
        let v4 = if self.guarded {
            // Reachable the moment that `lo` comes up, with no word from us; until then the guard
            // refuses what we would. Runtimes start the first process soon after.
            Ok(Listener::V4)
        } else {
            let token = (Ipv4Addr::from(Token(1).v4()), 0);
            self.netns.enter(|| UdpSocket::bind(token)).flatten().map(|_| Listener::V4)
        };
        let v6 = match anyip::add(&mut self.netlink, port, anyip::V6) {
            Ok(()) => Ok(Listener::V6),
            // IPv6 is disabled on `lo`, which is not to say elsewhere.
            Err(error) if error.raw_os_error() == Some(libc::EACCES) && self.has_no_ipv6() => {
                Ok(Listener::NO_V6)
            }
            Err(error) => Err(error),
        };
        for family in [v4, v6] {
            match family {
                Ok(family) => reachable |= family,
                Err(error) => debug!(%error, "no tokens"),
            }
        }
        let families = (self.families | Listener::NO_V6) & reachable;
        let changed = families != self.listener.families;
        self.listener.families = families;
        changed
    }

    /// Nothing could leave over IPv6; if that changes before we see it, the leak guard is there.
    fn has_no_ipv6(&mut self) -> bool {
        let addresses = self.netlink.addresses();
        self.guarded && addresses.is_ok_and(|all| all.iter().all(|address| address.ip.is_ipv4()))
    }

    /// Breaks connections of these cgroups that are older than the redirection; how many.
    ///
    /// # Errors
    /// The kernel cannot do it.
    pub fn break_stale(&self, is_meant: impl Fn(u64) -> bool) -> io::Result<usize> {
        self.netns.enter(|| stale::destroy(is_meant))?
    }

    /// Whom the sockets inside are connected to that are connected to the listeners' port.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn peers(&self) -> io::Result<Vec<IpAddr>> {
        let port = self.port();
        let sockets = self.netns.enter(|| sock_diag::connected_to(port, sock_diag::ALIVE))??;
        Ok(sockets.iter().map(sock_diag::Connected::peer).collect())
    }

    /// What sockets have as their own address inside when they speak to somebody outside.
    pub fn sources(&self) -> Sources {
        let of = |(any, outside): (IpAddr, IpAddr)| {
            let source = self.netns.enter(|| {
                let socket = UdpSocket::bind((any, 0))?;
                // Asks for the route, and sends nothing.
                socket.connect((outside, DISCARD))?;
                socket.local_addr()
            });
            match source.flatten().map_or(any, |source| source.ip()) {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            }
        };
        Sources { v4: of(OUTSIDE_V4), v6: of(OUTSIDE_V6) }
    }

    /// Looks what must change of the routes by device. The kernel programs must know of what is
    /// `gone` before [`Namespace::apply`].
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn plan_devices(&mut self) -> io::Result<DeviceChange> {
        let (links, addresses) = (self.netlink.links()?, self.netlink.addresses()?);
        let plan = Plan::new(self.port(), &links, &addresses, &self.netlink.token_routes()?);
        let stay =
            plan.keep.iter().map(|route| device_routes::device(self.cookie, route)).collect();
        let gone = self.devices.difference(&stay).copied().collect();
        Ok(DeviceChange { plan, gone })
    }

    /// Makes it so, and says which devices the kernel programs may use from now on.
    pub fn apply(&mut self, change: &DeviceChange) -> Vec<Device> {
        let DeviceChange { plan, gone } = change;
        self.devices.retain(|device| !gone.contains(device));
        for route in &plan.remove {
            if let Err(error) = self.netlink.remove(route) {
                debug!(%error, ?route, "not removed");
            }
        }
        // Else the routes by device would be the most specific ones for everybody.
        let port = self.port();
        let loopback = anyip::add(&mut self.netlink, port, anyip::V4);
        let v4 = loopback.inspect_err(|error| debug!(%error, "no IPv4 route over lo")).is_ok();
        let addable = plan.add.iter().filter(|route| v4 || route.source.is_ipv6());
        let added = addable.filter(|route| match self.netlink.add(route) {
            Ok(()) => true,
            Err(error) => {
                debug!(%error, ?route, "not added");
                false
            }
        });
        let usable: BTreeSet<_> =
            plan.keep.iter().chain(added).map(|r| device_routes::device(self.cookie, r)).collect();
        let new = usable.difference(&self.devices).copied().collect();
        self.devices = usable;
        new
    }

    /// The devices that the kernel programs know.
    pub fn devices(&self) -> &BTreeSet<Device> {
        &self.devices
    }

    /// Which namespace.
    pub fn id(&self) -> NetnsId {
        self.netns.id()
    }

    /// Where sockets can be opened that see what its processes see.
    pub fn network(&self) -> Arc<dyn Network> {
        Arc::clone(&self.netns) as Arc<dyn Network>
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
        let port = self.port();
        let present = self.netlink.token_routes().unwrap_or_default();
        // Without links nothing is wanted.
        for route in Plan::new(port, &[], &[], &present).remove {
            if let Err(error) = self.netlink.remove(&route) {
                debug!(%error, ?route, netns = self.netns.id().0, "not removed");
            }
        }
        for (family, source) in [(Listener::V4, anyip::V4), (Listener::V6, anyip::V6)] {
            if self.listener.families & family != 0
                && let Err(error) = anyip::remove(&mut self.netlink, port, source)
            {
                debug!(%error, netns = self.netns.id().0, "route not removed");
            }
        }
    }
}
