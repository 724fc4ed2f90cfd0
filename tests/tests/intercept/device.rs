//! Sockets that insist on a device are answered like any other, whatever becomes of the device.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Container, Daemon, Netns, Stage, Zone,
    clients::{dig, probe},
    container::INTERFACE,
    eventually,
    process::output,
};

const NAME: &str = "example.test";
const SHAPES: [&str; 5] =
    ["bound-connected", "bound-unconnected", "bound-tcp", "unicast-if", "pktinfo"];
const SERVERS: [&str; 2] = ["8.8.8.8", "2001:4860:4860::8888"];
/// Longer than the daemon takes to hear of a change, and than duplicate address detection takes.
const SOON: Duration = Duration::from_secs(5);

/// Asks in every way; each must show the nameserver it asked and the encrypted answer.
fn check_all(container: &Container, device: &str) -> Result<()> {
    for server in SERVERS {
        SHAPES.iter().try_for_each(|shape| check(container, shape, server, device))?;
    }
    Ok(())
}

fn check(container: &Container, shape: &str, server: &str, device: &str) -> Result<()> {
    let asked = [shape, server, NAME, device];
    let printed = output(probe(container)?.args(["--timeout", "2"]).args(asked))
        .with_context(|| format!("{asked:?}; {}", state(container.netns())))?;
    let shown = std::net::SocketAddr::new(server.parse()?, 53).to_string();
    for wanted in [shown, Zone::Encrypted.a().to_string()] {
        ensure!(printed.contains(&wanted), "{asked:?}: no {wanted} in: {printed}");
    }
    Ok(())
}

fn state(netns: &Netns) -> String {
    format!("routes to tokens: {:#?}", token_routes(netns))
}

/// The routes to tokens in all tables, without what the kernel keeps for every namespace.
fn token_routes(netns: &Netns) -> Result<Vec<String>> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let all = netns.ip(&[family, "route", "show", "table", "all"])?;
        let tokens = |line: &&str| line.contains("127.64.0.0/10") || line.contains("fd90:2c8e");
        routes.extend(all.lines().filter(tokens).map(|line| line.trim().to_owned()));
    }
    Ok(routes)
}

fn rules(netns: &Netns) -> Result<String> {
    Ok(netns.ip(&["-4", "rule"])? + &netns.ip(&["-6", "rule"])?)
}

/// Those that name a device, by their source.
fn sources(netns: &Netns, device: &str) -> Vec<String> {
    let routes = token_routes(netns).unwrap_or_default();
    let on = routes.iter().filter(|route| route.contains(&format!(" dev {device} ")));
    let source = |route: &String| {
        let mut words = route.split_whitespace().skip_while(|word| *word != "src");
        words.nth(1).unwrap_or("none").to_owned()
    };
    on.map(source).collect()
}

fn wait_for_sources(netns: &Netns, device: &str, wanted: &[&str]) -> Result<()> {
    let reached = eventually(SOON, || sources(netns, device) == wanted);
    ensure!(reached, "{device} has not {wanted:?}; {}", state(netns));
    Ok(())
}

#[test]
fn sockets_bound_to_a_device_are_answered() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let before = rules(container.netns())?;
    let _daemon = stage.daemon(&[&container])?;
    let witness = stage.witness(&container)?;
    check_all(&container, INTERFACE)?;
    check_all(&container, "lo")?;
    witness.saw_only_tls()?;
    ensure!(rules(container.netns())? == before, "no rule is needed");
    ensure!(stage.nameserver.queries().is_empty(), "the plaintext nameserver was asked");
    Ok(())
}

#[test]
fn strict_reverse_path_filters_do_not_mind() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    for conf in ["all", "lo", INTERFACE] {
        container.netns().sysctl(&format!("net/ipv4/conf/{conf}/rp_filter"), "1")?;
    }
    let _daemon = stage.daemon(&[&container])?;
    let witness = stage.witness(&container)?;
    check_all(&container, INTERFACE)?;
    witness.saw_only_tls()
}

