//! A host with thousands of cgroups: what the daemon does follows what changes, not what there is.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Cgroup, Daemon, Stage, Zone, clients::dig};

/// Cgroups in the scope.
const MANY: usize = 5_000;
/// How long the daemon may take to see them all.
const SETTLED: Duration = Duration::from_secs(3);
/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(5);

/// What all threads of a process have had of a processor.
fn cpu_time(pid: u32) -> Result<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    let mut sum = 0;
    for task in tasks {
        let text = fs::read_to_string(task.path().join("schedstat"))?;
        sum += text.split(' ').next().context("empty")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

/// What share of a processor the daemon takes while `meanwhile` goes on.
fn share(daemon: &Daemon, meanwhile: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (begun, before) = (Instant::now(), cpu_time(daemon.pid())?);
    meanwhile()?;
    let used = cpu_time(daemon.pid())? - before;
    Ok(used.as_secs_f64() / begun.elapsed().as_secs_f64())
}

#[test]
fn thousands_of_cgroups_cost_an_idle_daemon_next_to_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let scope = stage.world.cgroup();
    let daemon = Daemon::start(&stage.world, &stage.run_args(&[scope])?)?;
    daemon.wait_until_serving(container.netns())?;
    let crowd = scope.child("crowd")?;
    let cgroups =
        (0..MANY).map(|n| crowd.child(&format!("c{n}"))).collect::<Result<Vec<Cgroup>>>()?;
    thread::sleep(SETTLED);
    let idle = share(&daemon, || {
        thread::sleep(WATCHED);
        Ok(())
    })?;
    // One that changes among many.
    let busy = share(&daemon, || {
        let until = Instant::now() + WATCHED;
        while Instant::now() < until {
            drop(crowd.child("newborn")?);
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    })?;
    println!("{MANY} cgroups: idle {:.2} %, with births {:.2} %", idle * 100.0, busy * 100.0);
    // A walk through all of them each second takes half a processor.
    ensure!(idle < 0.03 && busy < 0.06, "idle {idle}, with births {busy}");
    ensure!(dig(&container, &["example.test", "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    drop(cgroups);
    Ok(())
}
