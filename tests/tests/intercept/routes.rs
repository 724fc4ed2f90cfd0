//! Names that a route sends to the nameserver that was asked, from where it was asked, and nothing
//! else with them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Capture, Container, Daemon, Dnsmasq, DotServer, Packet, PlainServer, Stage, Zone,
    clients::{Libc, dig},
    container::INTERFACE,
    dnsmasq::DNSMASQ_A,
    port53,
    stage::{UPSTREAM_NAME, Witness},
    world::UPLINK,
};

/// The host's end of the first container's link.
const GATEWAY: &str = "10.88.1.1";
const GATEWAY6: &str = "fd88:0:0:1::1";
/// Names of internal networks.
const INTERNAL: [&str; 7] = [
    "db.internal",
    "ip-10-0-0-1.eu-west-1.compute.internal",
    "x.cluster.local",
    "printer.local",
    "nas.home.arpa",
    "db",
    "web.dns.podman",
];
const REVERSE: &str = "4.3.2.10.in-addr.arpa";
const ENCRYPTED: [&str; 3] = ["example.test", "internal.example.test", "xinternal.example.test"];

/// A container that asks `server`, and somebody there who answers in plaintext.
struct Network {
    stage: Stage,
    container: Container,
    nameserver: PlainServer,
    _daemon: Daemon,
}

impl Network {
    fn new(server: &str, args: &[&str]) -> Result<Self> {
        Self::with(server, args, |_, _| Ok(()))
    }

    /// The same with a network that is not yet as it should be.
    fn with(
        server: &str,
        args: &[&str],
        prepare: impl FnOnce(&Stage, &Container) -> Result<()>,
    ) -> Result<Self> {
        let stage = Stage::new()?;
        let resolv_conf = format!("nameserver {server}\n");
        let container = stage.world.container_with("app", &resolv_conf)?;
        prepare(&stage, &container)?;
        let addr: SocketAddr = SocketAddr::new(server.parse()?, 53);
        let nameserver = PlainServer::start_on(stage.world.host(), &[addr], Zone::Plaintext)?;
        let daemon = daemon(&stage, &container, args)?;
        Ok(Self { stage, container, nameserver, _daemon: daemon })
    }

    /// Names that came in plaintext, in order.
    fn plaintext(&self) -> Vec<String> {
        self.nameserver.queries().into_iter().map(|query| query.question.name).collect()
    }

    /// Names that came over TLS, in order; a slow one may have been asked twice.
    fn encrypted(&self) -> Vec<String> {
        let queries = self.stage.upstream.journal().queries.into_iter();
        let mut names: Vec<_> = queries.map(|query| query.name).collect();
        names.dedup();
        names
    }
}

fn daemon(stage: &Stage, container: &Container, args: &[&str]) -> Result<Daemon> {
    let mut all = stage.run_args(&[container.cgroup()])?;
    all.extend(args.iter().map(|&arg| arg.to_owned()));
    let daemon = Daemon::start(&stage.world, &all)?;
    daemon.wait_until_serving(container.netns())?;
    Ok(daemon)
}

fn ask(container: &Container, name: &str, options: &[&str]) -> Result<Vec<String>> {
    dig(container, &[&[name], options].concat())
}

/// Of all that left the container or the host, only what was exchanged with `server` was plaintext;
/// how many packets these were.
fn only_with(witness: Witness, server: IpAddr) -> Result<usize> {
    let (inside, uplink) = witness.packets()?;
    let plaintext = port53(&uplink);
    ensure!(plaintext.is_empty(), "plaintext on the uplink: {}", plaintext[0]);
    let with_server = |packet: &&&Packet| [packet.src.ip(), packet.dst.ip()].contains(&server);
    let plaintext = port53(&inside);
    let other = plaintext.iter().find(|packet| !with_server(packet));
    ensure!(other.is_none(), "plaintext with somebody else: {other:?}");
    Ok(plaintext.len())
}

