//! The way out that the clients of one listener have: their network, and their share of what may be
//! under way.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{SockaddrIn6, SockaddrStorage},
};
use socket2::{Domain, Socket, Type};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tracing::debug;

use crate::addr;

/// Queries of one listener that may be under way in plaintext, each with a descriptor; further ones
/// wait for their turn, as long as they have time.
const MAX_UNDER_WAY: usize = 256;
/// Zone transfers of one listener that may be under way; their messages wait for slow clients.
const MAX_TRANSFERS: usize = 8;
/// How long it is remembered what networks a namespace is connected to.
const CONNECTED_FOR: Duration = Duration::from_secs(5);

/// How many outlets there have been.
static OUTLETS: AtomicU64 = AtomicU64::new(0);

/// Where sockets can be opened: a network namespace.
pub trait Network: Send + Sync {
    /// Opens a socket in it.
    ///
    /// # Errors
    /// The namespace cannot be entered, or no socket made.
    fn socket(&self, domain: Domain, kind: Type) -> io::Result<Socket>;

    /// The networks and the indices of its interfaces.
    ///
    /// # Errors
    /// The namespace cannot be entered, or does not tell.
    fn interfaces(&self) -> io::Result<Interfaces>;
}

/// The network that the daemon itself is in.
#[derive(Clone, Copy, Debug)]
pub struct OwnNetwork;

/// What the interfaces of a network are connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Their networks, in which every address is a neighbour's.
    pub networks: Vec<IpNet>,
    /// The indices of those that have a link-local IPv6 address.
    pub link_local: Vec<u32>,
}

/// What the clients of one listener have: their network, and their share of what may be under way.
pub struct Outlet {
    id: u64,
    network: Arc<dyn Network>,
    under_way: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
    interfaces: Mutex<Option<(Instant, Arc<Interfaces>)>>,
}

/// One of two networks, which may be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// That of the client.
    Client,
    /// That of the daemon.
    Host,
}

impl Network for OwnNetwork {
    fn socket(&self, domain: Domain, kind: Type) -> io::Result<Socket> {
        Socket::new(domain, kind, None)
    }

    fn interfaces(&self) -> io::Result<Interfaces> {
        Interfaces::here()
    }
}

impl Interfaces {
    /// Those of the namespace that this thread is in.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn here() -> io::Result<Self> {
        let mut found = Self::default();
        for interface in getifaddrs()? {
            let own = interface.address.as_ref();
            let v6 = own.and_then(SockaddrStorage::as_sockaddr_in6);
            let v6 = v6.filter(|v6| v6.ip().is_unicast_link_local());
            found.link_local.extend(v6.map(SockaddrIn6::scope_id));
            let network = ip(own).zip(ip(interface.netmask.as_ref()));
            let network = network.and_then(|(own, mask)| IpNet::with_netmask(own, mask).ok());
            // A network of all addresses says that somebody is at the other end, not who.
            let network = network.filter(|network| network.prefix_len() > 0);
            found.networks.extend(network.map(|network| network.trunc()));
        }
        Ok(found)
    }
}

impl Outlet {
    /// Nothing under way yet.
    pub fn new(network: Arc<dyn Network>) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        let (under_way, transfers) = (semaphore(MAX_UNDER_WAY), semaphore(MAX_TRANSFERS));
        let id = OUTLETS.fetch_add(1, Ordering::Relaxed);
        Self { id, network, under_way, transfers, interfaces: Mutex::default() }
    }

    /// A number that no other one has, or had before.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Opens a socket in one of the two networks.
    ///
    /// # Errors
    /// As [`Network::socket`].
    pub(super) fn socket(&self, side: Side, domain: Domain, kind: Type) -> io::Result<Socket> {
        match side {
            Side::Client => self.network.socket(domain, kind),
            Side::Host => OwnNetwork.socket(domain, kind),
        }
    }

    /// Waits until one more query may be under way; `None` if that takes too long.
    pub(super) async fn turn(&self, until: Instant) -> Option<OwnedSemaphorePermit> {
        turn(&self.under_way, until).await
    }

    /// The same for a zone transfer.
    pub(super) async fn turn_for_transfer(&self, until: Instant) -> Option<OwnedSemaphorePermit> {
        turn(&self.transfers, until).await
    }

    /// What the network's interfaces are connected to, a few seconds ago at most.
    pub fn interfaces(&self) -> Arc<Interfaces> {
        let mut known = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((at, interfaces)) if at.elapsed() < CONNECTED_FOR => Arc::clone(interfaces),
            _ => {
                let found = self.network.interfaces().unwrap_or_else(|error| {
                    debug!(%error, "cannot list interfaces");
                    Interfaces::default()
                });
                Arc::clone(&known.insert((Instant::now(), Arc::new(found))).1)
            }
        }
    }

    /// Whether a nameserver is in a network of the user's own: it has an address that is not public,
    /// or is a neighbour.
    pub fn is_near(&self, ip: IpAddr) -> bool {
        addr::is_private(ip) || self.interfaces().networks.iter().any(|net| net.contains(&ip))
    }
}

fn ip(addr: Option<&SockaddrStorage>) -> Option<IpAddr> {
    let v4 = addr?.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| addr?.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

async fn turn(permits: &Arc<Semaphore>, until: Instant) -> Option<OwnedSemaphorePermit> {
    timeout_at(until, Arc::clone(permits).acquire_owned()).await.ok()?.ok()
}
