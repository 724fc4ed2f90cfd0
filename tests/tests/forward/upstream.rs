//! The DNS-over-TLS side: one connection for all, and no fault of it costs a client its answer.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Close, DotServer, Orders, Reply, Zone, eventually, zone::Transport};
use hickory_proto::{op::Message, rr::rdata::opt::EdnsOption};

use crate::{
    client::{Burst, Udp},
    packets::{A, KEEPALIVE, SERVFAIL, Summary, plain_opt, query},
    place::{LIMIT, NAMED_UPSTREAM, Place, Setting, UPSTREAM},
};

/// The extended error of a server that could not be talked to (RFC 8914 section 4.24).
pub(crate) const NETWORK_ERROR: u16 = 23;
pub(crate) const SECOND: &str = "127.0.0.2:853";
pub(crate) const NAMED_SECOND: &str = "127.0.0.2:853#dns.test";

/// Sends a burst over UDP and checks that every query gets its own answer.
fn burst(setting: &Setting, prefix: &str, count: u16) -> Result<Vec<u16>> {
    let (client, burst) = (setting.place.udp()?, Burst::new(prefix, count)?);
    for query in burst.queries() {
        client.send(&query)?;
    }
    burst.collect(|| client.receive())
}

#[test]
fn many_queries_share_one_connection_and_do_not_wait_for_each_other() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders { hold: 10, ..Orders::default() });

    let order = burst(&setting, "n", 50)?;

    let journal = setting.upstream.journal();
    ensure!(journal.accepted == 1, "{} connections", journal.accepted);
    ensure!(journal.max_in_flight >= 10, "{} at once at most", journal.max_in_flight);
    ensure!(!order.is_sorted(), "the answers came in order");
    ensure!(journal.queries.len() == 50, "each was asked once");
    Ok(())
}

#[test]
fn a_slow_answer_does_not_hold_up_a_quick_one() -> Result<()> {
    let setting = Setting::new()?;
    let (slow, quick) = (setting.place.udp()?, setting.place.udp()?);
    slow.send(&query(7, "slow-1300.example.test", A, &[]))?;
    ensure!(eventually(LIMIT, || setting.upstream.journal().in_flight == 1));
    quick.resolve("quick.example.test")?;
    // Or two, if the server has not yet noted that it answered the quick one.
    ensure!(setting.upstream.journal().in_flight >= 1, "the slow one was answered first");
    ensure!(Summary::of(&slow.receive()?)?.answers == 1);
    Ok(())
}

/// Cold names at a recursive resolver do take this long, and the client is told to wait for 2 s.
#[test]
fn an_answer_is_waited_for_as_long_as_the_timeout_says() -> Result<()> {
    let setting = Setting::new()?;
    let name = "slow-1300.example.test";
    setting.place.udp()?.resolve(name)?;
    ensure!(setting.upstream.journal().queries_for(name).len() == 1, "it was asked again");
    Ok(())
}

/// Whatever we ask to see whether the server lives, it owes us nothing once clients are served.
#[test]
fn a_connection_that_owes_clients_nothing_is_kept() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders::default().except("", Reply::Silence));
    setting.place.udp()?.resolve("slow-600.example.test")?;
    let closed = eventually(Duration::from_millis(1500), || setting.upstream.journal().open == 0);
    ensure!(!closed, "it was closed");
    Ok(())
}

/// Other names are answered all the time meanwhile.
#[test]
fn a_slow_name_does_not_end_the_connection() -> Result<()> {
    let setting = Setting::new()?;
    let (slow, quick) = (setting.place.udp()?, setting.place.udp()?);
    slow.send(&query(7, "slow-1300.example.test", A, &[]))?;
    ensure!(eventually(LIMIT, || setting.upstream.journal().in_flight == 1));
    let mut asked = 0;
    while setting.upstream.journal().in_flight > 0 && asked < 10_000 {
        quick.resolve(&format!("n{asked}.example.test"))?;
        asked += 1;
    }
    ensure!(Summary::of(&slow.receive()?)?.answers == 1);
    ensure!(setting.upstream.journal().accepted == 1);
    Ok(())
}

#[test]
fn connections_that_end_in_any_way_lose_nothing() -> Result<()> {
    for close in [Close::Orderly, Close::Abrupt, Close::Reset, Close::Half] {
        let setting = Setting::with(&["--upstream-timeout", "8s"])?;
        setting.upstream.order(Orders::closing_after(4, close));
        burst(&setting, "n", 20).with_context(|| format!("{close:?}"))?;
        ensure!(setting.upstream.journal().accepted >= 5, "{close:?}: it did not close");
    }
    Ok(())
}