fn check_near(server: &str, transport: &str) -> Result<()> {
    let network = Network::new(server, &[])?;
    let container = &network.container;
    let witness = network.stage.witness(container)?;
    let (plain, encrypted) = (Zone::Plaintext.a().to_string(), Zone::Encrypted.a().to_string());

    for name in INTERNAL {
        let found = ask(container, name, &[transport])?;
        ensure!(found == [plain.as_str()], "{name}: {found:?}");
    }
    ask(container, REVERSE, &[transport, "PTR"])?;
    let found = ask(container, ENCRYPTED[0], &[transport])?;
    ensure!(found == [encrypted], "{found:?}");
    for name in [ENCRYPTED[1], ENCRYPTED[2], "8.8.8.8.in-addr.arpa"] {
        ask(container, name, &[transport])?;
    }

    let internal = [&INTERNAL[..], &[REVERSE]].concat();
    ensure!(network.plaintext() == internal, "in plaintext: {:?}", network.plaintext());
    let tls = [&ENCRYPTED[..], &["8.8.8.8.in-addr.arpa"]].concat();
    ensure!(network.encrypted() == tls, "encrypted: {:?}", network.encrypted());
    let packets = only_with(witness, server.parse()?)?;
    ensure!(transport == "+tcp" || packets == 2 * internal.len(), "{packets} packets");
    let clients: Vec<IpAddr> =
        network.nameserver.queries().iter().map(|query| query.client.ip()).collect();
    let own = container.addresses();
    let is_own = |ip: &IpAddr| [IpAddr::from(own.v4), own.v6.into()].contains(ip);
    ensure!(clients.iter().all(is_own), "it was asked from {clients:?}");
    Ok(())
}

#[test]
fn a_private_nameserver_is_asked_for_internal_names_and_for_nothing_else() -> Result<()> {
    check_near(GATEWAY, "+notcp")
}

#[test]
fn the_same_over_tcp() -> Result<()> {
    check_near(GATEWAY, "+tcp")
}

#[test]
fn the_same_over_ipv6() -> Result<()> {
    check_near(GATEWAY6, "+notcp")
}

#[test]
fn a_public_nameserver_never_hears_of_internal_names() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = daemon(&stage, &container, &[])?;
    let witness = stage.witness(&container)?;
    for name in INTERNAL {
        ensure!(ask(&container, name, &[])?.is_empty(), "{name}: the upstream has no such name");
    }
    witness.saw_only_tls()?;
    // On a busy machine one may be asked twice.
    let journal = stage.upstream.journal();
    let asked: BTreeSet<_> = journal.queries.iter().map(|query| &query.name).collect();
    ensure!(asked.len() == INTERNAL.len(), "{asked:?}");
    ensure!(stage.nameserver.queries().is_empty());
    let log = daemon.log().clone();
    daemon.stop()?;
    ensure!(log.text().contains("plaintext=0 local=0"), "{}", log.text());
    Ok(())
}

#[test]
fn a_public_nameserver_that_is_a_neighbour_is_asked() -> Result<()> {
    // For benchmarks (RFC 2544), so neither private nor anybody's.
    let network = Network::with("198.18.0.1", &[], |stage, container| {
        stage.world.host().ip(&["addr", "add", "198.18.0.1/24", "dev", "c1"])?;
        container.netns().ip(&["addr", "add", "198.18.0.2/24", "dev", INTERFACE]).map(drop)
    })?;
    let found = ask(&network.container, "db.internal", &[])?;
    ensure!(found == [Zone::Plaintext.a().to_string()], "{found:?}");
    ensure!(network.plaintext() == ["db.internal"] && network.encrypted().is_empty());
    Ok(())
}

#[test]
fn a_link_local_nameserver_is_asked_by_the_right_interface() -> Result<()> {
    let stage = Stage::new()?;
    let server = "fe80::53";
    stage.world.container("first")?.destroy();
    let container =
        stage.world.container_with("app", &format!("nameserver {server}%{INTERFACE}\n"))?;
    let link = container.addresses().host_link.clone();
    stage.world.host().ip(&["addr", "add", "fe80::53/64", "dev", &link, "nodad"])?;
    // One more interface that it could be behind.
    container.netns().veth("other", stage.world.host(), "else")?;
    stage.world.host().ip(&["link", "set", "else", "up"])?;
    container.netns().ip(&["addr", "add", "fe80::1/64", "dev", "other", "nodad"])?;
    container.netns().ip(&["link", "set", "other", "up"])?;
    let index = stage.world.host().run(|| nix::net::if_::if_nametoindex(link.as_str()))??;
    let addr = std::net::SocketAddrV6::new(server.parse()?, 53, 0, index);
    let nameserver = PlainServer::start_on(stage.world.host(), &[addr.into()], Zone::Plaintext)?;
    let _daemon = daemon(&stage, &container, &[])?;

    let found = Libc::Glibc.resolve(&container, "db.internal")?;
    ensure!(found.contains(&Zone::Plaintext.a().into()), "{found:?}");
    let found = Libc::Glibc.resolve(&container, "example.test")?;
    ensure!(found.contains(&Zone::Encrypted.a().into()), "{found:?}");
    ensure!(nameserver.queries().iter().all(|query| query.question.name == "db.internal"));
    Ok(())
}

