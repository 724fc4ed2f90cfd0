//! The composition root: puts the parts together, runs them, takes them down in order.

use std::{future::pending, io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use dns_proxy_common::{Counter, FailMode};
use nix::{
    libc,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info, warn};

use crate::{
    admin::{self, Admin},
    cache,
    config::{Config, Plain, Telling},
    confine,
    control::{
        bpf::{Bpf, Pins},
        cgroup::CgroupTree,
        claim::{Claim, ClaimError},
        kernel,
        mounts::{self, MountError},
        reconcile::Control,
        sockets,
    },
    control_socket::server::ControlSocket,
    datapath::{
        gate::Gate,
        query::EDNS_UDP_SIZE,
        response::Room,
        stats::Stats,
        worker::{ListenerId, Worker},
    },
    host::Host,
    meter,
    observe::{
        dnstap::Dnstap,
        query_log::QueryLog,
        thread::{Observer, Reopen, Sinks},
    },
    pulse::Pulse,
    status::gather::{Gatherer, REDIRECTIONS, REFUSALS},
    upstream::{Exempt, Settings},
};

/// Time for answers in flight when stopping, on top of the time that a query may take.
const DRAIN_MARGIN: Duration = Duration::from_millis(200);
/// How much longer than a query may take a token is kept from others after its last use.
const TOKEN_MARGIN: Duration = Duration::from_secs(1);
/// Listener ids of plain listeners start here; namespaces count up from 0.
const FIRST_PLAIN_LISTENER: u64 = 1 << 63;

/// Everything that runs.
pub struct App {
    config: Config,
    control: Option<Control>,
    claim: Option<Claim>,
    workers: Arc<[Worker]>,
    host: Host,
    gatherer: Arc<Gatherer>,
    /// Only of `run`.
    observer: Option<Observer>,
    pulse: Arc<Pulse>,
    settings: Settings,
}

/// Without interception nothing of ours could be intercepted.
struct NothingToExempt;

impl Exempt for NothingToExempt {
    fn exempt(&self, _socket: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }
}

impl App {
    /// Starts everything; when it returns, queries of the scope are encrypted. To fail closed takes a
    /// claim.
    ///
    /// # Errors
    /// What is missing, and how to mend it.
    pub fn start(config: Config, mut claim: Option<Claim>) -> Result<Self> {
        raise_descriptor_limit();
        let mut host = Host::read(&config);
        let settings = |exempt| Settings {
            upstreams: config.policy.upstreams.clone(),
            timeout: config.policy.timeout,
            tls: Arc::clone(&config.policy.tls),
            strip_subnets: config.policy.strip_subnets,
            exempt,
        };
        if config.scope.is_empty() {
            let settings = settings(Arc::new(NothingToExempt));
            let workers = start_workers(&config, &settings, &host)?;
            serve_plain(&config.plain, &workers, &NothingToExempt)?;
            return Self::of(config, None, claim, workers, host, settings);
        }
        kernel::check()?;
        let root = mounts::cgroup2_root(config.cgroup_root.as_deref())?;
        debug!(cgroup2 = %root.display(), "mounts");
        let pins = match (&claim, config.fail) {
            (Some(claim), FailMode::Closed) => Some(Pins::new(claim.dir(), &claim.inheritance())?),
            _ => None,
        };
        let (bpf, events) = Bpf::load(config.guard, pins, config.kernel_log)?;
        let settings = settings(bpf.exempt());
        host.exempt_by(bpf.exempt());
        let workers = start_workers(&config, &settings, &host)?;
        serve_plain(&config.plain, &workers, &*bpf.exempt())?;
        let tree = CgroupTree::new(root, config.fail);
        let scope = config.scope.clone();
        let rest = config.policy.timeout + TOKEN_MARGIN;
        let places = &config.places;
        let control = Control::start(tree, scope, places, bpf, events, Arc::clone(&workers), rest)?;
        // Nobody has been without programs meanwhile.
        claim.iter_mut().for_each(Claim::settle);
        Self::of(config, Some(control), claim, workers, host, settings)
    }

    fn of(
        config: Config,
        control: Option<Control>,
        claim: Option<Claim>,
        workers: Arc<[Worker]>,
        host: Host,
        settings: Settings,
    ) -> Result<Self> {
        let view = control.as_ref().map(Control::view);
        let gatherer = Arc::new(Gatherer::new(&config, Arc::clone(&workers), view));
        let observer = start_observer(&config.telling, &workers, &gatherer)?;
        let pulse = Arc::new(Pulse::new());
        Ok(Self { config, control, claim, workers, host, gatherer, observer, pulse, settings })
    }

    /// Knows how the daemon is.
    pub fn gatherer(&self) -> &Arc<Gatherer> {
        &self.gatherer
    }

    /// Runs until something ends it.
    ///
    /// # Errors
    /// Something the daemon cannot live without has failed.
    pub async fn run_until<T>(&mut self, end: impl Future<Output = T>) -> Result<T> {
        let control = async {
            match &mut self.control {
                Some(control) => control.run().await,
                None => pending().await,
            }
        };
        tokio::select! {
            ended = end => Ok(ended),
            failed = control => {
                failed?;
                bail!("the control loop ended by itself")
            }
            never = self.host.follow(&self.workers) => match never {},
            never = self.config.policy.tls.follow() => match never {},
            never = self.pulse.keep() => match never {},
        }
    }

    /// What `--admin` tells of.
    fn parts(&self) -> admin::Parts {
        admin::Parts {
            workers: Arc::clone(&self.workers),
            gatherer: Arc::clone(&self.gatherer),
            main: Arc::clone(&self.pulse),
            intercepts: self.control.is_some(),
            upstream: self.settings.clone(),
        }
    }

    /// Stops without losing an answer.
    ///
    /// # Errors
    /// The kernel refused; everything ends all the same when this is dropped.
    pub async fn stop(mut self) -> Result<()> {
        let limit = self.config.policy.timeout + DRAIN_MARGIN;
        match &mut self.control {
            Some(control) => control.stop(limit).await?,
            None => Worker::drain(&self.workers, limit).await,
        }
        self.claim.iter_mut().for_each(Claim::withdraw);
        drop(self.observer.take());
        self.report();
        Ok(())
    }

    /// Ends after a failure, as it is to end when killed: who fails closed leaves the scope refused.
    ///
    /// # Errors
    /// As [`App::stop`].
    async fn fail(self) -> Result<()> {
        match self.config.fail {
            FailMode::Open => self.stop().await,
            FailMode::Closed => {
                self.report();
                Ok(())
            }
        }
    }

    /// One line that says what was done.
    fn report(&self) {
        let sum = |counter: fn(&Stats) -> &meter::Counter| -> u64 {
            self.workers.iter().map(|worker| counter(worker.stats()).get()).sum()
        };
        let kernel = |counters: &[Counter]| -> u64 {
            let of = |counter: &Counter| self.control.as_ref().map_or(0, |c| c.counter(*counter));
            counters.iter().map(of).sum()
        };
        info!(
            queries = sum(|stats| &stats.queries),
            encrypted = sum(|stats| &stats.encrypted),
            failed = sum(|stats| &stats.failed),
            malformed = sum(|stats| &stats.malformed),
            denied = sum(|stats| &stats.denied),
            plaintext = sum(|stats| &stats.plaintext),
            local = sum(|stats| &stats.local),
            unauthenticated = sum(|stats| &stats.unauthenticated),
            cached = sum(|stats| &stats.cached),
            redirected = kernel(&REDIRECTIONS),
            refused = kernel(&REFUSALS),
            captured = kernel(&[Counter::Captured]),
            strangers = kernel(&[Counter::Stranger]),
            guarded = kernel(&[Counter::GuardQuery, Counter::GuardToken]),
            unattended = kernel(&[Counter::Unattended]),
            "stopped"
        );
        for counter in Counter::ALL {
            debug!(counter = counter.name(), value = kernel(&[counter]), "kernel counter");
        }
    }
}

/// `dns-proxy run`: until SIGTERM or SIGINT.
///
/// # Errors
/// As [`App::start`] and [`App::run_until`].
pub async fn run(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // There is one thread so far.
    if let Err(error) = confine::daemon(!config.scope.is_empty()) {
        warn!(%error, "the daemon keeps privileges that it does not need");
    }
    let admin = match config.telling.admin {
        admin::Place::Off => None,
        admin::Place::At(addr) => Some(Admin::start(addr)?),
    };
    let claim = claim(&config)?;
    let tls = Arc::clone(&config.policy.tls);
    let mut app = App::start(config, claim)?;
    if let Some(admin) = &admin {
        admin.running(app.parts());
    }
    let namespaces = app.control.as_ref().map_or(0, Control::namespaces);
    info!(
        upstreams = %app.config.policy.upstreams.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        workers = app.workers.len(),
        namespaces,
        "ready"
    );
    notify(&[NotifyState::Ready]);
    let reopen = app.observer.as_ref().map(Observer::reopener);
    let end = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    info!("SIGHUP: reading the root certificates again");
                    tls.reload();
                    reopen.iter().for_each(Reopen::now);
                }
            }
        }
        notify(&[NotifyState::Stopping]);
    };
    let ended = app.run_until(end).await;
    admin.iter().for_each(Admin::draining);
    match ended {
        Ok(()) => app.stop().await,
        Err(_) => app.fail().await.and(ended),
    }
}

