//! The first-query storm: many fresh containers, each with its lookup as its very first act.
//!
//! `dns-proxy-storm [CONTAINERS [AT_ONCE]]`, 500 and 20 if not said. For each kind of client it
//! prints how many lookups failed and how many packets of port 53 were seen on the way out, and
//! exits with 1 if any was.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Capture, Daemon, Stage, Zone,
    clients::{Libc, probe},
    port53,
    process::output,
    world::UPLINK,
};

/// Containers that one world may have.
const WORLD: usize = 200;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dns-proxy-storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut args = std::env::args().skip(1);
    let mut number = |default| args.next().map_or(Ok(default), |text| text.parse::<usize>());
    let total = number(500).context("CONTAINERS")?;
    let at_once = number(20).context("AT_ONCE")?;
    println!("{total} fresh containers for each kind of client, {at_once} at a time, under load");
    println!("client  containers  failed  plaintext packets  refused by the kernel  seconds");
    let mut good = true;
    for (kind, name) in [(Libc::Glibc, "glibc"), (Libc::Musl, "musl")] {
        let started = Instant::now();
        let mut sum = Outcome::default();
        while sum.containers < total {
            sum.add(&storm(kind, (total - sum.containers).min(WORLD), at_once)?);
        }
        let Outcome { containers, failed, plaintext, refused } = sum;
        let seconds = started.elapsed().as_secs();
        println!(
            "{name:<7} {containers:>10}  {failed:>6}  {plaintext:>17}  {refused:>21}  {seconds:>7}"
        );
        good &= failed == 0 && plaintext == 0;
    }
    Ok(good)
}

#[derive(Default)]
struct Outcome {
    containers: usize,
    failed: usize,
    plaintext: usize,
    refused: usize,
}

impl Outcome {
    fn add(&mut self, other: &Self) {
        self.containers += other.containers;
        self.failed += other.failed;
        self.plaintext += other.plaintext;
        self.refused += other.refused;
    }
}

/// One world's worth of containers.
fn storm(kind: Libc, containers: usize, at_once: usize) -> Result<Outcome> {
    let stage = Stage::new()?;
    let program = kind.program()?;
    let steady = stage.world.container("steady")?;
    let daemon = Daemon::start(&stage.world, &stage.run_args(&[stage.world.cgroup()])?)?;
    daemon.wait_until_serving(steady.netns())?;
    let camera = Capture::on(stage.world.host(), UPLINK)?;

    let (next, failed, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let first = |number: usize| -> Result<()> {
        let newborn = stage.world.newborn(&format!("new-{number}"))?;
        let mut lookup = newborn.container.command(&program)?;
        let printed = output(lookup.arg("example.test"))?;
        ensure!(printed.contains(&Zone::Encrypted.a().to_string()), "{printed}");
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                let mut queries = probe(&steady)?;
                output(queries.args(["many", "200", "4", "8.8.8.8", "example.test"]))?;
                thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        });
        let starters: Vec<_> = (0..at_once)
            .map(|_| {
                scope.spawn(|| {
                    while let number = next.fetch_add(1, Ordering::Relaxed)
                        && number < containers
                    {
                        if let Err(error) = first(number) {
                            failed.fetch_add(1, Ordering::Relaxed);
                            eprintln!("container {number}: {error:#}");
                        }
                    }
                })
            })
            .collect();
        for starter in starters {
            starter.join().expect("starters do not panic");
        }
        done.store(true, Ordering::Relaxed);
        load.join().expect("the load does not panic").context("the steady container")
    })?;

    let plaintext = port53(&camera.stop()?).len();
    let log = daemon.log().clone();
    daemon.stop()?;
    let refused = log
        .text()
        .split("refused=")
        .last()
        .and_then(|rest| rest.split_whitespace().next().and_then(|number| number.parse().ok()));
    Ok(Outcome {
        containers,
        failed: failed.into_inner(),
        plaintext,
        refused: refused.context("the daemon's last line")?,
    })
}