#[test]
fn a_real_internal_nameserver_resolves_and_gives_its_zone_away() -> Result<()> {
    let stage = Stage::new()?;
    let resolv_conf = format!("nameserver {GATEWAY}\n");
    let container = stage.world.container_with("app", &resolv_conf)?;
    let (address, peer) = (format!("{GATEWAY}:53").parse()?, container.addresses().v4.into());
    let _nameserver = Dnsmasq::start(stage.world.host(), address, peer)?;
    let _daemon = daemon(&stage, &container, &[])?;
    let witness = stage.witness(&container)?;

    for libc in [Libc::Glibc, Libc::Musl] {
        let found = libc.resolve(&container, "db.lab.internal")?;
        ensure!(found.contains(&DNSMASQ_A.into()), "{libc:?}: {found:?}");
    }
    let reverse = ask(&container, "-x", &[&DNSMASQ_A.to_string()])?;
    ensure!(reverse.iter().any(|name| name == "db.lab.internal."), "{reverse:?}");
    let whole = container.run("dig", &["AXFR", "lab.internal", &format!("@{GATEWAY}")])?;
    ensure!(whole.contains("XFR size: ") && whole.contains(&DNSMASQ_A.to_string()), "{whole}");
    ensure!(only_with(witness, GATEWAY.parse()?)? > 0);
    ensure!(stage.upstream.journal().queries.is_empty());
    Ok(())
}

#[test]
fn zone_transfers_go_to_the_nameserver_that_was_asked_whatever_the_zone() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = daemon(&stage, &container, &[])?;
    // Ours knows nothing of zone transfers: it answers with one message without records.
    container.run("dig", &["AXFR", "example.test", "@8.8.8.8", "+tries=1", "+time=5"])?;
    let asked = stage.nameserver.queries();
    ensure!(asked.len() == 1 && asked[0].question.name == "example.test", "{asked:?}");
    ensure!(stage.upstream.journal().queries.is_empty());
    let log = daemon.log().clone();
    daemon.stop()?;
    ensure!(log.text().contains("plaintext=1 "), "{}", log.text());
    Ok(())
}

#[test]
fn routes_say_where_names_go() -> Result<()> {
    let route = [
        "--route=plain.example.test=original",
        "--route=other.example.test=127.0.0.9:5353",
        "--route=second.example.test=tls://9.9.9.9#dns.test,internal=refuse",
        "--route=blocked.example.test=nxdomain,deep.plain.example.test=tls://9.9.9.9#dns.test",
    ];
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    // 127.0.0.9 is the host's, not the container's.
    let other = ["127.0.0.9:5353".parse()?];
    let other = PlainServer::start_on(stage.world.host(), &other, Zone::Plaintext)?;
    let identity = stage.pki.server(&[UPSTREAM_NAME])?;
    let second = DotServer::start(stage.world.internet(), &["9.9.9.9:853".parse()?], &identity)?;
    let daemon = daemon(&stage, &container, &route)?;
    let camera = Capture::on(stage.world.host(), UPLINK)?;
    let ask = |name: &str| container.run("dig", &["+tries=1", "+time=5", name]);

    let plaintext = Zone::Plaintext.a().to_string();
    ensure!(ask("a.plain.example.test")?.contains(&plaintext));
    ensure!(ask("a.other.example.test")?.contains(&plaintext));
    ensure!(ask("a.second.example.test")?.contains("status: NOERROR"));
    ensure!(ask("a.deep.plain.example.test")?.contains("status: NOERROR"));
    ensure!(ask("db.internal")?.contains("status: REFUSED"));
    ensure!(ask("a.blocked.example.test")?.contains("status: NXDOMAIN"));
    ensure!(ask("example.test")?.contains(&Zone::Encrypted.a().to_string()));

    let names = |server: &DotServer| -> Vec<String> {
        server.journal().queries.into_iter().map(|query| query.name).collect()
    };
    ensure!(names(&second) == ["a.second.example.test", "a.deep.plain.example.test"]);
    ensure!(names(&stage.upstream) == ["example.test"]);
    ensure!(other.queries().len() == 1);
    let asked = stage.nameserver.queries();
    ensure!(asked.len() == 1 && asked[0].server == "8.8.8.8:53".parse()?, "{asked:?}");
    ensure!(asked[0].client.ip() == IpAddr::from(container.addresses().v4), "{asked:?}");
    ensure!(port53(&camera.stop()?).len() == 2, "one query and one answer in plaintext");
    let log = daemon.log().clone();
    daemon.stop()?;
    ensure!(log.text().contains("encrypted=3 failed=0"), "{}", log.text());
    ensure!(log.text().contains("plaintext=2 local=2"), "{}", log.text());
    Ok(())
}

