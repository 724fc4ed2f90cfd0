//! Gathers a [`Status`]: from counters, from the control plane's window, and from the workers, which
//! are asked to say a word between two queries.

use std::{
    net::SocketAddr,
    process,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dns_proxy_common::{Counter, FailMode, GuardMode};
use tokio::time::timeout;

use super::{
    Cache, Counters, Namespace, Pattern, Scope, Status, Upstream, UpstreamState, Worker, warnings,
};
use crate::{
    addr::{ServerIdentity, UpstreamAddr},
    config::Config,
    control::{
        identity::{self, Identities},
        pattern::CgroupPattern,
        view::View,
    },
    datapath::{handler::Report, stats::Stats, worker},
    meter,
    moment::Moment,
    pulse,
    upstream::{ServerReport, ServerState},
};

/// How long a worker may take to say how it is: it may be in the middle of many queries.
const PATIENCE: Duration = Duration::from_millis(500);
/// What refuses a query that cannot be redirected.
pub const REFUSALS: [Counter; 8] = [
    Counter::NotReady,
    Counter::NoFamily,
    Counter::DeviceBound,
    Counter::Transport,
    Counter::NoToken,
    Counter::DaemonDead,
    Counter::TokenDialled,
    Counter::NotCaptured,
];
/// What sends a query to a listener.
pub const REDIRECTIONS: [Counter; 4] =
    [Counter::Connect4, Counter::Connect6, Counter::Sendmsg4, Counter::Sendmsg6];

/// Knows where to look. Anybody may ask it, on any thread with a runtime.
pub struct Gatherer {
    since: Moment,
    workers: Arc<[worker::Worker]>,
    view: Option<Arc<View>>,
    told: Mutex<Told>,
}

/// What the daemon was told to do, as far as the status says it.
#[derive(Clone, Debug)]
struct Told {
    fail: FailMode,
    guard: Option<GuardMode>,
    listen: Vec<SocketAddr>,
    cache_size: usize,
}

impl Told {
    fn by(config: &Config) -> Self {
        Self {
            fail: config.fail,
            guard: config.guard,
            listen: config.plain.listen.clone(),
            cache_size: config.cache.size,
        }
    }
}

impl Gatherer {
    /// For a daemon that is ready; without a view it intercepts nothing.
    pub fn new(config: &Config, workers: Arc<[worker::Worker]>, view: Option<Arc<View>>) -> Self {
        Self { since: Moment::now(), workers, view, told: Mutex::new(Told::by(config)) }
    }

    /// The configuration is another one.
    pub fn reconfigured(&self, config: &Config) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Told::by(config);
    }

    /// The threads on the query path.
    pub fn workers(&self) -> &[worker::Worker] {
        &self.workers
    }

    /// What the control plane shows, if anything is intercepted.
    pub fn view(&self) -> Option<&View> {
        self.view.as_deref()
    }

    /// Who cgroups are, if anything is intercepted.
    pub fn identities(&self) -> Option<&Identities> {
        self.view().map(View::identities)
    }

    /// How the daemon is now.
    pub async fn status(&self) -> Status {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut reports = Vec::new();
        for worker in &*self.workers {
            reports.push(timeout(PATIENCE, worker.report()).await.ok().flatten());
        }
        let kernel = |counter| self.view().map_or(0, |view| view.counter(counter));
        let all = Counter::ALL.iter().map(|counter| (counter.name().to_owned(), kernel(*counter)));
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            since: self.since,
            at: Moment::now(),
            fail: fail(told.fail).to_owned(),
            guard: self.view().map(|_| guard(told.guard).to_owned()),
            scopes: self.view().map(scope).into_iter().collect(),
            attached: self.view().and_then(attached),
            namespaces: self.view().map(namespaces).unwrap_or_default(),
            tokens: self.view().map_or(0, |view| view.now().tokens as u64),
            listen: told.listen.iter().map(ToString::to_string).collect(),
            upstreams: upstreams(reports.iter().flatten()),
            cache: self.cache(told.cache_size, reports.iter().flatten()),
            counters: self.counters(told.guard),
            kernel: if self.view().is_some() { all.collect() } else { Default::default() },
            workers: self.worker_states(),
            warnings: Vec::new(),
        };
        let speechless = reports.iter().filter(|report| report.is_none()).count();
        status.warnings = warnings::of(&status, speechless);
        status
    }

    fn sum(&self, counter: fn(&Stats) -> &meter::Counter) -> u64 {
        self.workers.iter().map(|worker| counter(worker.stats()).get()).sum()
    }

    fn counters(&self, guard: Option<GuardMode>) -> Counters {
        let one = |counter| self.view().map_or(0, |view| view.counter(counter));
        let kernel = |counters: &[Counter]| counters.iter().map(|counter| one(*counter)).sum();
        let leaked = match guard {
            _ if self.view().is_none() => None,
            None => None,
            Some(GuardMode::On) => Some(one(Counter::Unattended)),
            Some(GuardMode::Count) => Some(kernel(&[Counter::Unattended, Counter::GuardQuery])),
        };
        Counters {
            queries: self.sum(|stats| &stats.queries),
            intercepted: self.sum(|stats| &stats.intercepted),
            encrypted: self.sum(|stats| &stats.encrypted),
            unauthenticated: self.sum(|stats| &stats.unauthenticated),
            cached: self.sum(|stats| &stats.cached),
            local: self.sum(|stats| &stats.local),
            plaintext_by_route: self.sum(|stats| &stats.plaintext),
            plaintext_by_leak: leaked,
            failed: self.sum(|stats| &stats.failed),
            malformed: self.sum(|stats| &stats.malformed),
            denied: self.sum(|stats| &stats.denied),
            redirected: kernel(&REDIRECTIONS),
            refused: kernel(&REFUSALS),
            captured: one(Counter::Captured),
            guarded: kernel(&[Counter::GuardQuery, Counter::GuardToken]),
        }
    }

    fn cache<'a>(&self, size: usize, reports: impl Iterator<Item = &'a Report>) -> Cache {
        let empty = Cache { size: size as u64, hits: self.sum(|s| &s.cached), ..Cache::default() };
        reports.fold(empty, |cache, report| Cache {
            used: cache.used + report.kept_octets as u64,
            names: cache.names + report.kept as u64,
            evictions: cache.evictions + report.evicted,
            ..cache
        })
    }

    fn worker_states(&self) -> Vec<Worker> {
        let now = pulse::now();
        let served = self.view().map(View::now).unwrap_or_default();
        let state = |(index, worker): (usize, &worker::Worker)| Worker {
            queries: worker.stats().queries.get(),
            last_beat_seconds: now.saturating_sub(worker.last_beat()) as f64 / 1e9,
            namespaces: served.namespaces.iter().filter(|one| one.worker == index).count() as u64,
        };
        self.workers.iter().enumerate().map(state).collect()
    }
}

