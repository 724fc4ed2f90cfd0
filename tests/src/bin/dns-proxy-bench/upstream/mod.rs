//! `dns-proxy-bench upstream`: uncached queries over DNS-over-TLS, beside Debian's forwarders.
//!
//! The clients and the upstream are one thread on one core, the forwarder has the other one. What
//! a forwarder costs is the time that the kernel says its threads ran, which a busy machine does not
//! change much; rates and latencies it does.

mod clients;
mod contenders;
mod figures;
mod message;
mod scenario;
mod server;

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clients::{Book, Clients, Load, Transport};
use contenders::{Contender, LISTEN, NAME};
use dns_proxy_tests::{Identity, Netns, Pki, process::Process, require_root_and_bpf};
use figures::Figures;
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sched::{CpuSet, sched_setaffinity},
    sys::time::TimeSpec,
    unistd::Pid,
};
use rustls::{ServerConfig, crypto::ring};
use scenario::{Event, Scenario};
use server::Server;

/// How often everything is measured, unless told otherwise.
pub(crate) const ROUNDS: usize = 3;
/// The core of the clients and the upstream.
const CORE: usize = 1;
/// The upstreams.
const UPSTREAMS: [&str; 2] = ["127.0.0.1:8853", "127.0.0.2:8853"];
/// Asked before anything is measured, so that connections, caches and cores are warm.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long a forwarder may take to answer for the first time.
const START_LIMIT: Duration = Duration::from_secs(15);
/// After this of a run its event happens.
const EVENT_AFTER: Duration = Duration::from_secs(1);
/// How long nothing may happen before somebody looks whether the forwarder still runs.
const IDLE: Duration = Duration::from_millis(10);
/// How long a refusing upstream refuses.
const REFUSAL: Duration = Duration::from_secs(4);

/// What is measured, of whom, and how often.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) rounds: usize,
    /// Part of a contender's name.
    pub(crate) only: String,
    /// Part of a scenario's name.
    pub(crate) scenario: String,
}

pub(crate) fn run(choice: &Choice) -> Result<()> {
    require_root_and_bpf();
    let cores = thread::available_parallelism()?.get();
    ensure!(
        cores > CORE,
        "this bench needs two cores: one for a forwarder, one for what it serves"
    );
    let stand = Stand::new()?;
    let contenders: Vec<_> =
        Contender::ALL.into_iter().filter(|c| c.name().contains(&choice.only)).collect();
    println!(
        "Uncached over DNS-over-TLS, the certificate verified; medians of {} rounds, the worst",
        choice.rounds
    );
    println!("of what must not happen; one worker on one core, clients and upstream on another.");
    for contender in &contenders {
        println!("{:<14} {}", contender.name(), contender.version()?);
    }
    let mut first = 0;
    for scenario in scenario::all().iter().filter(|s| s.name.contains(&choice.scenario)) {
        let mut runs = vec![Vec::new(); contenders.len()];
        for round in 0..choice.rounds {
            for step in 0..contenders.len() {
                let at = (round + step) % contenders.len();
                let context = || format!("{}: {}", scenario.name, contenders[at].name());
                let run = stand.measure(contenders[at], scenario, &mut first);
                runs[at].push(run.with_context(context)?);
            }
        }
        report(scenario, &contenders, &runs);
    }
    Ok(())
}

fn report(scenario: &Scenario, contenders: &[Contender], runs: &[Vec<Figures>]) {
    let medians: Vec<_> = runs.iter().map(|runs| Figures::medians(runs)).collect();
    println!();
    println!(
        "{:<36}{:>8}{:>9}{:>7}{:>8}{:>8}{:>8}{:>7}{:>7}",
        scenario.name, "us CPU", "/s", "lost", "p50 ms", "p99 ms", "max ms", "batch", "conns"
    );
    for (contender, f) in contenders.iter().zip(&medians) {
        let extra = [(f.asked_again, "asked again"), (f.recovery, "ms to recover")];
        let extra: String = extra
            .into_iter()
            .filter(|(value, _)| value.is_finite())
            .map(|(value, what)| format!("  {value:.0} {what}"))
            .collect();
        println!(
            "  {:<34}{:>8.1}{:>9.0}{:>7.0}{:>8.1}{:>8.1}{:>8.1}{:>7.1}{:>7.0}{extra}",
            contender.name(),
            f.cpu,
            f.rate,
            f.lost,
            f.p50,
            f.p99,
            f.max,
            f.batch,
            f.connections
        );
    }
    if let Some((ours, peers)) = medians.split_first()
        && contenders.first() == Some(&Contender::DnsProxy)
    {
        let (text, met) = (scenario.target)(ours, peers);
        println!("  target {text}: {}", if met { "met" } else { "MISSED" });
    }
}

