//! The leak guard, and everything else that must not leave in plaintext.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Capture, Daemon, Stage, Zone,
    clients::{dig, probe},
    container::INTERFACE,
    eventually,
    freeze::Frozen,
    port53,
    process::output,
};

use crate::scene::Scene;

const NAME: &str = "example.test";

/// What becomes of a socket that connected before the daemon started, and asks now.
struct Early {
    stage: Stage,
    answered: bool,
    error: String,
    /// Packets of port 53 since the daemon was ready.
    seen: usize,
    log: String,
}

fn ask_early(shape: &str, server: &str, guard: &str) -> Result<Early> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let mut early = probe(&container)?;
    early.args(["--timeout", "2", shape, server, NAME]);
    early.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut early = early.spawn()?;
    let mut line = String::new();
    BufReader::new(early.stdout.as_mut().context("piped")?).read_line(&mut line)?;
    ensure!(line == "connected\n", "{line}");

    let mut args = stage.run_args(&[container.cgroup()])?;
    args.push(format!("--guard={guard}"));
    let daemon = Daemon::start(&stage.world, &args)?;
    daemon.wait_until_serving(container.netns())?;
    let camera = Capture::on(container.netns(), INTERFACE)?;
    early.stdin.as_mut().context("piped")?.write_all(b"now\n")?;
    let done = early.wait_with_output()?;

    let seen = port53(&camera.stop()?).len();
    let log = daemon.log().clone();
    ensure!(daemon.stop()?.success());
    let (answered, error) = (done.status.success(), String::from_utf8(done.stderr)?);
    Ok(Early { stage, answered, error, seen, log: log.text() })
}

#[test]
fn connections_from_before_are_broken_so_that_their_owners_connect_anew() -> Result<()> {
    for shape in ["early-udp", "early-tcp"] {
        for server in ["8.8.8.8", "2001:4860:4860::8888"] {
            let early = ask_early(shape, server, "on")?;
            ensure!(!early.answered && early.seen == 0, "{shape}: {} packets", early.seen);
            // What a destroyed socket says depends on what is tried first.
            let says = ["connection abort", "connection reset", "Broken pipe", "Destination addr"];
            let error = early.error.to_lowercase();
            let broken = says.iter().any(|words| error.contains(&words.to_lowercase()));
            ensure!(broken, "{shape}: {error}");
            ensure!(early.log.contains("stale connections broken"), "{shape}: {}", early.log);
            ensure!(early.stage.nameserver.queries().is_empty(), "{shape} was answered");
        }
    }
    Ok(())
}

#[test]
fn connections_from_before_go_on_if_the_guard_only_counts_or_is_off() -> Result<()> {
    for (mode, guarded) in [("count", "guarded=1"), ("off", "guarded=0")] {
        let early = ask_early("early-udp", "8.8.8.8", mode)?;
        ensure!(early.answered && early.seen == 2, "{mode}: {} packets", early.seen);
        ensure!(early.log.contains(guarded), "{mode}: {}", early.log);
    }
    Ok(())
}

#[test]
fn whatever_the_guard_does_new_connections_are_redirected() -> Result<()> {
    for guard in ["on", "count", "off"] {
        let scene = Scene::new()?;
        let _daemon =
            scene.stage.daemon_with(&[&scene.container], &[&format!("--guard={guard}")])?;
        let witness = scene.stage.witness(&scene.container)?;
        for server in ["8.8.8.8", "2001:4860:4860::8888"] {
            for shape in ["udp-connected", "tcp"] {
                scene.answered(&format!("{shape} {server} {NAME}"), &[])?;
            }
        }
        witness.saw_only_tls().context(guard)?;
    }
    Ok(())
}

#[test]
fn device_bound_sockets_leak_nothing_if_somebody_takes_their_routes_away() -> Result<()> {
    let scene = Scene::new()?;
    let _daemon = scene.daemon()?;
    for family in ["-4", "-6"] {
        let flush = [family, "route", "flush", "table", "local", "dev", INTERFACE];
        scene.container.netns().ip(&flush)?;
    }
    for shape in ["bound-connected", "bound-unconnected", "unicast-if", "pktinfo"] {
        for server in ["8.8.8.8", "2001:4860:4860::8888"] {
            scene.leaks_nothing(&format!("--timeout 0.3 {shape} {server} {NAME} {INTERFACE}"))?;
        }
    }
    Ok(())
}

#[test]
fn class_e_and_0_8_are_nameservers_like_any_other() -> Result<()> {
    let scene = Scene::new()?;
    let intercepted = scene.intercept()?;
    for server in ["240.0.0.53", "0.1.2.3"] {
        scene
            .answered(&format!("udp-connected {server} {NAME}"), &[&format!("from={server}:53")])?;
    }
    intercepted.end()
}

#[test]
fn loopback_that_goes_down_leaks_nothing_and_comes_back() -> Result<()> {
    let scene = Scene::new()?;
    let _daemon = scene.daemon()?;
    scene.container.netns().ip(&["link", "set", "lo", "down"])?;
    for server in ["8.8.8.8", "2001:4860:4860::8888"] {
        scene.leaks_nothing(&format!("--timeout 0.3 udp-connected {server} {NAME}"))?;
        scene.leaks_nothing(&format!("--timeout 0.3 udp-unconnected {NAME} {server}"))?;
    }
    scene.container.netns().ip(&["link", "set", "lo", "up"])?;
    for server in ["8.8.8.8", "2001:4860:4860::8888"] {
        let row = format!("udp-connected {server} {NAME}");
        let back = eventually(Duration::from_secs(5), || scene.answered(&row, &[]).is_ok());
        ensure!(back, "{server} is not answered again");
    }
    Ok(())
}

