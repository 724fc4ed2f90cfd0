//! `dns-proxy audit`: what is evidence, and what it finds.

use std::{
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Container, Daemon, Stage, clients::dig, process::output};
use serde_json::Value;

/// An audit that runs.
struct Audit(Child);

impl Audit {
    fn start(daemon: &Daemon, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(Daemon::program()?);
        command.args(["audit", "--for", "3s"]).args(args);
        command.env("DNS_PROXY_CONTROL", daemon.control());
        let audit = Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
        // It listens for a while before it begins.
        thread::sleep(Duration::from_millis(3_500));
        Ok(audit)
    }

    fn end(self) -> Result<Output> {
        Ok(self.0.wait_with_output()?)
    }
}

fn json(output: &Output) -> Result<Value> {
    serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
}

/// Sends a query by a packet socket, past every hook of a cgroup.
fn send_frame(container: &Container) -> Result<()> {
    const SCRIPT: &str = r#"
import socket, struct
def words(b): return sum(struct.unpack("!%dH" % (len(b) // 2), b))
query = b"\0\7\1\0\0\1\0\0\0\0\0\0\6leaked\7example\4test\0\0\1\0\1"
udp = struct.pack("!4H", 5000, 53, 8 + len(query), 0) + query
ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
                 socket.inet_aton("10.88.1.2"), socket.inet_aton("8.8.8.8"))
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0x800))
s.send(b"\xff" * 6 + b"\2\0\0\0\0\1" + b"\x08\0" + ip + udp)
"#;
    container.run("/usr/bin/python3", &["-c", SCRIPT]).map(drop)
}

#[test]
fn an_audit_accounts_for_every_query_and_finds_nothing_where_nothing_is() -> Result<()> {
    let stage = Stage::new()?;
    let (one, two) = (stage.world.container("one")?, stage.world.container("two")?);
    let args = ["--route=lab.test=original", "--cache-size=8MiB"];
    let daemon = stage.daemon_with(&[&one, &two], &args)?;
    dig(&one, &["before.lab.test", "@8.8.8.8"])?;
    let audit = Audit::start(&daemon, &["--json"])?;
    for name in ["a.example.test", "a.example.test", "b.example.test", "x.lab.test"] {
        dig(&one, &[name, "@8.8.8.8"])?;
    }
    dig(&one, &["y.lab.test", "@8.8.8.8", "+tcp"])?;
    dig(&two, &["c.example.test", "@8.8.8.8"])?;
    let done = audit.end()?;
    let audit = json(&done)?;
    ensure!(done.status.code() == Some(0), "{audit:#}");
    ensure!(audit["clean"] == true, "{audit:#}");
    for (path, value) in [
        ("/counters/intercepted", 6),
        ("/counters/encrypted", 3),
        ("/counters/cached", 1),
        ("/counters/plaintext_by_route", 2),
        ("/counters/plaintext_by_leak", 0),
        ("/wire/namespaces", 2),
        ("/wire/leaks", 0),
        ("/askers/0/sums/queries", 5),
        ("/askers/0/sums/encrypted", 2),
        ("/askers/0/sums/plaintext", 2),
        ("/askers/1/sums/queries", 1),
    ] {
        ensure!(audit.pointer(path) == Some(&value.into()), "{path} is not {value}: {audit:#}");
    }
    ensure!(audit["wire"]["by_route"].as_u64() >= Some(2), "{audit:#}");
    let path = format!("/{}", one.cgroup().path()?);
    ensure!(audit.pointer("/askers/0/who/cgroup") == Some(&path.into()), "{audit:#}");
    Ok(())
}

#[test]
fn an_audit_sees_what_passes_every_hook_by() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let audit = Audit::start(&daemon, &[])?;
    send_frame(&container)?;
    let done = audit.end()?;
    let page = String::from_utf8(done.stdout)?;
    ensure!(done.status.code() == Some(1), "{page}");
    for wanted in ["NOT CLEAN", "FAIL  no packet on the wire", "-> 8.8.8.8:53 leaked.example.test"]
    {
        ensure!(page.contains(wanted), "no {wanted:?} in:\n{page}");
    }
    Ok(())
}

#[test]
fn an_audit_counts_what_the_guard_lets_pass() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    // Connected before the daemon starts, and used afterwards.
    let mut command = container.command("/usr/bin/python3")?;
    const SCRIPT: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("8.8.8.8", 53))
print("connected", flush=True)
sys.stdin.readline()
s.send(b"\0\7\1\0\0\1\0\0\0\0\0\0\5stale\7example\4test\0\0\1\0\1")
"#;
    command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut stale = command.spawn()?;
    let mut connected = [0; 9];
    std::io::Read::read_exact(stale.stdout.as_mut().context("piped")?, &mut connected)?;
    let daemon = stage.daemon_with(&[&container], &["--guard=count"])?;
    let audit = Audit::start(&daemon, &["--json"])?;
    drop(stale.stdin.take());
    ensure!(stale.wait()?.success());
    let done = audit.end()?;
    let audit = json(&done)?;
    ensure!(done.status.code() == Some(1), "{audit:#}");
    ensure!(audit["counters"]["plaintext_by_leak"] == 1, "{audit:#}");
    ensure!(audit["wire"]["leaks"] == 1, "{audit:#}");
    Ok(())
}

#[test]
fn without_a_guard_there_is_no_evidence() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon_with(&[&container], &["--guard=off"])?;
    let done = Audit::start(&daemon, &[])?.end()?;
    let page = String::from_utf8(done.stdout)?;
    ensure!(done.status.code() == Some(1) && page.contains("nobody looked"), "{page}");
    Ok(())
}

#[test]
fn an_audit_ends_with_its_daemon_and_says_so() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let audit = Audit::start(&daemon, &[])?;
    ensure!(daemon.stop()?.success());
    let done = audit.end()?;
    let said = String::from_utf8(done.stderr)?;
    ensure!(done.status.code() == Some(1) && said.contains("the daemon has ended"), "{said}");
    // There is none to begin with.
    let mut command = Command::new(Daemon::program()?);
    let none = command.args(["audit", "--control", "/nowhere/at.all"]).output()?;
    ensure!(none.status.code() == Some(1), "{none:?}");
    ensure!(output(Command::new(Daemon::program()?).args(["audit", "--help"]))?.contains("--for"));
    Ok(())
}
