//! The routes by device, whatever becomes of it.

use anyhow::{Result, ensure};
use dns_proxy_tests::container::INTERFACE;

use super::{
    ROUTES, SERVERS, SHAPES, check, check_all, ensure_routes, rules, second_interface,
    wait_for_answer, wait_for_sources,
};
use crate::scene::Scene;

#[test]
fn sockets_without_a_device_still_come_from_loopback() -> Result<()> {
    let scene = Scene::new()?;
    let _daemon = scene.daemon()?;
    for (token, source) in [("127.64.0.1", "src 127.0.0.1"), ("fd90:2c8e:591c:53::1", "src ::1")] {
        let route = scene.container.netns().ip(&["route", "get", token])?;
        ensure!(route.contains("dev lo") && route.contains(source), "{route}");
    }
    Ok(())
}

#[test]
fn the_source_follows_the_address() -> Result<()> {
    let scene = Scene::new()?;
    let _daemon = scene.daemon()?;
    let netns = scene.container.netns();
    let (v4, v6) = (scene.container.addresses().v4, scene.container.addresses().v6);
    wait_for_sources(netns, INTERFACE, &[&v4.to_string(), &v6.to_string()])?;

    netns.ip(&["addr", "del", &format!("{v4}/24"), "dev", INTERFACE])?;
    netns.ip(&["addr", "del", &format!("{v6}/64"), "dev", INTERFACE])?;
    netns.ip(&["addr", "add", "10.88.77.2/24", "dev", INTERFACE])?;
    netns.ip(&["addr", "add", "fd88:0:0:77::2/64", "dev", INTERFACE, "nodad"])?;
    wait_for_sources(netns, INTERFACE, &["10.88.77.2", "fd88:0:0:77::2"])?;

    let witness = scene.stage.witness(&scene.container)?;
    wait_for_answer(&scene.container, INTERFACE)?;
    check_all(&scene.container, INTERFACE)?;
    witness.saw_only_tls()
}

#[test]
fn interfaces_come_and_go() -> Result<()> {
    let scene = Scene::new()?;
    let _daemon = scene.daemon()?;
    let netns = scene.container.netns();
    let _there = second_interface(netns)?;
    netns.ip(&["addr", "add", "10.99.0.2/24", "dev", "eth1"])?;
    netns.ip(&["addr", "add", "fd99::2/64", "dev", "eth1", "nodad"])?;
    wait_for_sources(netns, "eth1", &["10.99.0.2", "fd99::2"])?;
    for device in ["eth1", INTERFACE] {
        wait_for_answer(&scene.container, device)?;
        check_all(&scene.container, device)?;
    }

    netns.sysctl("net/ipv6/conf/eth1/disable_ipv6", "1")?;
    wait_for_sources(netns, "eth1", &["10.99.0.2"])?;
    check(&scene.container, SHAPES[0], SERVERS[0], "eth1")?;
    let refused = check(&scene.container, SHAPES[0], SERVERS[1], "eth1");
    ensure!(refused.is_err(), "without IPv6 there is no answer over it");

    netns.ip(&["link", "set", "eth1", "down"])?;
    wait_for_sources(netns, "eth1", &[])?;
    netns.ip(&["link", "set", "eth1", "up"])?;
    wait_for_sources(netns, "eth1", &["10.99.0.2"])?;

    netns.ip(&["link", "del", "eth1"])?;
    wait_for_sources(netns, "eth1", &[])?;
    ensure_routes(netns, ROUTES)?;
    check_all(&scene.container, INTERFACE)
}

#[test]
fn an_ipv6_address_is_used_once_it_is_known_to_be_unique() -> Result<()> {
    let scene = Scene::new()?;
    let _daemon = scene.daemon()?;
    let netns = scene.container.netns();
    let _there = second_interface(netns)?;
    netns.sysctl("net/ipv6/conf/eth1/accept_dad", "1")?;
    netns.ip(&["addr", "add", "fd99::2/64", "dev", "eth1"])?;
    ensure!(netns.ip(&["addr", "show", "dev", "eth1", "tentative"])?.contains("fd99::2"));
    wait_for_sources(netns, "eth1", &["fd99::2"])?;
    wait_for_answer(&scene.container, "eth1")
}

#[test]
fn nothing_is_left_when_the_daemon_has_stopped() -> Result<()> {
    let scene = Scene::new()?;
    let netns = scene.container.netns();
    let before = rules(netns)?;
    let daemon = scene.daemon()?;
    ensure_routes(netns, ROUTES)?;
    ensure!(daemon.stop()?.success());
    ensure_routes(netns, 0)?;
    ensure!(rules(netns)? == before);
    Ok(())
}

#[test]
fn the_next_daemon_takes_over_what_a_killed_one_left() -> Result<()> {
    let scene = Scene::new()?;
    let netns = scene.container.netns();
    scene.daemon()?.kill9()?;
    ensure_routes(netns, ROUTES)?;
    // Meanwhile the address changes; over IPv6 the route loses its source and stays.
    let v6 = scene.container.addresses().v6;
    netns.ip(&["addr", "del", &format!("{v6}/64"), "dev", INTERFACE])?;
    netns.ip(&["addr", "add", "fd88:0:0:77::2/64", "dev", INTERFACE, "nodad"])?;

    let daemon = scene.daemon()?;
    ensure_routes(netns, ROUTES)?;
    let v4 = scene.container.addresses().v4.to_string();
    wait_for_sources(netns, INTERFACE, &[&v4, "fd88:0:0:77::2"])?;
    check_all(&scene.container, INTERFACE)?;
    ensure!(daemon.stop()?.success());
    ensure_routes(netns, 0)
}
