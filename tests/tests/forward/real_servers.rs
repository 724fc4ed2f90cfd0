//! The main job with upstreams that we did not write: Debian's unbound, dnsdist and Knot Resolver.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Capture, Container, Daemon, Dnsdist, Kresd, Pki, PlainServer, Unbound, World, Zone,
    clients::{Libc, dig, probe},
    container::INTERFACE,
    eventually, expected_a, port53,
    process::output,
    require_root_and_bpf, to_port,
    unbound::{UNBOUND_A, UNBOUND_AAAA},
    world::UPLINK,
};

use crate::{
    client::Burst,
    place::{LIMIT, NAME, NAMED_UPSTREAM, Place, UPSTREAM},
};

const SERVER: &str = "9.9.9.9:853";
/// Where dnsdist and kresd have their answers from, in its own namespace.
const BACKEND: &str = "127.0.0.1:5300";

/// A world with an intercepted container and cameras; the upstream is to come.
struct Setting {
    daemon: Daemon,
    container: Container,
    inside: Capture,
    uplink: Capture,
    pki: Pki,
    world: World,
}

impl Setting {
    fn new(upstream: &str, nameserver: &str) -> Result<Self> {
        require_root_and_bpf();
        let (world, pki) = (World::new()?, Pki::new()?);
        let container = world.container_with("app", &format!("nameserver {nameserver}\n"))?;
        let ca = pki.ca_file().display().to_string();
        let cgroup = container.cgroup().path()?.to_string();
        let args = ["--upstream", upstream, "--ca", &ca, "--no-system-roots", "--cgroup", &cgroup];
        let daemon = Daemon::start(&world, &[&["run"], &args[..]].concat())?;
        daemon.wait_until_serving(container.netns())?;
        let inside = Capture::on(container.netns(), INTERFACE)?;
        let uplink = Capture::on(world.host(), UPLINK)?;
        Ok(Self { daemon, container, inside, uplink, pki, world })
    }

    /// Everything was encrypted, and nothing was lost on the way.
    fn check_encrypted(self) -> Result<()> {
        for (place, packets) in [("inside", self.inside.stop()?), ("uplink", self.uplink.stop()?)] {
            ensure!(port53(&packets).is_empty(), "plaintext {place}");
            let encrypted = !to_port(&packets, 853).is_empty();
            ensure!(encrypted == (place == "uplink"), "TLS {place}: {encrypted}");
        }
        let log = self.daemon.log().clone();
        self.daemon.stop()?;
        ensure!(log.text().contains("failed=0"), "{}", log.text());
        Ok(())
    }
}

