//! What can go wrong with the upstream while hundreds of queries wait for it: nothing is lost, and
//! nobody is told to wait longer than usual.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Close, DotServer, Orders, Reply, eventually};

use crate::{
    client::{Burst, Udp},
    packets::{A, SERVFAIL, Summary, query},
    place::{LIMIT, NAMED_UPSTREAM, Place, Setting, UPSTREAM},
};

/// Queries that wait at once.
const MANY: u16 = 300;
const CLOSES: [Close; 4] = [Close::Orderly, Close::Abrupt, Close::Reset, Close::Half];

/// Sends many queries, each for a name of its own.
fn send_many(client: &Udp) -> Result<Burst> {
    let burst = Burst::new("n", MANY)?;
    for query in burst.queries() {
        client.send(&query)?;
    }
    Ok(burst)
}

/// Sends many queries, waits until the upstream has them all, does something to it, and checks that
/// each gets its own answer.
fn check_while_waiting(what: impl FnOnce(&Setting) -> Result<()>) -> Result<Setting> {
    let setting = Setting::new()?;
    let client = setting.place.udp()?;
    client.resolve("before.example.test")?;
    setting.upstream.order(Orders::delayed(Duration::from_millis(500)));
    let burst = send_many(&client)?;
    let waiting = || setting.upstream.journal().in_flight == usize::from(MANY);
    ensure!(eventually(LIMIT, waiting), "not all came");
    setting.upstream.order(Orders::default());
    what(&setting)?;
    burst.collect(|| client.receive())?;
    Ok(setting)
}

/// What comes on the first connection is wrong, while many wait for it.
fn check_recovers(orders: &Orders) -> Result<()> {
    let setting = Setting::new()?;
    let client = setting.place.udp()?;
    client.resolve("before.example.test")?;
    setting.upstream.order(Orders { faithful_from: Some(1), ..orders.clone() });
    let burst = send_many(&client)?;
    burst.collect(|| client.receive()).with_context(|| format!("{orders:?}"))?;
    let accepted = setting.upstream.journal().accepted;
    ensure!((2..=4).contains(&accepted), "{accepted} connections, {orders:?}");
    Ok(())
}

#[test]
fn a_connection_that_ends_in_any_way_loses_none_of_many() -> Result<()> {
    for close in CLOSES {
        let setting = check_while_waiting(|setting| {
            setting.upstream.disconnect(close);
            Ok(())
        })
        .with_context(|| format!("{close:?}"))?;
        let accepted = setting.upstream.journal().accepted;
        // The spare ones are for a server that is so slow.
        ensure!((2..=5).contains(&accepted), "{accepted} connections, {close:?}");
    }
    Ok(())
}

#[test]
fn a_connection_that_goes_silent_or_lies_loses_none_of_many() -> Result<()> {
    for reply in [
        Reply::Silence,
        Reply::Stall,
        Reply::Junk,
        Reply::Misframed,
        Reply::WrongId,
        Reply::WrongQuestion,
        Reply::crafted(|_| Vec::new()),
        Reply::crafted(<[u8]>::to_vec),
    ] {
        check_recovers(&Orders::always(reply))?;
    }
    Ok(())
}

/// Others were answered before, and still more wait behind.
#[test]
fn a_connection_that_breaks_in_the_midst_of_many_answers_loses_none() -> Result<()> {
    for reply in [Reply::Stall, Reply::Junk, Reply::Misframed] {
        check_recovers(&Orders::default().except("n150.example.test", reply))?;
    }
    Ok(())
}

#[test]
fn an_upstream_that_refuses_for_a_while_loses_none_of_many() -> Result<()> {
    check_while_waiting(|setting| {
        setting.upstream.refuse()?;
        setting.upstream.disconnect(Close::Reset);
        setting.daemon.wait_for_log("upstream failed", LIMIT)?;
        setting.upstream.listen()
    })
    .map(drop)
}

