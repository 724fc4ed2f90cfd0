//! The straight line: parse, route, look it up or ask, fit to the client.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map::Entry},
    iter::once,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    slice::from_ref,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tracing::debug;

use super::{
    asked::Asked,
    echo,
    known::{By, Flight, Found, Known, Landed, Resolver},
    local,
    original::{Admitted, Asker},
    outcome::{AtOnce, Outcome, Road, Source},
    query::Query,
    response::{self, Failure, Room},
    stats::Stats,
    tap::Tap,
    transfer::Rest,
};
use crate::{
    cache::{self, Key},
    parts::Parts,
    route::{Action, Answer, Group, Local, Routes, Whose, Zone},
    upstream::{Nameservers, Plain, Pool, ServerReport, Settings, Side},
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
    /// Nothing if nothing is to be kept.
    known: Option<Known>,
    stats: Arc<Stats>,
    at_once: AtOnce,
    tap: Arc<Tap>,
}

/// What a client gets.
pub struct Reply {
    /// The answer.
    pub message: Vec<u8>,
    /// More messages, if it is a zone transfer.
    pub rest: Option<Box<Rest>>,
}

/// What there is to say of a worker.
#[derive(Debug)]
pub struct Report {
    /// The servers of each group, the one without a zone first.
    pub upstreams: Vec<Vec<ServerReport>>,
    /// Answers in the cache.
    pub kept: usize,
    /// Octets that they take.
    pub kept_octets: usize,
    /// Answers that were dropped to make room for others.
    pub evicted: u64,
}

/// Which way a query goes.
enum Way {
    Ask(Whom),
    Transfer(Nameservers),
    Local(Local),
}

/// Who is asked.
enum Whom {
    /// These upstreams, over TLS.
    Encrypted(usize),
    /// Nameservers, in plaintext.
    Plain(Nameservers),
}

impl Whom {
    fn road(&self) -> Road {
        match self {
            Self::Encrypted(_) => Road::Encrypted,
            Self::Plain(_) => Road::Plaintext,
        }
    }
}

