//! What happens to a daemon: each is a function from how much of it to what came of it.

use crate::report::Row;
use crate::scene::Scene;
use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::process::{Process, output};
use dns_proxy_tests::{Close, Daemon, eventually, world};
use nix::sys::signal::Signal;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Queries a second of whoever asks meanwhile.
const RATE: u32 = 200;
/// A daemon that is started is up in less than this, or it is an error of its own.
const UP: Duration = Duration::from_secs(10);

/// Killed at moments that nobody chose, as often as told; what has become of those who asked.
pub(crate) fn killed(fail: &str, times: u32) -> Result<Row> {
    let mut scene = Scene::new(&[&format!("--fail={fail}")])?;
    let mut daemon = scene.start()?;
    let before = daemon.rss()?;
    let started = Instant::now();
    // Two thirds of a second each at most; the asker ends a little later than the last.
    let seconds = u64::from(times) * 2 / 3 + 5;
    let asker = scene.ask(seconds, RATE)?;
    let mut killed = 0;
    while killed < times && started.elapsed() < Duration::from_secs(seconds - 4) {
        // From its first instruction to long after it is ready.
        let life = dns_proxy_tests::wire::random() % 500;
        thread::sleep(Duration::from_millis(life));
        daemon.kill9()?;
        daemon = scene.launch()?;
        killed += 1;
    }
    daemon.wait_ready()?;
    let tally = asker.end(&mut scene)?;
    let after = daemon.rss()?;
    ensure!(daemon.stop()?.success(), "it did not stop well");
    let leaked = scene.leaked()?;
    let closed = fail == "closed";
    Ok(Row {
        what: format!("kill -9, {killed} times, --fail {fail}"),
        tally,
        leaked,
        leftovers: scene.leftovers()?,
        memory: Some((before, after)),
        // To fail open, whoever asks meanwhile goes as before; nobody may be left without an answer
        // for longer than it takes to ask again.
        good: if closed { leaked == 0 && tally.plaintext == 0 } else { tally.asked > 0 },
    })
}

