//! Hours in minutes: a steady load while namespaces come and go; nothing may grow.

use crate::scene::{Asker, Scene, Tally};
use anyhow::{Result, ensure};
use dns_proxy_tests::Daemon;
use dns_proxy_tests::process::Process;
use std::process::Stdio;
use std::time::Duration;

/// Threads, connections and tables find their size in the first part of the time.
const SETTLED: u32 = 4;
/// Memory may then grow by so much, in bytes: what allocators do with what comes and goes.
const GROWTH: u64 = 2 << 20;

#[derive(Debug)]
struct Sample {
    memory: u64,
    descriptors: usize,
}

impl Sample {
    fn of(daemon: &Daemon) -> Result<Self> {
        Ok(Self { memory: daemon.rss()?, descriptors: daemon.fds()? })
    }
}

/// Whether nothing grew.
pub(crate) fn soak(minutes: u32, rate: u32) -> Result<bool> {
    let mut scene = Scene::new(&["--cache-size=16MiB"])?;
    let daemon = scene.start()?;
    let seconds = u64::from(minutes) * 60;
    // One process has not enough sockets for all of it.
    let askers = (rate / 2_500).max(1);
    let asking = (0..askers).map(|_| Asker::start(&scene.app, seconds, rate / askers));
    let asking = asking.collect::<Result<Vec<_>>>()?;
    let _churn = churn(&scene)?;
    println!("{:>6}  {:>9}  {:>11}  {:>6}", "minute", "MiB", "descriptors", "leaked");
    let mut samples = Vec::new();
    for minute in 1..=minutes {
        scene.pass(Duration::from_secs(60))?;
        let sample = Sample::of(&daemon)?;
        let mebibytes = sample.memory as f64 / f64::from(1 << 20);
        println!(
            "{minute:>6}  {mebibytes:>9.2}  {:>11}  {:>6}",
            sample.descriptors,
            scene.leaked()?
        );
        samples.push(sample);
    }
    let ended = asking.into_iter().map(|asker| asker.end(&mut scene));
    let tallies = ended.collect::<Result<Vec<_>>>()?;
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let (asked, unanswered) = (sum(|tally| tally.asked), sum(Tally::unanswered));
    println!("asked={asked} unanswered={unanswered} plaintext={}", sum(|tally| tally.plaintext));
    let leaked = scene.leaked()?;
    ensure!(daemon.stop()?.success(), "it did not stop well");
    let settled = &samples[samples.len() / SETTLED as usize..];
    let grew = match settled {
        [first, .., last] => {
            last.memory > first.memory + GROWTH || last.descriptors > first.descriptors + 16
        }
        _ => false,
    };
    Ok(!grew && leaked == 0 && unanswered == 0)
}

/// Namespaces come and go in the neighbour, a few a second, until it is dropped.
fn churn(scene: &Scene) -> Result<Process> {
    let probe = dns_proxy_tests::artifacts::program("dns-proxy-probe")?;
    let script = format!(
        "while :; do unshare -n sh -c 'ip link set lo up; {} --timeout 5 udp-unconnected \
         example.test 8.8.8.8'; sleep 0.2; done",
        probe.display()
    );
    let mut churn = scene.neighbour.command("sh")?;
    churn.args(["-c", &script]);
    churn.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Process::spawn(churn)
}