/// Takes a daemon's place on this host, if it intercepts anything.
fn claim(config: &Config) -> Result<Option<Claim>> {
    if config.scope.is_empty() {
        return Ok(None);
    }
    let bpffs = mounts::bpffs();
    if config.fail == FailMode::Closed && bpffs.is_none() {
        return Err(MountError::NoBpffs.into());
    }
    match Claim::make(&config.scope, config.fail, bpffs.as_deref()) {
        // On a host of which we may write nothing.
        Err(ClaimError::Io { path, source }) if config.fail == FailMode::Open => {
            warn!(%source, path, "cannot see whether another dns-proxy intercepts this scope");
            Ok(None)
        }
        claim => Ok(Some(claim?)),
    }
}

/// Starts to tell what happens, to whom it may concern.
fn start_observer(
    telling: &Telling,
    workers: &Arc<[Worker]>,
    gatherer: &Arc<Gatherer>,
) -> Result<Option<Observer>> {
    // Without it the daemon does all the same what it is for.
    let socket = telling.control.path().and_then(|path| {
        let opened = ControlSocket::open(path);
        opened.inspect_err(|error| warn!("no control socket: {error}")).ok()
    });
    let mut sinks: Sinks = Vec::new();
    if let Some(path) = &telling.query_log {
        let log = QueryLog::open(path, telling.query_log_max_size);
        sinks.push(Box::new(log.with_context(|| format!("--query-log {}", path.display()))?));
    }
    if let Some(target) = &telling.dnstap {
        let dnstap = Dnstap::start(target);
        sinks.push(Box::new(dnstap.with_context(|| format!("--dnstap {target}"))?));
    }
    if socket.is_none() && sinks.is_empty() {
        return Ok(None);
    }
    let observer = Observer::start(socket, Arc::clone(workers), Arc::clone(gatherer), sinks);
    Ok(Some(observer.context("cannot start the observer's thread")?))
}

