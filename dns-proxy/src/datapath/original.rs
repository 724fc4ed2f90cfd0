//! The original nameserver: whom a client asked, before we were.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV6},
    sync::Arc,
};

use dns_proxy_common::{DNS_PORT, Origin};

use crate::{
    addr,
    route::{Routes, Whose},
    upstream::{Nameservers, Outlet, Side},
};

/// Who may ask, as far as it matters to the answer: what a gate knows of a query.
#[derive(Clone, Copy)]
pub struct Admitted<'a> {
    /// Tells the client from others of the same listener.
    pub client: IpAddr,
    /// Where it asks from.
    pub peer: SocketAddr,
    /// What its token stands for, if it asked somebody else.
    pub origin: Option<Origin>,
    /// Whom it asked, if not us.
    pub nameserver: Option<IpAddr>,
    /// Its way out.
    pub outlet: &'a Arc<Outlet>,
}

/// The same, for as long as its query takes.
#[derive(Clone)]
pub struct Asker {
    client: IpAddr,
    peer: SocketAddr,
    origin: Option<Origin>,
    nameserver: Option<IpAddr>,
    outlet: Arc<Outlet>,
}

impl From<Admitted<'_>> for Asker {
    fn from(Admitted { client, peer, origin, nameserver, outlet }: Admitted<'_>) -> Self {
        Self { client, peer, origin, nameserver, outlet: Arc::clone(outlet) }
    }
}

impl Admitted<'_> {
    /// The one nameserver that `original` means to it, if the system need not be asked for that: it
    /// has a private address, so it is near, or it may be anywhere.
    pub fn known_original(&self, whose: Whose) -> Option<SocketAddr> {
        let ip = self.nameserver?;
        let has_links = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let is_known = !has_links && (whose == Whose::Any || addr::is_private(ip));
        is_known.then(|| SocketAddr::new(ip, DNS_PORT))
    }
}

impl Asker {
    /// The same, lent.
    pub fn admitted(&self) -> Admitted<'_> {
        let Self { client, peer, origin, nameserver, ref outlet } = *self;
        Admitted { client, peer, origin, nameserver, outlet }
    }

    /// What tells it from others of the same listener.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Whom it asked, if not us.
    pub fn nameserver(&self) -> Option<IpAddr> {
        self.nameserver
    }

    /// Its way out.
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// Whether a nameserver that `original` means to it is in a network of its own.
    pub fn is_near(&self, routes: &Routes) -> bool {
        !self.originals(routes, Whose::Near).addrs.is_empty()
    }

    /// What `original` means to it: the nameserver that it asked, or the host's own.
    pub fn originals(&self, routes: &Routes, whose: Whose) -> Nameservers {
        let (mut addrs, side) = match self.nameserver {
            Some(ip) => (self.reached(ip), Side::Client),
            None => (routes.resolvers().to_vec(), Side::Host),
        };
        if whose == Whose::Near {
            addrs.retain(|addr| self.outlet.is_near(addr.ip()));
        }
        Nameservers { addrs, side }
    }

    /// Where a nameserver can be. By its token alone nobody can tell the interface of a link-local
    /// one: it is asked on each that has such addresses.
    fn reached(&self, ip: IpAddr) -> Vec<SocketAddr> {
        if let IpAddr::V6(v6) = ip
            && v6.is_unicast_link_local()
        {
            let links = &self.outlet.interfaces().link_local;
            return links
                .iter()
                .map(|link| SocketAddrV6::new(v6, DNS_PORT, 0, *link).into())
                .collect();
        }
        vec![SocketAddr::new(ip, DNS_PORT)]
    }
}
