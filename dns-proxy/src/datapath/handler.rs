//! The straight line: parse, route, resolve, fit to the client.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map::Entry},
    iter::once,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use tracing::debug;

use super::{
    local,
    original::Asker,
    query::Query,
    response::{self, Failure, Room},
    stats::Stats,
    transfer::Rest,
};
use crate::{
    route::{Action, Group, Local, Routes, Whose},
    upstream::{Nameservers, Plain, Pool, Settings, Side},
    wire::{flag, rr_type},
};

/// Queries that the clients of one listener may have in flight; a resolver that stalls must not
/// let one namespace take all memory.
pub const MAX_IN_FLIGHT: usize = 4_096;

/// What one worker answers with.
pub struct Handler {
    /// One for each [`crate::route::Group`].
    pools: Vec<Pool>,
    plain: Plain,
    routes: RefCell<Arc<Routes>>,
    strip_subnets: bool,
    stats: Arc<Stats>,
}

/// What a client gets.
pub struct Reply {
    /// The answer.
    pub message: Vec<u8>,
    /// More messages, if it is a zone transfer.
    pub rest: Option<Box<Rest>>,
}

/// Which way a query goes.
enum Way {
    Encrypted(usize),
    Plain(Nameservers),
    Transfer(Nameservers),
    Local(Local),
}

/// How many queries of one listener are in flight, answers that wait to be written included.
#[derive(Clone, Default)]
pub struct InFlight(Rc<Places>);

#[derive(Default)]
struct Places {
    count: Cell<usize>,
    /// How many of them are each client's, of those that have any.
    shares: RefCell<HashMap<IpAddr, usize>>,
}

/// A query's place among them.
pub struct Place {
    in_flight: InFlight,
    client: IpAddr,
}

impl Handler {
    /// A handler that asks those that the settings and the routes name.
    pub fn new(settings: &Settings, routes: Arc<Routes>, stats: Arc<Stats>) -> Self {
        let groups = once(&settings.upstreams).chain(routes.groups()).cloned();
        let pools = groups.map(|upstreams| Pool::new(Settings { upstreams, ..settings.clone() }));
        Self {
            pools: pools.collect(),
            plain: Plain::new(settings),
            routes: RefCell::new(routes),
            strip_subnets: settings.strip_subnets,
            stats,
        }
    }

    /// Follows these routes from now on, whose sets of upstreams are the same.
    pub fn reroute(&self, routes: Arc<Routes>) {
        *self.routes.borrow_mut() = routes;
    }

    /// The worker's counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Answers what a client sent; `None` if that must not be answered at all.
    pub async fn handle(&self, message: &[u8], room: Room, asker: &Asker) -> Option<Reply> {
        let query = match self.parse(message) {
            Ok(query) => query,
            Err(rejection) => return rejection.map(Reply::from),
        };
        match self.resolve(&query, room, asker).await {
            Ok(reply) => Some(reply),
            Err(failure) => Some(self.fail(&query, &failure).into()),
        }
    }

    /// Answers a client that has no place left in flight.
    pub fn refuse(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self.parse(message) {
            Ok(query) => Some(self.fail(&query, &Failure::Busy)),
            Err(rejection) => rejection,
        }
    }

    /// The query, or what is said to something that is none.
    fn parse(&self, message: &[u8]) -> Result<Query, Option<Vec<u8>>> {
        let mut query = Query::parse(message).map_err(|reason| {
            self.stats.malformed.add();
            response::reject(message, reason)
        })?;
        self.stats.queries.add();
        if self.strip_subnets {
            query.strip_subnet();
        }
        Ok(query)
    }

    /// What is seldom waited for is in boxes: every query pays for the size of this.
    async fn resolve(&self, query: &Query, room: Room, asker: &Asker) -> Result<Reply, Failure> {
        match self.route(query, room, asker)? {
            Way::Encrypted(group) => {
                let mut response = self.pools[group].exchange(query.to_upstream()).await?;
                if !response.authenticated {
                    self.stats.unauthenticated.add();
                    withdraw_ad(query, &mut response.message);
                }
                let answer = response::relay(query, &response.message, room)?;
                self.stats.encrypted.add();
                Ok(answer.into())
            }
            Way::Plain(nameservers) => {
                self.stats.plaintext.add();
                let (outlet, message) = (asker.outlet(), query.to_plaintext());
                let exchange =
                    self.plain.exchange(outlet, &nameservers, &message, room.transport());
                let mut answer = Box::pin(exchange).await?;
                withdraw_ad(query, &mut answer);
                Ok(response::relay(query, &answer, room)?.into())
            }
            Way::Transfer(nameservers) => {
                self.stats.plaintext.add();
                let (outlet, message) = (asker.outlet(), query.to_plaintext());
                let transfer =
                    Box::pin(self.plain.transfer(outlet, &nameservers, &message)).await?;
                let (message, rest) = Box::pin(Rest::start(query, transfer)).await?;
                Ok(Reply { message, rest: rest.map(Box::new) })
            }
            Way::Local(local) => {
                self.stats.local.add();
                Ok(local::answer(query, &local).into())
            }
        }
    }

