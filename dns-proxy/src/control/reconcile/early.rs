//! Queries from namespaces that were not in service yet: the kernel programs captured them, and
//! they are answered as soon as somebody listens there.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use dns_proxy_common::{EarlyQuery, Listener, NEWBORN};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Control, ControlError, process};
use crate::{
    control::netns::Netns,
    datapath::{batch::Path, udp::Datagram},
};

/// How many may wait. A namespace takes less than a millisecond, so that more are of one that cannot
/// be served.
const MAX_WAITING: usize = 1_024;
/// The same of one namespace, so that one that cannot be served takes nobody's place.
const MAX_OF_ONE: usize = 64;
/// How long one waits; by then the client asks again.
const LIMIT: Duration = Duration::from_secs(2);

/// A query that waits for its namespace.
pub(super) struct Early {
    netns: u64,
    since: Instant,
    datagram: Datagram,
}

impl Control {
    /// Lets the programs send the first queries of new namespaces to where we will listen, which takes
    /// the leak guard: it captures them. Two daemons on one host listen on different ports, and this
    /// one's is free wherever only the two are.
    pub(super) fn expect_early(&mut self) -> Result<(), ControlError> {
        let own = Netns::id_of(process::id()).ok();
        if let Some(host) = own.and_then(|id| self.namespaces.get(&id)) {
            self.port = host.namespace.port();
        }
        if self.bpf.is_guarded() {
            let families = Listener::V4 | Listener::V6;
            self.bpf.set_ready(NEWBORN, Listener { port_be: self.port.to_be(), families })?;
        }
        Ok(())
    }

    /// Takes captured queries in.
    pub(super) fn take_early(&mut self, queries: Vec<EarlyQuery>) {
        let origins = self.bpf.origins();
        for query in queries {
            let Some(origin) = origins.origin(query.token) else {
                continue; // the namespace is gone already
            };
            let of_one = self.early.iter().filter(|early| early.netns == origin.netns).count();
            if self.early.len() == MAX_WAITING || of_one == MAX_OF_ONE {
                debug!("an early query is dropped: too many wait");
                continue;
            }
            let datagram = datagram(&query);
            self.early.push(Early { netns: origin.netns, since: Instant::now(), datagram });
        }
    }

    /// Answers those whose namespace is in service by now.
    pub(super) fn answer_early(&mut self) {
        for early in std::mem::take(&mut self.early) {
            let served = self.cookies.get(&early.netns).and_then(|id| self.namespaces.get(id));
            match served {
                Some(served) if served.namespace.port() == self.port => {
                    self.workers[served.worker].answer(served.listener, early.datagram);
                }
                Some(served) => warn!(
                    netns = served.namespace.id().0,
                    port = self.port,
                    "a first query is lost: something else has the port that it was sent to"
                ),
                None if early.since.elapsed() < LIMIT => self.early.push(early),
                None => debug!(netns_cookie = early.netns, "an early query is dropped"),
            }
        }
    }
}

fn datagram(query: &EarlyQuery) -> Datagram {
    let client = Ipv6Addr::from(query.client);
    let (client, local): (IpAddr, IpAddr) = match client.to_ipv4_mapped() {
        Some(client) => (client.into(), query.token.v4().into()),
        None => (client.into(), query.token.v6().into()),
    };
    let client = SocketAddr::new(client, u16::from_be(query.port_be));
    let message = query.message[..usize::from(query.len).min(query.message.len())].to_vec();
    Datagram { path: Path { client, local, ifindex: 0 }, message }
}