/// As when somebody else takes the server's address for a while.
#[test]
fn a_wrong_certificate_for_a_while_loses_none_of_many_and_sees_none() -> Result<()> {
    let place = Place::new()?;
    let right = place.upstream()?;
    let daemon = place.daemon(&[NAMED_UPSTREAM], &["--upstream-timeout", "8s"])?;
    let client = place.udp()?;
    client.resolve("before.example.test")?;
    right.order(Orders::always(Reply::Silence));
    let burst = send_many(&client)?;
    ensure!(eventually(LIMIT, || right.journal().in_flight == usize::from(MANY)));

    let wrong = place.pki.server(&["other.test"])?;
    drop(right);
    let wrong = DotServer::start(&place.netns, &[UPSTREAM.parse()?], &wrong)?;
    daemon.wait_for_log("the certificate is for other.test", LIMIT)?;
    ensure!(wrong.journal().queries.is_empty(), "a query leaked");
    drop(wrong);
    let _right = place.upstream()?;
    burst.collect(|| client.receive()).map(drop)
}

/// Some servers close when they see what they do not like. Whose query that is shows soon, and the
/// others do not suffer for it.
#[test]
fn a_query_that_ends_every_connection_costs_nobody_else_an_answer() -> Result<()> {
    for close in CLOSES {
        let setting = Setting::new()?;
        let poison = Orders::default().except("poison.example.test", Reply::End(close));
        setting.upstream.order(Orders { delay: Duration::from_millis(5), ..poison });
        let (client, poisoner) = (setting.place.udp()?, setting.place.udp()?);
        let burst = Burst::new("n", MANY)?;
        for (number, query_) in burst.queries().iter().enumerate() {
            if number == 100 {
                poisoner.send(&query(7, "poison.example.test", A, &[]))?;
            }
            client.send(query_)?;
        }
        burst.collect(|| client.receive()).with_context(|| format!("{close:?}"))?;
        let answer = Summary::of(&poisoner.receive()?)?;
        ensure!(answer.rcode == SERVFAIL, "{close:?}: {answer:?}");
        let accepted = setting.upstream.journal().accepted;
        ensure!(accepted <= 40, "{accepted} connections, {close:?}");
    }
    Ok(())
}

/// Nobody waits for longer than the daemon is told to, and it does not dial all the time meanwhile.
#[test]
fn an_upstream_that_answers_nobody_is_an_error_for_all_in_time() -> Result<()> {
    for close in CLOSES {
        let setting = Setting::new()?;
        setting.upstream.order(Orders::always(Reply::End(close)));
        let client = setting.place.udp()?;
        send_many(&client)?;
        for n in 0..MANY {
            let answer = client.receive().with_context(|| format!("{n} answers, {close:?}"))?;
            ensure!(Summary::of(&answer)?.rcode == SERVFAIL, "{close:?}");
        }
        let accepted = setting.upstream.journal().accepted;
        ensure!(accepted <= 400, "{accepted} connections, {close:?}");
    }
    Ok(())
}

/// So do servers that allow only so many queries on each connection.
fn check_closes_after(answers: usize, at_most: usize) -> Result<()> {
    for close in [Close::Orderly, Close::Reset] {
        // Each connection takes its time, and one follows the other.
        let setting = Setting::with(&["--upstream-timeout", "8s"])?;
        setting.upstream.order(Orders::closing_after(answers, close));
        let client = setting.place.udp()?;
        let burst = send_many(&client)?;
        burst.collect(|| client.receive()).with_context(|| format!("{close:?}"))?;
        let journal = setting.upstream.journal();
        ensure!(journal.accepted <= at_most, "{} connections, {close:?}", journal.accepted);
    }
    Ok(())
}

#[test]
fn connections_for_a_hundred_queries_each_lose_none_of_many() -> Result<()> {
    check_closes_after(100, 15)
}

#[test]
fn connections_for_ten_queries_each_lose_none_of_many() -> Result<()> {
    check_closes_after(10, 60)
}

#[test]
fn connections_for_one_query_each_lose_none_of_many() -> Result<()> {
    check_closes_after(1, 400)
}
