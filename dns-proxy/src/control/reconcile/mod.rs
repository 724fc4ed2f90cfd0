//! Makes what is in place match what the scope asks for, whenever something changes.

mod early;
mod serving;
mod sweeping;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::Duration,
};

use dns_proxy_common::{Counter, Event, Listener, Policy};
use early::Early;
use serving::{Holder, Served};
use thiserror::Error;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    agenda::Agenda,
    bpf::{Attachment, Bpf, BpfError, Events},
    census::{Census, News},
    cgroup::{self, CgroupId, CgroupTree, Scope},
    discover::{Discovery, Places},
    named::{self, Names},
    netns::{Netns, NetnsId},
    sockets,
    stub::Notices,
    tokens::Ledger,
    view::{self, Snapshot, View},
    watch::Change,
};
use crate::{datapath::worker::Worker, pulse};

/// How often somebody is looked at though nothing is known to have changed: what inotify does not
/// tell, such as a process that moves to another namespace.
const RESYNC: Duration = Duration::from_secs(1);
/// How long that may take each time: as much as there is on most hosts, and the rest in turn.
const LOOK: Duration = Duration::from_millis(5);
/// How often unused tokens are looked for, unless they are scarce.
const SWEEP: Duration = Duration::from_secs(30);
/// A search that found nothing is done again no sooner than after that many times as long as it took.
const SEARCH_PAUSE: u32 = 50;
/// The same of looking for unused tokens while they are scarce, for which somebody waits.
const SWEEP_PAUSE: u32 = 5;
/// In how many namespaces stale connections are looked for between two other things.
const STALE_AT_ONCE: usize = 2;
/// How many namespaces may have changed before somebody sees to it; more wait to say so.
const CHANGED: usize = 256;

/// Why interception cannot go on.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The kernel side.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The cgroup tree could not be looked at, so there is nowhere to attach to.
    #[error("cannot look at the cgroup tree; the warning above says why")]
    NotAttached,
    /// A kernel interface that should always work.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The operating system's words.
        source: io::Error,
    },
}

/// What has changed, and is to be looked at again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Look {
    Cgroup(CgroupId),
    Name(PathBuf),
}

/// The control loop's state.
pub struct Control {
    census: Census,
    names: Names,
    agenda: Agenda<Look>,
    /// Who tells of containers and pods.
    discovery: Discovery,
    notices: Notices,
    bpf: Bpf,
    events: Events,
    workers: Arc<[Worker]>,
    namespaces: HashMap<NetnsId, Served>,
    /// Those, by their cookies.
    cookies: HashMap<u64, NetnsId>,
    /// Those that were looked at longest ago first.
    round: VecDeque<NetnsId>,
    unservable: HashMap<NetnsId, Instant>,
    /// When all processes may be searched again for the namespace of an event.
    search_at: Instant,
    changed: (mpsc::Sender<NetnsId>, mpsc::Receiver<NetnsId>),
    /// What the programs do not know yet.
    policies: HashMap<CgroupId, Option<Policy>>,
    attached: Option<(PathBuf, Attachment)>,
    ledger: Ledger,
    /// Somebody is short of tokens: look for unused ones soon.
    scarce: bool,
    /// Tokens in use at the last sweep.
    tokens: usize,
    /// When tokens may be swept again, scarce or not.
    sweep_at: [Instant; 2],
    next_listener: u64,
    /// Where listeners are, unless something else is there.
    port: u16,
    early: Vec<Early>,
    /// Namespaces whose routes by device are to be looked at, and when.
    unrouted: HashSet<NetnsId>,
    route_at: Instant,
    view: Arc<View>,
    /// Nothing has changed since it last showed how things are.
    is_shown: bool,
}

impl Control {
    /// Puts everything in place for what is there now; programs are attached last. A token is not
    /// taken back before it has been idle for a `rest`, which must be longer than any answer takes.
    ///
    /// # Errors
    /// The kernel refuses something without which nothing can be intercepted.
    pub fn start(
        tree: CgroupTree,
        scope: Scope,
        places: &Places,
        bpf: Bpf,
        events: Events,
        workers: Arc<[Worker]>,
        rest: Duration,
    ) -> Result<Self, ControlError> {
        let now = Instant::now();
        let view = Arc::new(View::new(tree.clone(), bpf.counters()));
        let (discovery, picker) = Discovery::start(&scope.selectors, places, &tree);
        let mut control = Self {
            census: Census::new(tree, scope, picker).map_err(io_error("inotify"))?,
            names: Names::default(),
            agenda: Agenda::default(),
            discovery,
            notices: Notices::default(),
            bpf,
            events,
            workers,
            namespaces: HashMap::new(),
            cookies: HashMap::new(),
            round: VecDeque::new(),
            unservable: HashMap::new(),
            search_at: now,
            changed: mpsc::channel(CHANGED),
            policies: HashMap::new(),
            attached: None,
            ledger: Ledger::new(rest),
            scarce: false,
            tokens: 0,
            sweep_at: [now, now + SWEEP],
            next_listener: 0,
            port: sockets::FIRST_PORT,
            early: Vec::new(),
            unrouted: HashSet::new(),
            route_at: now,
            view,
            is_shown: false,
        };
        if control.look_around() {
            control.settle()?;
        }
        control.route_devices();
        if control.attached.is_none() {
            return Err(ControlError::NotAttached);
        }
        control.break_stale(usize::MAX);
        control.expect_early()?;
        control.notice_stubs();
        Ok(control)
    }