#[test]
fn a_connection_that_ended_while_idle_is_replaced_unnoticed() -> Result<()> {
    for close in [Close::Orderly, Close::Abrupt, Close::Reset, Close::Half] {
        let setting = Setting::new()?;
        let client = setting.place.udp()?;
        client.resolve("a.example.test")?;
        setting.upstream.disconnect(close);
        client.resolve("b.example.test").with_context(|| format!("{close:?}"))?;
        // The new one, and perhaps a spare, in case this server does so all the time.
        let again = || (2..=3).contains(&setting.upstream.journal().accepted);
        ensure!(eventually(LIMIT, again), "{close:?}");
        let journal = setting.upstream.journal();
        ensure!(journal.queries_for("b.example.test").len() <= 2, "{close:?}");
    }
    Ok(())
}

/// What comes on the first connection is wrong, and goes unnoticed.
fn check_recovers(reply: Reply) -> Result<()> {
    let setting = Setting::with(&["--upstream-timeout", "5s"])?;
    setting.place.udp()?.resolve("before.example.test")?;
    setting.upstream.order(Orders { reply, faithful_from: Some(1), ..Orders::default() });
    burst(&setting, "n", 5).with_context(|| format!("{reply:?}"))?;
    ensure!(setting.upstream.journal().accepted >= 2, "no second connection");
    Ok(())
}

#[test]
fn a_connection_that_goes_silent_is_replaced() -> Result<()> {
    check_recovers(Reply::Silence)
}

#[test]
fn a_connection_that_stalls_within_an_answer_is_replaced() -> Result<()> {
    check_recovers(Reply::Stall)
}

#[test]
fn a_connection_that_sends_junk_is_replaced() -> Result<()> {
    check_recovers(Reply::Junk)?;
    check_recovers(Reply::crafted(|_| Vec::new()))?;
    check_recovers(Reply::crafted(<[u8]>::to_vec))
}

#[test]
fn answers_with_a_wrong_id_or_question_are_not_believed() -> Result<()> {
    check_recovers(Reply::WrongId)?;
    check_recovers(Reply::WrongQuestion)
}

#[test]
fn an_upstream_that_refuses_connections_is_tried_until_it_is_back() -> Result<()> {
    let setting = Setting::with(&["--upstream-timeout", "8s"])?;
    let client = setting.place.udp()?;
    client.resolve("before.example.test")?;
    setting.upstream.refuse()?;
    setting.upstream.disconnect(Close::Orderly);
    let burst = Burst::new("n", 20)?;
    for query in burst.queries() {
        client.send(&query)?;
    }
    setting.daemon.wait_for_log("upstream failed", LIMIT)?;
    setting.upstream.listen()?;
    burst.collect(|| client.receive())?;
    setting.daemon.wait_for_log("upstream answers again", LIMIT)
}

#[test]
fn an_upstream_that_stays_away_is_a_servfail_with_a_reason_in_time() -> Result<()> {
    let place = Place::new()?;
    let daemon = place.daemon(&[NAMED_UPSTREAM], &["--upstream-timeout", "500ms"])?;
    check_fails(&place, NETWORK_ERROR)?;
    daemon.wait_for_log("refused", LIMIT)
}

#[test]
fn an_upstream_that_only_accepts_is_a_servfail_with_a_reason_in_time() -> Result<()> {
    let setting = Setting::with(&["--upstream-timeout", "500ms"])?;
    setting.upstream.order(Orders { stall_handshake: true, ..Orders::default() });
    check_fails(&setting.place, NETWORK_ERROR)
}

/// Sends queries that the upstream hears and does not answer, and ends its connections until each of
/// the queries may be to blame: it is then asked on a connection of its own.
fn cast_suspicion(setting: &Setting, count: u16) -> Result<(Udp, Burst)> {
    let (client, burst) = (setting.place.udp()?, Burst::new("n", count)?);
    setting.upstream.order(Orders::always(Reply::Silence));
    for query in burst.queries() {
        client.send(&query)?;
    }
    let heard = |times: u16| {
        eventually(LIMIT, || {
            let journal = setting.upstream.journal();
            let names = journal.queries.iter().filter(|seen| !seen.name.is_empty());
            names.count() == usize::from(times * count)
        })
    };
    for times in 1..=2 {
        ensure!(heard(times), "not asked {times} times: {:?}", setting.upstream.journal());
        setting.upstream.disconnect(Close::Orderly);
    }
    Ok((client, burst))
}

#[test]
fn queries_on_connections_of_their_own_are_dialled_for_with_pauses() -> Result<()> {
    let setting = Setting::new()?;
    let (client, _) = cast_suspicion(&setting, 1)?;
    ensure!(eventually(LIMIT, || setting.upstream.journal().accepted == 3));
    setting.upstream.refuse()?;
    setting.upstream.disconnect(Close::Orderly);
    ensure!(Summary::of(&client.receive()?)?.rcode == SERVFAIL);
    // Two seconds, four every 30 ms.
    let dialled = setting.daemon.log().text().matches("connection ended").count();
    ensure!((10..300).contains(&dialled), "dialled {dialled} times");
    Ok(())
}