#[test]
fn default_routes_can_be_dropped() -> Result<()> {
    let network = Network::new(GATEWAY, &["--no-default-routes"])?;
    let witness = network.stage.witness(&network.container)?;
    for name in INTERNAL {
        ask(&network.container, name, &[])?;
    }
    ensure!(network.encrypted() == INTERNAL && network.plaintext().is_empty());
    witness.saw_only_tls()
}

#[test]
fn special_names_are_answered_on_the_spot() -> Result<()> {
    let network = Network::new(GATEWAY, &[])?;
    let ask = |arguments: &[&str]| network.container.run("dig", arguments);
    for (arguments, expected) in [
        (&["localhost"][..], "\t127.0.0.1\n"),
        (&["a.localhost", "AAAA"], "\t::1\n"),
        (&["-x", "127.0.0.1"], "\tlocalhost.\n"),
        (&["-x", "::1"], "PTR localhost.\n"),
        (&["some.onion"], "status: NXDOMAIN"),
        (&["some.invalid"], "status: NXDOMAIN"),
        (&["_dns.resolver.arpa", "SVCB"], "status: NOERROR"),
    ] {
        let printed = ask(arguments)?;
        ensure!(printed.contains(expected), "{arguments:?}:\n{printed}");
    }
    ensure!(network.encrypted().is_empty() && network.plaintext().is_empty());
    // Whether browsers do without us is not for us to say.
    ask(&["use-application-dns.net"])?;
    ensure!(network.encrypted() == ["use-application-dns.net"]);
    Ok(())
}

#[test]
fn a_name_of_the_original_nameserver_goes_nowhere_else_if_that_one_is_gone() -> Result<()> {
    let stage = Stage::new()?;
    let resolv_conf = format!("nameserver {GATEWAY}\n");
    let container = stage.world.container_with("app", &resolv_conf)?;
    let daemon = daemon(&stage, &container, &[])?;
    for transport in ["+notcp", "+tcp"] {
        let printed = container.run("dig", &["+tries=1", "+time=5", transport, "db.internal"])?;
        ensure!(printed.contains("status: SERVFAIL"), "{printed}");
        ensure!(printed.contains("EDE: 23") && printed.contains("of this route"), "{printed}");
    }
    ensure!(stage.upstream.journal().queries.is_empty(), "it leaked upstream");
    let log = daemon.log().clone();
    daemon.stop()?;
    ensure!(log.text().contains("failed=2") && log.text().contains("plaintext=2"));
    Ok(())
}

#[test]
fn large_answers_of_the_original_nameserver_come_whole() -> Result<()> {
    let network = Network::new(GATEWAY, &["--route=example.test=original"])?;
    let ask = |arguments: &[&str]| {
        network.container.run("dig", &[&["big.example.test", "TXT"], arguments].concat())
    };
    let whole = ask(&["+ignore", "+bufsize=4096"])?;
    ensure!(whole.contains("\tTXT\t") && !whole.contains("flags: qr tc"), "{whole}");
    let cut = ask(&["+ignore", "+noedns"])?;
    ensure!(cut.contains("flags: qr tc"), "{cut}");
    let again = ask(&["+noedns"])?;
    ensure!(again.contains("\tTXT\t"), "{again}");
    ensure!(network.encrypted().is_empty());
    Ok(())
}

/// A service of the host, the daemon itself in the scope.
#[test]
fn what_the_daemon_asks_is_neither_redirected_nor_guarded() -> Result<()> {
    let stage = Stage::new()?;
    let resolv_conf = format!("nameserver {GATEWAY}\n");
    let container = stage.world.container_with("app", &resolv_conf)?;
    let address = format!("{GATEWAY}:53").parse()?;
    let nameserver = PlainServer::start_on(stage.world.host(), &[address], Zone::Plaintext)?;
    let service = stage.world.host_container("dns-proxy")?;
    let command = service.command(Daemon::program()?)?;
    let daemon = Daemon::start_command(command, &stage.run_args(&[stage.world.cgroup()])?)?;
    daemon.wait_until_serving(container.netns())?;
    for transport in ["+notcp", "+tcp"] {
        let found = ask(&container, "db.internal", &[transport])?;
        ensure!(found == [Zone::Plaintext.a().to_string()], "{transport}: {found:?}");
    }
    ensure!(nameserver.queries().len() == 2);
    let log = daemon.log().clone();
    daemon.stop()?;
    ensure!(log.text().contains("guarded=0"), "{}", log.text());
    Ok(())
}
