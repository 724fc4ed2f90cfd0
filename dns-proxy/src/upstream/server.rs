//! One upstream server: its connections, and what is known of it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{ConnectionError, connection::Connection, report::Tally, rtt::Rtt, tls::TlsClient};
use crate::addr::UpstreamAddr;

/// How long TCP and TLS may take together before another try is worth more; two fifths of the query's
/// whole time if that is less. Longer every second and third time in a row, for servers that are very
/// far away.
const DIAL_TIMEOUT: Duration = Duration::from_millis(1500);
/// The longest time that either takes.
const MAX_DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections to one server that only finish what they have begun.
const MAX_LEAVING: usize = 8;
/// How often a server that refuses is dialled while none answers.
pub(super) const PAUSE: Duration = Duration::from_millis(30);
/// The same for one that costs time or trust with each attempt: silent, or with a certificate that
/// will not change in a moment.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// While another server answers, one that fails again and again is left alone twice as long each
/// time, up to this.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A server that ended a connection with queries unanswered has a spare one for so long.
const SPARE_FOR: Duration = Duration::from_secs(60);

/// A server and the connections to it.
pub(super) struct Server {
    /// Its place in the order of preference.
    pub(super) index: usize,
    addr: UpstreamAddr,
    tls: Arc<TlsClient>,
    /// Where queries go.
    pub(super) main: RefCell<Option<Rc<Connection>>>,
    /// Takes over at once when the main one ends.
    pub(super) spare: RefCell<Option<Rc<Connection>>>,
    /// They have been replaced, and may still give the answers that they owe.
    leaving: RefCell<Vec<Rc<Connection>>>,
    /// Connections for suspicious queries.
    pub(super) aside: Cell<usize>,
    /// The last one of them, and the suspicion and number of those that may still join it.
    pub(super) gathering: RefCell<Option<(Rc<Connection>, u8, usize)>>,
    /// It owes answers and does not even answer a probe.
    pub(super) suspected: Cell<bool>,
    /// How many connections were replaced for that since it answered last.
    pub(super) replaced: Cell<u32>,
    /// How long it takes to answer.
    pub(super) rtt: Rtt,
    /// What it did so far.
    pub(super) tally: Tally,
    failed: RefCell<Option<Failed>>,
    ended_early: Cell<Option<Instant>>,
    /// Why it is used without being authenticated, if it is.
    doubt: RefCell<Option<String>>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Queries go to it.
    Main,
    /// It is to take over.
    Spare,
    /// It has been replaced, and only finishes what it has begun.
    Leaving,
    /// It has suspicious queries.
    Aside,
}

/// A server's last failure.
struct Failed {
    at: Instant,
    /// How many there were in a row, 1 at least.
    times: u32,
    error: ConnectionError,
}

impl Server {
    pub(super) fn new(index: usize, addr: UpstreamAddr, tls: Arc<TlsClient>) -> Self {
        Self {
            index,
            addr,
            tls,
            main: RefCell::default(),
            spare: RefCell::default(),
            leaving: RefCell::default(),
            aside: Cell::new(0),
            gathering: RefCell::default(),
            suspected: Cell::new(false),
            replaced: Cell::new(0),
            rtt: Rtt::default(),
            tally: Tally::default(),
            failed: RefCell::default(),
            ended_early: Cell::new(None),
            doubt: RefCell::default(),
        }
    }

    pub(super) fn addr(&self) -> &UpstreamAddr {
        &self.addr
    }

    /// Makes the TLS connections to it.
    pub(super) fn tls(&self) -> &TlsClient {
        &self.tls
    }

    /// How long dialling it may take.
    pub(super) fn dial_limit(&self, timeout: Duration) -> Duration {
        let in_vain = self.failed.borrow().as_ref().map_or(0, Failed::times_unreachable);
        let limit = DIAL_TIMEOUT.min(timeout * 2 / 5) * (1 << (in_vain % 3));
        // TCP and TLS take two round trips, or three.
        let far = self.rtt.usual().map_or(Duration::ZERO, |usual| usual * 3);
        limit.max(far).min(MAX_DIAL_TIMEOUT)
    }

    /// The connection to ask on, if there is one: the spare one takes the place of a main one that
    /// ended or that the server wants to be rid of.
    pub(super) fn connection(&self) -> Option<Rc<Connection>> {
        let mut main = self.main.borrow_mut();
        if self.leaving.borrow().len() < MAX_LEAVING
            && let Some(unwanted) = main.take_if(|main| main.is_open() && main.is_leaving())
        {
            self.let_go(unwanted);
        }
        if main.as_ref().is_none_or(|main| !main.is_open()) {
            *main = self.spare.take().filter(|spare| spare.is_open());
        }
        main.clone()
    }

    /// Makes room for another main connection; this one is given time to answer what it owes.
    pub(super) fn retire(&self, main: &Rc<Connection>) {
        main.close_when_answered();
        if let Some(main) = self.main.borrow_mut().take_if(|other| Rc::ptr_eq(other, main)) {
            self.let_go(main);
        }
    }

    fn let_go(&self, connection: Rc<Connection>) {
        let mut leaving = self.leaving.borrow_mut();
        if leaving.len() >= MAX_LEAVING {
            leaving[0].abandon();
        }
        leaving.push(connection);
    }