#[test]
fn connections_for_single_queries_are_closed_whatever_the_server_allows() -> Result<()> {
    /// An answer that allows half a minute.
    fn keeping(query: &[u8]) -> Vec<u8> {
        let answer = Zone::Encrypted.answer(query, Transport::Tcp);
        let mut answer = Message::from_vec(&answer.expect("a query")).expect("an answer");
        let keepalive = EdnsOption::Unknown(KEEPALIVE, 300_u16.to_be_bytes().to_vec());
        if let Some(edns) = &mut answer.edns {
            edns.options_mut().insert(keepalive);
        }
        answer.to_vec().expect("an answer")
    }
    let setting = Setting::with(&["--upstream-timeout", "5s"])?;
    let (client, burst) = cast_suspicion(&setting, 12)?;
    setting.upstream.order(Orders::always(Reply::crafted(keeping)));
    setting.upstream.disconnect(Close::Orderly);
    burst.collect(|| client.receive()).map(drop)
}

#[test]
fn a_silent_connection_of_a_single_query_does_not_end_that_of_all_others() -> Result<()> {
    let setting = Setting::with(&["--upstream-timeout", "5s"])?;
    let (client, burst) = cast_suspicion(&setting, 1)?;
    ensure!(eventually(LIMIT, || setting.upstream.journal().accepted == 3));
    setting.upstream.order(Orders { faithful_from: Some(3), ..Orders::always(Reply::Silence) });
    let other = setting.place.udp()?;
    other.resolve("a.example.test")?;
    burst.collect(|| client.receive())?;
    other.resolve("b.example.test")?;
    let journal = setting.upstream.journal();
    let on = |name| journal.queries_for(name)[0].connection;
    ensure!(on("a.example.test") == on("b.example.test"), "another connection");
    Ok(())
}

/// A client with EDNS is told why, one without is just told; neither waits much longer than the
/// half second that the daemon is given.
pub(crate) fn check_fails(place: &Place, code: u16) -> Result<()> {
    let client = place.udp()?;
    let started = Instant::now();
    let answer = Summary::of(&client.ask(&query(7, "www.example.test", A, &[&plain_opt()]))?)?;
    ensure!(started.elapsed() < Duration::from_secs(3), "after {:?}", started.elapsed());
    ensure!(answer.rcode == SERVFAIL, "{answer:?}");
    ensure!(answer.extended_error.as_ref().is_some_and(|error| error.0 == code), "{answer:?}");
    let answer = Summary::of(&client.ask(&query(7, "www.example.test", A, &[]))?)?;
    ensure!(answer.rcode == SERVFAIL && !answer.opt, "{answer:?}");
    Ok(())
}

#[test]
fn every_query_is_padded_to_a_multiple_of_128_octets() -> Result<()> {
    let setting = Setting::new()?;
    let client = setting.place.udp()?;
    for length in 1..=63 {
        let label = "x".repeat(length);
        let name = format!("{label}.{label}.{label}.example.test");
        for additional in [&[][..], &[&plain_opt()[..]]] {
            client.ask(&query(7, &name, A, additional))?;
        }
    }
    let journal = setting.upstream.journal();
    ensure!(journal.queries.len() == 126);
    for seen in journal.queries {
        let padded = seen.opt && seen.padding.is_some() && seen.length.is_multiple_of(128);
        ensure!(padded, "{} has {} octets, padding {:?}", seen.name, seen.length, seen.padding);
    }
    Ok(())
}

/// The first upstream is in a bad way, so the second answers, in time for the client.
fn check_second_answers(first: impl Fn(&DotServer) -> Result<()>) -> Result<()> {
    let place = Place::new()?;
    let (one, two) = (place.upstream()?, place.upstream_at(SECOND)?);
    first(&one)?;
    let _daemon = place.daemon(&[NAMED_UPSTREAM, NAMED_SECOND], &[])?;
    place.udp()?.resolve("www.example.test")?;
    let asked = two.journal().queries.iter().map(|q| q.name.clone()).collect::<Vec<_>>();
    ensure!(asked == ["www.example.test"], "{asked:?}");
    Ok(())
}

#[test]
fn the_second_upstream_answers_when_the_first_refuses_or_is_frozen() -> Result<()> {
    check_second_answers(DotServer::refuse).context("refuses")?;
    let orders = |orders: Orders| {
        move |server: &DotServer| {
            server.order(orders.clone());
            Ok(())
        }
    };
    check_second_answers(orders(Orders { stall_handshake: true, ..Orders::default() }))
        .context("stalls its handshakes")?;
    check_second_answers(orders(Orders::always(Reply::Silence))).context("is silent")?;
    check_second_answers(orders(Orders::always(Reply::Stall))).context("stalls")?;
    check_second_answers(orders(Orders::always(Reply::WrongId))).context("confuses ids")
}