#[test]
fn sockets_without_a_device_still_come_from_loopback() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _daemon = stage.daemon(&[&container])?;
    for (token, source) in [("127.64.0.1", "src 127.0.0.1"), ("fd90:2c8e:591c:53::1", "src ::1")] {
        let route = container.netns().ip(&["route", "get", token])?;
        ensure!(route.contains("dev lo") && route.contains(source), "{route}");
    }
    Ok(())
}

#[test]
fn the_source_follows_the_address() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _daemon = stage.daemon(&[&container])?;
    let netns = container.netns();
    let (v4, v6) = (container.addresses().v4, container.addresses().v6);
    wait_for_sources(netns, INTERFACE, &[&v4.to_string(), &v6.to_string()])?;

    netns.ip(&["addr", "del", &format!("{v4}/24"), "dev", INTERFACE])?;
    netns.ip(&["addr", "del", &format!("{v6}/64"), "dev", INTERFACE])?;
    netns.ip(&["addr", "add", "10.88.77.2/24", "dev", INTERFACE])?;
    netns.ip(&["addr", "add", "fd88:0:0:77::2/64", "dev", INTERFACE, "nodad"])?;
    wait_for_sources(netns, INTERFACE, &["10.88.77.2", "fd88:0:0:77::2"])?;

    let witness = stage.witness(&container)?;
    // Until the entry follows the route, which it does at once.
    let bound = eventually(SOON, || check(&container, SHAPES[0], SERVERS[1], INTERFACE).is_ok());
    ensure!(bound, "{}", state(netns));
    check_all(&container, INTERFACE)?;
    witness.saw_only_tls()
}

#[test]
fn interfaces_come_and_go() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _daemon = stage.daemon(&[&container])?;
    let netns = container.netns();
    let there = Netns::new()?;
    netns.veth("eth1", &there, "eth1")?;
    there.ip(&["link", "set", "eth1", "up"])?;
    netns.ip_batch(
        "link set eth1 addrgenmode none\nlink set eth1 up\n\
         addr add 10.99.0.2/24 dev eth1\naddr add fd99::2/64 dev eth1 nodad\n",
    )?;
    wait_for_sources(netns, "eth1", &["10.99.0.2", "fd99::2"])?;
    for device in ["eth1", INTERFACE] {
        let first = eventually(SOON, || check(&container, SHAPES[0], SERVERS[1], device).is_ok());
        ensure!(first, "{device}: {}", state(netns));
        check_all(&container, device)?;
    }

    netns.sysctl("net/ipv6/conf/eth1/disable_ipv6", "1")?;
    wait_for_sources(netns, "eth1", &["10.99.0.2"])?;
    check(&container, SHAPES[0], SERVERS[0], "eth1")?;
    let refused = check(&container, SHAPES[0], SERVERS[1], "eth1");
    ensure!(refused.is_err(), "without IPv6 there is no answer over it");

    netns.ip(&["link", "set", "eth1", "down"])?;
    wait_for_sources(netns, "eth1", &[])?;
    netns.ip(&["link", "set", "eth1", "up"])?;
    wait_for_sources(netns, "eth1", &["10.99.0.2"])?;

    netns.ip(&["link", "del", "eth1"])?;
    wait_for_sources(netns, "eth1", &[])?;
    ensure!(token_routes(netns)?.len() == 4, "{}", state(netns));
    check_all(&container, INTERFACE)
}

#[test]
fn an_ipv6_address_is_used_once_it_is_known_to_be_unique() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _daemon = stage.daemon(&[&container])?;
    let netns = container.netns();
    let there = Netns::new()?;
    netns.veth("eth1", &there, "eth1")?;
    there.ip(&["link", "set", "eth1", "up"])?;
    netns.sysctl("net/ipv6/conf/eth1/accept_dad", "1")?;
    netns.ip_batch(
        "link set eth1 addrgenmode none\nlink set eth1 up\naddr add fd99::2/64 dev eth1\n",
    )?;
    ensure!(netns.ip(&["addr", "show", "dev", "eth1", "tentative"])?.contains("fd99::2"));
    wait_for_sources(netns, "eth1", &["fd99::2"])?;
    let bound = eventually(SOON, || check(&container, SHAPES[0], SERVERS[1], "eth1").is_ok());
    ensure!(bound, "{}", state(netns));
    Ok(())
}

