//! `--listen`: clients that are pointed at us, over UDP and TCP, and how they are kept apart.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Daemon, Netns, Orders, Reply, eventually};
use nix::sys::signal::Signal;

use crate::{
    client::{Burst, Tcp, Udp},
    packets::{A, Summary, plain_opt, query, record},
    place::{LIMIT, LISTEN, NAMED_UPSTREAM, Place, Setting},
};

#[test]
fn udp_and_tcp_are_served_on_ipv4_and_ipv6_by_several_workers() -> Result<()> {
    let place = Place::new()?;
    let upstream = place.upstream()?;
    let listen = ["127.0.0.1:53", "[::1]:53", "127.0.0.1:5353"];
    let args = place.run_args(&[NAMED_UPSTREAM], &["--listen=[::1]:53,127.0.0.1:5353"]);
    let daemon = place.start(&[args, vec!["--workers=3".to_owned()]].concat())?;
    for server in listen {
        for n in 0..8 {
            let name = format!("n{n}.example.test");
            place.udp_to(server)?.resolve(&name).with_context(|| format!("UDP {server}"))?;
            place.tcp_to(server)?.resolve(&name).with_context(|| format!("TCP {server}"))?;
        }
    }
    ensure!((2..=3).contains(&upstream.journal().accepted), "one connection for each worker");
    let log = daemon.log().clone();
    ensure!(daemon.stop()?.code() == Some(0));
    ensure!(log.text().contains("queries=48 encrypted=48 failed=0"), "{}", log.text());
    Ok(())
}

#[test]
fn either_transport_can_be_switched_off() -> Result<()> {
    for (variable, udp, tcp) in
        [("DNS_PROXY_ENABLE_TCP", true, false), ("DNS_PROXY_ENABLE_UDP", false, true)]
    {
        let place = Place::new()?;
        let _upstream = place.upstream()?;
        let mut command = place.netns.command(Daemon::program()?);
        command.env(variable, "false");
        let _daemon = Daemon::start_command(command, &place.run_args(&[NAMED_UPSTREAM], &[]))?;
        let by_udp = place.udp()?.resolve("www.example.test");
        let by_tcp = place.tcp().and_then(|mut tcp| tcp.resolve("www.example.test"));
        ensure!(
            (by_udp.is_ok(), by_tcp.is_ok()) == (udp, tcp),
            "{variable}: {by_udp:?} {by_tcp:?}"
        );
        let error = by_udp.err().or(by_tcp.err()).context("none is off")?;
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    }
    Ok(())
}

fn with_variables(mut command: Command, variables: &[(&str, &str)]) -> Command {
    command.envs(variables.iter().copied());
    command
}

/// As in the Go proxy's own Docker image, but for the authority, which is ours.
#[test]
fn the_go_proxys_variables_are_all_it_needs() -> Result<()> {
    let place = Place::new()?;
    let upstream = place.upstream_at("127.0.0.7:8853")?;
    upstream.order(Orders::always(Reply::Silence));
    let identity = place.pki.server(&["127.0.0.7"])?;
    drop(upstream);
    let upstream =
        dns_proxy_tests::DotServer::start(&place.netns, &["127.0.0.7:8853".parse()?], &identity)?;
    let command = with_variables(
        place.netns.command(Daemon::program()?),
        &[
            ("DNS_PROXY_UPSTREAM_SERVER", "127.0.0.7"),
            ("DNS_PROXY_UPSTREAM_PORT", "8853"),
            ("DNS_PROXY_UPSTREAM_TIMEOUT", "300ms"),
            ("DNS_PROXY_ENABLE_TCP", "1"),
            ("DNS_PROXY_ENABLE_UDP", "T"),
            ("DNS_PROXY_CA", &place.pki.ca_file().display().to_string()),
            ("DNS_PROXY_NO_SYSTEM_ROOTS", "true"),
        ],
    );
    let _daemon = Daemon::start_command(command, &["run", "--listen", LISTEN])?;
    place.udp()?.resolve("udp.example.test")?;
    place.tcp()?.resolve("tcp.example.test")?;

    upstream.order(Orders::always(Reply::Silence));
    let started = Instant::now();
    let answer = Summary::of(&place.udp()?.ask(&query(7, "a.test", A, &[&plain_opt()]))?)?;
    ensure!(answer.extended_error.is_some(), "{answer:?}");
    ensure!(started.elapsed() < Duration::from_millis(1500), "the time-out is not 300 ms");
    Ok(())
}

