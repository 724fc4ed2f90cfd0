//! What need not be asked: it is known already, or somebody is asking.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::{
    FutureExt as _,
    future::{LocalBoxFuture, Shared},
};
use tokio::task::spawn_local;

use super::{
    asked::Asked,
    response::{self, Failure, Room},
};
use crate::{
    cache::{self, Bits, Cache, Hit, Key, View},
    parts::Parts,
    wire::{flag, rcode},
};

/// How long a client waits for a fresh answer while there is a stale one (RFC 8767 section 5).
const STALE_AFTER: Duration = Duration::from_millis(1_800);
/// Nothing is renewed ahead of time while so many questions are being asked.
const BUSY: usize = 256;
/// As many questions are asked for whoever wants to hear the answer: they go on when clients have gone,
/// who could begin with new ones.
const MAX_FLIGHTS: usize = 16_384;
/// Numbers of those who are asked in plaintext begin here; below are those of groups of upstreams.
const FIRST_PLAIN: u32 = 1 << 31;
/// So many of them are remembered.
const MAX_PLAIN: usize = 1_024;

/// What one worker knows, and what it is asking.
pub(super) struct Known {
    cache: RefCell<Cache>,
    flights: RefCell<HashMap<Box<[u8]>, Flight>>,
    views: RefCell<Views>,
    stale_after: Duration,
}

/// A question that is being asked, for as many as want to hear the answer.
pub(super) type Flight = Shared<LocalBoxFuture<'static, Result<Landed, Failure>>>;

/// An answer, and who gave it.
#[derive(Clone)]
pub(super) struct Landed {
    pub(super) answer: Rc<[u8]>,
    pub(super) by: By,
}

/// Who gave it, if anybody looks: what a query waits in has little room.
pub(super) type By = Option<Rc<SocketAddr>>;

/// What there is to know of an answer that was found.
pub(super) struct Found {
    /// It is beyond its time.
    pub(super) is_stale: bool,
    /// It is to be given only if nothing fresh comes in time.
    pub(super) is_last_resort: bool,
    /// It is time to ask again.
    pub(super) is_due: bool,
}

/// Whom an answer comes from: answers of others may be different.
#[derive(Clone, Copy)]
pub(super) enum Resolver<'a> {
    /// A group of upstreams.
    Group(usize),
    /// Nameservers that are asked in plaintext, and in whose network: a client's, or else our own.
    Plain(&'a [SocketAddr], Option<u64>),
}

/// Numbers for those who are asked in plaintext: in which network, and who they are.
struct Views {
    numbers: HashMap<Option<u64>, HashMap<Box<[SocketAddr]>, u32>>,
    count: usize,
    next: u32,
}

impl Known {
    /// Nothing yet. A query may take `timeout`.
    pub(super) fn new(settings: cache::Settings, timeout: Duration) -> Self {
        Self {
            cache: RefCell::new(Cache::new(settings.size, settings.limits, Instant::now())),
            flights: RefCell::default(),
            views: RefCell::new(Views { numbers: HashMap::new(), count: 0, next: FIRST_PLAIN }),
            // Before the query fails.
            stale_after: STALE_AFTER.min(timeout * 9 / 10),
        }
    }

    /// What the answer of a resolver is kept under; nothing if it is not for keeping.
    pub(super) fn key(&self, asked: &Asked<'_>, bits: Bits, resolver: Resolver<'_>) -> Option<Key> {
        let view = match resolver {
            Resolver::Group(group) => {
                u32::try_from(group).ok().filter(|group| *group < FIRST_PLAIN)?
            }
            Resolver::Plain(addrs, network) => self.views.borrow_mut().of(addrs, network)?,
        };
        Key::new(View(view), asked.name(), asked.qtype(), asked.qclass(), bits)
    }

    /// Appends the answer, if it is known.
    pub(super) fn find(
        &self,
        asked: &Asked<'_>,
        key: &Key,
        room: Room,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Option<Found> {
        let mut cache = self.cache.borrow_mut();
        let hit = cache.get(key, now)?;
        let (parts, start) = (hit.parts(), out.len());
        response::compose(out, asked, &parts, extended_error(&hit, &parts));
        hit.count_down(&mut out[start..]);
        response::limit(out, start, asked, room);
        let (is_stale, is_due) = (hit.is_stale, hit.is_due);
        Some(Found { is_stale, is_last_resort: is_stale && is_due, is_due })
    }

    /// The question's flight: the one that is on its way, or this one. It goes on if nobody waits.
    pub(super) fn join(
        &self,
        key: &Key,
        ask: impl FnOnce() -> LocalBoxFuture<'static, Result<Landed, Failure>>,
    ) -> Flight {
        let mut flights = self.flights.borrow_mut();
        if let Some(flight) = flights.get(key.bytes()) {
            return flight.clone();
        }
        let flight = ask().shared();
        flights.insert(key.bytes().into(), flight.clone());
        spawn_local(flight.clone().map(drop));
        flight
    }

    /// Whether somebody is asking already.
    pub(super) fn is_asking(&self, key: &Key) -> bool {
        self.flights.borrow().contains_key(key.bytes())
    }

    /// Ends a flight: its answer is kept, if it is for keeping.
    pub(super) fn land(&self, key: &Key, answer: Option<&[u8]>) {
        self.flights.borrow_mut().remove(key.bytes());
        let mut cache = self.cache.borrow_mut();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match answer.and_then(Parts::read) {
            // The clock of signatures goes round (RFC 4034 section 3.1.5).
            Some(parts) => cache.keep(key, &parts, Instant::now(), unix as u32),
            None => cache.failed(key, Instant::now()),
        }
    }

    /// How many answers are kept, the octets that they take, and how many had to go.
    pub(super) fn kept(&self) -> (usize, usize, u64) {
        let cache = self.cache.borrow();
        (cache.count(), cache.used(), cache.evicted())
    }

    /// Whether so much is being asked that nothing should be asked ahead of time.
    pub(super) fn is_busy(&self) -> bool {
        self.flights.borrow().len() >= BUSY
    }

    /// Whether no further question can be asked for whoever wants to hear the answer.
    pub(super) fn is_full(&self) -> bool {
        self.flights.borrow().len() >= MAX_FLIGHTS
    }

    /// How long to wait for a fresh answer while there is a stale one.
    pub(super) fn stale_after(&self) -> Duration {
        self.stale_after
    }
}

impl Views {
    fn of(&mut self, addrs: &[SocketAddr], network: Option<u64>) -> Option<u32> {
        if let Some(number) = self.numbers.get(&network).and_then(|of| of.get(addrs)) {
            return Some(*number);
        }
        if self.count >= MAX_PLAIN {
            // No number is given twice, so what is kept under these is never found again.
            self.numbers.clear();
            self.count = 0;
        }
        let number = self.next;
        self.next = number.checked_add(1)?;
        self.count += 1;
        self.numbers.entry(network).or_default().insert(addrs.into(), number);
        Some(number)
    }
}

/// What is special about a known answer (RFC 8914 sections 4.4, 4.14 and 4.20).
fn extended_error(hit: &Hit<'_>, parts: &Parts<'_>) -> Option<u16> {
    match (hit.is_stale, parts.flags[1] & flag::RCODE) {
        (true, rcode::NXDOMAIN) => Some(19),
        (true, _) => Some(3),
        (false, rcode::NOERROR | rcode::NXDOMAIN) => None,
        (false, _) => Some(13),
    }
}