/// What stays while forwarders come and go.
struct Stand {
    netns: Netns,
    pki: Pki,
    tls: Arc<ServerConfig>,
}

impl Stand {
    fn new() -> Result<Self> {
        let pki = Pki::new()?;
        let identity = pki.server(&[NAME])?;
        Ok(Self { netns: Netns::new()?, tls: Arc::new(server_config(&identity)?), pki })
    }

    fn measure(
        &self,
        contender: Contender,
        scenario: &Scenario,
        first: &mut u32,
    ) -> Result<Figures> {
        self.netns.run(|| {
            let core = |core| {
                let mut set = CpuSet::new();
                set.set(core)?;
                sched_setaffinity(Pid::from_raw(0), &set)
            };
            core(CORE)?;
            take_precedence()?;
            let addresses: Vec<SocketAddr> = UPSTREAMS[..scenario.upstreams]
                .iter()
                .map(|a| a.parse())
                .collect::<Result<_, _>>()?;
            let servers = addresses
                .iter()
                .map(|address| Server::start(*address, Arc::clone(&self.tls)))
                .collect::<Result<Vec<_>>>()?;
            let dir = tempfile::tempdir()?;
            let process = contender.start(&self.netns, dir.path(), &self.pki, &addresses)?;
            let mut bench = Bench { servers, process, first: *first };
            let figures = bench.run(scenario).with_context(|| said(dir.path()));
            *first = bench.first;
            figures
        })?
    }
}

/// What a forwarder wrote before it failed.
fn said(dir: &Path) -> String {
    let logs = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let logs = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.map(|path| fs::read_to_string(path).unwrap_or_default()).collect()
}

/// One forwarder between its clients and its upstreams.
struct Bench {
    servers: Vec<Server>,
    process: Process,
    /// The first name not asked yet.
    first: u32,
}

impl Bench {
    fn run(&mut self, scenario: &Scenario) -> Result<Figures> {
        self.wait_bound()?;
        for server in &mut self.servers {
            server.orders = scenario.orders;
        }
        if scenario.event == Some(Event::IdleClose) {
            self.wait_answering()?;
            self.turn_for(Duration::from_millis(100))?;
            self.servers.iter_mut().for_each(Server::disconnect);
            self.turn_for(Duration::from_millis(100))?;
        }
        if scenario.single {
            return self.single();
        }
        self.wait_answering()?;
        let mut warm = self.clients(scenario)?;
        self.ask(&mut warm, WARM_UP, None)?;
        self.finish(warm)?;

        let before = self.servers.iter().map(|server| server.seen.clone()).collect::<Vec<_>>();
        let cpu = self.cpu_time()?;
        let started = Instant::now();
        let mut clients = self.clients(scenario)?;
        let returned = self.ask(&mut clients, scenario.time, scenario.event)?;
        let outcomes = self.finish(clients)?;
        let cpu = self.cpu_time()? - cpu;
        let time = if matches!(scenario.load, Load::Window(_)) {
            scenario.time
        } else {
            started.elapsed()
        };

        let sum = |of: fn(&server::Seen) -> usize| -> f64 {
            let now: usize = self.servers.iter().map(|server| of(&server.seen)).sum();
            (now - before.iter().map(of).sum::<usize>()) as f64
        };
        let mut figures = Figures::of(&outcomes, time, cpu, returned);
        if scenario.with_late {
            figures.asked_again = sum(|seen| seen.asked_again);
        }
        figures.batch = sum(|seen| seen.queries) / sum(|seen| seen.reads);
        figures.connections = sum(|seen| seen.connections);
        Ok(figures)
    }

    fn clients(&self, scenario: &Scenario) -> Result<Clients> {
        let book = Book::new(self.first, scenario.with_late);
        Clients::start(LISTEN.parse()?, scenario.transport, scenario.load, book)
    }

    /// One query, and how long it took.
    fn single(&mut self) -> Result<Figures> {
        let book = Book::new(self.first, false);
        let mut clients = Clients::start(LISTEN.parse()?, Transport::Udp, Load::Window(1), book)?;
        self.turn(&mut clients)?;
        clients.asking = false;
        let outcomes = self.finish(clients)?;
        Ok(Figures::of(&outcomes, Duration::from_secs(1), Duration::ZERO, None))
    }

