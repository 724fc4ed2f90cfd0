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
    clients::{dig, probe},
    eventually,
    mounts::BPFFS,
    process::output,
};

const LIMIT: Duration = Duration::from_secs(10);
const NAME: &str = "example.test";
const SERVERS: [&str; 2] = ["8.8.8.8", "2001:4860:4860::8888"];

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

/// Whether the system call of a new query says EPERM.
fn refuses(container: &Container, shape: &[&str]) -> Result<bool> {
    let done = probe(container)?.args(["--timeout", "0.5"]).args(shape).output()?;
    Ok(String::from_utf8(done.stdout)?.contains("error=PermissionDenied"))
}

/// Whether every kind of query is refused.
fn refuses_all(container: &Container) -> Result<bool> {
    for server in SERVERS {
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
    Ok(refuses(container, &["udp6-mapped", SERVERS[0], NAME])?
        && refuses(container, &["udp6-mapped-unconnected", NAME, SERVERS[0]])?)
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
    let refused = eventually(LIMIT, || refuses_all(&container).is_ok_and(|all| all));
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
    ensure!(pins(&stage)? == [String::new(); 0], "left behind: {:?}", pins(&stage)?);
    let answer = dig(&container, &[NAME, "@8.8.8.8"])?;
    ensure!(answer == [Zone::Plaintext.a().to_string()], "{answer:?}");
    Ok(())
}