#[test]
fn every_flag_of_a_plain_forwarder_has_an_environment_twin() -> Result<()> {
    let place = Place::new()?;
    let _upstream = place.upstream()?;
    let command = with_variables(
        place.netns.command(Daemon::program()?),
        &[
            ("DNS_PROXY_LISTEN", "127.0.0.1:53,[::1]:53"),
            ("DNS_PROXY_UPSTREAM", "127.0.0.3:853#dns.test,127.0.0.1:853#dns.test"),
            ("DNS_PROXY_UPSTREAM_TIMEOUT", "1m"),
            ("DNS_PROXY_CA", &place.pki.ca_file().display().to_string()),
            ("DNS_PROXY_NO_SYSTEM_ROOTS", "yes"),
            ("DNS_PROXY_ALLOW_FROM", "::1/128,127.0.0.0/8"),
            ("DNS_PROXY_WORKERS", "2"),
            ("DNS_PROXY_LOG", "debug"),
        ],
    );
    let daemon = Daemon::start_command(command, &["run"])?;
    place.udp()?.resolve("www.example.test")?;
    place.udp_to("[::1]:53")?.resolve("www.example.test")?;
    ensure!(daemon.log().text().contains("workers=2"), "{}", daemon.log().text());
    Ok(())
}

/// A switch that says no must not ask for what only yes would need.
#[test]
fn a_switch_can_be_off_in_the_environment() -> Result<()> {
    let place = Place::new()?;
    let variables = [("DNS_PROXY_NO_SYSTEM_ROOTS", "false")];
    let command = with_variables(place.netns.command(Daemon::program()?), &variables);
    let args = ["run", "--listen", LISTEN, "--upstream", NAMED_UPSTREAM];
    Daemon::start_command(command, &args).map(drop)
}

/// A client's namespace, linked to the place's.
fn neighbour(place: &Place, addresses: &[(&str, &str)]) -> Result<Netns> {
    let client = Netns::new()?;
    place.netns.veth("lan", &client, "eth0")?;
    for (ours, theirs) in addresses {
        place.netns.ip(&["addr", "add", ours, "dev", "lan"])?;
        client.ip(&["addr", "add", theirs, "dev", "eth0"])?;
    }
    place.netns.ip(&["link", "set", "lan", "up"])?;
    client.ip(&["link", "set", "eth0", "up"])?;
    Ok(client)
}

const LAN: [(&str, &str); 4] = [
    ("10.9.0.1/24", "10.9.0.2/24"),
    ("203.0.113.1/24", "203.0.113.2/24"),
    ("fd09::1/64", "fd09::2/64"),
    ("2001:db8:9::1/64", "2001:db8:9::2/64"),
];

/// Whom a wildcard listener answers; each address of the client asks the one beside it.
fn check_allowed(allow: &[&str], admitted: [bool; 4]) -> Result<()> {
    let place = Place::new()?;
    let client = neighbour(&place, &LAN)?;
    let _upstream = place.upstream()?;
    let more = [&["--listen=0.0.0.0:5300", "--listen=[::]:5300"], allow].concat();
    let daemon = place.daemon(&[NAMED_UPSTREAM], &more)?;
    let mut denied = 0;
    for ((ours, _), admitted) in LAN.into_iter().zip(admitted) {
        let address = ours.split('/').next().context("an address")?;
        let server = SocketAddr::new(address.parse()?, 5300);
        let (udp, mut tcp) = (Udp::connect(&client, server)?, Tcp::connect(&client, server)?);
        if admitted {
            udp.resolve("www.example.test").with_context(|| format!("UDP to {server}"))?;
            tcp.resolve("www.example.test").with_context(|| format!("TCP to {server}"))?;
        } else {
            udp.send(&query(7, "denied.example.test", A, &[]))?;
            ensure!(tcp.is_closed(), "TCP to {server} was served");
            denied += 2;
        }
    }
    // The worker takes datagrams in order, so those that were denied have been looked at.
    for server in ["10.9.0.1:5300", "[fd09::1]:5300"] {
        place.udp_to(server)?.resolve("last.example.test")?;
    }
    let log = daemon.log().clone();
    daemon.stop()?;
    ensure!(log.text().contains(&format!("denied={denied}")), "{}", log.text());
    Ok(())
}

#[test]
fn by_default_only_near_clients_are_answered() -> Result<()> {
    check_allowed(&[], [true, false, true, false])
}