    /// Which way the query goes: by its name, and by whom the client asked.
    fn route(&self, query: &Query, room: Room, asker: &Asker) -> Result<Way, Failure> {
        let routes = self.routes.borrow();
        let action = routes.find(query.name(), query.qtype(), || asker.is_near(&routes));
        let is_transfer = matches!(query.qtype(), rr_type::AXFR | rr_type::IXFR);
        let nameservers = match action {
            Action::Local(local) => return Ok(Way::Local(local.clone())),
            Action::Original(whose) => asker.originals(&routes, *whose),
            Action::Plain(addrs) => Nameservers { addrs: addrs.to_vec(), side: Side::Host },
            Action::Encrypted(group) if !is_transfer => return Ok(Way::Encrypted(group.0)),
            // Only the one that was asked can have the zone to give.
            Action::Encrypted(Group(0)) if asker.nameserver().is_some() => {
                asker.originals(&routes, Whose::Any)
            }
            Action::Encrypted(_) => return Err(Failure::ZoneTransfer),
        };
        match (query.qtype(), room) {
            (rr_type::AXFR | rr_type::IXFR, Room::Stream) => Ok(Way::Transfer(nameservers)),
            (rr_type::AXFR, Room::Datagram { .. }) => Err(Failure::ZoneTransfer),
            // Incremental ones may fit a datagram (RFC 1995 section 2).
            _ => Ok(Way::Plain(nameservers)),
        }
    }

    fn fail(&self, query: &Query, failure: &Failure) -> Vec<u8> {
        self.stats.failed.add();
        debug!(%failure, "query failed");
        response::fail(query, failure)
    }
}

/// Nobody authenticated whoever says that the data are authentic (RFC 6840 section 5.8).
fn withdraw_ad(query: &Query, answer: &mut [u8]) {
    if !query.is_intact() {
        answer[3] &= !flag::AD;
    }
}

impl From<Vec<u8>> for Reply {
    fn from(message: Vec<u8>) -> Self {
        Self { message, rest: None }
    }
}

impl InFlight {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.count.get()
    }

    /// A place for one more of this client's, if there is room; it is free again when the place is
    /// dropped. Nobody may have more places than are left for all others: whoever floods leaves half
    /// of them, and several who do leave some.
    pub fn enter(&self, client: IpAddr) -> Option<Place> {
        let count = self.count();
        let mut shares = self.0.shares.borrow_mut();
        let own = shares.get(&client).copied().unwrap_or_default();
        (own < MAX_IN_FLIGHT - count).then(|| {
            self.0.count.set(count + 1);
            shares.insert(client, own + 1);
            Place { in_flight: self.clone(), client }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Places { count, shares } = &*self.in_flight.0;
        count.update(|count| count - 1);
        if let Entry::Occupied(mut share) = shares.borrow_mut().entry(self.client) {
            *share.get_mut() -= 1;
            if *share.get() == 0 {
                share.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_query_waits_in_is_small() {
        fn size<F>(
            _: impl Fn(&'static Handler, &'static [u8], Room, &'static Asker) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let size = size(Handler::handle);
        assert!(size <= 640, "{size}");
    }

    #[test]
    fn whoever_floods_leaves_places_for_others_and_gives_them_back() {
        let in_flight = InFlight::default();
        let flood = |client: [u8; 4]| -> Vec<_> {
            std::iter::from_fn(|| in_flight.enter(client.into())).collect()
        };
        let one = flood([10, 0, 0, 1]);
        assert_eq!(one.len(), MAX_IN_FLIGHT / 2);
        let two = flood([10, 0, 0, 2]);
        assert_eq!(two.len(), MAX_IN_FLIGHT / 4);
        assert!(in_flight.enter([10, 0, 0, 1].into()).is_none());
        assert!(in_flight.enter([10, 0, 0, 3].into()).is_some());
        drop((one, two));
        assert_eq!(in_flight.count(), 0);
        assert!(in_flight.0.shares.borrow().is_empty());
    }
}