/// Those whose name selects them are answered by the upstream, all others by it or by whom they ask.
#[test]
fn cgroups_born_a_moment_ago_are_answered_where_a_pattern_decides() -> Result<()> {
    let stage = Stage::new()?;
    let holder = stage.world.container("holder")?;
    let mut args = stage.run_args(&[])?;
    args.push(format!("--cgroup={}/new-*", stage.world.cgroup().path()?));
    let daemon = Daemon::start(&stage.world, &args)?;

    for (name, others) in [("new", false), ("other", true)] {
        let witness = stage.witness(&holder)?;
        // Made, joined and asked from at once, in the holder's network.
        let script = "i=0; while [ $i -lt 100 ]; do mkdir \"$0/$1-$i\"; \
                      (echo 0 > \"$0/$1-$i/cgroup.procs\"; shift; \
                       exec \"$@\" --timeout 5 udp-connected 8.8.8.8 example.test); \
                      i=$((i+1)); done; true";
        let mut newborns = holder.netns().command("sh");
        newborns.args(["-c", script]).arg(stage.world.cgroup().dir()).arg(name);
        newborns.arg(dns_proxy_tests::artifacts::program("dns-proxy-probe")?);
        let printed = output(&mut newborns)?;
        let by = |zone: Zone| printed.matches(&zone.a().to_string()).count();
        let (encrypted, plaintext) = (by(Zone::Encrypted), by(Zone::Plaintext));
        ensure!(encrypted + plaintext == 100, "{name}: {printed}{}", daemon.log().text());
        let (inside, uplink) = witness.packets()?;
        let seen = port53(&inside).len() + port53(&uplink).len();
        ensure!(
            others || (plaintext == 0 && seen == 0),
            "{name}: {plaintext} answers, {seen} seen"
        );
        ensure!(!others || plaintext > 0, "whoever is not selected is left alone once it is seen");
    }
    // What was served because it asked too early is not held.
    daemon.wait_until_released(holder.netns())
}

/// The same for as long as the daemon may take to see them, which here is not at all.
#[test]
fn cgroups_that_nobody_has_seen_are_treated_as_if_they_were_meant() -> Result<()> {
    let stage = Stage::new()?;
    let holder = stage.world.container("new-holder")?;
    let mut args = stage.run_args(&[])?;
    args.push(format!("--cgroup={}/new-*", stage.world.cgroup().path()?));
    let daemon = Daemon::start(&stage.world, &args)?;
    daemon.wait_until_serving(holder.netns())?;
    let witness = stage.witness(&holder)?;
    let control = Frozen::thread(daemon.pid(), "dns-proxy")?;
    for name in ["new-unseen", "other-unseen"] {
        let cgroup = stage.world.cgroup().child(name)?;
        let mut asking =
            holder.command_in(&cgroup, dns_proxy_tests::artifacts::program("dns-proxy-probe")?)?;
        let printed = output(asking.args(["udp-connected", "8.8.8.8", NAME])).context(name)?;
        ensure!(printed.contains(&Zone::Encrypted.a().to_string()), "{name}: {printed}");
    }
    drop(control);
    witness.saw_only_tls()
}

#[test]
fn one_cgroup_cannot_take_all_tokens() -> Result<()> {
    let stage = Stage::new()?;
    let (greedy, modest) = (stage.world.container("greedy")?, stage.world.container("modest")?);
    let _daemon = stage.daemon(&[&greedy, &modest])?;
    let mut all = probe(&greedy)?;
    let printed = all.args(["tokens", "70000"]).output()?.stdout;
    let printed = String::from_utf8(printed)?;
    ensure!(printed.trim() == "sent=1024 refused=68976", "{printed}");
    ensure!(dig(&modest, &[NAME, "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    Ok(())
}

#[test]
fn a_lack_of_descriptors_does_not_empty_the_scope() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let mut command = stage.world.command("sh");
    command.args(["-c", "ulimit -n 96; exec \"$0\" \"$@\""]).arg(Daemon::program()?);
    let mut args = stage.run_args(&[])?;
    args.push(format!("--cgroup={}/*", stage.world.cgroup().path()?));
    let daemon = Daemon::start_command(command, &args)?;
    daemon.wait_until_serving(container.netns())?;
    ensure!(dig(&container, &[NAME, "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    let witness = stage.witness(&container)?;
    // Connections until the daemon has no descriptor left, held while it looks at the tree.
    let mut holder = probe(&container)?;
    holder.args(["--timeout", "0.1", "hold", "8.8.8.8", "200"]);
    holder.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut holder = holder.spawn()?;
    let full = eventually(Duration::from_secs(5), || {
        daemon.log().text().contains("cannot look at the cgroup tree")
    });
    ensure!(full, "never out of descriptors: {}", daemon.log().text());
    for _ in 0..20 {
        let mut probe = probe(&container)?;
        probe.args(["--timeout", "0.1", "udp-connected", "8.8.8.8", NAME]);
        probe.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    }
    drop(holder.stdin.take());
    ensure!(holder.wait()?.success());
    let (inside, _) = witness.packets()?;
    ensure!(port53(&inside).is_empty(), "plaintext left: {}", daemon.log().text());
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid()))?;
    ensure!(limits.contains("Max open files            96"), "{limits}");
    Ok(())
}
