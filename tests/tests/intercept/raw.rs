//! What no socket hook sees, the guard does: raw packets and UDP-Lite.

use std::time::Duration;

use anyhow::{Result, ensure};
use dns_proxy_tests::{Capture, eventually, port53, world::UPLINK};

use crate::scene::Scene;

const V4: [&str; 4] = ["udp", "udp-connected", "header", "fragment"];
const V6: [&str; 9] = [
    "udp",
    "udp-connected",
    "header",
    "options",
    "hop-by-hop",
    "authentication",
    "fragment",
    "all",
    "many",
];

/// How long the router may take to find its neighbour on the uplink; the second time it asks after a
/// second.
const FORWARDED: Duration = Duration::from_secs(10);

/// Each row must show packets to port 53 without us, or it proves nothing; with us, none, and the
/// sender is told.
fn check_guarded(scene: &Scene, rows: &[String]) -> Result<()> {
    for row in rows {
        let mut uplink = Capture::on(scene.stage.world.host(), UPLINK)?;
        scene.probe(row)?.output()?;
        // None may be left that would pass the cameras later.
        let left = eventually(FORWARDED, || uplink.packets().is_ok_and(|p| !port53(p).is_empty()));
        ensure!(left, "{row} sends nothing even without us");
    }
    let _daemon = scene.daemon()?;
    for row in rows {
        let printed = scene.leaks_nothing(row)?;
        ensure!(printed.contains("error=PermissionDenied"), "{row}: {printed}");
    }
    Ok(())
}

#[test]
fn raw_packets_do_not_leave() -> Result<()> {
    let scene = Scene::new()?;
    let (v4, v6) = (scene.container.addresses().v4, scene.container.addresses().v6);
    let v4 = V4.map(|kind| format!("raw {v4} {kind} example.test 8.8.8.8"));
    let v6 = V6.map(|kind| format!("raw {v6} {kind} example.test 2620:fe::fe"));
    check_guarded(&scene, &[&v4[..], &v6].concat())
}

#[test]
fn udp_lite_does_not_leave() -> Result<()> {
    let servers = ["8.8.8.8", "2620:fe::fe"];
    let rows = ["udplite-connected", "udplite-unconnected"]
        .map(|shape| servers.map(|server| format!("--timeout 0.2 {shape} example.test {server}")));
    check_guarded(&Scene::new()?, rows.as_flattened())
}
