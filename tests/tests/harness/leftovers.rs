//! Nothing is left behind: not by a drop, not by `kill -9`.

use anyhow::{Context, Result, ensure};
use dns_proxy_tests::leftovers::sweep;
use dns_proxy_tests::log::Log;
use dns_proxy_tests::netns::holders;
use dns_proxy_tests::process::Process;
use dns_proxy_tests::{Pki, World, eventually, require_root_and_bpf};
use nix::sys::signal::Signal;
use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::park;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);
/// Set for the test run that is to be killed.
const VICTIM: &str = "DNS_PROXY_TESTS_VICTIM";

/// No process is in the namespace or holds it.
fn gone(inode: u64) -> Result<()> {
    ensure!(eventually(LIMIT, || holders(inode).is_empty()), "held by {:?}", holders(inode));
    Ok(())
}

#[test]
fn a_destroyed_container_leaves_no_process_no_cgroup_no_namespace_and_no_link() -> Result<()> {
    require_root_and_bpf();
    let world = World::new()?;
    let container = world.container("app")?;
    let mut nested = container.cgroup().child("nested")?;
    let mut sleeper = container.command("sleep")?.arg("1000").spawn()?;
    nested.add(sleeper.id())?;
    assert_eq!(nested.procs()?, [sleeper.id()]);
    assert!(container.cgroup().populated());
    assert_eq!(container.cgroup().procs()?.len(), 1);
    let (inode, link) = (container.netns().inode()?, container.addresses().host_link.clone());
    let dir = container.cgroup().dir().to_owned();
    assert!(world.host().has_link(&link));

    container.destroy();

    assert!(!sleeper.wait()?.success());
    assert!(!dir.exists());
    gone(inode)?;
    ensure!(eventually(LIMIT, || !world.host().has_link(&link)), "{link} is still there");
    nested = world.cgroup().child("nested")?;
    assert_eq!(nested.path()?, format!("{}/nested", world.cgroup().path()?));
    Ok(())
}

#[test]
fn a_dropped_world_leaves_nothing() -> Result<()> {
    require_root_and_bpf();
    let world = World::new()?;
    let container = world.container("app")?;
    let inodes = [world.host().inode()?, world.internet().inode()?, container.netns().inode()?];
    let dir = world.cgroup().dir().to_owned();
    assert!(inodes.iter().all(|&inode| !holders(inode).is_empty()));
    drop(world);
    drop(container);
    assert!(!dir.exists());
    inodes.into_iter().try_for_each(gone)
}

#[test]
fn a_process_starts_inside_the_cgroup_and_the_namespace() -> Result<()> {
    require_root_and_bpf();
    let world = World::new()?;
    let container = world.container("app")?;
    let own = container.run("cat", &["/proc/self/cgroup"])?;
    let line = format!("0::/{}", container.cgroup().path()?);
    ensure!(own.lines().any(|other| other == line), "{line} is not in {own}");
    let netns = container.run("readlink", &["/proc/self/ns/net"])?;
    assert_eq!(netns.trim(), format!("net:[{}]", container.netns().inode()?));
    Ok(())
}

#[test]
#[ignore = "the victim of the next test"]
fn victim() -> Result<()> {
    if env::var_os(VICTIM).is_some() {
        let world = World::new()?;
        let container = world.container("app")?;
        let (inode, pki) = (container.netns().inode()?, Pki::new()?);
        let dirs = [world.cgroup().dir(), pki.dir()].map(Path::display);
        eprintln!("victim {inode} {} {}", dirs[0], dirs[1]);
        park();
    }
    Ok(())
}

#[test]
fn a_killed_test_run_leaves_nothing_that_the_next_does_not_sweep_up() -> Result<()> {
    require_root_and_bpf();
    let mut command = Command::new(env::current_exe()?);
    command.args(["--ignored", "--exact", "--nocapture", "leftovers::victim"]).env(VICTIM, "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut run = Process::spawn(command)?;
    let log = Log::of(&mut run);
    let started = |lines: &[String]| lines.iter().any(|line| line.starts_with("victim "));
    ensure!(log.wait_until(LIMIT, started), "the victim did not start: {}", log.text());
    let lines = log.lines();
    let line = lines.iter().find_map(|line| line.strip_prefix("victim ")).context("said so")?;
    let words: Vec<&str> = line.split(' ').collect();
    let (inode, dirs) = words.split_first().context("an inode and directories")?;
    let inode = inode.parse()?;
    assert!(dirs.len() == 2 && dirs.iter().all(|dir| Path::new(dir).exists()));
    assert!(!holders(inode).is_empty());

    run.signal(Signal::SIGKILL)?;
    run.wait(LIMIT)?;

    gone(inode)?;
    sweep()?;
    assert!(!dirs.iter().any(|dir| Path::new(dir).exists()));
    Ok(())
}
