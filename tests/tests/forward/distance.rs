//! Upstreams that are far away or slow: none of that is a fault, and nobody is asked again and again
//! for it.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Netns, Orders, eventually};

use crate::{
    client::Burst,
    packets::{A, SERVFAIL, Summary, id_of, query},
    place::{LIMIT, NAMED_UPSTREAM, Place, Setting},
};

/// Longer than silence is borne elsewhere, shorter than a query may take.
const FAR: Duration = Duration::from_millis(1_200);

/// Not even what every resolver knows comes sooner. The first query is asked twice, since nothing is
/// known of the upstream yet.
#[test]
fn an_upstream_as_slow_as_queries_may_be_is_waited_for() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders::delayed(FAR));
    let client = setting.place.udp()?;
    for n in 0..4 {
        client.resolve(&format!("n{n}.example.test"))?;
    }
    let journal = setting.upstream.journal();
    ensure!(journal.accepted <= 3, "{} connections", journal.accepted);
    for n in 1..4 {
        let times = journal.queries_for(&format!("n{n}.example.test")).len();
        ensure!(times == 1, "n{n} was asked {times} times");
    }
    Ok(())
}

/// TCP and TLS alone take longer than they may at first. Whoever asks first is let down, but not
/// everybody for ever.
#[test]
fn an_upstream_with_slow_handshakes_is_reached_in_the_end() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders { delay_handshake: FAR, ..Orders::default() });
    let client = setting.place.udp()?;
    let mut number = 0;
    let reached = || {
        number += 1;
        client.resolve(&format!("n{number}.example.test")).is_ok()
    };
    ensure!(eventually(LIMIT, reached), "it is never reached");
    // And so is the next one.
    setting.upstream.disconnect(dns_proxy_tests::Close::Orderly);
    ensure!(eventually(LIMIT, || setting.upstream.journal().open == 0));
    ensure!(eventually(LIMIT, || client.resolve("again.example.test").is_ok()));
    Ok(())
}

/// All of them come when nobody waits any more. That shows that the upstream lives, and goes to
/// nobody.
#[test]
fn answers_that_come_too_late_are_signs_of_life_and_go_to_nobody() -> Result<()> {
    let setting = Setting::with(&["--upstream-timeout", "300ms"])?;
    setting.upstream.order(Orders::delayed(Duration::from_millis(500)));
    let client = setting.place.udp()?;
    let ask = |from: u16, to: u16| {
        for id in from..to {
            client.send(&query(id, &format!("n{id}.example.test"), A, &[]))?;
            sleep(Duration::from_millis(20));
        }
        for _ in from..to {
            let answer = client.receive()?;
            let in_range = (from..to).contains(&id_of(&answer)?);
            ensure!(in_range && Summary::of(&answer)?.rcode == SERVFAIL, "{answer:02x?}");
        }
        Ok(())
    };
    ask(0, 100)?;
    let before = setting.upstream.journal().accepted;
    ask(100, 200)?;
    let after = setting.upstream.journal().accepted;
    ensure!(after == before, "{} connections more", after - before);

    setting.upstream.order(Orders::default());
    client.resolve("now.example.test")
}

/// A namespace with the daemon and one with its upstream, and the road between them.
struct Road {
    place: Place,
    far: Netns,
}

impl Road {
    fn new() -> Result<Self> {
        let (place, far) = (Place::new()?, Netns::new()?);
        place.netns.veth("road", &far, "eth0")?;
        place.netns.ip(&["addr", "add", "10.9.0.1/24", "dev", "road"])?;
        far.ip(&["addr", "add", "10.9.0.2/24", "dev", "eth0"])?;
        place.netns.ip(&["link", "set", "road", "up"])?;
        far.ip(&["link", "set", "eth0", "up"])?;
        Ok(Self { place, far })
    }

    /// Packets vanish: nobody says that there is no road.
    fn is_passable(&self, passable: bool) -> Result<()> {
        // Our end has no carrier then, and drops what is sent.
        self.far.ip(&["link", "set", "eth0", if passable { "up" } else { "down" }]).map(drop)
    }
}

#[test]
fn a_road_that_vanishes_is_noticed_in_time_and_taken_again_when_it_is_back() -> Result<()> {
    let road = Road::new()?;
    let identity = road.place.identity()?;
    let at = "10.9.0.2:853".parse()?;
    let _upstream = dns_proxy_tests::DotServer::start(&road.far, &[at], &identity)?;
    let _daemon = road.place.daemon(&["10.9.0.2:853#dns.test"], &[])?;
    let client = road.place.udp()?;
    client.resolve("before.example.test")?;
    road.is_passable(false)?;
    for n in 0..3 {
        let started = Instant::now();
        let answer = client.ask(&query(7, &format!("lost{n}.example.test"), A, &[]))?;
        ensure!(Summary::of(&answer)?.rcode == SERVFAIL);
        ensure!(started.elapsed() < Duration::from_secs(3), "after {:?}", started.elapsed());
    }
    road.is_passable(true)?;
    let started = Instant::now();
    let mut number = 0;
    let again = || {
        number += 1;
        client.resolve(&format!("n{number}.example.test")).is_ok()
    };
    ensure!(eventually(LIMIT, again), "it is not taken again");
    ensure!(started.elapsed() < Duration::from_secs(6), "after {:?}", started.elapsed());
    Ok(())
}

/// A road that is gone for less than a query may take costs nobody an answer.
#[test]
fn a_road_that_vanishes_for_a_moment_loses_nothing() -> Result<()> {
    let road = Road::new()?;
    let identity = road.place.identity()?;
    let at = "10.9.0.2:853".parse()?;
    let _upstream = dns_proxy_tests::DotServer::start(&road.far, &[at], &identity)?;
    let _daemon = road.place.daemon(&["10.9.0.2:853#dns.test"], &["--upstream-timeout", "8s"])?;
    let client = road.place.udp()?;
    client.resolve("before.example.test")?;
    road.is_passable(false)?;
    let burst = Burst::new("n", 100)?;
    for query in burst.queries() {
        client.send(&query)?;
    }
    sleep(Duration::from_millis(1_500));
    road.is_passable(true)?;
    burst.collect(|| client.receive()).map(drop)
}

/// Its window is small and it takes nothing: what is sent piles up with us, and is then sent elsewhere.
#[test]
fn an_upstream_that_stops_reading_loses_nothing() -> Result<()> {
    let place = Place::new()?;
    for memory in ["net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem"] {
        place.netns.sysctl(memory, "4096 16384 16384")?;
    }
    let upstream = place.upstream()?;
    let daemon = place.daemon(&[NAMED_UPSTREAM], &["--upstream-timeout", "8s"])?;
    let client = place.udp()?;
    client.resolve("before.example.test")?;
    upstream.order(Orders { deaf: true, faithful_from: Some(1), ..Orders::default() });
    // It notices when it has read once more.
    client.send(&query(7, "once.example.test", A, &[]))?;
    let burst = Burst::new("n", 1_000)?;
    for query in burst.queries() {
        client.send(&query)?;
    }
    let mut once = false;
    burst
        .collect(|| {
            let answer = client.receive()?;
            if answer.starts_with(&[0, 7]) && answer.windows(5).any(|part| part == b"\x04once") {
                once = true;
                return client.receive();
            }
            Ok(answer)
        })
        .context("many")?;
    ensure!(once || Summary::of(&client.receive()?)?.answers == 1, "the first one");
    ensure!(daemon.rss()? < 64 << 20, "{} octets of memory", daemon.rss()?);
    Ok(())
}
