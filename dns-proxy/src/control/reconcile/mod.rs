//! Makes what is in place match what the scope asks for, whenever something changes.

mod early;
mod serving;
mod sweeping;

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::Duration,
};

use dns_proxy_common::{Counter, Event, Listener, Policy};
use early::Early;
use serving::{Served, changed};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, info, warn};

use super::{
    bpf::{Attachment, Bpf, BpfError, Events},
    cgroup::{self, CgroupId, CgroupTree, Scope, Survey},
    named,
    netns::{Netns, NetnsId},
    sockets,
    tokens::Ledger,
    view::{self, Snapshot, View},
    watch::Watcher,
};
use crate::{datapath::worker::Worker, pulse};

/// How often everything is looked at, changed or not: what inotify does not tell, such as a
/// process that moves to another namespace, is seen this late.
const RESYNC: Duration = Duration::from_secs(1);
/// How often unused tokens are looked for, unless they are scarce.
const SWEEP: Duration = Duration::from_secs(30);
/// After a change, everything is looked at again this much later: a process joins its cgroup before
/// it enters its namespace, and a file is made before a namespace is bound to it.
const AFTERTHOUGHTS: [Duration; 4] = [
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(100),
];
/// In how many namespaces stale connections are looked for between two other things.
const STALE_AT_ONCE: usize = 2;
/// Rounds of looking at the tree until nothing new is found in it.
const SURVEY_ROUNDS: usize = 8;

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

