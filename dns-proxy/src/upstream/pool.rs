//! Whom a query is asked of: the preferred server, or the next one, until there is an answer.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    ConnectionError, ExchangeError, Response, Settings,
    connection::Connection,
    outstanding::Outstanding,
    report::ServerReport,
    server::{PAUSE, Role, Server},
};

/// How often deadlines are looked at, while anything is outstanding.
const TICK: Duration = Duration::from_millis(50);
/// The same, and what is to be asked of another server too, where there are several.
const SHORT_TICK: Duration = Duration::from_millis(10);
/// Queries that may wait for a server to be dialled again.
const MAX_WAITING: usize = 16_384;
/// A query with which so many connections ended, without one answer on them, may be the reason, and
/// is asked aside, on a connection with so few others ...
const SUSPICIOUS: u8 = 2;
const GROUP: usize = 32;
/// ... and if that ends too, with so few, and then alone.
const SMALL_GROUP: usize = 4;
/// With so many, the last of which it had to itself, it is not asked again.
const CONVICTED: u8 = 4;
/// Connections to one server that serve suspicious queries.
const MAX_ASIDE: usize = 4;
/// A server that is left for its slowness is probed once for so many queries.
const QUERIES_PER_PROBE: u32 = 64;
/// Of so many queries one may be asked of a second server because it is slow ...
const QUERIES_PER_HEDGE: u32 = 10;
/// ... and so many at once.
const MAX_HEDGES: u32 = 100;

/// The servers of one worker.
pub struct Pool {
    inner: Rc<Inner>,
}

pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) servers: Vec<Rc<Server>>,
    /// Queries that no server can be asked at the moment.
    waiting: RefCell<Vec<Rc<Outstanding>>>,
    ticking: Cell<bool>,
    placing: Cell<bool>,
    /// Counts queries.
    asked: Cell<u32>,
    /// How many queries may be hedged, in parts of [`QUERIES_PER_HEDGE`].
    hedges: Cell<u32>,
}

impl Pool {
    /// A pool without connections; the first query opens one.
    pub fn new(settings: Settings) -> Self {
        let upstreams = settings.upstreams.iter().enumerate();
        let servers = upstreams
            .map(|(index, addr)| Server::new(index, addr.clone(), settings.tls.client(addr)))
            .map(Rc::new)
            .collect();
        Self {
            inner: Rc::new(Inner {
                settings,
                servers,
                waiting: RefCell::default(),
                ticking: Cell::new(false),
                placing: Cell::new(false),
                asked: Cell::new(0),
                hedges: Cell::new(MAX_HEDGES * QUERIES_PER_HEDGE),
            }),
        }
    }

    /// How each server is, in the order of preference.
    pub fn report(&self) -> Vec<ServerReport> {
        self.inner.servers.iter().map(|server| ServerReport::of(server)).collect()
    }

    /// Asks upstream, again and elsewhere if need be, until there is an answer or no time is left.
    ///
    /// # Errors
    /// No answer within the configured time, and why.
    pub async fn exchange(&self, message: Vec<u8>) -> Result<Response, ExchangeError> {
        let inner = &self.inner;
        let now = Instant::now();
        let deadline = now + inner.settings.timeout;
        let (query, answer) = Outstanding::new(message, deadline);
        inner.hedges.update(|parts| (parts + 1).min(MAX_HEDGES * QUERIES_PER_HEDGE));
        let index = inner.place(&query, now);
        inner.look_back(index, now);
        inner.keep_time();
        answer.await
    }
}

impl Inner {
    /// Gives a query to a server, or keeps it until one may be dialled; which server.
    fn place(self: &Rc<Self>, query: &Rc<Outstanding>, now: Instant) -> usize {
        let index = self.choose(None).unwrap_or(0);
        let connection = if query.suspicion.get() < SUSPICIOUS {
            self.connection(index, now)
        } else {
            self.connection_aside(index, query.suspicion.get(), now)
        };
        match connection {
            Some(connection) => self.submit(&connection, query, now),
            None if self.waiting.borrow().len() < MAX_WAITING => {
                self.waiting.borrow_mut().push(Rc::clone(query));
                self.place_later(index, now);
            }
            None => query.settle(Err(self.late(index))),
        }
        index
    }