/// What there is to answer a query with.
enum Lookup {
    /// This.
    Known { answer: Vec<u8>, source: Source },
    /// What comes, for this query and nobody else's.
    Alone(Whom),
    /// What comes, for all who ask the same; it may have been asked for already.
    Asked { flight: Flight, joins: bool },
    /// What comes until then, or this.
    Stale { flight: Flight, limit: Duration, answer: Vec<u8> },
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
    pub fn new(
        settings: &Settings,
        cache: cache::Settings,
        routes: Arc<Routes>,
        stats: Arc<Stats>,
        tap: Arc<Tap>,
    ) -> Self {
        let groups = once(&settings.upstreams).chain(routes.groups()).cloned();
        let pools = groups.map(|upstreams| Pool::new(Settings { upstreams, ..settings.clone() }));
        Self {
            pools: pools.collect(),
            plain: Plain::new(settings),
            known: (cache.size > 0).then(|| Known::new(cache, settings.timeout)),
            routes: RefCell::new(routes),
            strip_subnets: settings.strip_subnets,
            stats,
            at_once: AtOnce::default(),
            tap,
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

    /// What there is to say of this worker, by its own hand.
    pub fn report(&self) -> Report {
        let upstreams = self.pools.iter().map(Pool::report).collect();
        let (kept, kept_octets, evicted) = self.known.as_ref().map(Known::kept).unwrap_or_default();
        Report { upstreams, kept, kept_octets, evicted }
    }

    /// Appends the answer to a message if that can be told at once: it is of the usual shape, and what
    /// it asks is known and need not be asked again. Says whether it was.
    ///
    /// The straight line in its shortest form. It allocates nothing, waits for nothing, and takes no
    /// place in flight; all else goes by [`Handler::handle`], which gives the same answers.
    pub fn answer_at_once(
        &self,
        message: &[u8],
        room: Room,
        asker: Admitted<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> bool {
        let start = out.len();
        let found = self.find_at_once(message, room, asker, now, out);
        let Some((found, road)) = found.filter(|(found, _)| !found.is_due) else {
            out.truncate(start);
            return false;
        };
        let source = if found.is_stale { Source::Stale } else { Source::Cache };
        let outcome = Outcome::Answered(road, source);
        self.stats.queries.add();
        self.stats.cached.add();
        if asker.nameserver.is_some() {
            self.stats.intercepted.add();
        }
        self.stats.answers.count(outcome, room.transport(), &out[start..]);
        self.at_once.add(outcome);
        if self.tap.is_open() {
            let asker = (asker, room.transport());
            self.tap.show(asker, (message, now), (&out[start..], outcome, None));
        }
        true
    }

    fn find_at_once(
        &self,
        message: &[u8],
        room: Room,
        asker: Admitted<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Option<(Found, Road)> {
        let known = self.known.as_ref()?;
        let (asked, bits) = Asked::usual(message)?;
        let routes = self.routes.borrow();
        let mut is_sure = true;
        let action = routes.find(asked.name(), asked.qtype(), || {
            is_sure = asker.known_original(Whose::Near).is_some();
            is_sure
        });
        let original;
        let (road, resolver) = match action {
            _ if !is_sure => return None,
            Action::Encrypted(group) => (Road::Encrypted, Resolver::Group(group.0)),
            Action::Plain(addrs) => (Road::Plaintext, Resolver::Plain(addrs, None)),
            Action::Original(whose) => {
                original = asker.known_original(*whose)?;
                let network = Some(asker.outlet.id());
                (Road::Plaintext, Resolver::Plain(from_ref(&original), network))
            }
            Action::Local(_) => return None,
        };
        let key = known.key(&asked, bits, resolver)?;
        Some((known.find(&asked, &key, room, now, out)?, road))
    }

    /// Answers what a client sent, and when it came; `None` if that must not be answered at all.
    pub async fn handle(
        self: &Rc<Self>,
        message: &[u8],
        came: Instant,
        room: Room,
        asker: &Asker,
    ) -> Option<Reply> {
        let query = match self.parse(message) {
            Ok(query) => query,
            Err(rejection) => return rejection.map(Reply::from),
        };
        if asker.nameserver().is_some() {
            self.stats.intercepted.add();
        }
        let (reply, outcome, by) = match self.resolve(&query, room, asker).await {
            Ok(answered) => answered,
            Err(failure) => (self.fail(&query, &failure).into(), Outcome::Failed, None),
        };
        self.stats.answers.count(outcome, room.transport(), &reply.message);
        if outcome.is_at_once() {
            self.at_once.add(outcome);
        } else {
            self.stats.latencies.add(outcome, came.elapsed(), 1);
        }
        if self.tap.is_open() {
            let asker = (asker.admitted(), room.transport());
            self.tap.show(asker, (message, came), (&reply.message, outcome, by.as_deref()));
        }
        Some(reply)
    }

    /// All that was answered at once is sent, and came then.
    pub fn sent(&self, came: Instant) {
        self.at_once.sent(came, &self.stats.latencies);
    }

    /// Answers a client that has no place left in flight.
    pub fn refuse(&self, message: &[u8], room: Room) -> Option<Vec<u8>> {
        match self.parse(message) {
            Ok(query) => {
                let answer = self.fail(&query, &Failure::Busy);
                self.stats.answers.count(Outcome::Failed, room.transport(), &answer);
                Some(answer)
            }
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
    async fn resolve(
        self: &Rc<Self>,
        query: &Query,
        room: Room,
        asker: &Asker,
    ) -> Result<(Reply, Outcome, By), Failure> {
        match self.route(query, room, asker)? {
            Way::Ask(whom) => {
                let road = whom.road();
                let (answer, source, by) = self.answer(query, whom, room, asker).await?;
                Ok((answer.into(), Outcome::Answered(road, source), by))
            }
            Way::Transfer(nameservers) => {
                self.stats.plaintext.add();
                self.pass(query, &nameservers);
                let (outlet, message) = (asker.outlet(), query.to_plaintext());
                let transfer =
                    Box::pin(self.plain.transfer(outlet, &nameservers, &message)).await?;
                let (message, rest) = Box::pin(Rest::start(query, transfer)).await?;
                let reply = Reply { message, rest: rest.map(Box::new) };
                let by = nameservers.addrs.first().and_then(|first| self.by(*first));
                Ok((reply, Outcome::Answered(Road::Plaintext, Source::Asked), by))
            }
            Way::Local(local) => {
                self.stats.local.add();
                Ok((local::answer(query, &local).into(), Outcome::Local, None))
            }
        }
    }

    /// The answer that is known, or the one that is given to whoever asks first; and who gave it, if he
    /// was asked now.
    async fn answer(
        self: &Rc<Self>,
        query: &Query,
        whom: Whom,
        room: Room,
        asker: &Asker,
    ) -> Result<(Vec<u8>, Source, By), Failure> {
        match self.look_up(query, whom, room, asker) {
            Lookup::Known { answer, source } => Ok((answer, source, None)),
            Lookup::Alone(whom) => {
                let (answer, by) = Box::pin(self.ask(query, &whom, room, asker)).await?;
                Ok((response::relay(query, &answer, room)?, Source::Asked, by))
            }
            Lookup::Asked { flight, joins } => {
                let Landed { answer, by } = flight.await?;
                let answer = response::relay(query, &answer, room)?;
                if joins {
                    self.stats.cached.add();
                }
                Ok((answer, if joins { Source::Shared } else { Source::Asked }, by))
            }
            Lookup::Stale { flight, limit, answer: stale } => {
                match Box::pin(timeout(limit, flight)).await {
                    Ok(Ok(Landed { answer, by })) if !is_failure(&answer) => {
                        Ok((response::relay(query, &answer, room)?, Source::Asked, by))
                    }
                    _ => {
                        self.stats.cached.add();
                        Ok((stale, Source::Stale, None))
                    }
                }
            }
        }
    }

    /// Shows a query that goes out in plaintext.
    fn pass(&self, query: &Query, nameservers: &Nameservers) {
        if self.tap.is_open() {
            self.tap.pass(query.name(), &nameservers.addrs);
        }
    }

    fn by(&self, server: SocketAddr) -> By {
        self.tap.is_open().then(|| Rc::new(server))
    }

    /// What is known, and else what there is to wait for.
    fn look_up(self: &Rc<Self>, query: &Query, whom: Whom, room: Room, asker: &Asker) -> Lookup {
        let Some((known, key)) = self.key(query, &whom, asker) else {
            return Lookup::Alone(whom);
        };
        let mut answer = Vec::new();
        let found = known.find(&query.asked(), &key, room, Instant::now(), &mut answer);
        let Some(found) = found else {
            let joins = known.is_asking(&key);
            if !joins && known.is_full() {
                return Lookup::Alone(whom);
            }
            let flight = self.fly(known, key, query, whom, room, asker);
            return Lookup::Asked { flight, joins };
        };
        if found.is_last_resort && !known.is_full() {
            let flight = self.fly(known, key, query, whom, room, asker);
            return Lookup::Stale { flight, limit: known.stale_after(), answer };
        }
        if found.is_due && !known.is_busy() {
            // Nobody waits for it.
            drop(self.fly(known, key, query, whom, room, asker));
        }
        self.stats.cached.add();
        let source = if found.is_stale { Source::Stale } else { Source::Cache };
        Lookup::Known { answer, source }
    }

    /// What the answer is kept under; nothing if it is not for keeping.
    fn key(&self, query: &Query, whom: &Whom, asker: &Asker) -> Option<(&Known, Key)> {
        let known = self.known.as_ref()?;
        let resolver = match whom {
            Whom::Encrypted(group) => Resolver::Group(*group),
            Whom::Plain(Nameservers { addrs, side }) => {
                let network = (*side == Side::Client).then(|| asker.outlet().id());
                Resolver::Plain(addrs, network)
            }
        };
        Some((known, known.key(&query.asked(), query.bits()?, resolver)?))
    }

    /// Asks, unless somebody does already; what comes is kept.
    fn fly(
        self: &Rc<Self>,
        known: &Known,
        key: Key,
        query: &Query,
        whom: Whom,
        room: Room,
        asker: &Asker,
    ) -> Flight {
        let flown = key.clone();
        known.join(&flown, || {
            let (handler, query, asker) = (Rc::clone(self), query.clone(), asker.clone());
            Box::pin(async move {
                let landed = handler.ask(&query, &whom, room, &asker).await;
                let landed = landed.map(|(answer, by)| Landed { answer: answer.into(), by });
                if let Some(known) = &handler.known {
                    known.land(&key, landed.as_ref().ok().map(|landed| &*landed.answer));
                }
                landed
            })
        })
    }

    /// Asks, and waits for the answer; who gave it.
    async fn ask(
        &self,
        query: &Query,
        whom: &Whom,
        room: Room,
        asker: &Asker,
    ) -> Result<(Vec<u8>, By), Failure> {
        match whom {
            Whom::Encrypted(group) => {
                let mut response = self.pools[*group].exchange(query.to_upstream()).await?;
                if !response.authenticated {
                    self.stats.unauthenticated.add();
                    withdraw_ad(query, &mut response.message);
                }
                self.stats.encrypted.add();
                Ok((response.message, self.by(response.by)))
            }
            Whom::Plain(nameservers) => {
                self.stats.plaintext.add();
                self.pass(query, nameservers);
                let (outlet, message) = (asker.outlet(), query.to_plaintext());
                let exchange = self.plain.exchange(outlet, nameservers, &message, room.transport());
                let (mut answer, by) = exchange.await?;
                withdraw_ad(query, &mut answer);
                Ok((answer, self.by(by)))
            }
        }
    }

    /// Which way the query goes: by its name, and by whom the client asked.
    fn route(&self, query: &Query, room: Room, asker: &Asker) -> Result<Way, Failure> {
        let routes = self.routes.borrow();
        let action = routes.find(query.name(), query.qtype(), || asker.is_near(&routes));
        // What goes in circles leaves in plaintext each time, unless that was found out before.
        let may_be_echo = match action {
            Action::Original(_) | Action::Plain(_) => true,
            Action::Local(local) => local.answer == Answer::Circular,
            Action::Encrypted(_) => false,
        };
        if may_be_echo && echo::comes_back(query.name()) {
            let zone = Zone::root();
            return Ok(Way::Local(Local { zone, answer: Answer::NxDomain }));
        }
        let is_transfer = matches!(query.qtype(), rr_type::AXFR | rr_type::IXFR);
        let nameservers = match action {
            Action::Local(local) => return Ok(Way::Local(local.clone())),
            Action::Original(whose) => asker.originals(&routes, *whose),
            Action::Plain(addrs) => Nameservers { addrs: addrs.to_vec(), side: Side::Host },
            Action::Encrypted(group) if !is_transfer => {
                return Ok(Way::Ask(Whom::Encrypted(group.0)));
            }
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
            _ => Ok(Way::Ask(Whom::Plain(nameservers))),
        }
    }

    fn fail(&self, query: &Query, failure: &Failure) -> Vec<u8> {
        self.stats.failed.add();
        self.stats.failures.count(failure);
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

/// Whether an answer from upstream says no more than that there is none.
fn is_failure(answer: &[u8]) -> bool {
    Parts::read(answer).is_none_or(|parts| cache::is_failure(&parts))
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
            _: impl Fn(&'static Rc<Handler>, &'static [u8], Instant, Room, &'static Asker) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let size = size(Handler::handle);
        assert!(size <= 672, "{size}");
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