/// Tells the service manager, if one asked to be told.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot notify the service manager");
    }
}

fn start_workers(config: &Config, settings: &Settings, host: &Host) -> Result<Arc<[Worker]>> {
    let routes = host.routes()?;
    // Each has its share.
    let cache = cache::Settings { size: config.cache.size / config.workers, ..config.cache };
    let start = |index| Worker::start(index, settings.clone(), cache, Arc::clone(&routes));
    (0..config.workers).map(|index| start(index).context("cannot start a worker thread")).collect()
}

/// Eight descriptors for each namespace, and one for each TCP client: the usual soft limit of 1,024,
/// which is for programs that use select(2), is soon reached.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files");
    }
}

/// Every worker has a socket of its own at each address (`SO_REUSEPORT`), so that the kernel
/// spreads the clients.
fn serve_plain(plain: &Plain, workers: &[Worker], exempt: &dyn Exempt) -> Result<()> {
    for (index, addr) in plain.listen.iter().enumerate() {
        let open = |shared| {
            sockets::open_plain(*addr, plain.udp, plain.tcp, shared).map_err(|error| {
                anyhow!("cannot listen on {addr}: {error}{}", remedy(&error, *addr))
            })
        };
        // First alone, for a moment: sharing would let a second daemon of ours in unnoticed.
        drop(open(false)?);
        for worker in workers {
            let sockets = open(true)?;
            sockets.descriptors().try_for_each(|socket| exempt.exempt(socket))?;
            let gate = Gate::plain(Arc::clone(&plain.allow_from));
            let id = ListenerId(FIRST_PLAIN_LISTENER + index as u64);
            // These answers cross networks, which must not have to break them up (RFC 9715).
            worker.serve(id, sockets, gate, Room::Datagram { path: EDNS_UDP_SIZE });
        }
        info!(%addr, udp = plain.udp, tcp = plain.tcp, "listening");
    }
    Ok(())
}

fn remedy(error: &io::Error, addr: SocketAddr) -> String {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => format!("; `ss -lntup sport = :{}` shows who does", addr.port()),
        Some(libc::EADDRNOTAVAIL) => "; `ip addr` shows this host's addresses".to_owned(),
        Some(libc::EACCES) => "; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
        Some(_) | None => String::new(),
    }
}
