//! `dns-proxy watch`: who asked what, live.

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, UdpSocket},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Daemon, Netns, Stage, clients::dig, wire};
use hickory_proto::rr::RecordType;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);

/// A watcher, ended when dropped.
pub(crate) struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    /// Starts it; it sees what is asked from now on.
    pub(crate) fn start(daemon: &Daemon, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(Daemon::program()?);
        command.arg("watch").args(args).env("DNS_PROXY_CONTROL", daemon.control());
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let out: ChildStdout = child.stdout.take().context("piped")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(std::io::Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        // Nothing tells that it is there but that it sees something.
        thread::sleep(Duration::from_millis(300));
        Ok(Self { child, lines })
    }

    pub(crate) fn line(&self) -> Result<String> {
        self.lines.recv_timeout(LIMIT).context("no line")
    }

    pub(crate) fn seen(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// Nothing more comes.
    pub(crate) fn is_silent(&self) -> bool {
        self.lines.recv_timeout(Duration::from_millis(300)).is_err()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _: std::io::Result<()> = self.child.kill();
        let _: std::io::Result<_> = self.child.wait();
    }
}

#[test]
fn watch_shows_who_asked_whom_for_what_and_what_became_of_it() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let args = ["--cache-size=8MiB", "--route=lab.test=original"];
    let daemon = stage.daemon_with(&[&container], &args)?;
    let watch = Watch::start(&daemon, &["--json"])?;
    for (question, transport) in [
        (&["a.example.test", "@8.8.8.8"][..], "udp"),
        (&["A.example.test", "@8.8.8.8", "+tcp"], "tcp"),
        (&["x.lab.test", "@8.8.8.8", "AAAA"], "udp"),
        (&["localhost", "@2001:4860:4860::8888"], "udp"),
    ] {
        dig(&container, question)?;
        let seen = watch.seen()?;
        ensure!(seen["transport"] == transport, "{seen:#}");
        ensure!(seen["asker"]["cgroup"] == format!("/{}", container.cgroup().path()?), "{seen:#}");
        ensure!(seen["rcode"] == "NOERROR" && seen["latency_ms"].as_f64() > Some(0.0), "{seen:#}");
        let expected: &[(&str, &str)] = match question[0] {
            "a.example.test" => &[
                ("name", "a.example.test"),
                ("type", "A"),
                ("nameserver", "8.8.8.8"),
                ("route", "encrypted"),
                ("source", "upstream"),
                ("upstream", "1.1.1.1:853"),
            ],
            "A.example.test" => &[("route", "encrypted"), ("source", "cache")],
            "x.lab.test" => &[
                ("type", "AAAA"),
                ("route", "plaintext"),
                ("source", "nameserver"),
                ("upstream", "8.8.8.8:53"),
            ],
            _ => &[("route", "local"), ("nameserver", "2001:4860:4860::8888")],
        };
        for (key, value) in expected {
            ensure!(seen[key] == *value, "{key} is not {value}: {seen:#}");
        }
        ensure!(seen["cached"] == (question[0] == "A.example.test"), "{seen:#}");
    }
    ensure!(watch.is_silent());
    Ok(())
}

