//! Namespaces come and go; the daemon must neither miss one nor hold one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Capture, Daemon, Netns, Stage, Zone,
    clients::{Libc, dig, probe},
    eventually, port53,
    process::{Process, output},
    world::UPLINK,
};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn a_destroyed_namespace_is_let_go_with_its_devices() -> Result<()> {
    let stage = Stage::new()?;
    let staying = stage.world.container("staying")?;
    let container = stage.world.container("going")?;
    let daemon = stage.daemon(&[&staying, &container])?;
    ensure!(dig(&container, &["example.test", "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    let (netns, link) = (container.netns().clone(), container.addresses().host_link.clone());
    let fds = daemon.fds()?;

    container.destroy();
    daemon.wait_until_released(&netns)?;
    drop(netns);

    // A namespace that anything holds keeps its end of the veth, and so ours.
    let gone = eventually(LIMIT, || !stage.world.host().has_link(&link));
    ensure!(gone, "the namespace is still alive");
    ensure!(daemon.wait_fds(LIMIT, |now| now < fds), "its sockets are still open");
    ensure!(dig(&staying, &["example.test", "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    Ok(())
}

#[test]
fn containers_that_come_and_go_leave_no_descriptors_behind() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = Daemon::start(&stage.world, &stage.run_args(&[stage.world.cgroup()])?)?;
    let before = daemon.fds()?;
    for round in 0..10 {
        let container = stage.world.container(&format!("app-{round}"))?;
        daemon.wait_until_serving(container.netns())?;
        let answer = dig(&container, &["example.test", "@8.8.8.8"])?;
        ensure!(answer == [Zone::Encrypted.a().to_string()], "round {round}: {answer:?}");
        let netns = container.netns().clone();
        container.destroy();
        daemon.wait_until_released(&netns)?;
    }
    // Upstream connections may have come on top: one for each worker.
    let workers = std::thread::available_parallelism()?.get();
    ensure!(
        daemon.wait_fds(LIMIT, |now| now <= before + workers),
        "{before} descriptors before, {} after",
        daemon.fds()?
    );
    Ok(())
}

#[test]
fn a_service_that_enters_a_new_namespace_is_followed_there() -> Result<()> {
    let stage = Stage::new()?;
    let service = stage.world.container("service")?;
    let other = stage.world.container("other")?;
    let _daemon = stage.daemon(&[&service])?;

    // In the cgroup of one, in the namespace of the other.
    let pid = service.cgroup().procs()?.first().copied();
    ensure!(pid.is_some(), "the container has its holder in it");
    let mut moved = other.netns().command("sh");
    let procs = service.cgroup().dir().join("cgroup.procs");
    moved.args(["-c", "echo 0 > \"$0\"; exec \"$@\""]).arg(&procs);
    moved.arg(dns_proxy_tests::artifacts::program("dns-proxy-probe")?);
    moved.args(["udp-connected", "8.8.8.8", "example.test"]);
    let camera = stage.witness(&other)?;
    let encrypted = eventually(LIMIT, || {
        output(&mut moved).is_ok_and(|printed| printed.contains(&Zone::Encrypted.a().to_string()))
    });
    ensure!(encrypted, "never answered from the new namespace");
    // Not even the first attempts, made before the daemon knew the namespace, were seen outside.
    camera.saw_only_tls()
}

/// Nothing tells of it: the service's cgroup is populated all the time.
#[test]
fn a_namespace_that_a_running_service_enters_and_leaves_is_found_and_let_go() -> Result<()> {
    let stage = Stage::new()?;
    let service = stage.world.container("service")?;
    let place = stage.world.unannounced("place")?;
    let daemon = stage.daemon(&[&service])?;
    let mut visit = service.command("nsenter")?;
    visit.arg(format!("--net={}", place.netns().path())).args(["sleep", "infinity"]);
    let visit = Process::spawn(visit)?;
    daemon.wait_until_serving(place.netns())?;
    drop(visit);
    daemon.wait_until_released(place.netns())
}

#[test]
fn a_namespace_is_served_as_long_as_it_has_a_name() -> Result<()> {
    let stage = Stage::new()?;
    let service = stage.world.container("service")?;
    let daemon = stage.daemon(&[&service])?;
    let netns = Netns::new()?;
    for _ in 0..2 {
        for name in ["one", "other"] {
            stage.world.name_netns(&netns, name)?;
        }
        daemon.wait_until_serving(&netns)?;
        stage.world.unname_netns("one")?;
        stage.world.unname_netns("other")?;
        daemon.wait_until_released(&netns)?;
    }
    Ok(())
}

/// As dockerd does, which asks for its containers from inside their namespaces.
#[test]
fn a_namespace_is_served_while_sockets_of_the_scope_are_used_there() -> Result<()> {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/visitor.py");
    let stage = Stage::new()?;
    let visitor = stage.world.container("visitor")?;
    let visited = stage.world.container("visited")?;
    let daemon = stage.daemon(&[&visitor])?;
    let witness = stage.witness(&visited)?;

    let printed = visitor.run("/usr/bin/python3", &[SCRIPT, &visited.netns().path()])?;
    ensure!(printed == "answered\n".repeat(3), "{printed}{}", daemon.log().text());
    witness.saw_only_tls()?;

    // What is left there when its own processes are gone is not held.
    let netns = visited.netns().clone();
    visited.destroy();
    daemon.wait_until_released(&netns)
}

#[test]
fn the_first_lookup_of_a_fresh_container_is_answered_and_encrypted() -> Result<()> {
    // The storm (`cargo xtask test --storm`) leaves out the wait, and counts.
    let stage = Stage::new()?;
    let daemon = Daemon::start(&stage.world, &stage.run_args(&[stage.world.cgroup()])?)?;
    let uplink = Capture::on(stage.world.host(), UPLINK)?;
    for (n, libc) in (0..20).zip([Libc::Glibc, Libc::Musl].into_iter().cycle()) {
        let newborn = stage.world.newborn(&format!("new-{n}"))?;
        daemon.wait_until_serving(newborn.container.netns())?;
        let found = libc.resolve(&newborn.container, "example.test");
        let found = found.with_context(|| format!("{libc:?}: {}", daemon.log().text()))?;
        ensure!(found.contains(&Zone::Encrypted.a().into()), "{libc:?}: {found:?}");
    }
    ensure!(port53(&uplink.stop()?).is_empty(), "plaintext on the uplink");
    Ok(())
}

#[test]
fn a_process_that_moves_into_the_scope_is_encrypted_from_its_first_query() -> Result<()> {
    let stage = Stage::new()?;
    let scope = stage.world.cgroup().child("scope")?;
    let _daemon = Daemon::start(&stage.world, &stage.run_args(&[&scope])?)?;
    let uplink = Capture::on(stage.world.host(), UPLINK)?;
    for _ in 0..20 {
        let mut moving = stage.world.command("sh");
        moving.args(["-c", "echo 0 > \"$0\"; exec \"$@\""]).arg(scope.dir().join("cgroup.procs"));
        moving.arg(Libc::Glibc.program()?).arg("example.test");
        let printed = output(&mut moving)?;
        ensure!(printed.contains(&Zone::Encrypted.a().to_string()), "{printed}");
    }
    ensure!(port53(&uplink.stop()?).is_empty(), "plaintext on the uplink");
    Ok(())
}

#[test]
fn a_removed_and_recreated_scope_is_intercepted_again() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("service")?;
    let daemon = stage.daemon(&[&container])?;
    let netns = container.netns().clone();
    container.destroy();
    daemon.wait_until_released(&netns)?;

    let again = stage.world.container("service")?;
    daemon.wait_until_serving(again.netns())?;
    let encrypted = eventually(LIMIT, || {
        let ask = probe(&again)
            .and_then(|mut probe| output(probe.args(["udp-connected", "8.8.8.8", "example.test"])));
        ask.is_ok_and(|printed| printed.contains(&Zone::Encrypted.a().to_string()))
    });
    ensure!(encrypted, "{}", daemon.log().text());
    Ok(())
}
