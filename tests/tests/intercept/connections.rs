//! Sockets that are connected more than once or to somebody else, and those that choose the address
//! they ask from.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};

use crate::scene::{Scene, same_with_and_without};

#[test]
fn udp_sockets_connect_again() -> Result<()> {
    same_with_and_without(
        &Scene::new()?,
        &[
            "steps example.test 8.8.8.8 9.9.9.9 8.8.8.8",
            "steps example.test 8.8.8.8:5353 9.9.9.9",
            "steps example.test 8.8.8.8 dissolve 9.9.9.9 dissolve 8.8.4.4:5353",
            "steps example.test 2620:fe::fe 2001:4860:4860::8888 2620:fe::fe",
            "steps example.test [2620:fe::fe]:5353 2001:4860:4860::8888",
            "steps example.test 2620:fe::fe dissolve 2001:4860:4860::8888 dissolve [2620:fe::fe]:5353",
            "steps example.test ::ffff:8.8.8.8 ::ffff:9.9.9.9 dissolve ::ffff:8.8.4.4",
        ],
    )
}

#[test]
fn a_nameservers_socket_cannot_be_connected_elsewhere_without_a_dissolve() -> Result<()> {
    let scene = Scene::new()?;
    let (v4, v6) = ["8.8.8.8 8.8.8.8:5353", "2620:fe::fe [2620:fe::fe]:5353"]
        .map(|steps| format!("steps example.test {steps}"))
        .into();
    for row in [&v4, &v6] {
        ensure!(!scene.see(row)?.contains("errno="), "without us that works");
    }
    let intercepted = scene.intercept()?;
    scene.answered(&v4, &["server=8.8.8.8:5353 errno=EINVAL"])?;
    // IPv6 lets it, and keeps the source.
    scene.answered(&v6, &["server=[2620:fe::fe]:5353 peer=[2620:fe::fe]:5353 local=::1"])?;
    intercepted.end()
}

#[test]
fn connected_udp_sockets_may_send_elsewhere() -> Result<()> {
    same_with_and_without(
        &Scene::new()?,
        &[
            "elsewhere example.test 8.8.8.8 8.8.8.8",
            "elsewhere example.test 2620:fe::fe 2620:fe::fe",
            // The answer is not from whom the socket is connected to, so it is not delivered.
            "--timeout 0.3 elsewhere example.test 8.8.8.8 9.9.9.9",
            "--timeout 0.3 elsewhere example.test 8.8.8.8:5353 9.9.9.9",
            "--timeout 0.3 elsewhere example.test 2620:fe::fe 2001:4860:4860::8888",
        ],
    )
}

#[test]
fn sockets_that_share_a_port_get_each_their_own_answer() -> Result<()> {
    same_with_and_without(
        &Scene::new()?,
        &[
            "shared-port example.test 8.8.8.8 9.9.9.9",
            "shared-port example.test 2620:fe::fe 2001:4860:4860::8888",
        ],
    )
}

/// The container's own addresses, and none, by which the kernel chooses.
fn ask_from_own_addresses(scene: &Scene) -> Result<()> {
    let own = scene.container.addresses();
    let (v4, v6) = (own.v4.to_string(), own.v6.to_string());
    let mut rows = Vec::new();
    for shape in ["udp-connected", "udp-unconnected", "tcp"] {
        for (source, server) in [
            (v4.as_str(), "8.8.8.8"),
            ("0.0.0.0", "8.8.8.8"),
            (&v6, "2620:fe::fe"),
            ("::", "2620:fe::fe"),
            ("::", "::ffff:8.8.8.8"),
        ] {
            rows.push(format!("from {source} {shape} example.test {server}"));
        }
    }
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    same_with_and_without(scene, &rows)
}

#[test]
fn sockets_show_the_address_that_they_are_bound_to_or_would_have_had() -> Result<()> {
    ask_from_own_addresses(&Scene::new()?)
}

#[test]
fn strict_reverse_path_filters_do_not_mind_bound_addresses() -> Result<()> {
    let scene = Scene::new()?;
    scene.filter_reverse_paths()?;
    ask_from_own_addresses(&scene)
}

#[test]
fn own_addresses_are_those_of_the_default_route() -> Result<()> {
    let scene = Scene::new()?;
    let netns = scene.container.netns();
    netns.ip(&["addr", "add", "10.88.1.99/24", "dev", "eth0"])?;
    netns.ip(&["route", "add", "9.9.9.9", "via", "10.88.1.1", "src", "10.88.1.99"])?;
    netns.ip(&["-6", "route", "del", "default"])?;
    let (v4, v6) =
        ("from 0.0.0.0 tcp example.test 9.9.9.9", "from :: tcp example.test 2620:fe::fe");
    ensure!(scene.see(v4)?.contains("local=10.88.1.99"), "the route has another source");
    let intercepted = scene.intercept()?;
    scene.answered(v4, &["local=10.88.1.2 "])?;
    scene.answered(v6, &["local=::1 "])?;
    intercepted.end()
}

#[test]
fn a_datagram_may_name_its_source_unless_its_socket_is_connected() -> Result<()> {
    let scene = Scene::new()?;
    let (v4, v6) = (scene.container.addresses().v4, scene.container.addresses().v6);
    let intercepted = scene.intercept()?;
    for (source, server) in [(v4.to_string(), "8.8.8.8"), (v6.to_string(), "2620:fe::fe")] {
        scene.answered(&format!("from {source} pktinfo example.test {server}"), &[])?;
        // The socket has loopback as its address, and the answer goes to the one that was named.
        let lost = format!("--timeout 0.3 from {source} pktinfo-connected example.test {server}");
        let printed = scene.see(&lost)?;
        ensure!(printed.contains("error=WouldBlock"), "{lost}: {printed}");
    }
    intercepted.end()
}

#[test]
fn the_error_queue_shows_the_token() -> Result<()> {
    for (server, token) in [("8.8.8.8", "127.64.0."), ("2620:fe::fe", "[fd90:2c8e:591c:53:")] {
        let scene = Scene::new()?;
        let daemon = scene.daemon()?;
        let mut probe = scene.probe(&format!("error-queue {server} example.test"))?;
        let mut probe = probe.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(probe.stdout.take().context("piped")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        daemon.kill9()?;
        probe.stdin.take().context("piped")?.write_all(b"now\n")?;
        line.clear();
        stdout.read_line(&mut line)?;
        ensure!(probe.wait()?.success());
        let queued = format!("queued={token}");
        ensure!(line.contains("error=Err(ConnectionRefused)") && line.contains(&queued), "{line}");
    }
    Ok(())
}
