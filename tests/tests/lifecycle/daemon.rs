//! However the daemon ends, DNS goes on.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Daemon, Stage, Zone,
    clients::{dig, probe},
    eventually,
    process::output,
};
use nix::sys::signal::Signal;

const ASK: [&str; 2] = ["example.test", "@8.8.8.8"];

#[test]
fn killed_with_sigkill_dns_is_as_before_within_100_ms() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    ensure!(dig(&container, &ASK)? == [Zone::Encrypted.a().to_string()]);

    daemon.kill9()?;
    let killed = Instant::now();
    let mut last = None;
    let restored = eventually(Duration::from_millis(100), || {
        last = Some(
            probe(&container)
                .and_then(|mut probe| output(probe.args(["udp-connected", ASK[0], "8.8.8.8"]))),
        );
        dig(&container, &ASK).is_ok_and(|answer| answer == [Zone::Plaintext.a().to_string()])
    });
    ensure!(restored, "after {:?}: {last:?}", killed.elapsed());
    Ok(())
}

#[test]
fn stopped_with_sigterm_it_exits_with_0_and_leaves_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let routes = || container.netns().ip(&["-6", "route", "show", "table", "local"]);
    ensure!(dig(&container, &ASK)? == [Zone::Encrypted.a().to_string()]);
    ensure!(routes()?.contains("fd90:2c8e:591c:53::/64"), "{}", routes()?);

    let log = daemon.log().clone();
    ensure!(daemon.stop()?.code() == Some(0));

    ensure!(log.text().contains("stopped queries=1 encrypted=1 failed=0"), "{}", log.text());
    ensure!(!routes()?.contains("fd90:"), "the route is left: {}", routes()?);
    ensure!(dig(&container, &ASK)? == [Zone::Plaintext.a().to_string()]);
    let sockets = container.netns().command("ss").args(["-Hlnutp"]).output()?;
    ensure!(sockets.stdout.is_empty(), "{}", String::from_utf8_lossy(&sockets.stdout));
    Ok(())
}

#[test]
fn stopping_loses_no_answer_on_its_way() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let mut slow = probe(&container)?;
    slow.args(["udp-unconnected", "slow-500.example.test", "8.8.8.8"]);
    let asking = std::thread::spawn(move || output(&mut slow));
    let asked = || !stage.upstream.journal().queries_for("slow-500.example.test").is_empty();
    ensure!(eventually(Duration::from_secs(5), asked), "the query never went upstream");

    ensure!(daemon.stop()?.success());

    let printed = asking.join().expect("no panic")?;
    ensure!(printed.contains("server=8.8.8.8:53 from=8.8.8.8:53"), "{printed}");
    Ok(())
}

#[test]
fn sighup_without_a_file_does_no_harm() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    daemon.signal(Signal::SIGHUP)?;
    daemon.wait_for_log("SIGHUP", Duration::from_secs(5))?;
    ensure!(dig(&container, &ASK)? == [Zone::Encrypted.a().to_string()]);
    ensure!(daemon.stop()?.success());
    Ok(())
}

#[test]
fn a_restarted_daemon_takes_over_what_a_killed_one_left() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    stage.daemon(&[&container])?.kill9()?;
    let _daemon = stage.daemon(&[&container])?;
    for server in ["@8.8.8.8", "@2001:4860:4860::8888"] {
        let answer = dig(&container, &[ASK[0], server])?;
        ensure!(answer == [Zone::Encrypted.a().to_string()], "{server}: {answer:?}");
    }
    let routes = container.netns().ip(&["-6", "route", "show", "table", "local"])?;
    for device in ["lo", "eth0"] {
        let route = format!("fd90:2c8e:591c:53::/64 dev {device} ");
        ensure!(routes.matches(&route).count() == 1, "{routes}");
    }
    Ok(())
}

#[test]
fn kernel_programs_log_on_demand_only() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    for (level, logs) in [("info", false), ("trace", true)] {
        let mut args = stage.run_args(&[container.cgroup()])?;
        args.push(format!("--log={level}"));
        let daemon = Daemon::start(&stage.world, &args)?;
        daemon.wait_until_serving(container.netns())?;
        ensure!(dig(&container, &ASK)? == [Zone::Encrypted.a().to_string()]);
        let log = daemon.log().clone();
        if logs {
            daemon.wait_for_log("port 53, pid", Duration::from_secs(5))?;
        }
        ensure!(daemon.stop()?.success());
        ensure!(log.text().contains("port 53, pid") == logs, "{level}: {}", log.text());
    }
    Ok(())
}