    /// Follows the host until cancelled.
    ///
    /// # Errors
    /// A kernel interface failed for good.
    pub async fn run(&mut self) -> Result<(), ControlError> {
        let mut resync = interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.beat();
            let due = self.agenda.next();
            tokio::select! {
                changes = self.census.changed() => {
                    self.hear(changes.map_err(io_error("inotify"))?);
                }
                told = self.discovery.changed() => {
                    told.to(self.view.identities(), self.census.picker());
                    warn_of(self.census.reconsider());
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    for look in self.agenda.take_due(Instant::now()) {
                        self.look(&look);
                    }
                }
                _ = resync.tick() => {
                    self.break_stale(STALE_AT_ONCE);
                    self.look_around();
                    self.notice_stubs();
                    self.look_at_namespaces();
                    self.release_gone();
                    self.sweep_if_due();
                    self.is_shown = false;
                }
                events = self.events.unseen.next() => {
                    let events = events.map_err(io_error("eBPF ring buffer"))?;
                    self.meet(&events);
                }
                queries = self.events.early.next() => {
                    self.take_early(queries.map_err(io_error("eBPF ring buffer"))?);
                }
                Some(id) = self.changed.1.recv() => self.follow(id),
                () = sleep_until(self.route_at), if !self.unrouted.is_empty() => {
                    self.route_devices();
                }
            }
            // Whoever is served stays so. To end here would help nobody.
            if let Err(error) = self.settle() {
                warn!(%error, "not all is as the scope asks; trying again");
            }
            self.answer_early();
        }
    }

    /// Ends interception in the order that costs nobody an answer: no new redirects, then what is
    /// in flight, then everything else when this is dropped.
    ///
    /// # Errors
    /// The kernel refused to empty the scope.
    pub async fn stop(&mut self, limit: Duration) -> Result<(), ControlError> {
        self.bpf.empty_scope()?;
        Worker::drain(&self.workers, limit).await;
        if let Some((_, attachment)) = self.attached.take() {
            attachment.detach();
        }
        Ok(())
    }

    /// A kernel counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.view.counter(counter)
    }

    /// What others may see.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    /// How many namespaces are in service.
    pub fn namespaces(&self) -> usize {
        self.namespaces.len()
    }

    /// Says that this loop turns, and when the last of the workers did.
    fn beat(&mut self) {
        let turned = self.workers.iter().map(Worker::last_beat).fold(pulse::now(), u64::min);
        if let Err(error) = self.bpf.beat(turned) {
            warn!(%error, "cannot say that we are alive");
        }
    }

    /// Something changed: it is looked at now, and a few times again.
    fn hear(&mut self, changes: Vec<Change>) {
        let now = Instant::now();
        for change in changes {
            match change {
                // Who is in it is looked at again because it is new.
                Change::Child(parent, name) => {
                    let looked = self.census.look_at_child(parent, &name);
                    warn_of(looked);
                }
                Change::Population(id) => {
                    self.look(&Look::Cgroup(id));
                    self.agenda.note(&Look::Cgroup(id), now);
                }
                Change::Name(path) => {
                    self.watch_names();
                    self.look(&Look::Name(path.clone()));
                    self.agenda.note(&Look::Name(path), now);
                }
                Change::Overflow => {
                    warn_of(self.census.look_at_all());
                    self.names.look_around();
                }
            }
        }
    }

    fn look(&mut self, look: &Look) {
        match look {
            Look::Cgroup(id) => warn_of(self.census.look_at(*id)),
            Look::Name(path) => {
                self.names.look_at(path);
                self.serve_named();
            }
        }
    }

    /// Looks at some of what inotify may not have told; `false` if that could not be.
    fn look_around(&mut self) -> bool {
        if let Some(picker) = self.census.picker() {
            picker.look_around();
        }
        warn_of(self.census.reconsider());
        let looked = self.census.look_around(LOOK);
        let could = looked.is_ok();
        warn_of(looked);
        self.watch_names();
        self.names.look_around();
        self.serve_named();
        self.serve_inhabited();
        could
    }

    fn watch_names(&mut self) {
        let dirs = named::DIRS.iter().flat_map(|dir| Path::new(dir).ancestors().take(2));
        if self.census.watch_names(dirs) {
            self.names.look_around();
        }
    }

    /// Makes it so for what is known to have changed.
    fn settle(&mut self) -> Result<(), ControlError> {
        let News { policies, namespaces, nodes, members } = self.census.take_news();
        let now = Instant::now();
        nodes.into_iter().for_each(|id| self.agenda.note(&Look::Cgroup(id), now));
        self.policies.extend(policies);
        // First, so that what is selected is refused rather than passed until it can be served.
        let scoped = self.bpf.change_scope(&mut self.policies);
        namespaces.into_iter().for_each(|id| self.serve_inhabitant(id));
        if members {
            // A service of the host may have moved here with its connections; a container's
            // namespace is as new as the container.
            let host = Netns::id_of(process::id()).ok();
            if let Some(host) = host.and_then(|id| self.namespaces.get_mut(&id)) {
                host.is_clean = false;
            }
        }
        if let Some(picker) = self.census.picker() {
            self.discovery.ask(picker.unknown());
        }
        let attached = self.attach();
        if !self.is_shown {
            self.show();
        }
        scoped?;
        attached
    }

    /// Lets others see how things are now.
    fn show(&mut self) {
        let host = Netns::id_of(process::id()).ok();
        let served = self.namespaces.iter().map(|(id, served)| {
            let listener = served.namespace.listener();
            let own = (Some(*id) == host).then(process::id);
            view::Served {
                id: *id,
                cookie: served.namespace.cookie(),
                pid: self.census.process_in(*id).or(own),
                port: served.namespace.port(),
                v4: listener.families & Listener::V4 != 0,
                v6: listener.families & Listener::V6 != 0,
                worker: served.worker,
            }
        });
        self.view.show(Snapshot {
            scope: self.census.scope().clone(),
            selected: self.census.selected(),
            attached: self.attached.as_ref().map(|(dir, _)| dir.clone()),
            namespaces: served.collect(),
            tokens: self.tokens,
            unservable: self.unservable.keys().copied().collect(),
        });
        self.is_shown = true;
    }

    /// Says which nameservers of the scope are stubs outside it.
    fn notice_stubs(&mut self) {
        let census = &self.census;
        self.notices.look(
            self.namespaces.keys().copied(),
            || census.processes().collect(),
            || census.members().map(|id| id.0).collect(),
            census.root(),
        );
    }

    /// Queries that were refused or captured because nobody had seen their namespace.
    fn meet(&mut self, events: &[Event]) {
        self.scarce |= events.iter().any(|event| event.unseen == Event::TOKENS);
        // Whoever is refused tries again, and again.
        let unseen: HashMap<_, _> =
            events.iter().map(|event| ((event.unseen, event.netns), event)).collect();
        for ((kind, cookie), event) in unseen {
            match kind {
                Event::NETNS => self.meet_namespace(cookie, event),
                Event::FAMILY => {
                    if let Some(&id) = self.cookies.get(&cookie) {
                        self.refresh(id);
                    }
                }
                _ => {} // tokens, see above
            }
        }
    }

    fn meet_namespace(&mut self, cookie: u64, event: &Event) {
        debug!(pid = event.pid, cgroup = event.cgroup, "query from an unknown namespace");
        let cgroup = CgroupId(event.cgroup);
        for (id, pid) in Netns::of_threads(event.pid) {
            self.serve_found(id, Holder { cgroup, pid }, None);
        }
        // A socket may outlive its maker's stay in a namespace: dockerd makes some in each
        // container's. Somebody else is there, then, or nobody that we could find.
        let begun = Instant::now();
        if !self.cookies.contains_key(&cookie) && begun >= self.search_at {
            for (id, pid) in Netns::of_all() {
                self.serve_found(id, Holder { cgroup, pid }, Some(cookie));
            }
            if !self.cookies.contains_key(&cookie) {
                self.search_at = Instant::now() + begun.elapsed() * SEARCH_PAUSE;
            }
        }
    }

    /// Attaches once; again only if the cgroup was removed, and with it the programs.
    fn attach(&mut self) -> Result<(), ControlError> {
        if let Some((dir, attachment)) = &self.attached
            && cgroup::id(dir).is_ok_and(|id| id == attachment.cgroup())
        {
            return Ok(());
        }
        let dir = self.census.common_ancestor();
        self.beat();
        match self.bpf.attach(&dir) {
            Ok(attachment) => {
                info!(cgroup = %dir.display(), "programs attached");
                self.is_shown = false;
                if let Some((_, gone)) = self.attached.replace((dir, attachment)) {
                    gone.detach();
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What could not be looked at stays as it is known: half a view must not empty the scope.
fn warn_of(looked: io::Result<()>) {
    if let Err(error) = looked {
        warn!(%error, "cannot look at the cgroup tree; trying again");
    }
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> ControlError {
    move |source| ControlError::Io { what, source }
}
