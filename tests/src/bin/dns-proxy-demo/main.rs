//! The main job, told and proved: a container's DNS leaves the host only inside TLS, its neighbour
//! is left alone, and a killed daemon costs nobody anything.
//!
//! Exits with 0 only if all of it was so. What is done is in [`cast`], [`ask`] and [`cameras`];
//! what it means is decided in [`road`], [`sighting`] and [`evidence`], which touch nothing;
//! [`report`] is what a person reads.

mod ask;
mod cameras;
mod cast;
mod evidence;
mod report;
mod road;
mod sighting;

use std::{
    io::stdout,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ask::Answered;
use cast::Cast;
use dns_proxy_tests::{Daemon, clients::Libc, container::Addresses, stage};
use evidence::{Closing, Evidence, Told};
use nix::unistd::geteuid;
use report::{Check, Report, shell_words};
use road::Road;

/// How soon after `kill -9` a container must have its answer as before.
const RECOVERY: Duration = Duration::from_millis(100);
/// How long the daemon's last line may take to come through its pipe.
const LAST_LINE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let started = Instant::now();
    let mut report = Report::on(stdout());
    let told = tell(&mut report);
    match report.end(told, started.elapsed()) {
        Ok(true) => ExitCode::SUCCESS,
        // Nobody could read what was proved, so nothing was.
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

fn tell(report: &mut Report) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "making network namespaces and loading kernel programs needs root: run `cargo xtask demo`, \
         which asks sudo, or this program with sudo"
    );
    report.title("dns-proxy demo: a container's DNS, encrypted, and nobody in it notices")?;
    let mut cast = a_small_internet(report)?;
    before(report, &mut cast)?;
    let daemon = the_daemon(report, &cast)?;
    let told = both_ask(report, &cast)?;
    what_was_seen(report, &mut cast, daemon, told)?;
    killed(report, &cast)
}

/// 1. What there is.
fn a_small_internet(report: &mut Report) -> Result<Cast> {
    report.act("A small internet, made of network namespaces; no real one is needed")?;
    for libc in [Libc::Glibc, Libc::Musl] {
        libc.program().context(
            "compile the client programs; `cargo xtask setup` installs both C libraries",
        )?;
    }
    let cast = Cast::new().context("set up the namespaces, cgroups and nameservers")?;
    let upstream = stage::UPSTREAM;
    let name = stage::UPSTREAM_NAME;
    let is_at =
        |Addresses { v4, v6, .. }: &Addresses| format!("{v4} and {v6}, a veth and a cgroup");
    let (inside, outside) = (is_at(cast.inside.addresses()), is_at(cast.outside.addresses()));
    for (who, what) in [
        (
            "internet",
            "8.8.8.8, 9.9.9.9, 2001:4860:4860::8888 and others: a nameserver in plaintext"
                .to_owned(),
        ),
        ("", format!("{upstream}: one over TLS, with a certificate for {name} made just now")),
        ("host", "routes between them, and runs the daemon".to_owned()),
        ("inside", format!("a container: {inside}; in scope")),
        ("outside", format!("a container: {outside}; not in scope")),
    ] {
        report.line(&format!("{who:<9} {what}"))?;
    }
    report.line("The two nameservers answer differently, so an answer tells the road it took:")?;
    for road in [Road::Tls, Road::Plaintext] {
        report.line(&format!("  {:<9} {}", road.name(), road.answers()))?;
    }
    Ok(cast)
}

/// 2. How it is without the daemon, which also shows that the cameras see.
fn before(report: &mut Report, cast: &mut Cast) -> Result<()> {
    report.act("Without dns-proxy: both ask, and cameras at every end of every veth look on")?;
    report.header(&Answered::header())?;
    for container in [cast.inside(), cast.outside()] {
        let answered = ask::BEFORE.put(&container);
        report.check(&answered.came_by(Road::Plaintext))?;
    }
    report.check(&evidence::control(&cast.develop()?))
}

/// 3. The real daemon.
fn the_daemon(report: &mut Report, cast: &Cast) -> Result<Daemon> {
    report.act("The daemon, on the host")?;
    let args = cast.daemon_args()?;
    let words: Vec<_> = args.iter().map(String::as_str).collect();
    report.line(&format!("$ {}", shell_words(&[&["dns-proxy"], &words[..]].concat())))?;
    let started = Instant::now();
    let daemon = cast.start_daemon(&args)?;
    let ready = started.elapsed();
    report.line(&format!(
        "ready in {}, serving `inside`; no resolver configuration was changed",
        report::millis(ready)
    ))?;
    Ok(daemon)
}

/// 4. The same questions from both, first the one and then the other.
fn both_ask(report: &mut Report, cast: &Cast) -> Result<Told> {
    report.act(&format!("Both containers ask real nameserver addresses for {}", ask::NAME))?;
    report.header(&Answered::header())?;
    let start = cast.counts();
    for ask in ask::ALL {
        let answered = ask.put(&cast.inside());
        report.check(&answered.came_by(Road::Tls))?;
    }
    let between = cast.counts();
    for ask in ask::ALL {
        let answered = ask.put(&cast.outside());
        report.check(&answered.came_by(Road::Plaintext))?;
    }
    let end = cast.counts();
    let asked = ask::ALL.len();
    Ok(Told { asked, inside: between - start, outside: end - between })
}

/// 5. The daemon's own count, the nameservers' and the cameras'.
fn what_was_seen(report: &mut Report, cast: &mut Cast, daemon: Daemon, told: Told) -> Result<()> {
    report.act("What was seen")?;
    let log = daemon.log().clone();
    let status = daemon.stop().context("stop the daemon with SIGTERM")?;
    ensure!(status.success(), "the daemon ended with {status}:\n{}", log.text());
    log.wait_until(LAST_LINE, |lines| Closing::find(lines).is_some());
    let closing = Closing::find(&log.lines())
        .with_context(|| format!("the daemon stopped without a closing line:\n{}", log.text()))?;
    report.line(&format!("dns-proxy, stopped with SIGTERM, says: {closing}"))?;

    let evidence = Evidence { closing, told, wires: cast.develop()? };
    report.header(&sighting::header())?;
    for wire in &evidence.wires {
        report.line(&wire.to_string())?;
    }
    report.check(&evidence.of_inside())?;
    report.check(&evidence.of_outside())?;
    report.check(&evidence.of_tokens())?;
    report.check(&cast.handshakes())
}

/// 6. Never worse than without it.
fn killed(report: &mut Report, cast: &Cast) -> Result<()> {
    report.act("The daemon is started again, and killed with -9; fail=open is the default")?;
    report.header(&Answered::header())?;
    let daemon = cast.start_daemon(&cast.daemon_args()?)?;
    let inside = cast.inside();
    let [first, others @ ..] = ask::AFTER;
    report.check(&first.put(&inside).came_by(Road::Tls))?;

    first.prepare(&inside)?;
    let killed = Instant::now();
    daemon.kill9().context("kill the daemon with -9")?;
    let answered = first.put_prepared(&inside);
    let recovered = killed.elapsed();

    report.check(&answered.came_by(Road::Plaintext))?;
    for ask in others {
        report.check(&ask.put(&inside).came_by(Road::Plaintext))?;
    }
    let (took, limit) = (report::millis(recovered), report::millis(RECOVERY));
    report.check(&Check {
        holds: answered.road() == Some(Road::Plaintext) && recovered <= RECOVERY,
        says: format!("from the kill to the answer, the client's start included: {took}"),
        otherwise: format!(
            "`inside` did not resolve as before within {limit} of kill -9: it took {took}. If \
             this machine is very busy now, run the demo again"
        ),
    })
}