#[test]
fn interfaces_without_an_address_have_no_route_and_leak_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _daemon = stage.daemon(&[&container])?;
    let netns = container.netns();
    let there = Netns::new()?;
    netns.veth("eth1", &there, "eth1")?;
    there.ip(&["link", "set", "eth1", "up"])?;
    netns.ip_batch("link set eth1 addrgenmode none\nlink set eth1 up\n")?;
    let camera = dns_proxy_tests::Capture::on(&there, "eth1")?;
    for server in SERVERS {
        for shape in SHAPES {
            let asked = [shape, server, NAME, "eth1"];
            let status = probe(&container)?.args(["--timeout", "0.3"]).args(asked).output()?;
            ensure!(!status.status.success(), "{asked:?}");
        }
    }
    ensure!(sources(netns, "eth1").is_empty(), "{}", state(netns));
    for packet in camera.stop()? {
        let token = dns_proxy_tests::stage::is_token(packet.dst.ip());
        ensure!(!token && packet.dst.port() != 53, "{packet}");
    }
    Ok(())
}

#[test]
fn nothing_is_left_when_the_daemon_has_stopped() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let netns = container.netns();
    let before = rules(netns)?;
    let daemon = stage.daemon(&[&container])?;
    ensure!(token_routes(netns)?.len() == 4, "{}", state(netns));
    ensure!(daemon.stop()?.success());
    ensure!(token_routes(netns)?.is_empty(), "{}", state(netns));
    ensure!(rules(netns)? == before);
    Ok(())
}

#[test]
fn the_next_daemon_takes_over_what_a_killed_one_left() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let netns = container.netns();
    stage.daemon(&[&container])?.kill9()?;
    ensure!(token_routes(netns)?.len() == 4, "{}", state(netns));
    // Meanwhile the address changes; over IPv6 the route loses its source and stays.
    let v6 = container.addresses().v6;
    netns.ip(&["addr", "del", &format!("{v6}/64"), "dev", INTERFACE])?;
    netns.ip(&["addr", "add", "fd88:0:0:77::2/64", "dev", INTERFACE, "nodad"])?;

    let daemon = stage.daemon(&[&container])?;
    ensure!(token_routes(netns)?.len() == 4, "{}", state(netns));
    wait_for_sources(netns, INTERFACE, &[&container.addresses().v4.to_string(), "fd88:0:0:77::2"])?;
    check_all(&container, INTERFACE)?;
    ensure!(daemon.stop()?.success());
    ensure!(token_routes(netns)?.is_empty(), "{}", state(netns));
    Ok(())
}

#[test]
fn two_daemons_in_one_namespace_keep_out_of_each_others_way() -> Result<()> {
    let stage = Stage::new()?;
    let one = stage.world.host_container("one")?;
    let two = stage.world.host_container("two")?;
    let (first, second) = (stage.daemon(&[&one])?, stage.daemon(&[&two])?);
    let uplink = dns_proxy_tests::world::UPLINK;
    ensure!(token_routes(one.netns())?.len() == 8, "{}", state(one.netns()));
    check_all(&one, uplink)?;
    check_all(&two, uplink)?;
    ensure!(first.stop()?.success());
    ensure!(token_routes(two.netns())?.len() == 4, "{}", state(two.netns()));
    check_all(&two, uplink)?;
    // A new one takes the free port, and with it what a killed one would have left there.
    let third: Daemon = stage.daemon(&[&one])?;
    check_all(&one, uplink)?;
    second.kill9()?;
    check_all(&one, uplink)?;
    ensure!(third.stop()?.success());
    let answer = dig(&one, &[NAME, "@8.8.8.8"])?;
    ensure!(answer == [Zone::Plaintext.a().to_string()], "{answer:?}");
    Ok(())
}
