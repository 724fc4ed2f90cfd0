//! Who may ask: in a namespace whoever holds a token of it, on `--listen` whoever is near; and whom
//! they asked.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use dns_proxy_common::{Origin, Token};
use ipnet::IpNet;

use super::original::Admitted;
use crate::upstream::{Outlet, OwnNetwork};

/// Where tokens are looked up: the kernel's map, in production.
pub trait Origins: Send + Sync {
    /// Whom a token stands for, if anybody.
    fn origin(&self, token: Token) -> Option<Origin>;

    /// Changes whenever a token may have ceased to stand for what it did.
    fn generation(&self) -> u64;
}

/// Which addresses a network namespace has: as its routing says, in production.
pub trait Locals: Send {
    /// Whether what is sent to the address stays in the namespace.
    fn has(&self, addr: IpAddr) -> bool;
}

/// The rule of one listener.
pub enum Gate {
    /// The listener inside a network namespace: only token addresses of that namespace, and only
    /// clients there, since a socket may be bound to an address of somebody else (`IP_FREEBIND`),
    /// to whom the answer would go in plaintext. A token is no secret, so the socket filter already
    /// keeps strangers out.
    Namespace {
        /// The namespace's cookie.
        netns: u64,
        /// Where tokens are looked up.
        origins: Arc<dyn Origins>,
        /// Answers of the above: a namespace has few nameservers.
        known: RefCell<Known>,
        /// Where addresses are looked up that are not loopback's.
        locals: Box<dyn Locals>,
        /// Its own way out.
        outlet: Arc<Outlet>,
    },
    /// A plain listener: only clients in these networks.
    Plain {
        /// `--allow-from`.
        allow: Arc<[IpNet]>,
        /// Our own way out.
        outlet: Arc<Outlet>,
    },
}

/// Tokens seen, valid for one generation.
#[derive(Default)]
pub struct Known {
    generation: u64,
    origins: HashMap<Token, Origin>,
}

impl Gate {
    /// The gate of a namespace.
    pub fn namespace(
        netns: u64,
        origins: Arc<dyn Origins>,
        locals: Box<dyn Locals>,
        outlet: Outlet,
    ) -> Self {
        let (known, outlet) = (RefCell::default(), Arc::new(outlet));
        Self::Namespace { netns, origins, known, locals, outlet }
    }

    /// The gate of a plain listener.
    pub fn plain(allow: Arc<[IpNet]>) -> Self {
        Self::Plain { allow, outlet: Arc::new(Outlet::new(Arc::new(OwnNetwork))) }
    }

    /// Who asks by a query from `client` to `local`; `None` if it is not to be answered.
    pub fn admit(&self, peer: SocketAddr, local: IpAddr) -> Option<Admitted<'_>> {
        match self {
            Self::Plain { allow, outlet } => {
                let client = peer.ip().to_canonical();
                let admitted = allow.iter().any(|net| net.contains(&client));
                admitted.then_some(Admitted {
                    client,
                    peer,
                    origin: None,
                    nameserver: None,
                    outlet,
                })
            }
            Self::Namespace { netns, origins, known, locals, outlet } => {
                let token = match local {
                    IpAddr::V4(addr) => Token::from_v4(addr.octets()),
                    IpAddr::V6(addr) => Token::from_v6(addr.octets()),
                };
                let origin = known.borrow_mut().origin(token?, &**origins)?;
                let asked = IpAddr::from(origin.addr).to_canonical();
                let client = peer.ip();
                let admitted =
                    origin.netns == *netns && (client.is_loopback() || locals.has(client));
                // Addresses tell little in here; tokens tell cgroups apart.
                let (nameserver, origin) = (Some(asked), Some(origin));
                admitted.then_some(Admitted { client: local, peer, origin, nameserver, outlet })
            }
        }
    }
}

impl Known {
    fn origin(&mut self, token: Token, origins: &dyn Origins) -> Option<Origin> {
        let generation = origins.generation();
        if self.generation != generation {
            self.generation = generation;
            self.origins.clear();
        }
        if let Some(origin) = self.origins.get(&token) {
            return Some(*origin);
        }
        // Only what exists is remembered, so nobody can fill this up.
        let origin = origins.origin(token)?;
        self.origins.insert(token, origin);
        Some(origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Origins for Fixed {
        fn origin(&self, token: Token) -> Option<Origin> {
            let addr = std::net::Ipv4Addr::new(8, 8, 8, 8).to_ipv6_mapped().octets();
            (token.0 == 7).then_some(Origin { cgroup: 1, netns: 42, addr })
        }

        fn generation(&self) -> u64 {
            0
        }
    }

    impl Locals for Fixed {
        fn has(&self, addr: IpAddr) -> bool {
            addr == IpAddr::from([10, 88, 1, 2])
        }
    }

    fn namespace(netns: u64) -> Gate {
        let outlet = Outlet::new(Arc::new(OwnNetwork));
        Gate::namespace(netns, Arc::new(Fixed), Box::new(Fixed), outlet)
    }

    #[test]
    fn only_tokens_of_the_namespace_are_admitted() {
        let client = IpAddr::from([127, 0, 0, 1]);
        let ours = namespace(42);
        for token in [IpAddr::from(Token(7).v4()), Token(7).v6().into()] {
            let asker = ours.admit((client, 5).into(), token).expect("admitted");
            assert_eq!(asker.nameserver, Some(IpAddr::from([8, 8, 8, 8])));
        }
        assert!(ours.admit((client, 5).into(), Token(8).v4().into()).is_none(), "no such token");
        assert!(ours.admit((client, 5).into(), client).is_none(), "not a token");
        let other = namespace(43);
        assert!(
            other.admit((client, 5).into(), Token(7).v4().into()).is_none(),
            "another namespace's token"
        );
    }

    #[test]
    fn only_clients_in_the_namespace_are_admitted() {
        let gate = namespace(42);
        for (client, admitted) in [("::1", true), ("10.88.1.2", true), ("10.88.1.3", false)] {
            let client: IpAddr = client.parse().expect("an address");
            let asker = gate.admit((client, 5).into(), Token(7).v4().into());
            assert_eq!(asker.is_some(), admitted, "{client}");
        }
    }

    #[test]
    fn plain_listeners_look_at_the_source_also_when_it_is_mapped() {
        let allow = ["10.0.0.0/8".parse().expect("a network")];
        let gate = Gate::plain(Arc::new(allow));
        let local = IpAddr::from([192, 0, 2, 1]);
        for (client, admitted) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("192.0.2.9", false), ("::1", false)]
        {
            let asker = gate.admit(SocketAddr::new(client.parse().expect("an address"), 5), local);
            assert_eq!(asker.is_some(), admitted);
            assert!(asker.is_none_or(|asker| asker.nameserver.is_none()));
        }
    }
}
