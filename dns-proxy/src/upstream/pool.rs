//! Which connection answers a query: the preferred upstream's, or the next one's.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{info, warn};

use super::{ConnectionError, ExchangeError, Settings, connection::Connection};
use crate::addr::UpstreamAddr;

/// How often an upstream that refuses is dialled while none answers.
const PAUSE: Duration = Duration::from_millis(50);
/// The same for one that costs time or trust with each attempt: silent, or with a certificate that
/// will not change in a moment.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// While another upstream answers, one that fails again and again is left alone twice as long each
/// time, up to this.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A query without an answer is asked at another upstream too after this, while the first is still
/// waited for; after half of its whole time if that is less. Above what an answer takes that must
/// be fetched across the world, so that slow names are not asked twice, and above what it takes to
/// tell that a connection is dead.
const HEDGE_AFTER: Duration = Duration::from_millis(1_000);
/// A query that saw so many connections end gets one of its own, in case it is the reason.
const LOST_CONNECTIONS: u32 = 2;

/// The upstreams of one worker.
pub struct Pool {
    settings: Settings,
    upstreams: Vec<Upstream>,
}

struct Upstream {
    addr: UpstreamAddr,
    connection: RefCell<Option<Rc<Connection>>>,
    failed: RefCell<Option<Failed>>,
}

/// An upstream's last failure.
#[derive(Clone, Debug)]
struct Failed {
    at: Instant,
    /// How many there were in a row, 1 at least.
    times: u32,
    error: ConnectionError,
}

/// One query's way through the upstreams.
struct Errand<'a> {
    message: &'a [u8],
    deadline: Instant,
    /// The upstream asked last.
    asked: Cell<usize>,
    /// An upstream that is asked already.
    beside: Option<usize>,
}

impl Pool {
    /// A pool without connections; the first query opens one.
    pub fn new(settings: Settings) -> Self {
        let upstreams = settings.upstreams.iter().cloned().map(Upstream::new).collect();
        Self { settings, upstreams }
    }

    /// Asks upstream, again and elsewhere if need be, until there is an answer or no time is left.
    ///
    /// # Errors
    /// No answer within the configured time, and why.
    pub async fn exchange(&self, message: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        let deadline = Instant::now() + self.settings.timeout;
        let first = Errand { message, deadline, asked: Cell::new(0), beside: None };
        let first_answer = self.run(&first);
        if self.upstreams.len() == 1 {
            return first_answer.await;
        }
        tokio::pin!(first_answer);
        tokio::select! {
            answer = &mut first_answer => return answer,
            () = sleep(HEDGE_AFTER.min(self.settings.timeout / 2)) => {}
        }
        let beside = Some(first.asked.get());
        let second = Errand { message, deadline, asked: Cell::new(0), beside };
        let second_answer = self.run(&second);
        tokio::pin!(second_answer);
        // The first answer wins; an error only if there is no other hope.
        tokio::select! {
            answer = &mut first_answer => match answer {
                Ok(answer) => Ok(answer),
                Err(_) => second_answer.await,
            },
            answer = &mut second_answer => match answer {
                Ok(answer) => Ok(answer),
                Err(_) => first_answer.await,
            },
        }
    }

