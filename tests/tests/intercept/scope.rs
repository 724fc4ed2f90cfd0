//! Who is intercepted and who is not.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Capture, Daemon, PlainServer, Stage, Zone,
    clients::{dig, probe},
    container::INTERFACE,
    process::output,
    to_port,
};

#[test]
fn containers_out_of_the_scope_are_untouched() -> Result<()> {
    let stage = Stage::new()?;
    let inside = stage.world.container("inside")?;
    let outside = stage.world.container("outside")?;
    let _daemon = stage.daemon(&[&inside])?;
    let camera = Capture::on(outside.netns(), INTERFACE)?;

    let plaintext = dig(&outside, &["example.test", "@8.8.8.8"])?;
    let encrypted = dig(&inside, &["example.test", "@8.8.8.8"])?;

    ensure!(plaintext == [Zone::Plaintext.a().to_string()], "{plaintext:?}");
    ensure!(encrypted == [Zone::Encrypted.a().to_string()], "{encrypted:?}");
    ensure!(to_port(&camera.stop()?, 53).len() == 1, "one query on the wire, no more");
    Ok(())
}

#[test]
fn excluded_cgroups_are_untouched_and_their_siblings_are_not() -> Result<()> {
    let stage = Stage::new()?;
    let (one, two) = (stage.world.container("one")?, stage.world.container("two")?);
    let mut args = stage.run_args(&[stage.world.cgroup()])?;
    args.push(format!("--exclude-cgroup={}", two.cgroup().path()?));
    let daemon = Daemon::start(&stage.world, &args)?;
    daemon.wait_until_serving(one.netns())?;

    ensure!(dig(&one, &["example.test", "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    ensure!(dig(&two, &["example.test", "@8.8.8.8"])? == [Zone::Plaintext.a().to_string()]);
    Ok(())
}

#[test]
fn patterns_catch_containers_that_start_later() -> Result<()> {
    let stage = Stage::new()?;
    let mut args = stage.run_args(&[])?;
    args.push(format!("--cgroup={}/app-*", stage.world.cgroup().path()?));
    let daemon = Daemon::start(&stage.world, &args)?;

    let app = stage.world.container("app-1")?;
    let other = stage.world.container("other")?;
    daemon.wait_until_serving(app.netns())?;
    let witness = stage.witness(&app)?;

    ensure!(dig(&app, &["example.test", "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    witness.saw_only_tls()?;
    ensure!(dig(&other, &["example.test", "@8.8.8.8"])? == [Zone::Plaintext.a().to_string()]);
    Ok(())
}

#[test]
fn nameservers_on_loopback_are_left_alone() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _daemon = stage.daemon(&[&container])?;
    let stub: &[_] = &["127.0.0.53:53".parse()?, "[::1]:53".parse()?];
    let stub = PlainServer::start_on(container.netns(), stub, Zone::Plaintext)?;

    for server in ["@127.0.0.53", "@::1"] {
        let answer = dig(&container, &["example.test", server])?;
        ensure!(answer == [Zone::Plaintext.a().to_string()], "{server}: {answer:?}");
    }
    ensure!(stub.queries().len() == 2, "both came in");
    ensure!(stage.upstream.journal().queries.is_empty(), "none went upstream");
    Ok(())
}

#[test]
fn processes_in_the_hosts_namespace_are_intercepted_too() -> Result<()> {
    let stage = Stage::new()?;
    let service = stage.world.host_container("service")?;
    let _daemon = stage.daemon(&[&service])?;
    let uplink = Capture::on(stage.world.host(), dns_proxy_tests::world::UPLINK)?;

    for server in ["@8.8.8.8", "@2001:4860:4860::8888"] {
        let answer = dig(&service, &["example.test", server])?;
        ensure!(answer == [Zone::Encrypted.a().to_string()], "{server}: {answer:?}");
    }
    ensure!(dns_proxy_tests::port53(&uplink.stop()?).is_empty());
    Ok(())
}

#[test]
fn two_namespaces_ask_different_nameservers_at_once() -> Result<()> {
    let stage = Stage::new()?;
    let (one, two) = (stage.world.container("one")?, stage.world.container("two")?);
    let _daemon = stage.daemon(&[&one, &two])?;
    let (first, second) = (stage.witness(&one)?, stage.witness(&two)?);

    let ask = |container, server| {
        let mut command = probe(container)?;
        command.args(["udp-unconnected", "slow-100.example.test", server]);
        anyhow::Ok(command)
    };
    let (one, two) = (ask(&one, "8.8.8.8")?, ask(&two, "9.9.9.9")?);
    let started = Instant::now();
    let both = std::thread::scope(|scope| {
        let run = |mut command: std::process::Command| scope.spawn(move || output(&mut command));
        [run(one), run(two)].map(|thread| thread.join().expect("no panic"))
    });
    let [one, two] = both;
    ensure!(one?.contains("server=8.8.8.8:53 from=8.8.8.8:53"));
    ensure!(two?.contains("server=9.9.9.9:53 from=9.9.9.9:53"));
    ensure!(started.elapsed() < Duration::from_secs(5), "and neither waited for a time-out");
    first.saw_only_tls()?;
    second.saw_only_tls()
}

#[test]
fn a_thousand_queries_from_twenty_namespaces_at_once_are_all_right() -> Result<()> {
    let stage = Stage::new()?;
    let containers =
        (0..20).map(|n| stage.world.container(&format!("app-{n}"))).collect::<Result<Vec<_>>>()?;
    let _daemon = stage.daemon(&containers.iter().collect::<Vec<_>>())?;
    let uplink = Capture::on(stage.world.host(), dns_proxy_tests::world::UPLINK)?;

    let asking = containers
        .iter()
        .map(|container| {
            let mut command = probe(container)?;
            command.args(["many", "50", "10", "8.8.8.8", "example.test"]);
            Ok(std::thread::spawn(move || output(&mut command)))
        })
        .collect::<Result<Vec<_>>>()?;
    for printed in asking {
        let printed = printed.join().expect("no panic")?;
        ensure!(printed.contains("sent=50 ok=50 lost=0 wrong=0"), "{printed}");
    }
    ensure!(dns_proxy_tests::port53(&uplink.stop()?).is_empty(), "plaintext on the uplink");
    Ok(())
}