#[test]
fn allow_from_says_who_is_answered() -> Result<()> {
    let own = "--allow-from=10.9.0.1/32,fd09::1/128,127.0.0.1/32";
    check_allowed(&[own, "--allow-from=203.0.113.0/24"], [false, true, false, false])?;
    check_allowed(&["--allow-from=0.0.0.0/0,::/0"], [true; 4])
}

#[test]
fn answers_come_from_the_address_that_was_asked() -> Result<()> {
    let place = Place::new()?;
    let addresses = [
        ("10.9.0.1/24", "10.9.0.2/24"),
        ("10.9.0.5/24", "10.9.0.6/24"),
        ("fd09::1/64", "fd09::2/64"),
        ("fd09::5/64", "fd09::6/64"),
    ];
    let client = neighbour(&place, &addresses)?;
    let _upstream = place.upstream()?;
    let more = ["--listen=0.0.0.0:5300", "--listen=[::]:5300"];
    let _daemon = place.daemon(&[NAMED_UPSTREAM], &more)?;
    for server in ["10.9.0.1:5300", "10.9.0.5:5300", "[fd09::1]:5300", "[fd09::5]:5300"] {
        let server: SocketAddr = server.parse()?;
        // Unconnected: it would take an answer from anywhere.
        let socket = client.run(|| match server {
            SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => UdpSocket::bind("[::]:0"),
        })??;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send_to(&query(7, "www.example.test", A, &[]), server)?;
        let (_, from) = socket.recv_from(&mut [0; 512])?;
        ensure!(from == server, "{from} answers for {server}");
    }
    Ok(())
}

#[test]
fn link_local_clients_are_answered() -> Result<()> {
    let place = Place::new()?;
    let client = neighbour(&place, &[("fe80::9:1/64", "fe80::9:2/64")])?;
    let _upstream = place.upstream()?;
    let _daemon = place.daemon(&[NAMED_UPSTREAM], &["--listen=[::]:5300"])?;
    let index = client.ip(&["-o", "link", "show", "eth0"])?;
    let index: u32 = index.split(':').next().unwrap_or_default().parse()?;
    let server = std::net::SocketAddrV6::new("fe80::9:1".parse()?, 5300, 0, index).into();
    Udp::connect(&client, server)?.resolve("udp.example.test")?;
    Tcp::connect(&client, server)?.resolve("tcp.example.test")
}

#[test]
fn fifty_queries_on_one_connection_are_answered_out_of_order() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders { hold: 25, ..Orders::default() });
    let mut client = setting.place.tcp()?;
    let burst = Burst::new("n", 50)?;
    let all: Vec<u8> = burst.queries().iter().flat_map(|query| frame(query)).collect();
    client.send_raw(&all)?;
    let order = burst.collect(|| client.receive())?;
    ensure!(!order.is_sorted(), "the answers came in order");
    Ok(())
}

fn frame(message: &[u8]) -> Vec<u8> {
    dns_proxy_tests::wire::frame(message)
}

/// More come at once than may be in flight, and each is answered before the next is looked at.
#[test]
fn queries_beyond_the_limit_are_taken_when_others_are_answered() -> Result<()> {
    let setting = Setting::new()?;
    let mut client = setting.place.tcp()?;
    let asked = |id| query(id, "localhost", A, &[]);
    let all: Vec<u8> = (1..=140).flat_map(|id| frame(&asked(id))).collect();
    client.send_raw(&all)?;
    for id in 1..=140 {
        client.receive().with_context(|| format!("the answer to query {id}"))?;
    }
    Ok(())
}

#[test]
fn a_client_that_closes_its_side_still_gets_all_answers() -> Result<()> {
    let setting = Setting::new()?;
    let mut client = setting.place.tcp()?;
    let burst = Burst::new("slow-100.n", 20)?;
    for query in burst.queries() {
        client.send(&query)?;
    }
    client.finish()?;
    burst.collect(|| client.receive())?;
    ensure!(client.is_closed(), "and then the connection ends");
    Ok(())
}

#[test]
fn a_query_may_come_octet_by_octet() -> Result<()> {
    let setting = Setting::new()?;
    let mut client = setting.place.tcp()?;
    for octet in frame(&query(7, "www.example.test", A, &[])) {
        client.send_raw(&[octet])?;
    }
    ensure!(Summary::of(&client.receive()?)?.answers == 1);
    Ok(())
}

