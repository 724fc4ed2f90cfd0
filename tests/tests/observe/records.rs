//! What is kept of queries: the query log, and dnstap, which programs of others must understand.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Container, Daemon, Stage, clients::dig, eventually, process::output};
use nix::sys::signal::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn ask(container: &Container, name: &str) -> Result<()> {
    dig(container, &[name, "@8.8.8.8"]).map(drop)
}

#[test]
fn the_query_log_has_every_query_and_is_reopened_and_begun_anew() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let dir = tempfile::tempdir()?;
    let (path, moved) = (dir.path().join("queries"), dir.path().join("moved"));
    let log = format!("--query-log={}", path.display());
    let args = [&log[..], "--query-log-max-size=64KiB", "--log=trace", "--control=off"];
    let daemon = stage.daemon_with(&[&container], &args)?;
    ask(&container, "one.example.test")?;
    ensure!(eventually(LIMIT, || lines(&path).len() == 1), "{:?}", lines(&path));
    let line: Value = serde_json::from_str(&lines(&path)[0])?;
    ensure!(line["name"] == "one.example.test" && line["upstream"] == "1.1.1.1:853", "{line:#}");
    ensure!(fs::metadata(&path)?.permissions().mode() & 0o077 == 0, "others may read it");

    fs::rename(&path, &moved)?;
    daemon.signal(Signal::SIGHUP)?;
    ensure!(eventually(LIMIT, || path.exists()), "SIGHUP opens it anew");
    ask(&container, "two.example.test")?;
    ensure!(eventually(LIMIT, || lines(&path).len() == 1), "{:?}", lines(&path));
    ensure!(lines(&moved).len() == 1);

    // Some 450 octets each.
    for n in 0..200 {
        ask(&container, &format!("n{n}.example.test"))?;
    }
    let (text, daemon_log) = (|| daemon.log().text(), daemon.log().clone());
    ensure!(!text().contains("example.test"), "a name is in the log:\n{}", text());
    // What was shown before the end is kept.
    ask(&container, "last.example.test")?;
    ensure!(daemon.stop()?.success());
    let old = dir.path().join("queries.1");
    ensure!(old.exists(), "it was begun anew:\n{}", daemon_log.text());
    let all = [lines(&old), lines(&path)].concat();
    ensure!(all.len() == 202, "{} lines", all.len());
    ensure!(all.last().is_some_and(|line| line.contains("last.example.test")));
    ensure!(fs::metadata(&old)?.len() <= 64 * 1024 && fs::metadata(&path)?.len() <= 64 * 1024);
    Ok(())
}

/// What ISC's own reader says of a file; a line for each message.
fn dnstap_read(path: &Path) -> Result<Vec<String>> {
    let printed = output(Command::new("dnstap-read").arg(path));
    let printed = printed.context("if there is no such program: cargo xtask setup")?;
    Ok(printed.lines().map(str::to_owned).collect())
}

/// What must be in a dnstap file after `queries`.
fn check_dnstap(path: &Path, container: &Container) -> Result<()> {
    let lines = dnstap_read(path)?;
    let client = container.addresses().v4;
    let wanted = [
        (format!("CQ {client}:"), "-> 8.8.8.8:53 UDP", "a.example.test/IN/A"),
        (format!("CR {client}:"), "<- 8.8.8.8:53 UDP", "a.example.test/IN/A"),
        (format!("CQ {client}:"), "-> 8.8.8.8:53 TCP", "b.example.test/IN/AAAA"),
        (format!("CR {client}:"), "<- 8.8.8.8:53 TCP", "b.example.test/IN/AAAA"),
    ];
    ensure!(lines.len() == wanted.len(), "{lines:#?}");
    for ((who, road, question), line) in wanted.iter().zip(&lines) {
        let is_there = line.contains(who.split(' ').next().unwrap_or_default())
            && line.contains(road)
            && line.contains(question);
        ensure!(is_there, "no {who} {road} {question} in {line}");
    }
    Ok(())
}

fn ask_both(container: &Container) -> Result<()> {
    dig(container, &["a.example.test", "@8.8.8.8"])?;
    dig(container, &["b.example.test", "@8.8.8.8", "+tcp", "AAAA"]).map(drop)
}

