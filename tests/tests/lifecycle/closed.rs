//! `--fail closed`: whatever becomes of the daemon, nothing goes in plaintext until it is stopped on
//! purpose.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Cgroup, Container, Daemon, Stage, Zone,
    artifacts::program,
    clients::{dig, probe},
    eventually,
    mounts::BPFFS,
    port53,
    process::{Process, output},
    steps::Starting,
};

const LIMIT: Duration = Duration::from_secs(10);
/// Well before ten seconds are over, after which a daemon that is merely silent counts as dead.
const AT_ONCE: Duration = Duration::from_secs(5);
const NAME: &str = "example.test";
const SERVERS: [&str; 2] = ["8.8.8.8", "2001:4860:4860::8888"];
/// One of them, as a socket for IPv6 sees it.
const MAPPED: &str = "::ffff:8.8.8.8";

fn args(stage: &Stage, scope: &[&Cgroup]) -> Result<Vec<String>> {
    let mut args = stage.run_args(scope)?;
    args.push("--fail=closed".to_owned());
    Ok(args)
}

fn start(stage: &Stage, container: &Container) -> Result<Daemon> {
    let daemon = Daemon::start(&stage.world, &args(stage, &[container.cgroup()])?)?;
    daemon.wait_until_serving(container.netns())?;
    Ok(daemon)
}

/// What is pinned on the host, below its bpf file system.
fn pins(stage: &Stage) -> Result<Vec<String>> {
    let script = format!("find {BPFFS} -mindepth 2 -printf '%P\\n'");
    let printed = output(stage.world.command("sh").args(["-c", &script]))?;
    Ok(printed.lines().map(ToOwned::to_owned).collect())
}

fn is_encrypted(container: &Container) -> Result<()> {
    for server in SERVERS {
        let answer = dig(container, &[NAME, &format!("@{server}")])?;
        ensure!(answer == [Zone::Encrypted.a().to_string()], "{server}: {answer:?}");
    }
    Ok(())
}

/// Kills the daemon before each step of its start, and looks each time.
fn kill_while_starting(
    stage: &Stage,
    args: &[String],
    mut look: impl FnMut() -> Result<()>,
) -> Result<()> {
    let all = {
        let mut whole = Starting::launch(&stage.world, args)?;
        let steps = whole.take(usize::MAX)?;
        let is_ready =
            |lines: &[String]| lines.iter().any(|line| line.contains(" ready upstreams="));
        ensure!(whole.log().wait_until(LIMIT, is_ready), "it waits before it is ready");
        whole.kill9()?;
        look()?;
        steps
    };
    for step in 0..all {
        let mut daemon = Starting::launch(&stage.world, args)?;
        // Threads of its own may take some of them in another order.
        daemon.take(step)?;
        daemon.kill9()?;
        look().with_context(|| format!("killed before step {step} of {all}"))?;
    }
    Ok(())
}

/// Somebody who never stops asking, whatever the answer.
fn ask_all_the_time(container: &Container) -> Result<Process> {
    let mut asker = container.command("sh")?;
    asker.args(["-c", "while :; do \"$0\" \"$@\"; done"]).arg(program("dns-proxy-probe")?);
    asker.args(["--timeout", "0.05", "udp-connected", SERVERS[0], NAME]);
    asker.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Process::spawn(asker)
}

/// Whether the system call of a new query says EPERM.
fn refuses(container: &Container, shape: &[&str]) -> Result<bool> {
    let done = probe(container)?.args(["--timeout", "0.5"]).args(shape).output()?;
    Ok(String::from_utf8(done.stdout)?.contains("error=PermissionDenied"))
}