#[test]
fn a_client_that_stalls_harms_nobody() -> Result<()> {
    let setting = Setting::new()?;
    let mut stalled = setting.place.tcp()?;
    stalled.send_raw(&[0])?;
    setting.place.tcp()?.resolve("tcp.example.test")?;
    setting.place.udp()?.resolve("udp.example.test")?;
    let started = Instant::now();
    ensure!(stalled.is_closed() || started.elapsed() > Duration::from_secs(5), "it is kept");
    Ok(())
}

#[test]
fn a_message_of_no_length_is_skipped() -> Result<()> {
    let setting = Setting::new()?;
    let mut client = setting.place.tcp()?;
    client.send_raw(&[0, 0, 0, 0])?;
    client.resolve("www.example.test")
}

#[test]
fn many_connections_are_served_at_once() -> Result<()> {
    let setting = Setting::new()?;
    let mut clients = (0..200).map(|_| setting.place.tcp()).collect::<Result<Vec<_>>>()?;
    for (n, client) in clients.iter_mut().enumerate() {
        client.resolve(&format!("n{n}.example.test"))?;
    }
    ensure!(setting.upstream.journal().accepted == 1);
    Ok(())
}

/// One client takes all the connections it gets and has a query in flight on each of them.
#[test]
fn busy_connections_of_one_client_do_not_lock_others_out() -> Result<()> {
    let setting = Setting::with(&["--upstream-timeout", "20s"])?;
    setting.upstream.order(Orders::default().except("never.example.test", Reply::Silence));
    let never = frame(&query(7, "never.example.test", A, &[]));
    let mut busy = Vec::new();
    for _ in 0..600 {
        let mut client = setting.place.tcp()?;
        // It may be one too many.
        let _ = client.send_raw(&never);
        busy.push(client);
    }
    let other = setting.place.netns.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 8], 0)).into())?;
        socket.connect(&LISTEN.parse::<SocketAddr>().map_err(std::io::Error::other)?.into())?;
        std::io::Result::Ok(TcpStream::from(socket))
    })??;
    let started = Instant::now();
    Tcp::on(other)?.resolve("tcp.example.test").context("TCP")?;
    ensure!(started.elapsed() < Duration::from_secs(5), "after {:?}", started.elapsed());
    drop(busy);
    Ok(())
}

/// Its answers are large and it reads none of them, on many connections: they are not made before it
/// does.
#[test]
fn clients_that_take_no_answers_do_not_fill_the_memory() -> Result<()> {
    fn large(asked: &[u8]) -> Vec<u8> {
        let end = 12 + asked[12..].iter().position(|octet| *octet == 0).unwrap_or_default() + 5;
        let mut answer = [&asked[..2], b"\x81\x80\0\x01\0\x01\0\0\0\0", &asked[12..end]].concat();
        answer.extend(record(b"\xc0\x0c", 65_400, &[b'x'; 60_000]));
        answer
    }
    // Long enough for all of it, whatever else this machine does.
    let setting = Setting::with(&["--upstream-timeout", "60s"])?;
    let orders = Orders::default().except("large.example.test", Reply::crafted(large));
    setting.upstream.order(orders);
    let all: Vec<u8> =
        (1..=128).flat_map(|id| frame(&query(id, "large.example.test", 65_400, &[]))).collect();
    let mut clients = (0..50).map(|_| setting.place.tcp()).collect::<Result<Vec<_>>>()?;
    clients.iter_mut().try_for_each(|client| client.send_raw(&all))?;
    std::thread::sleep(Duration::from_secs(1));
    let memory = setting.daemon.rss()?;
    // Some 384 MB are asked for.
    ensure!(memory < 160 << 20, "{memory} octets of memory");
    setting.place.udp()?.resolve("udp.example.test").context("UDP")?;
    // Whoever reads after all gets them all.
    for id in 1..=128 {
        let answer = clients[0].receive().with_context(|| format!("answer {id}"))?;
        ensure!(answer.len() > 60_000, "{} octets", answer.len());
    }
    Ok(())
}

/// One client takes all the connections there are and says nothing: others must not have to wait
/// until that is found out, and connections are no reason for UDP or the upstream to fail.
#[test]
fn idle_connections_do_not_lock_others_out() -> Result<()> {
    let setting = Setting::new()?;
    let idle = (0..1_100).map(|_| setting.place.tcp()).collect::<Result<Vec<_>>>()?;
    let started = Instant::now();
    setting.place.udp()?.resolve("udp.example.test").context("UDP")?;
    setting.place.tcp()?.resolve("tcp.example.test").context("TCP")?;
    ensure!(started.elapsed() < Duration::from_secs(5), "after {:?}", started.elapsed());
    drop(idle);
    Ok(())
}