fn addresses(lines: &[String]) -> Vec<IpAddr> {
    lines.iter().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn unbound_answers_an_intercepted_container() -> Result<()> {
    let setting = Setting::new(&format!("{SERVER}#{NAME}"), "8.8.8.8")?;
    let (internet, identity) = (setting.world.internet(), setting.pki.server(&[NAME])?);
    let _unbound = Unbound::start(internet, SERVER.parse()?, &identity)?;
    let container = &setting.container;

    for (args, expected) in [
        (&["example.org", "@8.8.8.8"][..], IpAddr::from(UNBOUND_A)),
        (&["example.org", "@8.8.8.8", "+noedns"], UNBOUND_A.into()),
        (&["example.org", "@2620:fe::fe", "+tcp", "+dnssec"], UNBOUND_A.into()),
        (&["example.org", "@8.8.4.4", "AAAA"], UNBOUND_AAAA.into()),
        (&["wWw.ExAmPlE.oRg", "@8.8.4.4"], UNBOUND_A.into()),
    ] {
        let found = addresses(&dig(container, args)?);
        ensure!(found == [expected], "{args:?}: {found:?}");
    }
    for libc in [Libc::Glibc, Libc::Musl] {
        let found = libc.resolve(container, "example.org")?;
        ensure!(found == [UNBOUND_A.into(), UNBOUND_AAAA.into()].into(), "{libc:?}: {found:?}");
    }
    let missing = container.run("dig", &["missing.example.org", "@8.8.8.8"])?;
    ensure!(missing.contains("NXDOMAIN"), "{missing}");
    setting.check_encrypted()
}

#[test]
fn unbound_may_be_restarted() -> Result<()> {
    let setting = Setting::new(&format!("{SERVER}#{NAME}"), "8.8.8.8")?;
    let (internet, identity) = (setting.world.internet(), setting.pki.server(&[NAME])?);
    for round in 0..3 {
        let unbound = Unbound::start(internet, SERVER.parse()?, &identity)?;
        let found = addresses(&dig(&setting.container, &["example.org", "@8.8.8.8"])?);
        ensure!(found == [IpAddr::from(UNBOUND_A)], "round {round}: {found:?}");
        drop(unbound);
    }
    setting.check_encrypted()
}

#[test]
fn a_certificate_of_unbounds_that_is_not_ours_gets_no_query() -> Result<()> {
    let setting = Setting::new(&format!("{SERVER}#{NAME}"), "8.8.8.8")?;
    let other = Pki::new()?;
    let identity = other.server(&[NAME])?;
    let _unbound = Unbound::start(setting.world.internet(), SERVER.parse()?, &identity)?;
    let printed = setting.container.run("dig", &["+time=5", "example.org", "@8.8.8.8"])?;
    ensure!(printed.contains("SERVFAIL") && printed.contains("EDE: 23"), "{printed}");
    setting.daemon.wait_for_log("no trusted root vouches", LIMIT)?;
    ensure!(port53(&setting.uplink.stop()?).is_empty(), "plaintext");
    Ok(())
}

fn check_dnsdist(upstream: &str, held: &str, nameserver: &str) -> Result<()> {
    let setting = Setting::new(upstream, nameserver)?;
    let internet = setting.world.internet();
    let (identity, backend) = (setting.pki.server(&[held])?, BACKEND.parse::<SocketAddr>()?);
    let behind = PlainServer::start_on(internet, &[backend], Zone::Encrypted)?;
    let server = upstream.split('#').next().context("an address")?.parse()?;
    let _dnsdist = Dnsdist::start(internet, server, &identity, backend)?;
    let (container, at) = (&setting.container, format!("@{nameserver}"));

    for args in [&["+noedns"][..], &["+dnssec"], &["+tcp"], &["+cookie", "+subnet=0.0.0.0/0"]] {
        let found = addresses(&dig(container, &[&["www.example.test", &at], args].concat())?);
        ensure!(found == [IpAddr::from(expected_a("www.example.test"))], "{args:?}: {found:?}");
    }
    let found = Libc::Glibc.resolve(container, "example.test")?;
    let both: [IpAddr; 2] = [Zone::Encrypted.a().into(), Zone::Encrypted.aaaa().into()];
    ensure!(found == both.into(), "{found:?}");
    let unknown = dig(container, &["example.test", "TYPE65400", &at])?;
    ensure!(unknown.concat().starts_with("\\# "), "{unknown:?}");
    let mut many = probe(container)?;
    many.args(["many", "300", "50", nameserver, "example.test"]);
    let printed = output(&mut many)?;
    ensure!(printed.contains("ok=300 lost=0 wrong=0"), "{printed}");
    ensure!(eventually(LIMIT, || behind.queries().len() >= 300));
    setting.check_encrypted()
}

#[test]
fn dnsdist_with_a_name_answers_an_intercepted_container() -> Result<()> {
    check_dnsdist(&format!("{SERVER}#{NAME}"), NAME, "8.8.8.8")
}

#[test]
fn dnsdist_with_an_address_answers_an_intercepted_container_over_ipv6() -> Result<()> {
    check_dnsdist("[2620:fe::fe]:853", "2620:fe::fe", "2001:4860:4860::8888")
}

#[test]
fn dnsdist_may_be_restarted() -> Result<()> {
    let setting = Setting::new(&format!("{SERVER}#{NAME}"), "8.8.8.8")?;
    let internet = setting.world.internet();
    let (identity, backend) = (setting.pki.server(&[NAME])?, BACKEND.parse()?);
    let _behind = PlainServer::start_on(internet, &[backend], Zone::Encrypted)?;
    for round in 0..3 {
        let dnsdist = Dnsdist::start(internet, SERVER.parse()?, &identity, backend)?;
        let found = addresses(&dig(&setting.container, &["example.test", "@8.8.8.8"])?);
        let expected: Ipv4Addr = Zone::Encrypted.a();
        ensure!(found == [IpAddr::from(expected)], "round {round}: {found:?}");
        drop(dnsdist);
    }
    setting.check_encrypted()
}

#[test]
fn kresd_answers_an_intercepted_container() -> Result<()> {
    let setting = Setting::new(&format!("{SERVER}#{NAME}"), "8.8.8.8")?;
    let internet = setting.world.internet();
    let (identity, backend) = (setting.pki.server(&[NAME])?, BACKEND.parse::<SocketAddr>()?);
    let _behind = PlainServer::start_on(internet, &[backend], Zone::Encrypted)?;
    let _kresd = Kresd::start(internet, SERVER.parse()?, &identity, backend)?;
    let container = &setting.container;
    for args in [&["+noedns"][..], &["+dnssec"], &["+tcp"], &["+cookie", "+subnet=0.0.0.0/0"]] {
        let args = [&["www.example.test", "@8.8.8.8"], args].concat();
        let found = addresses(&dig(container, &args)?);
        ensure!(found == [IpAddr::from(expected_a("www.example.test"))], "{args:?}: {found:?}");
    }
    setting.check_encrypted()
}

/// It reads no more before it has answered one of them.
#[test]
fn a_burst_of_a_thousand_loses_nothing_though_kresd_allows_a_hundred() -> Result<()> {
    let (place, backend) = (Place::new()?, BACKEND.parse()?);
    let _behind = PlainServer::start_on(&place.netns, &[backend], Zone::Encrypted)?;
    let _kresd = Kresd::start(&place.netns, UPSTREAM.parse()?, &place.identity()?, backend)?;
    let _daemon = place.daemon(&[NAMED_UPSTREAM], &[])?;
    let (client, burst) = (place.udp()?, Burst::new("n", 1_000)?);
    for query in burst.queries() {
        client.send(&query)?;
    }
    burst.collect(|| client.receive()).map(drop)
}

/// Whoever is killed with hundreds of queries unanswered and is back a moment later.
#[test]
fn kresd_may_be_restarted_under_load() -> Result<()> {
    let (place, backend) = (Place::new()?, BACKEND.parse()?);
    let _behind = PlainServer::start_on(&place.netns, &[backend], Zone::Encrypted)?;
    let identity = place.identity()?;
    let start = || Kresd::start(&place.netns, UPSTREAM.parse()?, &identity, backend);
    let mut kresd = start()?;
    let _daemon = place.daemon(&[NAMED_UPSTREAM], &["--upstream-timeout", "8s"])?;
    let client = place.udp()?;
    for round in 0..3 {
        let burst = Burst::new(&format!("r{round}-"), 500)?;
        for query in burst.queries() {
            client.send(&query)?;
        }
        drop(kresd);
        kresd = start()?;
        burst.collect(|| client.receive()).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}
