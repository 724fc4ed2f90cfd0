//! A daemon that hangs is as good as dead, and must be treated so.

use std::time::Duration;

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Container, Daemon, Stage, Zone,
    clients::{dig, probe},
    eventually,
    freeze::Frozen,
    process::output,
};
use nix::sys::signal::Signal;

/// The daemon is taken for dead after ten seconds.
const DEAD: Duration = Duration::from_secs(30);
const ASK: [&str; 2] = ["example.test", "@8.8.8.8"];

/// Whether a query is answered by the zone, over a new socket.
fn answers(container: &Container, zone: Zone) -> bool {
    let asked = probe(container).and_then(|mut probe| {
        output(probe.args(["--timeout", "0.3", "udp-connected", "8.8.8.8", ASK[0]]))
    });
    asked.is_ok_and(|printed| printed.contains(&zone.a().to_string()))
}

/// Hangs the daemon, and lets it go on once `hang`'s value is dropped.
fn check_open<T>(hang: impl FnOnce(&Daemon) -> Result<T>) -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    ensure!(dig(&container, &ASK)? == [Zone::Encrypted.a().to_string()]);

    let hung = hang(&daemon)?;
    let open = eventually(DEAD, || answers(&container, Zone::Plaintext));
    ensure!(open, "still not as without us");
    drop(hung);

    daemon.signal(Signal::SIGCONT)?;
    let back = eventually(DEAD, || answers(&container, Zone::Encrypted));
    ensure!(back, "not encrypted again: {}", daemon.log().text());
    let log = daemon.log().clone();
    ensure!(daemon.stop()?.success());
    ensure!(!log.text().contains("unattended=0"), "not counted: {}", log.text());
    Ok(())
}

#[test]
fn queries_go_as_before_while_the_daemon_is_stopped() -> Result<()> {
    check_open(|daemon| daemon.signal(Signal::SIGSTOP))
}

#[test]
fn queries_go_as_before_while_a_worker_hangs() -> Result<()> {
    check_open(|daemon| Frozen::thread(daemon.pid(), "worker-0"))
}

#[test]
fn queries_go_as_before_while_the_control_loop_hangs() -> Result<()> {
    check_open(|daemon| Frozen::thread(daemon.pid(), "dns-proxy"))
}

#[test]
fn queries_are_refused_while_a_daemon_hangs_that_is_to_fail_closed() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let mut args = stage.run_args(&[container.cgroup()])?;
    args.push("--fail=closed".to_owned());
    let daemon = Daemon::start(&stage.world, &args)?;
    daemon.wait_until_serving(container.netns())?;
    ensure!(answers(&container, Zone::Encrypted));
    let witness = stage.witness(&container)?;

    daemon.signal(Signal::SIGSTOP)?;
    let refused = eventually(DEAD, || {
        let mut probe = probe(&container).expect("built");
        probe.args(["--timeout", "0.3", "udp-connected", "8.8.8.8", ASK[0]]);
        let done = probe.output().expect("runs");
        String::from_utf8_lossy(&done.stdout).contains("error=PermissionDenied")
    });
    ensure!(refused, "not refused");
    daemon.signal(Signal::SIGCONT)?;
    ensure!(eventually(DEAD, || answers(&container, Zone::Encrypted)), "not encrypted again");
    witness.saw_only_tls()
}