/// With the usual limit of 1,024 descriptors.
#[test]
fn idle_connections_leave_descriptors_for_the_upstream() -> Result<()> {
    let place = Place::new()?;
    let upstream = place.upstream()?;
    let mut command = place.netns.command("prlimit");
    command.arg("--nofile=1024:").arg(Daemon::program()?);
    let listen = ["127.0.0.1:53", "127.0.0.2:53", "127.0.0.3:53"];
    let more = ["--listen=127.0.0.2:53,127.0.0.3:53", "--workers=1"];
    let daemon = Daemon::start_command(command, &place.run_args(&[NAMED_UPSTREAM], &more))?;
    let client = place.udp()?;
    client.resolve("before.example.test")?;
    let mut idle = Vec::new();
    for server in listen {
        for _ in 0..500 {
            idle.push(place.tcp_to(server)?);
        }
    }
    // Waits for the worst case; it does not come to that if the daemon is careful.
    daemon.wait_fds(Duration::from_secs(2), |fds| fds >= 1_024);
    upstream.disconnect(dns_proxy_tests::Close::Orderly);
    ensure!(eventually(LIMIT, || upstream.journal().open == 0));
    daemon.wait_fds(Duration::from_secs(1), |fds| fds >= 1_024);
    client.resolve("after.example.test")
}

/// The client is slow with its next query while an answer takes long; its octets must not be lost.
#[test]
fn a_query_that_pauses_within_its_length_is_not_garbled() -> Result<()> {
    let setting = Setting::with(&["--upstream-timeout", "30s"])?;
    setting.upstream.order(Orders::default().except("never.example.test", Reply::Silence));
    let mut client = setting.place.tcp()?;
    client.send(&query(1, "never.example.test", A, &[]))?;
    let next = frame(&query(2, "www.example.test", A, &[]));
    client.send_raw(&next[..1])?;
    // Longer than the daemon lets a connection be idle.
    std::thread::sleep(Duration::from_millis(10_500));
    match client.send_raw(&next[1..]).and_then(|()| client.receive()) {
        Ok(answer) => ensure!(Summary::of(&answer)?.answers == 1),
        // To close the connection is a fair answer to such slowness.
        Err(error) => ensure!(
            error.kind() != std::io::ErrorKind::WouldBlock,
            "neither answered nor closed: {error}"
        ),
    }
    Ok(())
}

#[test]
fn answers_in_flight_are_delivered_before_the_daemon_stops() -> Result<()> {
    let setting = Setting::new()?;
    let (udp, mut tcp) = (setting.place.udp()?, setting.place.tcp()?);
    udp.send(&query(1, "slow-300.example.test", A, &[]))?;
    tcp.send(&query(2, "slow-300.example.test", A, &[]))?;
    ensure!(eventually(LIMIT, || setting.upstream.journal().queries.len() == 2));
    setting.daemon.signal(Signal::SIGTERM)?;
    ensure!(Summary::of(&udp.receive()?)?.answers == 1);
    ensure!(Summary::of(&tcp.receive()?)?.answers == 1);
    let Setting { mut daemon, .. } = setting;
    ensure!(daemon.wait()?.code() == Some(0));
    Ok(())
}

/// More queries than one connection may owe, from clients of ten listeners, for names that are not
/// answered: that is an error for some of them, and no more.
#[test]
fn more_queries_than_a_connection_takes_are_not_the_end() -> Result<()> {
    let place = Place::new()?;
    let upstream = place.upstream()?;
    upstream.order(Orders::default().except("never.example.test", Reply::Silence));
    let listen: Vec<String> = (2..=11).map(|n| format!("127.0.0.{n}:53")).collect();
    let more = [&format!("--listen={}", listen.join(",")), "--upstream-timeout=5s"];
    let _daemon = place.daemon(&[NAMED_UPSTREAM], &more)?;
    let lively = place.udp()?;
    let asked = query(7, "never.example.test", A, &[]);
    for (round, server) in listen.iter().enumerate() {
        let client = place.udp_to(server)?;
        for n in 0..2_048 {
            client.send(&asked)?;
            // Keeps the connection alive and does not run ahead of the worker.
            if n % 256 == 0 {
                let name = format!("n{round}-{n}.example.test");
                let answered = lively.ask(&query(8, &name, A, &[]));
                answered.with_context(|| format!("after {n} of round {round}"))?;
            }
        }
    }
    ensure!(eventually(LIMIT * 2, || lively.resolve("after.example.test").is_ok()));
    Ok(())
}
