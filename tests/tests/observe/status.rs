//! `dns-proxy status`, and the control socket that it speaks through.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream, process::CommandExt as _},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Daemon, Stage, clients::dig, process::output, require_root_and_bpf, stage::UPSTREAM_NAME,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(10);

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The value at a path such as `/counters/encrypted`.
fn at<'a>(status: &'a Value, path: &str) -> Result<&'a Value> {
    status.pointer(path).with_context(|| format!("no {path} in {status:#}"))
}

#[test]
fn status_says_what_is_intercepted_and_what_became_of_it() -> Result<()> {
    let stage = Stage::new()?;
    let (one, two) = (stage.world.container("one")?, stage.world.container("two")?);
    let daemon = stage.daemon_with(
        &[&one, &two],
        &["--workers=2", "--cache-size=8MiB", "--route=lab.test=original"],
    )?;
    for name in ["a.example.test", "a.example.test", "b.example.test"] {
        dig(&one, &[name, "@8.8.8.8"])?;
    }
    dig(&two, &["x.lab.test", "@8.8.8.8"])?;

    let status = daemon.status()?;
    let expected = [
        ("/pid", json!(daemon.pid())),
        ("/fail", json!("open")),
        ("/guard", json!("on")),
        ("/counters/queries", json!(4)),
        ("/counters/intercepted", json!(4)),
        ("/counters/encrypted", json!(2)),
        ("/counters/cached", json!(1)),
        ("/counters/plaintext_by_route", json!(1)),
        ("/counters/plaintext_by_leak", json!(0)),
        ("/counters/failed", json!(0)),
        ("/cache/size", json!(8 << 20)),
        ("/cache/names", json!(3)),
        ("/cache/hits", json!(1)),
        ("/scopes/0/select/0/pattern", json!(one.cgroup().path()?)),
        ("/scopes/0/select/0/matches/0", json!(format!("/{}", one.cgroup().path()?))),
        ("/upstreams/0/address", json!("1.1.1.1:853")),
        ("/upstreams/0/name", json!(UPSTREAM_NAME)),
        ("/upstreams/0/state", json!("up")),
        ("/upstreams/0/authenticated", json!(true)),
        ("/upstreams/0/answers", json!(2)),
        ("/upstreams/0/failures", json!(0)),
        ("/upstreams/0/connections", json!(1)),
        ("/warnings", json!([])),
    ];
    for (path, value) in expected {
        ensure!(at(&status, path)? == &value, "{path} is not {value}: {status:#}");
    }
    let ready = at(&status, "/namespaces")?.as_array().context("a list")?.iter();
    let ready: Vec<_> = ready.filter(|n| n["ready"] == true).map(|n| &n["cgroup"]).collect();
    for container in [&one, &two] {
        let cgroup = json!(format!("/{}", container.cgroup().path()?));
        ensure!(ready.contains(&&cgroup), "{cgroup} is not among {ready:?}");
    }
    ensure!(
        at(&status, "/kernel/sendmsg4")?.as_u64() > Some(0)
            || at(&status, "/kernel/connect4")?.as_u64() > Some(0)
    );
    let expires = at(&status, "/upstreams/0/certificate_expires")?;
    ensure!(expires.as_str().is_some_and(|text| text.ends_with('Z')), "{expires}");

    let page = text(&daemon.ask(&["status"])?);
    for wanted in [
        "4 intercepted, 2 encrypted, 0 plaintext by leak, 1 plaintext by route",
        "3 ready",
        "1.1.1.1:853#dns.test",
        "8 MiB",
        "guard on, fail open",
    ] {
        ensure!(page.contains(wanted), "no {wanted:?} in:\n{page}");
    }
    Ok(())
}

#[test]
fn status_warns_of_an_upstream_that_fails_and_says_what_to_do() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let mut args = stage.run_args(&[container.cgroup()])?;
    args.extend(["--upstream=9.9.9.9:853#other.test", "--guard=off"].map(str::to_owned));
    args.retain(|arg| !arg.contains("1.1.1.1") && arg != "--upstream");
    let daemon = Daemon::start(&stage.world, &args)?;
    daemon.wait_until_serving(container.netns())?;
    let _: Result<_> = dig(&container, &["example.test", "@8.8.8.8", "+tries=1"]);

    let status = daemon.status()?;
    ensure!(at(&status, "/upstreams/0/state")? == "failed", "{status:#}");
    ensure!(at(&status, "/counters/plaintext_by_leak")?.is_null(), "nobody looks: {status:#}");
    let page = text(&daemon.ask(&["status"])?);
    for wanted in ["FAILED", "upstream other.test does not answer: ", "  -> ", "--guard on"] {
        ensure!(page.contains(wanted), "no {wanted:?} in:\n{page}");
    }
    Ok(())
}

