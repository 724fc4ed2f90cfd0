//! Sockets that insist on a device are answered like any other.

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Capture, Daemon, Stage, Zone, clients::dig, container::INTERFACE, stage::is_token,
    world::UPLINK,
};

use super::{
    NAME, ROUTES, SERVERS, SHAPES, check_all, ensure_routes, rules, second_interface, sources,
    state,
};
use crate::scene::Scene;

#[test]
fn sockets_bound_to_a_device_are_answered() -> Result<()> {
    let scene = Scene::new()?;
    let before = rules(scene.container.netns())?;
    let intercepted = scene.intercept()?;
    check_all(&scene.container, INTERFACE)?;
    check_all(&scene.container, "lo")?;
    intercepted.end()?;
    ensure!(rules(scene.container.netns())? == before, "no rule is needed");
    Ok(())
}

#[test]
fn strict_reverse_path_filters_do_not_mind() -> Result<()> {
    let scene = Scene::new()?;
    scene.filter_reverse_paths()?;
    let intercepted = scene.intercept()?;
    check_all(&scene.container, INTERFACE)?;
    intercepted.end()
}

#[test]
fn interfaces_without_an_address_have_no_route_and_leak_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let _daemon = scene.daemon()?;
    let netns = scene.container.netns();
    let there = second_interface(netns)?;
    let camera = Capture::on(&there, "eth1")?;
    for server in SERVERS {
        for shape in SHAPES {
            let printed = scene.see(&format!("--timeout 0.3 {shape} {server} {NAME} eth1"))?;
            ensure!(printed.contains("error="), "{shape} {server}: {printed}");
        }
    }
    ensure!(sources(netns, "eth1").is_empty(), "{}", state(netns));
    for packet in camera.stop()? {
        let token = is_token(packet.dst.ip());
        ensure!(!token && packet.dst.port() != 53, "{packet}");
    }
    Ok(())
}

#[test]
fn two_daemons_in_one_namespace_keep_out_of_each_others_way() -> Result<()> {
    let stage = Stage::new()?;
    let one = stage.world.host_container("one")?;
    let two = stage.world.host_container("two")?;
    let (first, second) = (stage.daemon(&[&one])?, stage.daemon(&[&two])?);
    ensure_routes(one.netns(), 2 * ROUTES)?;
    check_all(&one, UPLINK)?;
    check_all(&two, UPLINK)?;
    ensure!(first.stop()?.success());
    ensure_routes(two.netns(), ROUTES)?;
    check_all(&two, UPLINK)?;
    // A new one takes the free port, and with it what a killed one would have left there.
    let third: Daemon = stage.daemon(&[&one])?;
    check_all(&one, UPLINK)?;
    second.kill9()?;
    check_all(&one, UPLINK)?;
    ensure!(third.stop()?.success());
    let answer = dig(&one, &[NAME, "@8.8.8.8"])?;
    ensure!(answer == [Zone::Plaintext.a().to_string()], "{answer:?}");
    Ok(())
}