/// Whether every kind of query is refused.
fn refuses_all(container: &Container) -> Result<bool> {
    for server in SERVERS.into_iter().chain([MAPPED]) {
        for shape in [
            ["udp-connected", server, NAME],
            ["udp-unconnected", NAME, server],
            ["tcp", server, NAME],
        ] {
            if !refuses(container, &shape)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

#[test]
fn killed_it_refuses_until_it_is_back_and_tokens_stay_valid() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = start(&stage, &container)?;
    is_encrypted(&container)?;
    let mut early = probe(&container)?;
    early.args(["--timeout", "2", "early-udp", SERVERS[0], NAME]);
    early.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut early = early.spawn()?;
    let mut line = String::new();
    BufReader::new(early.stdout.as_mut().context("piped")?).read_line(&mut line)?;
    ensure!(line == "connected\n", "{line}");
    let witness = stage.witness(&container)?;

    daemon.kill9()?;
    let refused = eventually(AT_ONCE, || refuses_all(&container).is_ok_and(|all| all));
    ensure!(refused, "not refused");

    let daemon = start(&stage, &container)?;
    let log = daemon.log().text();
    let took = log.lines().find(|line| line.contains("taking over")).context("no word of it")?;
    ensure!(!took.contains("refused=0"), "{took}");
    is_encrypted(&container)?;
    early.stdin.as_mut().context("piped")?.write_all(b"now\n")?;
    let done = early.wait_with_output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    witness.saw_only_tls()?;

    ensure!(daemon.stop()?.success());
    ensure!(pins(&stage)?.is_empty(), "left behind: {:?}", pins(&stage)?);
    let answer = dig(&container, &[NAME, "@8.8.8.8"])?;
    ensure!(answer == [Zone::Plaintext.a().to_string()], "{answer:?}");
    Ok(())
}

#[test]
fn killed_at_any_step_of_its_start_it_leaves_dns_refused_and_the_next_start_mends_all() -> Result<()>
{
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    start(&stage, &container)?.kill9()?;
    let witness = stage.witness(&container)?;
    let _asker = ask_all_the_time(&container)?;
    kill_while_starting(&stage, &args(&stage, &[container.cgroup()])?, || {
        let refused = || refuses(&container, &["udp-connected", SERVERS[0], NAME]);
        ensure!(eventually(LIMIT, || refused().is_ok_and(|refused| refused)), "not refused");
        Ok(())
    })?;

    let daemon = start(&stage, &container)?;
    is_encrypted(&container)?;
    witness.saw_only_tls()?;
    let pinned = pins(&stage)?;
    let links = pinned.iter().filter(|path| path.ends_with("/connect4")).count();
    ensure!(links == 1, "{links} attachments: {pinned:?}");
    ensure!(daemon.stop()?.success());
    ensure!(pins(&stage)?.is_empty(), "left behind: {:?}", pins(&stage)?);
    Ok(())
}

#[test]
fn killed_at_any_step_of_its_start_one_that_fails_open_leaves_dns_as_it_was() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    kill_while_starting(&stage, &stage.run_args(&[container.cgroup()])?, || {
        let plain = || dig(&container, &[NAME, "@8.8.8.8"]);
        let answered = eventually(LIMIT, || {
            plain().is_ok_and(|answer| answer == [Zone::Plaintext.a().to_string()])
        });
        ensure!(answered, "{:?}", plain());
        Ok(())
    })?;

    let _daemon = stage.daemon(&[&container])?;
    is_encrypted(&container)?;
    for family in ["-4", "-6"] {
        let routes = container.netns().ip(&[family, "route", "show", "table", "local"])?;
        let tokens = ["127.64.0.0/10 dev lo ", "fd90:2c8e:591c:53::/64 dev lo "];
        let ours = tokens.iter().map(|token| routes.matches(token).count()).sum::<usize>();
        ensure!(ours == 1, "{routes}");
    }
    Ok(())
}

#[test]
fn a_restart_that_fails_open_clears_the_pins_away() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    start(&stage, &container)?.kill9()?;
    ensure!(!pins(&stage)?.is_empty(), "nothing is pinned");

    let daemon = stage.daemon(&[&container])?;
    ensure!(pins(&stage)?.is_empty(), "left behind: {:?}", pins(&stage)?);
    is_encrypted(&container)?;
    daemon.kill9()?;
    let answer = dig(&container, &[NAME, "@8.8.8.8"])?;
    ensure!(answer == [Zone::Plaintext.a().to_string()], "{answer:?}");
    Ok(())
}

#[test]
fn a_scope_that_is_removed_and_made_again_is_refused_like_the_first() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("service")?;
    let daemon = start(&stage, &container)?;
    let netns = container.netns().clone();
    container.destroy();
    daemon.wait_until_released(&netns)?;
    let again = stage.world.container("service")?;
    daemon.wait_until_serving(again.netns())?;
    let attachments = || -> Result<usize> {
        Ok(pins(&stage)?.iter().filter(|path| path.ends_with("/connect4")).count())
    };
    let encrypted = eventually(LIMIT, || is_encrypted(&again).is_ok());
    ensure!(encrypted, "{}", daemon.log().text());
    ensure!(attachments()? == 1, "a pinned link of a cgroup that is gone: {:?}", pins(&stage)?);

    let witness = stage.witness(&again)?;
    daemon.kill9()?;
    ensure!(eventually(LIMIT, || refuses_all(&again).is_ok_and(|all| all)), "not refused");
    let _daemon = start(&stage, &again)?;
    is_encrypted(&again)?;
    witness.saw_only_tls()
}