    /// Looks now and then whether servers more preferred than the chosen one are still slower.
    fn look_back(self: &Rc<Self>, chosen: usize, now: Instant) {
        self.asked.update(|asked| asked.wrapping_add(1));
        if self.asked.get().is_multiple_of(QUERIES_PER_PROBE) {
            for index in (0..chosen).filter(|index| self.servers[*index].is_trusted()) {
                if let Some(connection) = self.connection(index, now) {
                    connection.probe(now, self.settings.timeout);
                }
            }
        }
    }

    /// Places those who wait again as soon as the server may be dialled.
    fn place_later(self: &Rc<Self>, index: usize, now: Instant) {
        // One that is not waited for is busy with suspicious queries: they are placed when those are
        // answered, or by the clock.
        let Some(at) = self.servers[index].may_dial_at().filter(|at| *at > now) else {
            return;
        };
        if !self.placing.replace(true) {
            let pool = Rc::clone(self);
            tokio::task::spawn_local(async move {
                sleep_until(at).await;
                pool.placing.set(false);
                pool.place_waiting(Instant::now());
            });
        }
    }

    fn place_waiting(self: &Rc<Self>, now: Instant) {
        for query in self.waiting.take() {
            self.place_again(&query, now);
        }
    }

    /// Places a query again, unless it is too late for that.
    fn place_again(self: &Rc<Self>, query: &Rc<Outstanding>, now: Instant) {
        if query.deadline <= now {
            query.settle(Err(self.late(query.asked.get())));
        } else if query.is_wanted() {
            self.place(query, now);
        }
    }

    fn submit(&self, connection: &Connection, query: &Rc<Outstanding>, now: Instant) {
        // A limit of our own: the server is fine, and asking again would only add to it.
        if let Err(full) = connection.submit(query, now) {
            query.settle(Err(ExchangeError::Connection(full)));
        }
    }

    /// The most preferred server that neither failed nor is suspected nor far behind another; if all
    /// failed, the one whose failure is the oldest. Never the one `beside`.
    fn choose(&self, beside: Option<usize>) -> Option<usize> {
        let others = || self.servers.iter().filter(|server| Some(server.index) != beside);
        let trusted = || others().filter(|server| server.is_trusted());
        let well = || trusted().filter(|server| !server.suspected.get());
        let behind = |server: &Server| well().any(|other| server.rtt.is_far_behind(&other.rtt));
        let chosen = well().find(|server| !behind(server)).or_else(|| trusted().next());
        let chosen = chosen.or_else(|| others().min_by_key(|server| server.failed_at()));
        chosen.map(|server| server.index)
    }

    /// The connection to ask a server on; `None` while it is not to be dialled.
    fn connection(self: &Rc<Self>, index: usize, now: Instant) -> Option<Rc<Connection>> {
        let server = &self.servers[index];
        server.connection().or_else(|| {
            let may_dial = server.may_dial_at().is_none_or(|at| at <= now);
            may_dial.then(|| {
                let connection = self.open(index);
                *server.main.borrow_mut() = Some(Rc::clone(&connection));
                connection
            })
        })
    }

    /// One for a few queries that are as suspicious as each other, unless there are enough of them.
    fn connection_aside(
        self: &Rc<Self>,
        index: usize,
        suspicion: u8,
        now: Instant,
    ) -> Option<Rc<Connection>> {
        let server = &self.servers[index];
        let mut gathering = server.gathering.borrow_mut();
        if let Some((connection, same, room)) = &mut *gathering
            && (*same, connection.is_dialling()) == (suspicion, true)
            && *room > 0
        {
            *room -= 1;
            return Some(Rc::clone(connection));
        }
        let may_dial = server.may_dial_at().is_none_or(|at| at <= now);
        (may_dial && server.aside.get() < MAX_ASIDE).then(|| {
            server.aside.update(|aside| aside + 1);
            let connection = self.open(index);
            connection.close_when_answered();
            let room = match suspicion - SUSPICIOUS {
                0 => GROUP,
                1 => SMALL_GROUP,
                _ => 1,
            };
            *gathering = Some((Rc::clone(&connection), suspicion, room - 1));
            connection
        })
    }

