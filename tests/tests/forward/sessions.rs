//! What passes between us and the upstream besides messages: how long a connection is kept, how it
//! is begun again, and in how many pieces queries leave.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Capture, Close, Orders, Packet, Reply, Zone, eventually, to_port, zone::Transport,
};
use nix::sys::signal::Signal;
use std::time::Duration;

use crate::{
    client::Burst,
    packets::{A, KEEPALIVE, Summary, opt, option, query},
    place::{LIMIT, NAMED_UPSTREAM, Place, Setting},
};

/// Octets of the OPT record at the end of what our server answers to a padded query.
const SERVER_OPT: usize = 11 + 4 + 32;
/// Clients and servers do TCP Fast Open, all listening sockets included (ip-sysctl, `tcp_fastopen`).
const FAST_OPEN: &str = "1027";

/// The right answer, from a server that keeps idle connections for so many tenths of a second.
fn keeping<const TENTHS: u16>(asked: &[u8]) -> Vec<u8> {
    let mut answer = Zone::Encrypted.answer(asked, Transport::Tcp).unwrap_or_default();
    answer.truncate(answer.len().saturating_sub(SERVER_OPT));
    answer.extend(opt(1232, [0, 0], 0, &option(KEEPALIVE, &TENTHS.to_be_bytes())));
    answer
}

#[test]
fn a_server_that_keeps_no_connection_gets_it_closed_when_nothing_is_due() -> Result<()> {
    let setting = Setting::new()?;
    let client = setting.place.udp()?;
    let orders = Orders::always(Reply::crafted(keeping::<0>));
    setting.upstream.order(Orders { delay: Duration::from_millis(50), ..orders });
    for round in 0..3 {
        let burst = Burst::new(&format!("r{round}-"), 200)?;
        for query in burst.queries() {
            client.send(&query)?;
        }
        burst.collect(|| client.receive())?;
        let closed = eventually(Duration::from_secs(1), || setting.upstream.journal().open == 0);
        ensure!(closed, "it is kept");
    }
    let journal = setting.upstream.journal();
    ensure!(journal.queries.len() == 600, "{} queries", journal.queries.len());
    Ok(())
}

/// RFC 7828 section 3.2.2: no more queries on it, and what it owes is still taken from it.
#[test]
fn a_connection_that_the_server_wants_to_be_rid_of_is_only_finished() -> Result<()> {
    let setting = Setting::new()?;
    let (slow, quick) = (setting.place.udp()?, setting.place.udp()?);
    setting.upstream.order(Orders::always(Reply::crafted(keeping::<0>)));
    slow.send(&query(7, "slow-400.example.test", A, &[]))?;
    ensure!(eventually(LIMIT, || setting.upstream.journal().in_flight == 1));
    for n in 0..4 {
        quick.resolve(&format!("n{n}.example.test"))?;
    }
    ensure!(Summary::of(&slow.receive()?)?.answers == 1);
    ensure!(eventually(Duration::from_secs(1), || setting.upstream.journal().open == 0));
    let journal = setting.upstream.journal();
    let on =
        |name: &str| journal.queries_for(name).iter().map(|q| q.connection).collect::<Vec<_>>();
    ensure!(on("slow-400.example.test")[0] == 0 && on("n0.example.test") == [0], "{journal:?}");
    ensure!((1..4).all(|n| on(&format!("n{n}.example.test")) == [n]), "{journal:?}");
    Ok(())
}

#[test]
fn an_idle_connection_is_closed_when_the_server_says_so_and_quietly_replaced() -> Result<()> {
    let setting = Setting::new()?;
    let client = setting.place.udp()?;
    setting.upstream.order(Orders::always(Reply::crafted(keeping::<5>)));
    client.resolve("a.example.test")?;
    ensure!(setting.upstream.journal().open == 1, "it is closed at once");
    let closed = || setting.upstream.journal().open == 0;
    ensure!(eventually(Duration::from_secs(2), closed), "it is kept");
    client.resolve("b.example.test")?;
    let journal = setting.upstream.journal();
    ensure!(journal.accepted == 2 && journal.queries.len() == 2, "{journal:?}");
    ensure!(journal.resumed() == 1, "a full handshake");
    Ok(())
}

/// The server would take it.
#[test]
fn no_query_is_sent_before_the_handshake_is_over() -> Result<()> {
    let setting = Setting::new()?;
    let client = setting.place.udp()?;
    for name in ["a.example.test", "b.example.test", "c.example.test"] {
        client.resolve(name)?;
        setting.upstream.disconnect(Close::Orderly);
        ensure!(eventually(LIMIT, || setting.upstream.journal().open == 0));
    }
    let journal = setting.upstream.journal();
    ensure!(journal.resumed() >= 2, "{:?}", journal.handshakes);
    ensure!(journal.handshakes.iter().all(|handshake| !handshake.early), "early data");
    Ok(())
}

/// The first packet of each connection to the upstream, in order.
fn first_packets(packets: &[Packet]) -> Vec<&Packet> {
    let mut ports = BTreeMap::new();
    for (number, packet) in to_port(packets, 853).into_iter().enumerate() {
        ports.entry(packet.src.port()).or_insert((number, packet));
    }
    let mut first: Vec<_> = ports.into_values().collect();
    first.sort_by_key(|(number, _)| *number);
    first.into_iter().map(|(_, packet)| packet).collect()
}

#[test]
fn the_second_connection_saves_a_round_trip_by_tcp_fast_open() -> Result<()> {
    let place = Place::new()?;
    place.netns.sysctl("net/ipv4/tcp_fastopen", FAST_OPEN)?;
    let upstream = place.upstream()?;
    let _daemon = place.daemon(&[NAMED_UPSTREAM], &[])?;
    let (capture, client) = (Capture::on(&place.netns, "lo")?, place.udp()?);
    client.resolve("a.example.test")?;
    upstream.disconnect(Close::Orderly);
    ensure!(eventually(LIMIT, || upstream.journal().open == 0));
    client.resolve("b.example.test")?;
    let packets = capture.stop()?;
    let [first, second, ..] = first_packets(&packets)[..] else {
        anyhow::bail!("no two connections");
    };
    ensure!(first.length == 0, "there was a cookie for {first}");
    ensure!(second.length > 200, "no ClientHello in {second}");
    Ok(())
}

/// They come while the daemon is held, so it finds them together.
#[test]
fn queries_that_come_together_leave_together() -> Result<()> {
    let setting = Setting::new()?;
    let client = setting.place.udp()?;
    client.resolve("before.example.test")?;
    let burst = Burst::new("n", 100)?;
    let capture = Capture::on(&setting.place.netns, "lo")?;
    setting.daemon.signal(Signal::SIGSTOP)?;
    for query in burst.queries() {
        client.send(&query)?;
    }
    setting.daemon.signal(Signal::SIGCONT)?;
    burst.collect(|| client.receive())?;
    let packets = capture.stop()?;
    // On its way out and on its way in: each passes twice.
    let sent = to_port(&packets, 853).iter().filter(|packet| packet.length > 0).count() / 2;
    ensure!((1..=8).contains(&sent), "{sent} packets");
    let largest = to_port(&packets, 853).into_iter().max_by_key(|packet| packet.length);
    let largest = largest.context("nothing was sent")?;
    let record: [u8; 5] = *largest.payload.first_chunk().context("no record")?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    ensure!(record[0] == 23 && length > 20 * 128, "a record of {length} octets");
    Ok(())
}