/// As a service is that the service manager starts again.
#[test]
fn a_cgroup_that_is_made_again_while_it_is_dead_is_refused_like_the_first() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("service")?;
    start(&stage, &container)?.kill9()?;
    container.destroy();
    let again = stage.world.container("service")?;
    let witness = stage.witness(&again)?;
    ensure!(refuses_all(&again)?, "not refused");
    let _daemon = start(&stage, &again)?;
    is_encrypted(&again)?;
    witness.saw_only_tls()
}

/// Nobody sees the cgroup of a container that starts when the daemon is dead, and what no socket hook
/// sees is for the guard alone.
#[test]
fn what_starts_when_it_is_dead_is_refused_also_what_only_the_guard_sees() -> Result<()> {
    let stage = Stage::new()?;
    let mut args = args(&stage, &[])?;
    args.push(format!("--cgroup={}/app-*", stage.world.cgroup().path()?));
    Daemon::start(&stage.world, &args)?.kill9()?;

    let app = stage.world.container("app-1")?;
    let witness = stage.witness(&app)?;
    ensure!(refuses_all(&app)?, "not refused");
    let (v4, v6) = (app.addresses().v4.to_string(), app.addresses().v6.to_string());
    for (from, server) in [v4, v6].iter().zip(SERVERS) {
        let raw = ["raw", from, "udp", NAME, server];
        ensure!(refuses(&app, &raw)?, "raw packets to {server} leave");
        let lite = ["udplite-connected", NAME, server];
        ensure!(refuses(&app, &lite)?, "UDP-Lite to {server} leaves");
    }
    let (inside, uplink) = witness.packets()?;
    ensure!(port53(&inside).is_empty() && port53(&uplink).is_empty(), "in plaintext: {inside:?}");
    Ok(())
}

#[test]
fn damaged_pins_are_replaced_and_nothing_leaks_meanwhile() -> Result<()> {
    // What somebody removes below the daemon's directory, and what it says when it starts again.
    for (damage, said) in [
        ("rm */maps/ORIGINS", "cannot take over the tokens"),
        ("mv */maps/ORIGINS */maps/TOKENS", "cannot take over the tokens"),
        ("rm */at-*/recvmsg4", "taking over"),
        ("rm */maps/*", "cannot take over the tokens"),
    ] {
        let stage = Stage::new()?;
        let container = stage.world.container("app")?;
        start(&stage, &container)?.kill9()?;
        let witness = stage.witness(&container)?;
        let script = format!("cd {BPFFS}/dns-proxy && {damage}");
        output(stage.world.command("sh").args(["-c", &script]))?;
        let daemon = start(&stage, &container)?;
        ensure!(daemon.log().text().contains(said), "{damage}: {}", daemon.log().text());
        is_encrypted(&container).context(damage)?;
        witness.saw_only_tls().context(damage)?;
    }
    Ok(())
}

#[test]
fn pins_that_do_not_say_whose_they_are_keep_the_daemon_from_starting() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    start(&stage, &container)?.kill9()?;
    let script = format!("rm {BPFFS}/dns-proxy/*/select-0");
    output(stage.world.command("sh").args(["-c", &script]))?;

    let args = args(&stage, &[container.cgroup()])?;
    let mut daemon = Daemon::launch(stage.world.command(Daemon::program()?), &args)?;
    ensure!(daemon.wait()?.code() == Some(1));
    daemon.wait_for_log(&format!("rm -r {BPFFS}/dns-proxy/v1-0"), LIMIT)?;
    ensure!(eventually(LIMIT, || refuses_all(&container).is_ok_and(|all| all)), "not refused");

    let script = format!("rm -r {BPFFS}/dns-proxy/v1-0");
    output(stage.world.command("sh").args(["-c", &script]))?;
    let answer = dig(&container, &[NAME, "@8.8.8.8"])?;
    ensure!(answer == [Zone::Plaintext.a().to_string()], "{answer:?}");
    Ok(())
}

#[test]
fn without_a_bpf_file_system_it_says_what_is_missing() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let mut command = stage.world.command("unshare");
    let script = format!("while umount {BPFFS} 2>/dev/null; do :; done; exec \"$0\" \"$@\"");
    command.args(["--mount", "sh", "-c", &script]).arg(Daemon::program()?);
    let mut daemon = Daemon::launch(command, &args(&stage, &[container.cgroup()])?)?;
    ensure!(daemon.wait()?.code() == Some(1));
    daemon.wait_for_log(&format!("mount -t bpf bpf {BPFFS}"), LIMIT)
}