    /// Asks one upstream after the other, as they fail.
    async fn run(&self, errand: &Errand<'_>) -> Result<Vec<u8>, ExchangeError> {
        let mut last = None;
        let mut lost = 0;
        loop {
            let index = self.choose(errand.beside);
            let upstream = &self.upstreams[index];
            errand.asked.set(index);
            // Every upstream failed a moment ago if this one must be waited for.
            let may_dial_at = upstream.may_dial_at();
            if may_dial_at.max(Instant::now()) >= errand.deadline {
                return Err(timed_out(last.or_else(|| upstream.last_error())));
            }
            sleep_until(may_dial_at).await;
            let connection = if lost < LOST_CONNECTIONS {
                upstream.connection(&self.settings)
            } else {
                Rc::new(Connection::open(upstream.addr.clone(), &self.settings))
            };
            match timeout_at(errand.deadline, connection.exchange(errand.message)).await {
                Ok(Ok(answer)) => {
                    upstream.recovered();
                    return Ok(answer);
                }
                // Our own limit: the connection is fine, and asking again would only add to it.
                Ok(Err(error @ ConnectionError::Full { .. })) => {
                    return Err(ExchangeError::Connection(error));
                }
                // It was this query, alone on its connection.
                Ok(Err(error)) if lost >= LOST_CONNECTIONS && connection.was_up() => {
                    return Err(ExchangeError::Connection(error));
                }
                Ok(Err(error)) => {
                    lost += u32::from(connection.was_up());
                    upstream.failed(&connection, &error);
                    last = Some(error);
                }
                Err(_) => return Err(timed_out(last)),
            }
        }
    }

    /// The first upstream that is not left alone for its failures; if all are, the one whose
    /// failure is the oldest. Never the one `beside`.
    fn choose(&self, beside: Option<usize>) -> usize {
        let now = Instant::now();
        let others = || (0..self.upstreams.len()).filter(|index| Some(*index) != beside);
        others()
            .find(|&index| self.upstreams[index].is_trusted(now))
            .or_else(|| others().min_by_key(|&index| self.upstreams[index].failed_at()))
            .unwrap_or(0)
    }
}

impl Upstream {
    fn new(addr: UpstreamAddr) -> Self {
        Self { addr, connection: RefCell::new(None), failed: RefCell::new(None) }
    }

    /// The open connection, or a new one.
    fn connection(&self, settings: &Settings) -> Rc<Connection> {
        let mut slot = self.connection.borrow_mut();
        match &*slot {
            Some(connection) if connection.is_open() => Rc::clone(connection),
            _ => Rc::clone(slot.insert(Rc::new(Connection::open(self.addr.clone(), settings)))),
        }
    }

    /// It has not failed, or so long ago that it may be tried instead of another.
    fn is_trusted(&self, now: Instant) -> bool {
        self.failed.borrow().as_ref().is_none_or(|failed| {
            let doublings = failed.times.saturating_sub(1).min(16);
            now >= failed.at + (failed.pause() * (1 << doublings)).min(MAX_PAUSE)
        })
    }

    /// When it may be tried even if it is all there is.
    fn may_dial_at(&self) -> Instant {
        let failed = self.failed.borrow();
        failed.as_ref().map_or_else(Instant::now, |failed| failed.at + failed.pause())
    }

    fn failed_at(&self) -> Option<Instant> {
        self.failed.borrow().as_ref().map(|failed| failed.at)
    }

    fn last_error(&self) -> Option<ConnectionError> {
        self.failed.borrow().as_ref().map(|failed| failed.error.clone())
    }

    fn recovered(&self) {
        if self.failed.take().is_some() {
            info!(upstream = %self.addr, "upstream answers again");
        }
    }

    /// Notes that a connection ended, once, however many queries it took along; says why unless
    /// that was said before.
    fn failed(&self, connection: &Rc<Connection>, error: &ConnectionError) {
        let mut slot = self.connection.borrow_mut();
        if slot.take_if(|current| Rc::ptr_eq(current, connection)).is_none() {
            return;
        }
        // Servers close whenever they like: the next query just opens another connection.
        if matches!(error, ConnectionError::Closed { .. }) && connection.has_answered() {
            return;
        }
        let mut failed = self.failed.borrow_mut();
        if failed.as_ref().is_none_or(|before| before.error != *error) {
            warn!(%error, "upstream failed");
        }
        let times = failed.as_ref().map_or(0, |before| before.times).saturating_add(1);
        *failed = Some(Failed { at: Instant::now(), times, error: error.clone() });
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

fn timed_out(last: Option<ConnectionError>) -> ExchangeError {
    last.map_or(ExchangeError::Timeout, ExchangeError::Connection)
}
