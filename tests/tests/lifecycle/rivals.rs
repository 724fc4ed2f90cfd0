//! Others on the same cgroups: daemons of ours, and programs of other tools.

use std::{process::Stdio, time::Duration};

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Cgroup, Container, Daemon, Stage, Zone,
    bpf::{Foreign, Sharing},
    clients::dig,
    eventually,
};

const LIMIT: Duration = Duration::from_secs(10);
const ASK: [&str; 2] = ["example.test", "@8.8.8.8"];

fn answers(container: &Container, zone: Zone) -> Result<()> {
    let answer = dig(container, &ASK)?;
    ensure!(answer == [zone.a().to_string()], "{answer:?}");
    Ok(())
}

/// A daemon that must not start; what it says.
fn is_refused(stage: &Stage, scope: &Cgroup, more: &[&str]) -> Result<String> {
    let mut args = stage.run_args(&[scope])?;
    args.extend(more.iter().map(ToString::to_string));
    let mut daemon = Daemon::launch(stage.world.command(Daemon::program()?), &args)?;
    ensure!(daemon.wait()?.code() == Some(1), "{}", daemon.log().text());
    daemon.wait_for_log("ERROR", LIMIT)?;
    Ok(daemon.log().text())
}

#[test]
fn a_second_daemon_for_the_same_cgroups_does_not_start_and_names_the_first() -> Result<()> {
    for fail in ["open", "closed"] {
        let stage = Stage::new()?;
        let container = stage.world.container("app")?;
        let mut args = stage.run_args(&[container.cgroup()])?;
        args.push(format!("--fail={fail}"));
        let first = Daemon::start(&stage.world, &args)?;
        for second in ["open", "closed"] {
            for scope in [container.cgroup(), stage.world.cgroup()] {
                let said = is_refused(&stage, scope, &[&format!("--fail={second}")])?;
                let named = format!("(pid {})", first.pid());
                ensure!(said.contains(&named) && said.contains("--exclude-cgroup"), "{said}");
            }
        }
        answers(&container, Zone::Encrypted)?;
        ensure!(first.stop()?.success());
        answers(&container, Zone::Plaintext)?;
    }
    Ok(())
}

#[test]
fn daemons_with_scopes_apart_run_side_by_side() -> Result<()> {
    let stage = Stage::new()?;
    let (one, other) = (stage.world.container("one")?, stage.world.container("other")?);
    let excluded = format!("--exclude-cgroup={}", other.cgroup().path()?);
    let mut args = stage.run_args(&[stage.world.cgroup()])?;
    args.extend([excluded, "--fail=closed".to_owned()]);
    let first = Daemon::start(&stage.world, &args)?;
    let mut args = stage.run_args(&[other.cgroup()])?;
    args.push("--fail=closed".to_owned());
    let second = Daemon::start(&stage.world, &args)?;
    for container in [&one, &other] {
        answers(container, Zone::Encrypted)?;
    }

    // The death of one is nothing to the other, nor to who comes instead of that.
    first.kill9()?;
    ensure!(eventually(LIMIT, || answers(&one, Zone::Plaintext).is_err()));
    answers(&other, Zone::Encrypted)?;
    ensure!(second.stop()?.success());
    answers(&other, Zone::Plaintext)?;
    let third = stage.daemon(&[&other])?;
    third.wait_for_log("still refuses the DNS of", LIMIT)?;
    answers(&other, Zone::Encrypted)?;
    ensure!(dig(&one, &ASK).is_err(), "the pins of the first are gone");
    Ok(())
}

#[test]
fn exec_works_inside_the_scope_of_a_daemon() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.host_container("app")?;
    for fail in ["open", "closed"] {
        let mut args = stage.run_args(&[container.cgroup()])?;
        args.push(format!("--fail={fail}"));
        let daemon = Daemon::start(&stage.world, &args)?;
        daemon.wait_until_serving(container.netns())?;
        let exec = || -> Result<String> {
            let mut exec = container.command(Daemon::program()?)?;
            exec.arg("exec").args(stage.upstream_args()).args(["--", "dig", "+short"]).args(ASK);
            let done = exec.stdin(Stdio::null()).output()?;
            ensure!(done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
            Ok(String::from_utf8(done.stdout)?.trim().to_owned())
        };
        let before = stage.upstream.journal().queries.len();
        ensure!(exec()? == Zone::Encrypted.a().to_string(), "{fail}");
        ensure!(stage.upstream.journal().queries.len() == before + 1, "asked twice");
        if fail == "closed" {
            // What refuses everybody else does not refuse whoever is served by another daemon.
            daemon.kill9()?;
            let refused = || answers(&container, Zone::Plaintext).is_err();
            ensure!(eventually(LIMIT, refused) && exec()? == Zone::Encrypted.a().to_string());
        } else {
            // Its own command was its own to serve.
            let log = daemon.log().clone();
            ensure!(daemon.stop()?.success());
            ensure!(log.text().contains("stopped queries=0"), "{}", log.text());
        }
    }
    Ok(())
}

#[test]
fn programs_of_another_tool_that_share_are_no_trouble() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _before = Foreign::attach(container.cgroup().dir(), Sharing::Multi)?;
    let daemon = stage.daemon(&[&container])?;
    let _after = Foreign::attach(container.cgroup().dir(), Sharing::Multi)?;
    answers(&container, Zone::Encrypted)?;
    ensure!(daemon.stop()?.success());
    answers(&container, Zone::Plaintext)
}

#[test]
fn a_cgroup_that_another_tool_does_not_share_is_named_with_the_remedy() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let (own, above) = (container.cgroup(), stage.world.cgroup());
    for (held, attached, fail) in [
        (own, own, "--fail=open"),
        (above, own, "--fail=open"),
        (above, above, "--fail=closed"), // one below may be made anew
    ] {
        let foreign = Foreign::attach(held.dir(), Sharing::Exclusive)?;
        let said = is_refused(&stage, own, &[fail])?;
        for part in [&*attached.path()?, "connect4", "BPF_F_ALLOW_MULTI", "bpftool cgroup tree"] {
            ensure!(said.contains(part), "no {part} in {said}");
        }
        // What was attached before that is gone again.
        answers(&container, Zone::Plaintext)?;
        drop(foreign);
    }
    let _below = Foreign::attach(own.dir(), Sharing::Exclusive)?;
    let _daemon = stage.daemon_with(&[&container], &["--fail=closed"])?;
    answers(&container, Zone::Encrypted)
}