    /// Opens a spare connection, if there is none.
    pub(super) fn open_spare(self: &Rc<Self>, index: usize) {
        let server = &self.servers[index];
        if server.spare.borrow().is_none() {
            let connection = self.open(index);
            *server.spare.borrow_mut() = Some(connection);
        }
    }

    /// Starts to connect.
    fn open(self: &Rc<Self>, index: usize) -> Rc<Connection> {
        let connection = Connection::new(&self.servers[index]);
        let (pool, running) = (Rc::clone(self), Rc::clone(&connection));
        tokio::task::spawn_local(async move {
            let up = || pool.came_up(index, &running);
            let reason = tokio::select! {
                reason = running.run(&pool.settings, up) => reason,
                reason = pool.watch(index, &running) => reason,
            };
            pool.ended(index, &running, &reason);
        });
        connection
    }

    fn came_up(self: &Rc<Self>, index: usize, connection: &Rc<Connection>) {
        let server = &self.servers[index];
        let now = Instant::now();
        if !server.is_trusted() {
            // It is trusted again when it answers.
            connection.probe(now, self.settings.timeout);
        }
        let main = server.main.borrow().clone();
        match main {
            Some(main) if Rc::ptr_eq(&main, connection) => {
                if server.keeps_closing(now) {
                    self.open_spare(index);
                }
            }
            // The server takes new connections, so it is the old one that is dead.
            Some(main) if server.suspected.get() => self.replace(index, &main, now),
            Some(_) | None => {}
        }
    }

    /// Lets the spare connection take the place of the main one, which may still answer what it owes:
    /// some servers are as slow as that.
    pub(super) fn replace(self: &Rc<Self>, index: usize, main: &Rc<Connection>, now: Instant) {
        let server = &self.servers[index];
        server.retire(main);
        server.suspected.set(false);
        server.replaced.update(|times| times.saturating_add(1));
        self.ask_again(index, main, now);
    }

    /// Asks on the main connection what only this one owes.
    pub(super) fn ask_again(self: &Rc<Self>, index: usize, old: &Rc<Connection>, now: Instant) {
        for (query, _) in old.debts(now).into_iter().filter(|(query, _)| query.owed_by.get() == 1) {
            if let Some(next) = self.connection(index, now) {
                self.submit(&next, &query, now);
            }
        }
    }

    /// Asks elsewhere what a connection still owed.
    fn ended(self: &Rc<Self>, index: usize, connection: &Rc<Connection>, reason: &ConnectionError) {
        let server = &self.servers[index];
        let now = Instant::now();
        let was_up = connection.is_up();
        let debts = connection.close();
        let answered = connection.answered() > 0;
        tracing::debug!(%reason, waiting = debts.len(), "connection ended");

        let role = server.forget(connection);
        let was_main = role == Role::Main;
        if role == Role::Aside {
            self.was_aside(index, answered);
            server.gathering.borrow_mut().take_if(|(last, ..)| Rc::ptr_eq(last, connection));
        }
        // Servers close whenever they like. Another end may happen to any, but not again and again.
        let closed = matches!(reason, ConnectionError::Closed { .. } | ConnectionError::Io { .. });
        let harmless = answered && (closed || !server.keeps_closing(now));
        if answered && !debts.is_empty() {
            server.ended_early(now);
        }
        let replaced = server.connection().is_some_and(|next| next.is_up());
        if was_main && replaced && server.keeps_closing(now) {
            self.open_spare(index);
        }
        if was_main && replaced {
            // All is well with the server.
            server.suspected.set(false);
        } else if was_main && !harmless {
            server.failed(reason);
        }
        // The oldest first: if one of them is the reason, it shows sooner.
        let mut debts = debts;
        debts.retain(|query| query.is_wanted());
        debts.sort_unstable_by_key(|query| query.deadline);
        let alone = debts.len() == 1;
        for query in debts {
            if was_up && !answered && !matches!(reason, ConnectionError::Silent { .. }) {
                query.suspect();
            }
            if alone && query.suspicion.get() >= CONVICTED {
                query.settle(Err(ExchangeError::Connection(reason.clone())));
            } else if query.owed_by.get() == 0 {
                self.place_again(&query, now);
            }
        }
    }