/// The control loop's state.
pub struct Control {
    tree: CgroupTree,
    scope: Scope,
    bpf: Bpf,
    events: Events,
    watcher: Watcher,
    workers: Arc<[Worker]>,
    namespaces: HashMap<NetnsId, Served>,
    unservable: HashMap<NetnsId, Instant>,
    attached: Option<(PathBuf, Attachment)>,
    members: HashSet<u64>,
    ledger: Ledger,
    /// Somebody is short of tokens: look for unused ones at every resync.
    scarce: bool,
    next_listener: u64,
    /// Where listeners are, unless something else is there.
    port: u16,
    early: Vec<Early>,
    /// Namespaces whose routes by device are to be looked at, and when.
    unrouted: HashSet<NetnsId>,
    route_at: Instant,
    view: Arc<View>,
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
        bpf: Bpf,
        events: Events,
        workers: Arc<[Worker]>,
        rest: Duration,
    ) -> Result<Self, ControlError> {
        let watcher = Watcher::new().map_err(io_error("inotify"))?;
        let view = Arc::new(View::new(tree.clone(), bpf.counters()));
        let mut control = Self {
            tree,
            scope,
            bpf,
            events,
            watcher,
            workers,
            namespaces: HashMap::new(),
            unservable: HashMap::new(),
            attached: None,
            members: HashSet::new(),
            ledger: Ledger::new(rest),
            scarce: false,
            next_listener: 0,
            port: sockets::FIRST_PORT,
            early: Vec::new(),
            unrouted: HashSet::new(),
            route_at: Instant::now(),
            view,
        };
        control.sync()?;
        control.route_devices();
        if control.attached.is_none() {
            return Err(ControlError::NotAttached);
        }
        control.break_stale(usize::MAX);
        control.expect_early()?;
        Ok(control)
    }

    /// Follows the host until cancelled.
    ///
    /// # Errors
    /// A kernel interface failed for good.
    pub async fn run(&mut self) -> Result<(), ControlError> {
        let mut resync = interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut swept = Instant::now();
        let mut changed_at = Instant::now();
        let mut afterthoughts = AFTERTHOUGHTS.iter();
        loop {
            self.beat();
            let afterthought = afterthoughts.as_slice().first();
            tokio::select! {
                changed = self.watcher.changed() => {
                    changed.map_err(io_error("inotify"))?;
                    changed_at = Instant::now();
                    afterthoughts = AFTERTHOUGHTS.iter();
                }
                () = sleep_until(changed_at + *afterthought.unwrap_or(&RESYNC)),
                    if afterthought.is_some() =>
                {
                    afterthoughts.next();
                }
                _ = resync.tick() => {
                    self.break_stale(STALE_AT_ONCE);
                    self.refresh(|_| true);
                    let due = swept.elapsed() >= SWEEP;
                    if (due || self.scarce)
                        && let Err(error) = self.sweep()
                    {
                        warn!(%error, "cannot take tokens back; trying again");
                    }
                    if due {
                        swept = Instant::now();
                        // Somebody may have removed a route, which the monitors do not tell.
                        let all: Vec<_> = self.namespaces.keys().copied().collect();
                        all.into_iter().for_each(|id| self.follow(id));
                    }
                }
                events = self.events.unseen.next() => {
                    let events = events.map_err(io_error("eBPF ring buffer"))?;
                    let look = self.meet(&events);
                    self.answer_early();
                    if !look {
                        continue;
                    }
                }
                queries = self.events.early.next() => {
                    self.take_early(queries.map_err(io_error("eBPF ring buffer"))?);
                    self.answer_early();
                    continue;
                }
                changed = changed(&self.namespaces) => {
                    changed.into_iter().for_each(|id| self.follow(id));
                    continue;
                }
                () = sleep_until(self.route_at), if !self.unrouted.is_empty() => {
                    self.route_devices();
                    continue;
                }
            }
            // Whoever is served stays so. To end here would help nobody.
            if let Err(error) = self.sync() {
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
        self.bpf.set_scope(&HashMap::new())?;
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

    fn sync(&mut self) -> Result<(), ControlError> {
        let survey = match self.survey() {
            Ok(survey) => survey,
            Err(error) => {
                // Half a view must not empty the scope: all stays as it is.
                warn!(%error, "cannot look at the cgroup tree; trying again");
                return Ok(());
            }
        };
        let inhabited = inhabited(&survey);
        let named: HashMap<_, _> = named::list().into_iter().collect();
        // First, so that what is selected is refused rather than passed until it can be served.
        let scoped = self.bpf.set_scope(&policies(&survey, self.select()));
        self.serve_new(&inhabited, &named);
        // A namespace is often made long before its `lo` comes up.
        self.refresh(|namespace| !namespace.is_complete());
        let members: HashSet<_> = survey.members.iter().map(|id| id.0).collect();
        if !members.is_subset(&self.members) {
            // A service of the host may have moved here with its connections; a container's
            // namespace is as new as the container.
            if let Some(host) =
                Netns::id_of(process::id()).ok().and_then(|id| self.namespaces.get_mut(&id))
            {
                host.is_clean = false;
            }
        }
        self.members = members;
        let attached = self.attach();
        self.release_gone(&inhabited, &named);
        self.show(&inhabited);
        scoped?;
        attached
    }

    /// Lets others see how things are now.
    fn show(&self, inhabited: &HashMap<NetnsId, u32>) {
        let served = self.namespaces.iter().map(|(id, served)| {
            let listener = served.namespace.listener();
            view::Served {
                id: *id,
                cookie: served.namespace.cookie(),
                pid: inhabited.get(id).copied(),
                port: served.namespace.port(),
                v4: listener.families & Listener::V4 != 0,
                v6: listener.families & Listener::V6 != 0,
                worker: served.worker,
            }
        });
        self.view.show(Snapshot {
            scope: self.scope.clone(),
            attached: self.attached.as_ref().map(|(dir, _)| dir.clone()),
            namespaces: served.collect(),
            unservable: self.unservable.keys().copied().collect(),
        });
    }

    /// What a selected cgroup is to the programs. By what may be excluded, not by what is now: a
    /// cgroup made a moment ago counts as well.
    fn select(&self) -> Policy {
        if self.scope.exclude.is_empty() { Policy::SelectAll } else { Policy::Select }
    }

    /// Looks at the tree, again if a directory was not watched while it was looked at.
    fn survey(&mut self) -> io::Result<Survey> {
        let mut survey = self.tree.survey(&self.scope)?;
        for _ in 0..SURVEY_ROUNDS {
            let mut new = false;
            let named = named::DIRS.iter().flat_map(|dir| Path::new(dir).ancestors().take(2));
            for dir in survey.watch.iter().map(PathBuf::as_path).chain(named) {
                new |= self.watcher.add(dir);
            }
            if !new {
                break;
            }
            survey = self.tree.survey(&self.scope)?;
        }
        Ok(survey)
    }

    /// Queries that were refused because nobody had seen their cgroup or namespace. `true` if the
    /// tree must be looked at.
    fn meet(&mut self, events: &[Event]) -> bool {
        self.scarce |= events.iter().any(|event| event.unseen == Event::TOKENS);
        // Whoever is refused tries again, and again.
        let unseen: HashMap<_, _> =
            events.iter().map(|event| ((event.unseen, event.netns), event)).collect();
        for ((_, cookie), event) in unseen.iter().filter(|((kind, _), _)| *kind == Event::NETNS) {
            debug!(pid = event.pid, cgroup = event.cgroup, "query from an unknown namespace");
            let known = |control: &Self| {
                control.namespaces.values().any(|served| served.namespace.cookie() == *cookie)
            };
            for (id, thread) in Netns::of_threads(event.pid) {
                self.serve_found(id, thread, None);
            }
            // A socket may outlive its maker's stay in a namespace: dockerd makes some in each
            // container's. Somebody else is there, then.
            if !known(self) {
                for (id, process) in Netns::of_all() {
                    self.serve_found(id, process, Some(*cookie));
                }
            }
        }
        unseen.keys().any(|(kind, _)| matches!(*kind, Event::CGROUP | Event::FAMILY))
    }

    /// Attaches once; again only if the cgroup was removed, and with it the programs.
    fn attach(&mut self) -> Result<(), ControlError> {
        if let Some((dir, attachment)) = &self.attached
            && cgroup::id(dir).is_ok_and(|id| id == attachment.cgroup())
        {
            return Ok(());
        }
        let dir = self.tree.common_ancestor(&self.scope);
        self.beat();
        match self.bpf.attach(&dir) {
            Ok(attachment) => {
                info!(cgroup = %dir.display(), "programs attached");
                if let Some((_, gone)) = self.attached.replace((dir, attachment)) {
                    gone.detach();
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The namespaces that processes of the scope are in, each with one of them; and our own, the host's,
/// from which processes may move into the scope at any moment.
fn inhabited(survey: &Survey) -> HashMap<NetnsId, u32> {
    let pids = survey.pids.iter().copied().chain([process::id()]);
    let mut inhabited = HashMap::new();
    for pid in pids {
        if let Ok(id) = Netns::id_of(pid) {
            // The first is mostly the oldest, and stays the longest.
            inhabited.entry(id).or_insert(pid);
        }
    }
    inhabited
}

fn policies(survey: &Survey, select: Policy) -> HashMap<CgroupId, Policy> {
    // Later entries win, as exclusion does.
    let all = [
        (&survey.ignored, Policy::Ignore),
        (&survey.open, Policy::Open),
        (&survey.selected, select),
        (&survey.excluded, Policy::Exclude),
    ];
    all.iter().flat_map(|(ids, policy)| ids.iter().map(|id| (*id, *policy))).collect()
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> ControlError {
    move |source| ControlError::Io { what, source }
}