    /// Lets the clients ask for a while; if the upstream went away meanwhile, when it was back.
    fn ask(
        &mut self,
        clients: &mut Clients,
        time: Duration,
        event: Option<Event>,
    ) -> Result<Option<Instant>> {
        let started = Instant::now();
        let (mut event, mut back, mut returned) = (event, None, None);
        while started.elapsed() < time {
            self.turn(clients)?;
            if event.is_some() && started.elapsed() >= EVENT_AFTER {
                match event.take() {
                    Some(Event::Freeze) => self.servers[0].orders.frozen = true,
                    Some(Event::Kill) => self.servers[0].kill(),
                    Some(Event::Refuse) => {
                        self.servers[0].kill();
                        back = Some(Instant::now() + REFUSAL);
                    }
                    Some(Event::IdleClose) | None => {}
                }
            }
            if back.is_some_and(|back| Instant::now() >= back) {
                self.servers[0].listen()?;
                returned = back.take();
            }
        }
        Ok(returned)
    }

    /// Waits for what is still on its way.
    fn finish(&mut self, mut clients: Clients) -> Result<Vec<clients::Outcome>> {
        clients.asking = false;
        let deadline = Instant::now() + clients::LOST_AFTER;
        while clients.book.open() > 0 && Instant::now() < deadline {
            self.turn(&mut clients)?;
        }
        self.first = clients.book.next();
        clients.book.close();
        Ok(clients.book.outcomes)
    }

    /// Everybody once; sleeps if nobody had anything to do.
    fn turn(&mut self, clients: &mut Clients) -> Result<()> {
        let now = Instant::now();
        let mut busy = clients.turn(now)?;
        for server in &mut self.servers {
            busy |= server.turn(now)?;
        }
        if busy {
            return Ok(());
        }
        if let Some(status) = self.process.ended() {
            bail!("it ended: {status}");
        }
        let next = self.servers.iter().filter_map(Server::next).chain(clients.next()).min();
        let sleep = next.map_or(IDLE, |next| next.saturating_duration_since(now).min(IDLE));
        let far: Vec<_> = self.servers.iter().map(Server::descriptor).collect();
        let near = clients.descriptor();
        let mut fds: Vec<_> =
            far.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(near.as_fd(), PollFlags::POLLIN));
        ppoll(&mut fds, Some(TimeSpec::from_duration(sleep)), None)?;
        Ok(())
    }

    fn turn_for(&mut self, time: Duration) -> Result<()> {
        let book = Book::new(self.first, false);
        let mut nobody = Clients::start(LISTEN.parse()?, Transport::Udp, Load::Window(0), book)?;
        self.ask(&mut nobody, time, None).map(drop)
    }

    /// Waits until it has bound its port, without asking it anything.
    fn wait_bound(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        // Once it is bound, connecting to it is not refused and binding it ourselves is.
        while UdpSocket::bind(LISTEN).is_ok() {
            ensure!(Instant::now() < deadline, "it does not listen within {START_LIMIT:?}");
            ensure!(self.process.ended().is_none(), "it ended before it listened");
            thread::sleep(Duration::from_millis(5));
        }
        // Bound is not yet served.
        self.turn_for(Duration::from_millis(300))
    }

    /// Asks until there is an answer.
    fn wait_answering(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let book = Book::new(self.first, false);
            let mut clients =
                Clients::start(LISTEN.parse()?, Transport::Udp, Load::Window(1), book)?;
            self.turn(&mut clients)?;
            clients.asking = false;
            let outcomes = self.finish(clients)?;
            if outcomes.iter().any(|outcome| outcome.took.is_some()) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no answer within {START_LIMIT:?}");
        }
    }

    /// The time that its threads have run so far (`schedstat`, in nanoseconds).
    fn cpu_time(&self) -> Result<Duration> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.pid()))?;
        let mut nanoseconds = 0;
        for task in tasks {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let ran = text.split(' ').next().context("an empty schedstat")?;
            nanoseconds += ran.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }
}

/// Whoever else is on this machine has to wait, as for the forwarders.
fn take_precedence() -> Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads the one structure that it is given.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameters) };
    ensure!(result == 0, "sched_setscheduler: {}", std::io::Error::last_os_error());
    Ok(())
}

fn server_config(identity: &Identity) -> Result<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate.clone()], identity.key())?;
    config.alpn_protocols = vec![b"dot".to_vec()];
    Ok(config)
}
