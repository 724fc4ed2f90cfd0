//! `/healthz` and `/readyz` in good times and bad.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Close, Daemon, Orders, Reply, Stage, eventually,
    freeze::Frozen,
    http::{self, Response},
};
use nix::sys::signal::Signal;

use crate::place::{ADMIN, LIMIT, Place, ask};

/// A thread is taken for dead after ten seconds.
const DEAD: Duration = Duration::from_secs(30);

fn is(response: &Response, code: u16, says: &str) -> bool {
    response.code == code && response.body.contains(says)
}

#[test]
fn who_is_ready_says_why() -> Result<()> {
    let place = Place::new()?;
    let _upstream = place.upstream()?;
    let _daemon = place.daemon(&[])?;
    let health = place.get("/healthz")?;
    ensure!(is(&health, 200, "all threads turn"), "{health:?}");
    let ready = place.get("/readyz")?;
    ensure!(is(&ready, 200, "[+] upstream 127.0.0.1:853#dns.test is authenticated"), "{ready:?}");
    ensure!(ready.body.starts_with("ready\n[+] listening\n"), "{ready:?}");
    ensure!(ready.field("content-type") == Some("text/plain; charset=utf-8"), "{ready:?}");
    ensure!(ready.field("cache-control") == Some("no-store"), "{ready:?}");
    Ok(())
}

#[test]
fn without_an_upstream_the_daemon_is_alive_and_not_ready() -> Result<()> {
    let place = Place::new()?;
    let _daemon = place.daemon(&[])?;
    let ready = place.get("/readyz")?;
    ensure!(is(&ready, 503, "[-] no upstream can be used: 127.0.0.1:853"), "{ready:?}");
    ensure!(ready.body.contains("refused"), "{ready:?}");
    ensure!(place.get("/healthz")?.code == 200);
    // Nobody has to ask for that to be found out.
    let _upstream = place.upstream()?;
    let back = eventually(DEAD, || place.get("/readyz").is_ok_and(|ready| ready.code == 200));
    ensure!(back, "{:?}", place.get("/readyz")?);
    Ok(())
}

#[test]
fn an_upstream_with_another_name_is_none() -> Result<()> {
    let place = Place::new()?;
    let _upstream = place.upstream()?;
    let args = place.args(&["--admin=127.0.0.1:9154", "--listen=127.0.0.1:53"]);
    let args: Vec<_> = args.iter().map(|arg| arg.replace("dns.test", "other.test")).collect();
    let daemon = Daemon::start_command(place.netns.command(Daemon::program()?), &args)?;
    daemon.wait_for_log("admin: ", LIMIT)?;
    let ready = http::get(&place.netns, "127.0.0.1:9154".parse()?, "/readyz")?;
    ensure!(is(&ready, 503, "other.test"), "{ready:?}");
    ensure!(http::get(&place.netns, ADMIN, "/readyz").is_err(), "also where it was not told to be");
    Ok(())
}

#[test]
fn a_thread_that_hangs_is_named_and_forgiven() -> Result<()> {
    let place = Place::new()?;
    let _upstream = place.upstream()?;
    let daemon = place.daemon(&[])?;
    for (name, says) in [("worker-1", "worker 1 has not turned"), ("dns-proxy", "control plane")] {
        let hung = Frozen::thread(daemon.pid(), name)?;
        for path in ["/healthz", "/readyz"] {
            let told = eventually(DEAD, || place.get(path).is_ok_and(|told| is(&told, 503, says)));
            ensure!(told, "{name}: {path}: {:?}", place.get(path)?);
        }
        drop(hung);
        let back = eventually(DEAD, || place.get("/healthz").is_ok_and(|told| told.code == 200));
        ensure!(back, "{name}: {:?}", place.get("/healthz")?);
    }
    Ok(())
}

#[test]
fn whoever_drains_is_alive_and_not_ready() -> Result<()> {
    let place = Place::new()?;
    let upstream = place.upstream()?;
    let mut daemon = place.daemon(&["--upstream-timeout=1500ms"])?;
    let client = place.client()?;
    ensure!(ask(&client, "a.example.test")? == 0);
    upstream.order(Orders::default().except("b.example.test", Reply::Silence));
    // What is not answered gets an error, at last.
    let waiting = thread::spawn(move || ask(&client, "b.example.test"));
    ensure!(eventually(LIMIT, || !upstream.journal().queries_for("b.example.test").is_empty()));
    daemon.signal(Signal::SIGTERM)?;
    let draining =
        eventually(LIMIT, || place.get("/readyz").is_ok_and(|ready| is(&ready, 503, "draining")));
    ensure!(draining, "{:?}", place.get("/readyz"));
    ensure!(place.get("/healthz")?.code == 200);
    waiting.join().expect("no panic")?;
    ensure!(daemon.wait()?.success());
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_named_and_taken_later() -> Result<()> {
    let place = Place::new()?;
    let upstream = place.upstream()?;
    let first = place.daemon(&[])?;
    let command = place.netns.command(Daemon::program()?);
    let second = Daemon::start_command(command, &place.args(&["--listen=127.0.0.2:53"]))?;
    second.wait_for_log("cannot listen on --admin 127.0.0.1:9153", LIMIT)?;
    second.wait_for_log("`ss -lntp sport = :9153` shows who does", LIMIT)?;
    ensure!(first.stop()?.success());
    second.wait_for_log("admin: ", LIMIT)?;
    ensure!(place.get("/readyz")?.code == 200);
    upstream.disconnect(Close::Reset);
    Ok(())
}

#[test]
fn off_is_nowhere() -> Result<()> {
    let place = Place::new()?;
    let command = place.netns.command(Daemon::program()?);
    let args = place.args(&["--listen=127.0.0.1:53", "--admin=off"]);
    let daemon = Daemon::start_command(command, &args)?;
    ensure!(place.get("/healthz").is_err() && !daemon.log().text().contains("admin: "));
    Ok(())
}

#[test]
fn whoever_intercepts_is_ready_once_programs_are_attached() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let ready = http::get(stage.world.host(), ADMIN, "/readyz")?;
    ensure!(is(&ready, 200, "ready\n[+] programs are attached"), "{ready:?}");
    ensure!(daemon.stop()?.success());
    Ok(())
}
