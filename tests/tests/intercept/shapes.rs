//! Every shape of socket, each seen by cameras on the container's interface and the uplink.

use anyhow::{Result, ensure};
use dns_proxy_tests::{Stage, Zone, clients::probe, process::output};

const NAME: &str = "example.test";

/// Runs the probe in a container of the scope; what it prints must contain each of `shown`, the
/// encrypted answer among them.
fn check(args: &[&str], shown: &[&str]) -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _daemon = stage.daemon(&[&container])?;
    let witness = stage.witness(&container)?;

    let printed = output(probe(&container)?.args(args))?;

    let answer = Zone::Encrypted.a().to_string();
    for wanted in shown.iter().copied().chain([answer.as_str()]) {
        ensure!(printed.contains(wanted), "no {wanted} in: {printed}");
    }
    witness.saw_only_tls()?;
    ensure!(!stage.upstream.journal().queries_for(NAME).is_empty(), "upstream saw no query");
    ensure!(stage.nameserver.queries().is_empty(), "the plaintext nameserver was asked");
    Ok(())
}

#[test]
fn connected_udp_over_ipv4() -> Result<()> {
    check(&["udp-connected", "8.8.8.8", NAME], &["peer=8.8.8.8:53 from=8.8.8.8:53"])
}

#[test]
fn connected_udp_over_ipv6() -> Result<()> {
    let server = "2001:4860:4860::8888";
    let shown = format!("peer=[{server}]:53 from=[{server}]:53");
    check(&["udp-connected", server, NAME], &[&shown])
}

#[test]
fn one_unconnected_socket_asks_several_nameservers_over_ipv4() -> Result<()> {
    check(
        &["udp-unconnected", NAME, "8.8.8.8", "9.9.9.9", "8.8.4.4"],
        &[
            "server=8.8.8.8:53 from=8.8.8.8:53",
            "server=9.9.9.9:53 from=9.9.9.9:53",
            "server=8.8.4.4:53 from=8.8.4.4:53",
        ],
    )
}

#[test]
fn one_unconnected_socket_asks_several_nameservers_over_ipv6() -> Result<()> {
    check(
        &["udp-unconnected", NAME, "2001:4860:4860::8888", "2620:fe::fe"],
        &["from=[2001:4860:4860::8888]:53", "server=[2620:fe::fe]:53 from=[2620:fe::fe]:53"],
    )
}

#[test]
fn tcp_over_ipv4() -> Result<()> {
    check(&["tcp", "8.8.8.8", NAME], &["peer=8.8.8.8:53"])
}

#[test]
fn tcp_over_ipv6() -> Result<()> {
    check(&["tcp", "2620:fe::fe", NAME], &["peer=[2620:fe::fe]:53"])
}

#[test]
fn ipv6_sockets_with_ipv4_mapped_nameservers() -> Result<()> {
    for args in [&["udp6-mapped", "8.8.8.8", NAME], &["udp6-mapped-unconnected", NAME, "8.8.8.8"]] {
        check(args, &["from=[::ffff:8.8.8.8]:53"])?;
    }
    check(&["tcp6-mapped", "8.8.8.8", NAME], &["peer=[::ffff:8.8.8.8]:53"])
}

#[test]
fn peer_names_are_what_was_dialled() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _daemon = stage.daemon(&[&container])?;
    let printed =
        output(probe(&container)?.args(["peer-names", "8.8.8.8", "2001:4860:4860::8888"]))?;
    for wanted in [
        "udp=8.8.8.8:53 tcp=8.8.8.8:53",
        "udp6-mapped=[::ffff:8.8.8.8]:53 tcp6-mapped=[::ffff:8.8.8.8]:53",
        "udp=[2001:4860:4860::8888]:53 tcp=[2001:4860:4860::8888]:53",
    ] {
        ensure!(printed.contains(wanted), "no {wanted} in: {printed}");
    }
    Ok(())
}