    /// Whether another one has taken its place.
    pub(super) fn has_replaced(&self, connection: &Rc<Connection>) -> bool {
        self.leaving.borrow().iter().any(|other| Rc::ptr_eq(other, connection))
    }

    /// All that are open and not for suspicious queries.
    pub(super) fn connections(&self) -> Vec<Rc<Connection>> {
        let slots = [self.main.borrow().clone(), self.spare.borrow().clone()];
        slots.into_iter().flatten().chain(self.leaving.borrow().iter().cloned()).collect()
    }

    /// Whether queries go to this connection.
    pub(super) fn is_main(&self, connection: &Rc<Connection>) -> bool {
        self.main.borrow().as_ref().is_some_and(|main| Rc::ptr_eq(main, connection))
    }

    /// Lets go of a connection that has ended; what it was.
    pub(super) fn forget(&self, connection: &Rc<Connection>) -> Role {
        let is = |slot: &mut Rc<Connection>| Rc::ptr_eq(slot, connection);
        if self.main.borrow_mut().take_if(is).is_some() {
            return Role::Main;
        }
        if self.spare.borrow_mut().take_if(is).is_some() {
            return Role::Spare;
        }
        let mut leaving = self.leaving.borrow_mut();
        let before = leaving.len();
        leaving.retain(|other| !Rc::ptr_eq(other, connection));
        if leaving.len() < before { Role::Leaving } else { Role::Aside }
    }

    /// It did not fail the last time.
    pub(super) fn is_trusted(&self) -> bool {
        self.failed.borrow().is_none()
    }

    /// When it may be dialled even if it is all there is.
    pub(super) fn may_dial_at(&self) -> Option<Instant> {
        self.failed.borrow().as_ref().map(|failed| failed.at + failed.pause())
    }

    /// When it is worth a try although another one answers.
    pub(super) fn try_again_at(&self) -> Option<Instant> {
        self.failed.borrow().as_ref().map(|failed| {
            let doublings = failed.times.saturating_sub(1).min(16);
            failed.at + (failed.pause() * (1 << doublings)).min(MAX_PAUSE)
        })
    }

    pub(super) fn failed_at(&self) -> Option<Instant> {
        self.failed.borrow().as_ref().map(|failed| failed.at)
    }

    pub(super) fn last_error(&self) -> Option<ConnectionError> {
        self.failed.borrow().as_ref().map(|failed| failed.error.clone())
    }

    /// It gave an answer.
    pub(super) fn answered(&self) {
        self.suspected.set(false);
        self.replaced.set(0);
        if self.failed.borrow().is_some() {
            self.failed.take();
            info!(upstream = %self.addr, "upstream answers again");
        }
    }

    /// Notes a failure; says why unless that was said before.
    pub(super) fn failed(&self, error: &ConnectionError) {
        self.tally.failures.update(|failures| failures + 1);
        if matches!(error, ConnectionError::Tls { .. }) {
            self.tally.tls_failures.update(|failures| failures + 1);
        }
        let mut failed = self.failed.borrow_mut();
        if failed.as_ref().is_none_or(|before| before.error != *error) {
            warn!(%error, "upstream failed");
        }
        let times = failed.as_ref().map_or(0, |before| before.times).saturating_add(1);
        *failed = Some(Failed { at: Instant::now(), times, error: error.clone() });
    }

    /// Notes whether it is authenticated; says so if that has changed.
    pub(super) fn authenticated(&self, doubt: Option<String>) {
        let before = self.doubt.replace(doubt);
        let doubt = self.doubt.borrow();
        match &*doubt {
            Some(reason) if before != *doubt => {
                warn!(upstream = %self.addr, reason, "upstream is used without being authenticated");
            }
            None if before.is_some() => info!(upstream = %self.addr, "upstream is authenticated"),
            Some(_) | None => {}
        }
    }

    /// Why it is used without being authenticated, if it is.
    pub(super) fn doubt(&self) -> Option<String> {
        self.doubt.borrow().clone()
    }

    /// Notes that a connection ended with queries unanswered.
    pub(super) fn ended_early(&self, now: Instant) {
        self.ended_early.set(Some(now));
    }

    /// It may be one that ends connections again and again with queries unanswered, as servers do
    /// that allow only so many on each: a spare one saves clients the handshakes.
    pub(super) fn keeps_closing(&self, now: Instant) -> bool {
        self.ended_early.get().is_some_and(|last| now - last < SPARE_FOR)
    }
}

impl Failed {
    /// How often in a row it could not be reached in time, at least.
    fn times_unreachable(&self) -> u32 {
        if matches!(self.error, ConnectionError::Unreachable { .. }) { self.times } else { 0 }
    }

    fn pause(&self) -> Duration {
        match self.error {
            ConnectionError::Tls { .. }
            | ConnectionError::Silent { .. }
            | ConnectionError::Unreachable { .. } => LONG_PAUSE,
            ConnectionError::Io { .. }
            | ConnectionError::Closed { .. }
            | ConnectionError::Junk { .. }
            | ConnectionError::Full { .. } => PAUSE,
        }
    }
}