fn fail(mode: FailMode) -> &'static str {
    match mode {
        FailMode::Open => "open",
        FailMode::Closed => "closed",
    }
}

fn guard(mode: Option<GuardMode>) -> &'static str {
    match mode {
        None => "off",
        Some(GuardMode::Count) => "count",
        Some(GuardMode::On) => "on",
    }
}

fn scope(view: &View) -> Scope {
    let now = view.now();
    let patterns = |patterns: &[CgroupPattern]| {
        let one = |pattern: &CgroupPattern| {
            let matches = view.tree().matches(pattern).into_iter();
            let matches = matches.map(|path| format!("/{}", path.display())).collect();
            Pattern { pattern: pattern.to_string(), matches }
        };
        patterns.iter().map(one).collect()
    };
    let mut select: Vec<_> = patterns(&now.scope.select);
    let selected = now.scope.selectors.iter().zip(&now.selected);
    select.extend(selected.map(|(selector, matches)| Pattern {
        pattern: selector.to_string(),
        matches: matches.iter().map(|path| format!("/{path}")).collect(),
    }));
    Scope { select, exclude: patterns(&now.scope.exclude) }
}

fn attached(view: &View) -> Option<String> {
    let now = view.now();
    let dir = now.attached.as_ref()?.strip_prefix(view.tree().root()).ok()?;
    Some(format!("/{}", dir.display()))
}

fn namespaces(view: &View) -> Vec<Namespace> {
    let now = view.now();
    let ready = now.namespaces.iter().map(|served| Namespace {
        id: served.id.0,
        cookie: Some(served.cookie),
        ready: served.v4 || served.v6,
        pid: served.pid,
        cgroup: served.pid.and_then(identity::path_of_process),
        port: Some(served.port),
        ipv4: served.v4,
        ipv6: served.v6,
    });
    let refused = now.unservable.iter().map(|id| Namespace {
        id: id.0,
        cookie: None,
        ready: false,
        pid: None,
        cgroup: None,
        port: None,
        ipv4: false,
        ipv6: false,
    });
    let mut all: Vec<_> = ready.chain(refused).collect();
    all.sort_by_key(|namespace| namespace.id);
    all
}

fn upstreams<'a>(reports: impl Iterator<Item = &'a Report>) -> Vec<Upstream> {
    let mut all: Vec<(usize, UpstreamAddr, Upstream)> = Vec::new();
    for report in reports {
        for (group, servers) in report.upstreams.iter().enumerate() {
            for server in servers {
                let known = all.iter_mut().find(|(g, addr, _)| *g == group && *addr == server.addr);
                match known {
                    Some((.., sum)) => sum.merge(upstream(group, server)),
                    None => all.push((group, server.addr.clone(), upstream(group, server))),
                }
            }
        }
    }
    // Every worker has the same, but may have been told of new ones a moment later.
    all.sort_by_key(|(group, ..)| *group);
    all.into_iter().map(|(.., upstream)| upstream).collect()
}

fn upstream(group: usize, server: &ServerReport) -> Upstream {
    let name = match server.addr.identity() {
        ServerIdentity::Name(name) => Some(name.as_ref().to_owned()),
        ServerIdentity::Address(_) => None,
    };
    Upstream {
        address: server.addr.socket_addr().to_string(),
        name,
        of_route: group > 0,
        state: state(server.state),
        error: server.error.clone().or_else(|| server.doubt.clone()),
        authenticated: (server.connected > 0).then_some(server.doubt.is_none()),
        latency_seconds: server.latency.map(|latency| latency.as_secs_f64()),
        connections: server.open,
        connected: server.connected,
        resumed: server.resumed,
        answers: server.answers,
        failures: server.failures,
        tls_failures: server.tls_failures,
        latencies: server.latencies.clone(),
        certificate_expires: server.expires.map(Moment::from),
    }
}

fn state(state: ServerState) -> UpstreamState {
    match state {
        ServerState::Up => UpstreamState::Up,
        ServerState::Idle => UpstreamState::Idle,
        ServerState::Silent => UpstreamState::Silent,
        ServerState::Failed => UpstreamState::Failed,
    }
}