/// Stopped by a signal for less than the time after which it counts as dead.
pub(crate) fn paused() -> Result<Row> {
    undergoes("stopped and continued, 5 times 1 s", 12, |_, daemon| {
        for _ in 0..5 {
            daemon.signal(Signal::SIGSTOP)?;
            thread::sleep(Duration::from_secs(1));
            daemon.signal(Signal::SIGCONT)?;
            thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    })
}

/// The road to the upstream goes away and comes back.
pub(crate) fn uplink_flaps() -> Result<Row> {
    undergoes("the uplink goes down for 300 ms, 10 times", 12, |scene, _| {
        let host = scene.stage.world.host();
        for _ in 0..10 {
            host.ip(&["link", "set", world::UPLINK, "down"])?;
            thread::sleep(Duration::from_millis(300));
            // IPv6 addresses and all routes went with it.
            host.ip(&["link", "set", world::UPLINK, "up"])?;
            host.ip(&["route", "replace", "default", "via", "192.0.2.1"])?;
            thread::sleep(Duration::from_millis(700));
        }
        Ok(())
    })
}

/// A container's interface gets other addresses, and goes.
pub(crate) fn addresses_change() -> Result<Row> {
    undergoes("a container's addresses change, 50 times", 12, |scene, _| {
        let netns = scene.app.netns();
        for number in 0..50 {
            let addr = format!("10.99.{number}.1/24");
            netns.ip(&["addr", "add", &addr, "dev", "eth0"])?;
            thread::sleep(Duration::from_millis(100));
            netns.ip(&["addr", "del", &addr, "dev", "eth0"])?;
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    })
}

/// The upstream ends all connections, and refuses for a while.
pub(crate) fn upstream_restarts() -> Result<Row> {
    undergoes("the upstream restarts (100 ms), 20 times", 12, |scene, _| {
        for _ in 0..20 {
            scene.stage.upstream.refuse()?;
            scene.stage.upstream.disconnect(Close::Reset);
            thread::sleep(Duration::from_millis(100));
            scene.stage.upstream.listen()?;
            thread::sleep(Duration::from_millis(400));
        }
        Ok(())
    })
}

/// No descriptor is left for anything new.
pub(crate) fn out_of_descriptors() -> Result<Row> {
    undergoes("no descriptor left, for 5 s", 12, |scene, daemon| {
        let pid = daemon.pid().to_string();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let line = limits.lines().find(|line| line.starts_with("Max open files"));
        let usual = line.and_then(|line| line.split_whitespace().nth(3)).context("a limit")?;
        let limit = |files: &str| {
            let nofile = format!("--nofile={files}:{usual}");
            output(Command::new("prlimit").args(["--pid", &pid, &nofile]))
        };
        limit(&daemon.fds()?.to_string())?;
        // Newcomers that it cannot serve, and connections that it cannot take.
        let newcomer = scene.stage.world.container("newcomer")?;
        thread::sleep(Duration::from_secs(5));
        limit(usual)?;
        ensure!(
            eventually(UP, || daemon.wait_until_serving(newcomer.netns()).is_ok()),
            "the newcomer is never served"
        );
        Ok(())
    })
}

/// Names that nobody asks for twice.
pub(crate) fn many_names(millions: u32) -> Result<Row> {
    // The cache is bounded, and so is everything else that grows with names.
    let mut scene = Scene::new(&["--cache-size=16MiB"])?;
    let daemon = scene.start()?;
    let before = daemon.rss()?;
    let count = millions * 1_000_000;
    let mut many = dns_proxy_tests::clients::probe(&scene.neighbour)?;
    many.args(["many", &count.to_string(), "64", "8.8.8.8", "example.test"]);
    many.stdout(Stdio::null());
    let mut many = Process::spawn(many)?;
    scene.watch(&mut many, Duration::from_secs(600))?;
    ensure!(many.wait(UP)?.success(), "a name got no good answer");
    let after = daemon.rss()?;
    let tally = scene.ask(1, RATE)?.end(&mut scene)?;
    ensure!(daemon.stop()?.success(), "it did not stop well");
    let good = tally.unanswered() == 0 && after < before + (24 << 20);
    Ok(Row {
        what: format!("{count} names, a cache of 16 MiB"),
        tally,
        leaked: scene.leaked()?,
        leftovers: scene.leftovers()?,
        memory: Some((before, after)),
        good,
    })
}

/// Namespaces that come and go within one service.
pub(crate) fn churn(namespaces: u32) -> Result<Row> {
    let what = format!("{namespaces} namespaces come, ask and go");
    let mut scene = Scene::new(&[])?;
    let daemon = scene.start()?;
    let (before, descriptors) = (daemon.rss()?, daemon.fds()?);
    let started = Instant::now();
    // Four at a time, each with a lookup as its first act.
    let probe = dns_proxy_tests::artifacts::program("dns-proxy-probe")?;
    let script = format!(
        "seq {namespaces} | xargs -P 4 -I{{}} unshare -n sh -c \
         'ip link set lo up; {} --timeout 10 udp-unconnected example.test 8.8.8.8 >/dev/null \
         || echo failed'",
        probe.display()
    );
    let printed = output(scene.neighbour.command("sh")?.args(["-c", &script]))?;
    let failed = printed.lines().count() as u64;
    let took = started.elapsed().as_secs().max(1);
    let tally = scene.ask(1, RATE)?.end(&mut scene)?;
    ensure!(
        eventually(UP, || daemon.fds().is_ok_and(|now| now <= descriptors + 8)),
        "{descriptors} descriptors before, {} after",
        daemon.fds()?
    );
    let after = daemon.rss()?;
    ensure!(daemon.stop()?.success(), "it did not stop well");
    let leaked = scene.leaked()?;
    Ok(Row {
        what: format!(
            "{what}: {} a second, {failed} first lookups failed",
            u64::from(namespaces) / took
        ),
        good: failed == 0 && leaked == 0 && tally.unanswered() == 0,
        tally,
        leaked,
        leftovers: scene.leftovers()?,
        memory: Some((before, after)),
    })
}

/// Something is done to a daemon while a container asks; all must be answered, and nothing leak.
fn undergoes(
    what: &str,
    seconds: u64,
    act: impl FnOnce(&Scene, &Daemon) -> Result<()>,
) -> Result<Row> {
    let mut scene = Scene::new(&[])?;
    let daemon = scene.start()?;
    let before = daemon.rss()?;
    let asker = scene.ask(seconds, RATE)?;
    act(&scene, &daemon)?;
    let tally = asker.end(&mut scene)?;
    let after = daemon.rss()?;
    ensure!(daemon.stop()?.success(), "it did not stop well");
    let leaked = scene.leaked()?;
    Ok(Row {
        what: what.to_owned(),
        good: leaked == 0 && tally.plaintext == 0 && tally.unanswered() == 0,
        tally,
        leaked,
        leftovers: scene.leftovers()?,
        memory: Some((before, after)),
    })
}
