//! IPv6 as hosts have it: whole, without a global address, without any, and on the link only.

use std::net::SocketAddrV6;

use anyhow::{Result, ensure};
use dns_proxy_tests::{PlainServer, Zone, container::INTERFACE};
use nix::net::if_::if_nametoindex;

use crate::scene::{Scene, same_with_and_without};

const ROWS: [&str; 3] = [
    "udp-connected 2620:fe::fe example.test",
    "udp-unconnected example.test 2620:fe::fe",
    "tcp 2620:fe::fe example.test",
];

#[test]
fn whoever_has_no_global_address_is_answered_too() -> Result<()> {
    for scope in ["global", "link"] {
        let scene = Scene::new()?;
        let flush = ["-6", "addr", "flush", "dev", INTERFACE, "scope"];
        scene.container.netns().ip(&[&flush[..], &["global"]].concat())?;
        scene.container.netns().ip(&[&flush[..], &[scope]].concat())?;
        let intercepted = scene.intercept()?;
        ROWS.iter().try_for_each(|row| scene.answered(row, &["=[2620:fe::fe]:53"]))?;
        intercepted.end()?;
    }
    Ok(())
}

#[test]
fn whoever_has_no_ipv6_is_told_so_by_the_kernel() -> Result<()> {
    let scene = Scene::new()?;
    scene.container.netns().sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
    same_with_and_without(&scene, &[&ROWS[..], &["tcp 8.8.8.8 example.test"]].concat())?;
    ensure!(scene.see(ROWS[0])?.contains("error=AddrNotAvailable"));
    Ok(())
}

/// A nameserver at `fe80::53` on the other end of the container's link.
fn link_local_nameserver(scene: &Scene) -> Result<PlainServer> {
    let host = scene.stage.world.host();
    let link = &scene.container.addresses().host_link;
    host.ip(&["addr", "add", "fe80::53/64", "dev", link, "nodad"])?;
    let index = host.run(|| if_nametoindex(link.as_str()))??;
    let at = SocketAddrV6::new("fe80::53".parse()?, 53, 0, index);
    PlainServer::start_on(host, &[at.into()], Zone::Plaintext)
}

#[test]
fn link_local_nameservers_keep_their_interface() -> Result<()> {
    let scene = Scene::new()?;
    let nameserver = link_local_nameserver(&scene)?;
    let rows = [
        "udp-connected fe80::53%eth0 example.test",
        "udp-unconnected example.test fe80::53%eth0 2620:fe::fe",
        "tcp fe80::53%eth0 example.test",
        "sendmmsg example.test fe80::53%eth0 2620:fe::fe",
        "steps example.test fe80::53%eth0 dissolve 2620:fe::fe dissolve fe80::53%eth0",
        "peer-names fe80::53%eth0",
        "bound-connected fe80::53%eth0 example.test eth0",
        "bound-tcp fe80::53%eth0 example.test eth0",
        "unicast-if fe80::53%eth0 example.test eth0",
        "pktinfo fe80::53%eth0 example.test eth0",
        "mptcp example.test fe80::53%eth0",
        "udp-connected fe80::53 example.test",
    ];
    same_with_and_without(&scene, &rows)?;
    let asked = nameserver.queries().len();
    ensure!(asked == 11, "each row asks once, before the daemon: {asked}");
    Ok(())
}

#[test]
fn link_local_nameservers_are_answered_whatever_addresses_the_interface_has() -> Result<()> {
    for scope in ["global", "link"] {
        let scene = Scene::new()?;
        scene.container.netns().ip(&["-6", "addr", "flush", "dev", INTERFACE, "scope", scope])?;
        let intercepted = scene.intercept()?;
        for row in ["udp-connected fe80::53%eth0 example.test", "tcp fe80::53%eth0 example.test"] {
            scene.answered(row, &["peer=[fe80::53%"])?;
        }
        intercepted.end()?;
    }
    Ok(())
}

#[test]
fn link_local_nameservers_leak_nothing_where_the_interface_has_no_address() -> Result<()> {
    let scene = Scene::new()?;
    scene.container.netns().ip(&["-6", "addr", "flush", "dev", INTERFACE])?;
    let intercepted = scene.intercept()?;
    for row in ["udp-connected fe80::53%eth0 example.test", "tcp fe80::53%eth0 example.test"] {
        let printed = scene.see(&format!("--timeout 0.3 {row}"))?;
        ensure!(printed.contains("error="), "{row}: {printed}");
    }
    scene.answered("udp-connected 2620:fe::fe example.test", &[])?;
    intercepted.end()
}