#[test]
fn a_dnstap_file_is_understood_by_others() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("tap.fstrm");
    let tap = format!("--dnstap=file:{}", path.display());
    let daemon = stage.daemon_with(&[&container], &[&tap])?;
    ask_both(&container)?;
    ensure!(daemon.stop()?.success());
    check_dnstap(&path, &container)?;
    let detail = output(Command::new("dnstap-read").arg("-y").arg(&path))?;
    for wanted in
        ["version: dns-proxy", "type: CLIENT_RESPONSE", "ANSWER SECTION", "query_time: !!timestamp"]
    {
        ensure!(detail.to_lowercase().contains(&wanted.to_lowercase()), "no {wanted} in {detail}");
    }
    Ok(())
}

/// Farsight's own reader of Frame Streams, ended when dropped.
struct Reader(Child);

impl Reader {
    fn start(socket: &Path, file: &Path) -> Result<Self> {
        let mut command = Command::new("fstrm_capture");
        command.args(["-t", "protobuf:dnstap.Dnstap", "-u"]).arg(socket).arg("-w").arg(file);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Self(child.context("if there is no such program: cargo xtask setup")?))
    }

    fn end(mut self) -> Result<()> {
        output(Command::new("kill").args(["-TERM", &self.0.id().to_string()]))?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<_> = self.0.wait();
    }
}

#[test]
fn a_dnstap_reader_may_come_later_and_come_again() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let dir = tempfile::tempdir()?;
    let (socket, file) = (dir.path().join("sock"), dir.path().join("file"));
    let tap = format!("--dnstap=unix:{}", socket.display());
    let daemon = stage.daemon_with(&[&container], &[&tap])?;
    daemon.wait_for_log("no dnstap reader", LIMIT)?;
    // It waits for the reader.
    ask_both(&container)?;
    let reader = Reader::start(&socket, &file)?;
    daemon.wait_for_log("dnstap reader found", LIMIT)?;
    std::thread::sleep(Duration::from_millis(300));
    reader.end()?;
    check_dnstap(&file, &container)?;

    let again = dir.path().join("again");
    if socket.exists() {
        fs::remove_file(&socket)?;
    }
    let reader = Reader::start(&socket, &again)?;
    let found = |lines: &[String]| lines.iter().filter(|l| l.contains("reader found")).count() == 2;
    // That the first one is gone shows only when something is written.
    let looked = eventually(LIMIT, || {
        ask(&container, "x.example.test").is_ok() && found(&daemon.log().lines())
    });
    ensure!(looked, "{}", daemon.log().text());
    ask(&container, "y.example.test")?;
    ensure!(daemon.stop()?.success());
    reader.end()?;
    let lines = dnstap_read(&again)?;
    ensure!(lines.iter().any(|line| line.contains("y.example.test")), "{lines:#?}");
    Ok(())
}

#[test]
fn a_dnstap_reader_that_sleeps_holds_up_nobody() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("sock");
    // Takes connections in the kernel's queue only, and reads nothing.
    let _deaf = std::os::unix::net::UnixListener::bind(&socket)?;
    let tap = format!("--dnstap=unix:{}", socket.display());
    let daemon = stage.daemon_with(&[&container], &[&tap])?;
    for n in 0..20 {
        ask(&container, &format!("n{n}.example.test"))?;
    }
    let start = std::time::Instant::now();
    ensure!(daemon.stop()?.success());
    ensure!(start.elapsed() < Duration::from_secs(6), "it took {:?} to stop", start.elapsed());
    Ok(())
}

#[test]
fn what_cannot_be_written_is_an_error_at_once() -> Result<()> {
    let stage = Stage::new()?;
    for (flag, wanted) in [
        ("--query-log=/nowhere/at/all", "--query-log /nowhere/at/all: "),
        ("--dnstap=file:/nowhere/at/all", "--dnstap file:/nowhere/at/all: "),
    ] {
        let mut args = vec!["run".to_owned(), "--listen=127.0.0.1:5300".to_owned()];
        args.extend(stage.upstream_args());
        args.push(flag.to_owned());
        let mut daemon = Daemon::launch(stage.world.command(Daemon::program()?), &args)?;
        ensure!(daemon.wait()?.code() == Some(1));
        daemon.wait_for_log(wanted, LIMIT)?;
    }
    Ok(())
}
