//! IPv6 as hosts have it: whole, without a global address, and without any.

use anyhow::{Result, ensure};
use dns_proxy_tests::container::INTERFACE;

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
