//! Who may ask: in a namespace whoever holds a token of it, on `--listen` whoever is near.

use std::{cell::RefCell, collections::HashMap, net::IpAddr, sync::Arc};

use dns_proxy_common::{Origin, Token};
use ipnet::IpNet;

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
    },
    /// A plain listener: only clients in these networks.
    Plain {
        /// `--allow-from`.
        allow: Arc<[IpNet]>,
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
    pub fn namespace(netns: u64, origins: Arc<dyn Origins>, locals: Box<dyn Locals>) -> Self {
        Self::Namespace { netns, origins, known: RefCell::default(), locals }
    }

    /// Whether a query from `client` to `local` is to be answered.
    pub fn admits(&self, client: IpAddr, local: IpAddr) -> bool {
        match self {
            Self::Plain { allow } => {
                let client = client.to_canonical();
                allow.iter().any(|net| net.contains(&client))
            }
            Self::Namespace { netns, origins, known, locals } => {
                let token = match local {
                    IpAddr::V4(addr) => Token::from_v4(addr.octets()),
                    IpAddr::V6(addr) => Token::from_v6(addr.octets()),
                };
                token
                    .and_then(|token| known.borrow_mut().origin(token, &**origins))
                    .is_some_and(|origin| origin.netns == *netns)
                    && (client.is_loopback() || locals.has(client))
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
            (token.0 == 7).then_some(Origin { cgroup: 1, netns: 42, addr: [0; 16] })
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

    #[test]
    fn only_tokens_of_the_namespace_are_admitted() {
        let client = IpAddr::from([127, 0, 0, 1]);
        let ours = Gate::namespace(42, Arc::new(Fixed), Box::new(Fixed));
        assert!(ours.admits(client, Token(7).v4().into()));
        assert!(ours.admits(client, Token(7).v6().into()));
        assert!(!ours.admits(client, Token(8).v4().into()), "no such token");
        assert!(!ours.admits(client, client), "not a token");
        let other = Gate::namespace(43, Arc::new(Fixed), Box::new(Fixed));
        assert!(!other.admits(client, Token(7).v4().into()), "another namespace's token");
    }

    #[test]
    fn only_clients_in_the_namespace_are_admitted() {
        let gate = Gate::namespace(42, Arc::new(Fixed), Box::new(Fixed));
        for (client, admitted) in [("::1", true), ("10.88.1.2", true), ("10.88.1.3", false)] {
            let client = client.parse().expect("an address");
            assert_eq!(gate.admits(client, Token(7).v4().into()), admitted, "{client}");
        }
    }

    #[test]
    fn plain_listeners_look_at_the_source_also_when_it_is_mapped() {
        let allow = ["10.0.0.0/8".parse().expect("a network")];
        let gate = Gate::Plain { allow: Arc::new(allow) };
        let local = IpAddr::from([192, 0, 2, 1]);
        for (client, admitted) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("192.0.2.9", false), ("::1", false)]
        {
            assert_eq!(gate.admits(client.parse().expect("an address"), local), admitted);
        }
    }
}
