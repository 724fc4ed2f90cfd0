//! `dns-proxy exec -- CMD`: as if it were not there, but for the DNS.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use dns_proxy_tests::{
    Capture, Cgroup, Daemon, DotServer, Netns, Pki, Stage, Zone, eventually, port53,
    require_root_and_bpf, stage::UPSTREAM_NAME,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LIMIT: Duration = Duration::from_secs(10);

/// `exec` in a cgroup of the test's own, so that what it leaves can be seen.
struct Bench {
    stage: Stage,
    cgroup: Cgroup,
}

impl Bench {
    fn new() -> Result<Self> {
        Ok(Self { stage: Stage::new()?, cgroup: Cgroup::new()? })
    }

    fn command(&self, command: &[&str]) -> Result<Command> {
        let mut exec = self.stage.world.command("sh");
        // A test run in the background has SIGINT ignored, which commands would inherit.
        let script = "echo 0 > \"$0\"; exec env --default-signal=INT,QUIT \"$@\"";
        exec.args(["-c", script])
            .arg(self.cgroup.dir().join("cgroup.procs"))
            .arg(Daemon::program()?)
            .arg("exec")
            .args(self.stage.upstream_args())
            .arg("--")
            .args(command);
        Ok(exec)
    }

    fn run(&self, command: &[&str]) -> Result<Output> {
        Ok(self.command(command)?.stdin(Stdio::null()).output()?)
    }

    /// Checks that no cgroup is left below ours.
    fn left_nothing(&self) -> Result<()> {
        let left: Vec<PathBuf> = fs::read_dir(self.cgroup.dir())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir())
            .collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_command_resolves_over_tls_and_nothing_is_seen_on_port_53() -> Result<()> {
    // Word for word what the README says, with the upstream on loopback.
    require_root_and_bpf();
    let (netns, wire, pki) = (Netns::new()?, Netns::new()?, Pki::new()?);
    netns.veth("eth0", &wire, "far")?;
    wire.ip(&["link", "set", "far", "up"])?;
    netns.ip_batch("link set eth0 up\nroute add default dev eth0\n")?;
    let upstream: SocketAddr = "127.0.0.1:8853".parse()?;
    let server = DotServer::start(&netns, &[upstream], &pki.server(&[UPSTREAM_NAME])?)?;
    let cameras = [Capture::on(&netns, "lo")?, Capture::on(&netns, "eth0")?];

    let mut exec = netns.command(Daemon::program()?);
    exec.args(["exec", "--upstream", "127.0.0.1:8853#dns.test", "--ca"]).arg(pki.ca_file());
    exec.args(["--", "dig", "+short", "example.test", "@8.8.8.8"]);
    let output = exec.output()?;

    ensure!(output.status.success(), "{}", text(&output.stderr));
    ensure!(text(&output.stdout).trim() == Zone::Encrypted.a().to_string());
    ensure!(output.stderr.is_empty(), "{}", text(&output.stderr));
    for camera in cameras {
        ensure!(port53(&camera.stop()?).is_empty(), "a packet of port 53 was seen");
    }
    ensure!(server.journal().queries.len() == 1);
    Ok(())
}

#[test]
fn exit_codes_and_output_pass_through() -> Result<()> {
    let bench = Bench::new()?;
    for code in [0, 1, 7, 255] {
        let output = bench.run(&["sh", "-c", &format!("echo out; echo err >&2; exit {code}")])?;
        ensure!(output.status.code() == Some(code), "{code}: {:?}", output.status);
        ensure!(output.stdout == b"out\n" && output.stderr == b"err\n", "{output:?}");
    }
    bench.left_nothing()
}

#[test]
fn a_command_that_a_signal_ends_gives_128_and_the_signal() -> Result<()> {
    let bench = Bench::new()?;
    let output = bench.run(&["sh", "-c", "kill -KILL $$"])?;
    ensure!(output.status.code() == Some(128 + 9), "{:?}", output.status);
    bench.left_nothing()
}

#[test]
fn a_command_that_cannot_be_run_gives_what_a_shell_gives() -> Result<()> {
    let bench = Bench::new()?;
    for (command, code) in [("/no/such/command", 127), ("/etc/passwd", 126)] {
        let output = bench.run(&[command])?;
        ensure!(output.status.code() == Some(code), "{command}: {:?}", output.status);
        ensure!(text(&output.stderr).contains(command), "{}", text(&output.stderr));
    }
    bench.left_nothing()
}

#[test]
fn signals_reach_the_command() -> Result<()> {
    let bench = Bench::new()?;
    for (signal, code) in [(Signal::SIGTERM, 40), (Signal::SIGINT, 41), (Signal::SIGUSR1, 42)] {
        let script = "trap 'exit 40' TERM; trap 'exit 41' INT; trap 'exit 42' USR1; \
                      echo ready; while :; do sleep 0.05; done";
        let mut child = bench
            .command(&["sh", "-c", script])?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().context("piped")?, &mut ready)?;
        kill(Pid::from_raw(child.id().try_into()?), signal)?;
        let status = child.wait()?;
        ensure!(status.code() == Some(code), "{signal}: {status:?}");
    }
    bench.left_nothing()
}

#[test]
fn what_the_command_leaves_running_is_ended() -> Result<()> {
    let bench = Bench::new()?;
    let output = bench.run(&["sh", "-c", "trap '' TERM; sleep 300 >&- 2>&- & echo $!; exit 3"])?;
    ensure!(output.status.code() == Some(3), "{:?}", output.status);
    let pid = text(&output.stdout).trim().to_owned();
    let gone = || !PathBuf::from(format!("/proc/{pid}")).exists();
    ensure!(eventually(LIMIT, gone), "process {pid} is still there");
    bench.left_nothing()
}

#[test]
fn children_and_grandchildren_are_encrypted_too() -> Result<()> {
    let bench = Bench::new()?;
    let camera = Capture::on(bench.stage.world.host(), dns_proxy_tests::world::UPLINK)?;
    let output =
        bench.run(&["sh", "-c", "sh -c 'dig +short example.test @2001:4860:4860::8888; true'"])?;
    ensure!(text(&output.stdout).trim() == Zone::Encrypted.a().to_string(), "{output:?}");
    ensure!(port53(&camera.stop()?).is_empty());
    bench.left_nothing()
}

#[test]
fn cgroups_that_the_command_makes_go_with_it() -> Result<()> {
    let bench = Bench::new()?;
    let script = "own=$(sed -n 's/^0:://p' /proc/self/cgroup); \
                  mkdir -p \"$0$own/a/b\"; sh -c \"echo 0 > $0$own/a/b/cgroup.procs; sleep 300\" &";
    let root = bench.cgroup.dir().ancestors().nth(1).context("below the root")?.to_owned();
    let output = bench.run(&["sh", "-c", script, &root.display().to_string()])?;
    ensure!(output.status.success(), "{output:?}");
    bench.left_nothing()
}
