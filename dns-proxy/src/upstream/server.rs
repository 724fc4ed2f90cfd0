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
    /// Connections for suspicious queries.
    pub(super) aside: Cell<usize>,
    /// The last one of them, and the suspicion and number of those that may still join it.
    pub(super) gathering: RefCell<Option<(Rc<Connection>, u8, usize)>>,
    /// It owes answers and does not even answer a probe.
    pub(super) suspected: Cell<bool>,
    /// How long it takes to answer.
    pub(super) rtt: Rtt,
    /// What it did so far.
    pub(super) tally: Tally,
    failed: RefCell<Option<Failed>>,
    ended_early: Cell<Option<Instant>>,
    /// Why it is used without being authenticated, if it is.
    doubt: RefCell<Option<String>>,
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
            aside: Cell::new(0),
            gathering: RefCell::default(),
            suspected: Cell::new(false),
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

    /// The connection to ask on, if there is one: the spare one takes the place of a main one that
    /// ended.
    pub(super) fn connection(&self) -> Option<Rc<Connection>> {
        let mut main = self.main.borrow_mut();
        if main.as_ref().is_none_or(|main| !main.is_open()) {
            *main = self.spare.take().filter(|spare| spare.is_open());
        }
        main.clone()
    }

    /// All that are open.
    pub(super) fn connections(&self) -> impl Iterator<Item = Rc<Connection>> {
        [self.main.borrow().clone(), self.spare.borrow().clone()].into_iter().flatten()
    }

    /// Whether queries go to this connection.
    pub(super) fn is_main(&self, connection: &Rc<Connection>) -> bool {
        self.main.borrow().as_ref().is_some_and(|main| Rc::ptr_eq(main, connection))
    }

    /// Lets go of a connection that has ended; whether it was the main one.
    pub(super) fn forget(&self, connection: &Rc<Connection>) -> bool {
        let is = |slot: &mut Rc<Connection>| Rc::ptr_eq(slot, connection);
        self.spare.borrow_mut().take_if(is);
        self.main.borrow_mut().take_if(is).is_some()
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
        if self.failed.borrow().is_some() {
            self.failed.take();
            info!(upstream = %self.addr, "upstream answers again");
        }
    }

    /// Notes a failure; says why unless that was said before.
    pub(super) fn failed(&self, error: &ConnectionError) {
        self.tally.failures.update(|failures| failures + 1);
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