#[test]
fn without_a_daemon_or_the_right_status_says_so_and_fails() -> Result<()> {
    require_root_and_bpf();
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let path = dir.path().join("control.sock");
    let run = |uid: Option<u32>| -> Result<Output> {
        // Where anybody may run it.
        let program = dir.path().join("dns-proxy");
        if !program.exists() {
            // By a child: whoever forks meanwhile would keep a file that we write open.
            output(Command::new("cp").args([&Daemon::program()?, &program]))?;
        }
        let mut command = Command::new(program);
        command.env_clear().arg("status").arg("--control").arg(&path);
        if let Some(uid) = uid {
            command.uid(uid);
        }
        Ok(command.output()?)
    };
    let check = |output: Output, wanted: &str| {
        ensure!(output.status.code() == Some(1), "{output:?}");
        ensure!(text(&output).contains(wanted), "no {wanted:?} in {}", text(&output));
        Ok(())
    };
    check(run(None)?, "no dns-proxy daemon listens at")?;
    // What a dead one left.
    drop(std::os::unix::net::UnixListener::bind(&path)?);
    check(run(None)?, "no dns-proxy daemon listens at")?;
    check(run(Some(65_534))?, "use sudo")?;
    fs::remove_file(&path)?;
    fs::write(&path, "")?;
    check(run(None)?, "control.sock")
}

/// A daemon that only forwards, with that control socket.
fn forwarder(stage: &Stage, listen: &str, control: &str) -> Result<Daemon> {
    let mut args = vec!["run".to_owned(), format!("--listen={listen}")];
    args.extend(stage.upstream_args());
    args.push(format!("--control={control}"));
    Daemon::start(&stage.world, &args)
}

#[test]
fn a_second_daemon_does_without_the_socket_and_says_how_to_have_one() -> Result<()> {
    let stage = Stage::new()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("sub/control.sock").display().to_string();
    let first = forwarder(&stage, "127.0.0.1:5301", &path)?;
    let mode = fs::metadata(&path)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");

    let second = forwarder(&stage, "127.0.0.1:5302", &path)?;
    second.wait_for_log("another dns-proxy listens at", LIMIT)?;
    second.wait_for_log("a path of its own with --control", LIMIT)?;
    ensure!(second.stop()?.success());
    ensure!(asked(&path)?["pid"] == first.pid(), "the first one's socket is gone");

    // Killed, it leaves its socket, which is in nobody's way.
    first.kill9()?;
    ensure!(fs::exists(&path)?);
    let third = forwarder(&stage, "127.0.0.1:5303", &path)?;
    ensure!(asked(&path)?["pid"] == third.pid());
    ensure!(third.stop()?.success());
    ensure!(!fs::exists(&path)?, "stopped, it leaves nothing");
    Ok(())
}

fn asked(path: &str) -> Result<Value> {
    let mut command = Command::new(Daemon::program()?);
    Ok(serde_json::from_str(&output(command.args(["status", "--json", "--control", path]))?)?)
}

#[test]
fn nonsense_on_the_control_socket_is_refused_and_harms_nobody() -> Result<()> {
    let stage = Stage::new()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("control.sock").display().to_string();
    let daemon = forwarder(&stage, "127.0.0.1:5301", &path)?;
    // More than there are places for, all silent.
    let silent: Vec<_> =
        (0..40).map(|_| UnixStream::connect(&path)).collect::<std::io::Result<_>>()?;
    for line in
        ["\n", "{\"request\":\"fly\"}\n", "{\"request\":\"status\",\"x\":1}\n", "\0\u{ff}\n"]
    {
        let mut stream = UnixStream::connect(&path)?;
        stream.write_all(line.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("{line:?}"))?;
        ensure!(answer["error"].as_str().is_some_and(|e| e.contains("not a request")), "{answer}");
    }
    let mut endless = UnixStream::connect(&path)?;
    // It may be cut off in the middle.
    let _: std::io::Result<()> = endless.write_all(&vec![b' '; 1 << 20]);
    ensure!(asked(&path)?["pid"] == daemon.pid());
    drop(silent);
    Ok(())
}
