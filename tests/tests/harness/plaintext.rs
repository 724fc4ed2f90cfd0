//! DNS as it is without us: containers ask in plaintext, and the captures show it.

use anyhow::{Result, ensure};
use dns_proxy_tests::clients::{Libc, dig, getent};
use dns_proxy_tests::container::INTERFACE;
use dns_proxy_tests::packet::Protocol;
use dns_proxy_tests::wire::Question;
use dns_proxy_tests::world::UPLINK;
use dns_proxy_tests::{
    Capture, Container, Packet, PlainServer, World, Zone, port53, require_root_and_bpf, to_port,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

const V4: &str = "8.8.8.8";
const V6: &str = "2001:4860:4860::8888";

/// Runs `ask` and checks that both captures saw what the server saw, and nothing else on port 53.
fn check(
    protocol: Protocol,
    server: &str,
    ask: impl Fn(&Container) -> Result<BTreeSet<IpAddr>>,
) -> Result<()> {
    require_root_and_bpf();
    let world = World::new()?;
    let nameserver = PlainServer::start(world.internet())?;
    let container = world.container_with("app", &format!("nameserver {server}\n"))?;
    let inside = Capture::on(container.netns(), INTERFACE)?;
    let outside = Capture::on(world.host(), UPLINK)?;

    let found = ask(&container)?;

    ensure!(found.contains(&Zone::Plaintext.a().into()), "the answer is {found:?}");
    let server: IpAddr = server.parse()?;
    for packets in [inside.stop()?, outside.stop()?] {
        for packet in port53(&packets) {
            let expected = packet.protocol == protocol
                && [packet.src.ip(), packet.dst.ip()].contains(&server)
                && [container.addresses().v4.into(), container.addresses().v6.into()]
                    .iter()
                    .any(|own| [packet.src.ip(), packet.dst.ip()].contains(own));
            ensure!(expected, "not expected: {packet}");
        }
        let asked: Vec<Question> = to_port(&packets, 53).into_iter().filter_map(question).collect();
        let seen: Vec<Question> =
            nameserver.queries().into_iter().map(|query| query.question).collect();
        assert_eq!(asked, seen);
        assert!(!seen.is_empty());
    }
    Ok(())
}

fn question(packet: &Packet) -> Option<Question> {
    let skipped = if packet.protocol == Protocol::Tcp { 2 } else { 0 };
    Question::of(packet.payload.get(skipped..)?)
}

fn check_dig(protocol: Protocol, server: &str) -> Result<()> {
    check(protocol, server, |container| {
        let flag = if protocol == Protocol::Tcp { "+tcp" } else { "+notcp" };
        let lines = dig(container, &[flag, "example.test", &format!("@{server}")])?;
        Ok(lines.iter().map(|line| line.parse()).collect::<Result<_, _>>()?)
    })
}

#[test]
fn dig_asks_over_udp_and_ipv4() -> Result<()> {
    check_dig(Protocol::Udp, V4)
}

#[test]
fn dig_asks_over_udp_and_ipv6() -> Result<()> {
    check_dig(Protocol::Udp, V6)
}

#[test]
fn dig_asks_over_tcp_and_ipv4() -> Result<()> {
    check_dig(Protocol::Tcp, V4)
}

#[test]
fn dig_asks_over_tcp_and_ipv6() -> Result<()> {
    check_dig(Protocol::Tcp, V6)
}

#[test]
fn glibc_programs_ask_the_nameserver_in_the_containers_resolv_conf() -> Result<()> {
    for server in [V4, V6] {
        check(Protocol::Udp, server, |container| Libc::Glibc.resolve(container, "example.test"))?;
        check(Protocol::Udp, server, |container| getent(container, "example.test"))?;
    }
    Ok(())
}

#[test]
fn musl_programs_ask_the_nameserver_in_the_containers_resolv_conf() -> Result<()> {
    for server in [V4, V6] {
        check(Protocol::Udp, server, |container| Libc::Musl.resolve(container, "example.test"))?;
    }
    Ok(())
}

#[test]
fn a_program_that_wants_more_than_udp_holds_comes_back_over_tcp() -> Result<()> {
    require_root_and_bpf();
    let world = World::new()?;
    let nameserver = PlainServer::start(world.internet())?;
    let container = world.container("app")?;
    let lines = dig(&container, &["+ignore", "TXT", "big.example.test"])?;
    assert_eq!(lines, Vec::<String>::new());
    let lines = dig(&container, &["TXT", "big.example.test"])?;
    assert_eq!(lines.len(), 1);
    assert_eq!(nameserver.queries().len(), 3);
    Ok(())
}

#[test]
fn the_resolv_conf_of_a_container_can_change_while_it_runs() -> Result<()> {
    require_root_and_bpf();
    let world = World::new()?;
    let nameserver = PlainServer::start(world.internet())?;
    let container = world.container("app")?;
    getent(&container, "a.example.test")?;
    container.set_resolv_conf("nameserver 9.9.9.9\n")?;
    getent(&container, "b.example.test")?;
    let servers: BTreeSet<String> =
        nameserver.queries().iter().map(|query| query.server.to_string()).collect();
    assert_eq!(servers, BTreeSet::from(["8.8.8.8:53".to_owned(), "9.9.9.9:53".to_owned()]));
    Ok(())
}

#[test]
fn a_container_on_the_hosts_network_asks_from_the_hosts_address() -> Result<()> {
    require_root_and_bpf();
    let world = World::new()?;
    let nameserver = PlainServer::start(world.internet())?;
    let container = world.host_container("node-agent")?;
    assert_eq!(container.netns().inode()?, world.host().inode()?);
    getent(&container, "example.test")?;
    let queries = nameserver.queries();
    assert!(queries.iter().all(|query| query.client.ip() == container.addresses().v4));
    Ok(())
}