/// Something always comes from it, as clients never pause, but never an answer.
#[test]
fn the_second_upstream_answers_when_the_first_lies_under_load() -> Result<()> {
    let place = Place::new()?;
    let (one, _two) = (place.upstream()?, place.upstream_at(SECOND)?);
    one.order(Orders::always(Reply::WrongId));
    let _daemon = place.daemon(&[NAMED_UPSTREAM, NAMED_SECOND], &[])?;
    let (client, burst) = (place.udp()?, Burst::new("n", 100)?);
    for query in burst.queries() {
        client.send(&query)?;
        std::thread::sleep(Duration::from_millis(30));
    }
    burst.collect(|| client.receive()).map(drop)
}

#[test]
fn the_log_has_the_reason_also_when_it_changes() -> Result<()> {
    let place = Place::new()?;
    let more = ["--upstream-timeout", "300ms", "--workers", "1"];
    let daemon = place.start(&place.run_args(&[NAMED_UPSTREAM], &more))?;
    check_fails(&place, NETWORK_ERROR)?;
    daemon.wait_for_log("refused", LIMIT)?;
    let wrong = place.pki.server(&["other.test"])?;
    let _server = DotServer::start(&place.netns, &[UPSTREAM.parse()?], &wrong)?;
    check_fails(&place, NETWORK_ERROR)?;
    daemon.wait_for_log("certificate", Duration::from_secs(1))
}

#[test]
fn the_first_upstream_is_preferred_and_is_so_again_when_it_is_back() -> Result<()> {
    let place = Place::new()?;
    let (one, two) = (place.upstream()?, place.upstream_at(SECOND)?);
    let _daemon = place.daemon(&[NAMED_UPSTREAM, NAMED_SECOND], &[])?;
    let client = place.udp()?;
    client.resolve("a.example.test")?;
    one.refuse()?;
    one.disconnect(Close::Orderly);
    ensure!(eventually(LIMIT, || one.journal().open == 0));
    client.resolve("b.example.test")?;
    ensure!((one.journal().queries.len(), two.journal().queries.len()) == (1, 1));
    one.listen()?;
    let back = || {
        let answered = client.resolve("c.example.test");
        answered.is_ok() && one.journal().queries.len() > 1
    };
    ensure!(eventually(LIMIT, back), "the first is not asked again");
    Ok(())
}

/// Each client's next query comes a while after its last one, as in life; only the one that finds
/// the first upstream frozen may have to wait for it.
#[test]
fn a_first_upstream_that_becomes_slow_is_left_for_the_second_until_it_is_quick_again() -> Result<()>
{
    let place = Place::new()?;
    let (one, two) = (place.upstream()?, place.upstream_at(SECOND)?);
    let _daemon = place.daemon(&[NAMED_UPSTREAM, NAMED_SECOND], &[])?;
    let client = place.udp()?;
    let numbers = Cell::new(0);
    // Without the probes.
    let seen = |server: &DotServer| {
        server.journal().queries.iter().filter(|query| !query.name.is_empty()).count()
    };
    let ask = |count: u32| -> Result<usize> {
        let before = seen(&one);
        for _ in 0..count {
            numbers.update(|number| number + 1);
            client.resolve(&format!("n{}.example.test", numbers.get()))?;
        }
        Ok(seen(&one) - before)
    };
    ensure!(ask(10)? == 10, "the first is not preferred");
    one.order(Orders { delay: Duration::from_millis(150), ..Orders::default() });
    let left = || ask(20).is_ok_and(|asked| asked == 0);
    ensure!(eventually(LIMIT, left), "the first is still asked");
    ensure!(seen(&two) >= 20, "the second was asked {} times", seen(&two));
    one.order(Orders::default());
    let back = || ask(20).is_ok_and(|asked| asked == 20);
    ensure!(eventually(LIMIT, back), "the first is not asked again");
    Ok(())
}

#[test]
fn a_frozen_first_upstream_does_not_cost_every_query_its_time() -> Result<()> {
    let place = Place::new()?;
    let (one, _two) = (place.upstream()?, place.upstream_at(SECOND)?);
    one.order(Orders { stall_handshake: true, ..Orders::default() });
    let _daemon = place.daemon(&[NAMED_UPSTREAM, NAMED_SECOND], &[])?;
    let client = place.udp()?;
    let mut waited = Duration::ZERO;
    for n in 0..6 {
        let started = Instant::now();
        client.resolve(&format!("n{n}.example.test"))?;
        waited += started.elapsed();
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(waited < Duration::from_secs(3), "six queries took {waited:?}");
    Ok(())
}