    /// Lets other suspicious queries have a connection: at once after an answer, else after a pause, or
    /// it would be dialled over and over, since such connections are not taken for the server's
    /// failures.
    fn was_aside(self: &Rc<Self>, index: usize, answered: bool) {
        let pool = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if !answered {
                sleep(PAUSE).await;
            }
            pool.servers[index].aside.update(|aside| aside.saturating_sub(1));
            pool.place_waiting(Instant::now());
        });
    }

    /// Has the clock looked at as long as anything is outstanding.
    fn keep_time(self: &Rc<Self>) {
        if self.ticking.replace(true) {
            return;
        }
        let pool = Rc::clone(self);
        let pause = if self.servers.len() > 1 { SHORT_TICK } else { TICK };
        tokio::task::spawn_local(async move {
            loop {
                sleep(pause).await;
                if !pool.tick(Instant::now()) {
                    break;
                }
            }
            pool.ticking.set(false);
        });
    }

    /// Ends what is past its deadline, and starts what has become due; whether anything is left.
    fn tick(self: &Rc<Self>, now: Instant) -> bool {
        for (index, server) in self.servers.iter().enumerate() {
            for connection in server.connections() {
                connection.sweep(now, || self.late(index));
                if self.servers.len() > 1 {
                    self.hedge(index, &connection, now);
                }
            }
            let try_again = server.try_again_at().is_some_and(|at| at <= now);
            if try_again && server.connection().is_none() && self.servers.len() > 1 {
                // Nobody waits for it, so nobody is let down.
                self.connection(index, now);
            }
        }
        self.place_waiting(now);
        let owes = |server: &Rc<Server>| {
            server.aside.get() > 0
                || server.connections().iter().any(|connection| connection.owes() > 0)
        };
        !self.waiting.borrow().is_empty() || self.servers.iter().any(owes)
    }

    /// Asks another server too what one takes unusually long for.
    fn hedge(self: &Rc<Self>, index: usize, connection: &Connection, now: Instant) {
        let after = self.servers[index].rtt.hedge_after().min(self.settings.timeout / 2);
        let Some(then) = now.checked_sub(after) else {
            return;
        };
        for (query, sent) in connection.debts(then) {
            if self.hedges.get() < QUERIES_PER_HEDGE
                || !self.ask_elsewhere(index, &query, sent, now)
            {
                return;
            }
            self.hedges.update(|parts| parts - QUERIES_PER_HEDGE);
        }
    }

    /// Asks another server all that a suspected one owes.
    pub(super) fn rescue(self: &Rc<Self>, index: usize, connection: &Connection, now: Instant) {
        for (query, sent) in connection.debts(now) {
            if !self.ask_elsewhere(index, &query, sent, now) {
                return;
            }
        }
    }

    /// Asks a trusted server too; whether there is one.
    fn ask_elsewhere(
        self: &Rc<Self>,
        index: usize,
        query: &Rc<Outstanding>,
        sent: Instant,
        now: Instant,
    ) -> bool {
        let other = self.choose(Some(index)).filter(|other| {
            self.servers[*other].is_trusted() && !self.servers[*other].suspected.get()
        });
        let Some(connection) = other.and_then(|other| self.connection(other, now)) else {
            return false;
        };
        // It takes at least as long; how long, it may be that nobody waits to see.
        self.servers[index].rtt.quickest(now.saturating_duration_since(sent));
        query.hedged.set(true);
        self.submit(&connection, query, now);
        true
    }

    /// Why a query was not answered in time.
    pub(super) fn late(&self, index: usize) -> ExchangeError {
        let error = self.servers[index].last_error();
        error.map_or(ExchangeError::Timeout, ExchangeError::Connection)
    }
}