#[test]
fn filters_let_through_what_they_say() -> Result<()> {
    let stage = Stage::new()?;
    let (one, two) = (stage.world.container("one")?, stage.world.container("two")?);
    let daemon = stage.daemon_with(&[&one, &two], &["--route=lab.test=original"])?;
    let path = format!("/{}", one.cgroup().path()?);
    let cases: [(&[&str], &str); 7] = [
        (&["--container", &path], "a.example.test"),
        (&["--container", "two"], "b.example.test"),
        (&["--name", "Lab.test."], "x.lab.test"),
        (&["--plaintext"], "x.lab.test"),
        (&["--type", "AAAA"], "a6.example.test"),
        (&["--rcode", "nxdomain"], "x.invalid"),
        (&["--slow", "9s"], ""),
    ];
    let watches = cases
        .iter()
        .map(|(args, _)| Watch::start(&daemon, &[*args, &["--json"]].concat()))
        .collect::<Result<Vec<_>>>()?;
    dig(&one, &["a.example.test", "@8.8.8.8"])?;
    dig(&two, &["b.example.test", "@8.8.8.8"])?;
    for question in [["x.lab.test", "A"], ["a6.example.test", "AAAA"], ["x.invalid", "A"]] {
        // From within, but of a cgroup that nobody asks for.
        let inner = two.cgroup().child(question[0])?;
        let mut command = two.command_in(&inner, "dig")?;
        dns_proxy_tests::process::output(command.args(question).arg("@8.8.8.8"))?;
    }
    for ((args, name), watch) in cases.iter().zip(&watches) {
        if !name.is_empty() {
            let seen = watch.seen()?;
            ensure!(seen["name"] == *name, "{args:?} shows {seen:#}");
        }
        ensure!(watch.is_silent() || args[0] == "--container", "{args:?} shows more");
    }
    Ok(())
}

#[test]
fn a_hostile_name_does_nothing_to_a_terminal() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let watch = Watch::start(&daemon, &[])?;
    dig(&container, &["@8.8.8.8", r"\027]0\;owned\007\027[2J\.x\195\164.example.test"])?;
    let line = watch.line()?;
    ensure!(line.contains(r"\027]0\;owned\007\027[2J\.x\195\164.example.test A"), "{line}");
    ensure!(line.chars().all(|c| !c.is_control()), "{line:?}");
    Ok(())
}

/// Asks the same so many times, in bursts; how many answers came, and how long that took.
fn flood(netns: &Netns, server: &str, name: &str, count: usize) -> Result<(usize, Duration)> {
    const BURST: usize = 100;
    let server: SocketAddr = server.parse()?;
    let socket = netns.run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(LIMIT))?;
        std::io::Result::Ok(socket)
    })??;
    let query = wire::query(7, name, RecordType::A)?;
    let (mut answers, mut buffer, start) = (0, [0; 1500], Instant::now());
    for _ in 0..count / BURST {
        for _ in 0..BURST {
            socket.send(&query)?;
        }
        for _ in 0..BURST {
            socket.recv(&mut buffer)?;
            answers += 1;
        }
    }
    Ok((answers, start.elapsed()))
}

#[test]
fn a_watcher_that_is_too_slow_misses_lines_and_no_client_an_answer() -> Result<()> {
    const QUERIES: usize = 50_000;
    let stage = Stage::new()?;
    let listen = "127.0.0.1:5300";
    let mut args = vec!["run".to_owned(), format!("--listen={listen}")];
    args.extend(stage.upstream_args());
    args.extend(["--cache-size=8MiB", "--workers=1"].map(str::to_owned));
    let daemon = Daemon::start(&stage.world, &args)?;
    let mut command = Command::new(Daemon::program()?);
    command.args(["watch", "--json"]).env("DNS_PROXY_CONTROL", daemon.control());
    // Nobody reads its output yet: it blocks when the pipe is full.
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    thread::sleep(Duration::from_millis(300));
    let (answers, took) = flood(stage.world.host(), listen, "a.example.test", QUERIES)?;
    ensure!(answers == QUERIES, "{answers} of {QUERIES} answered");
    println!("{:.0} queries per second", QUERIES as f64 / took.as_secs_f64());

    let out = BufReader::new(child.stdout.take().context("piped")?);
    let (mut shown, mut dropped) = (0, 0);
    for line in out.lines() {
        let line: Value = serde_json::from_str(&line?)?;
        match line["dropped"].as_u64() {
            Some(count) => dropped += count,
            None => shown += 1,
        }
        if shown + dropped >= QUERIES as u64 {
            break;
        }
    }
    child.kill()?;
    child.wait()?;
    println!("{shown} shown, {dropped} dropped");
    ensure!(dropped > 0, "it was not too slow");
    ensure!(shown + dropped == QUERIES as u64, "{shown} shown and {dropped} dropped");
    ensure!(daemon.status()?["counters"]["queries"] == QUERIES);
    Ok(())
}
