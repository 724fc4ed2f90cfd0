//! Sockets that insist on a device, and the routes by which they reach the tokens.

mod answers;
mod routes;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Container, Netns, Zone, clients::probe, eventually, process::output};

const NAME: &str = "example.test";
const SHAPES: [&str; 5] =
    ["bound-connected", "bound-unconnected", "bound-tcp", "unicast-if", "pktinfo"];
const SERVERS: [&str; 2] = ["8.8.8.8", "2001:4860:4860::8888"];
/// Longer than the daemon takes to hear of a change, and than duplicate address detection takes.
const SOON: Duration = Duration::from_secs(5);
/// Networks of tokens: the families', and that of link-local nameservers.
const TOKENS: [&str; 3] = ["127.64.0.0/10", "fd90:2c8e:591c:53::/64", "fe90:2c8e:591c:53::/64"];
/// How many routes a container with one interface has: two over `lo`, three over the interface.
const ROUTES: usize = 5;

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

fn ensure_routes(netns: &Netns, wanted: usize) -> Result<()> {
    ensure!(token_routes(netns)?.len() == wanted, "not {wanted}; {}", state(netns));
    Ok(())
}

/// Until the entry of the device follows its route, which it does at once.
fn wait_for_answer(container: &Container, device: &str) -> Result<()> {
    let bound = eventually(SOON, || check(container, SHAPES[0], SERVERS[1], device).is_ok());
    ensure!(bound, "{device}: {}", state(container.netns()));
    Ok(())
}

/// A second interface, `eth1`, which is up and has no address; the other end of it.
fn second_interface(netns: &Netns) -> Result<Netns> {
    let there = Netns::new()?;
    netns.veth("eth1", &there, "eth1")?;
    there.ip(&["link", "set", "eth1", "up"])?;
    netns.ip_batch("link set eth1 addrgenmode none\nlink set eth1 up\n")?;
    Ok(there)
}

/// The routes to tokens in all tables, without what the kernel keeps for every namespace.
fn token_routes(netns: &Netns) -> Result<Vec<String>> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let all = netns.ip(&[family, "route", "show", "table", "all"])?;
        let tokens = |line: &&str| TOKENS.iter().any(|tokens| line.contains(tokens));
        routes.extend(all.lines().filter(tokens).map(|line| line.trim().to_owned()));
    }
    Ok(routes)
}

fn rules(netns: &Netns) -> Result<String> {
    Ok(netns.ip(&["-4", "rule"])? + &netns.ip(&["-6", "rule"])?)
}

/// Those of the families that name a device, by their source.
fn sources(netns: &Netns, device: &str) -> Vec<String> {
    let routes = token_routes(netns).unwrap_or_default();
    let named =
        |route: &&String| route.contains(&format!(" dev {device} ")) && !route.contains(TOKENS[2]);
    let source = |route: &String| {
        let mut words = route.split_whitespace().skip_while(|word| *word != "src");
        words.nth(1).unwrap_or("none").to_owned()
    };
    routes.iter().filter(named).map(source).collect()
}

fn wait_for_sources(netns: &Netns, device: &str, wanted: &[&str]) -> Result<()> {
    let reached = eventually(SOON, || sources(netns, device) == wanted);
    ensure!(reached, "{device} has not {wanted:?}; {}", state(netns));
    Ok(())
}
