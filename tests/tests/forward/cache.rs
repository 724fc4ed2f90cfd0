//! What is known is not asked again, and what is asked for whom.

use std::{io, time::Duration};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Close, Daemon, Orders, PlainServer, Zone, eventually,
    mounts::Mounts,
    wire::frame,
    zone::{NEGATIVE_TTL, TTL},
};
use hickory_proto::op::Message;

use crate::{
    packets::{
        A, AD, CD, COOKIE, DO, KEEPALIVE, PADDING, RD, SERVFAIL, Summary, TXT, UNKNOWN, id_of,
        message, opt, option, plain_opt, query, question, tsig,
    },
    place::{LIMIT, NAMED_UPSTREAM, Place, Setting},
};

const ON: &str = "--cache-size=1MiB";
const NAME: &str = "www.example.test";
const ID: u16 = 0x1234;

fn setting(more: &[&str]) -> Result<Setting> {
    Setting::with(&[&[ON], more].concat())
}

/// How often the upstream was asked.
fn asked(setting: &Setting) -> usize {
    setting.upstream.journal().queries.len()
}

/// The TTLs of all records of an answer.
fn ttls(answer: &[u8]) -> Result<Vec<u32>> {
    let message = Message::from_vec(answer)?;
    let records = message.answers.iter().chain(&message.authorities);
    Ok(records.map(|record| record.ttl).collect())
}

#[test]
fn a_name_is_asked_once_and_its_time_runs_out() -> Result<()> {
    let setting = setting(&[])?;
    let client = setting.place.udp()?;
    let first = client.ask(&query(ID, NAME, A, &[&plain_opt()]))?;
    ensure!(ttls(&first)? == [TTL]);
    let again = query(ID + 1, NAME, A, &[&plain_opt()]);
    let mut last = client.ask(&again)?;
    let counts_down = eventually(LIMIT, || {
        last = client.ask(&again).unwrap_or_default();
        ttls(&last).is_ok_and(|ttls| ttls[0] < TTL)
    });
    ensure!(counts_down, "{last:02x?}");
    // All else is as it came.
    let ttl = first.len() - 11 - 4 - 2 - 4..first.len() - 11 - 4 - 2;
    ensure!(last[2..ttl.start] == first[2..ttl.start] && last[ttl.end..] == first[ttl.end..]);
    ensure!(id_of(&last)? == ID + 1);
    ensure!(asked(&setting) == 1);
    ensure!(setting.daemon.stop_and_count("cached")? >= 2);
    Ok(())
}

#[test]
fn every_client_gets_the_answer_in_its_own_way() -> Result<()> {
    let setting = setting(&[])?;
    let (udp, mut tcp) = (setting.place.udp()?, setting.place.tcp()?);
    udp.ask(&query(ID, "big.example.test", TXT, &[]))?;
    let mixed = query(ID, "bIg.ExAmPlE.tEsT", TXT, &[]);
    let cut = Summary::of(&udp.ask(&mixed)?)?;
    ensure!(cut.truncated && cut.answers == 0 && !cut.opt, "{cut:?}");
    let whole = tcp.ask(&mixed)?;
    ensure!(whole[12..].starts_with(&question("bIg.ExAmPlE.tEsT", TXT)), "the case is not kept");
    let hop_by_hop =
        [option(COOKIE, b"COOKIE!!"), option(KEEPALIVE, b""), option(PADDING, &[0; 9])].concat();
    let edns = opt(4096, [0, 0], 0, &hop_by_hop);
    let edns = Summary::of(&tcp.ask(&query(ID, "big.example.test", TXT, &[&edns]))?)?;
    ensure!(edns.opt && edns.options.is_empty() && edns.answers == 1, "{edns:?}");
    ensure!(asked(&setting) == 1);
    Ok(())
}

#[test]
fn that_there_is_nothing_is_known_too() -> Result<()> {
    let setting = setting(&[])?;
    for name in ["nx.example.test", "nodata.example.test"] {
        let client = setting.place.udp()?;
        let asked = query(ID, name, A, &[]);
        ensure!(client.ask(&asked)? == client.ask(&asked)?, "{name}");
        ensure!(ttls(&client.ask(&asked)?)?[0] <= NEGATIVE_TTL);
        ensure!(setting.upstream.journal().queries_for(name).len() == 1, "{name}");
    }
    Ok(())
}

#[test]
fn answers_to_other_questions_are_kept_apart() -> Result<()> {
    let setting = setting(&[])?;
    let asked_for = question(NAME, A);
    let dnssec = opt(1232, [0, 0], DO, &[]);
    let queries = [
        message(ID, RD, &[&asked_for], &[]),
        message(ID, RD | CD, &[&asked_for], &[]),
        message(ID, RD | AD, &[&asked_for], &[]),
        message(ID, RD, &[&asked_for], &[&dnssec]),
        message(ID, RD | CD, &[&asked_for], &[&dnssec]),
        query(ID, NAME, UNKNOWN, &[]),
    ];
    let client = setting.place.udp()?;
    for _ in 0..3 {
        for query in &queries {
            client.ask(query)?;
        }
    }
    ensure!(asked(&setting) == queries.len(), "{}", asked(&setting));
    Ok(())
}

#[test]
fn what_may_depend_on_more_than_the_question_is_always_asked() -> Result<()> {
    let setting = setting(&[])?;
    let client = setting.place.udp()?;
    client.ask(&query(ID, NAME, A, &[]))?;
    let subnet = option(8, b"\x00\x01\x18\x00\xc0\x00\x02");
    let asked_for = question(NAME, A);
    let queries = [
        message(ID, 0, &[&asked_for], &[]),
        message(ID, RD | 0x40, &[&asked_for], &[]),
        query(ID, NAME, A, &[&opt(1232, [0, 0], 0, &subnet)]),
        query(ID, NAME, A, &[&opt(1232, [0, 0], 0, &option(65_001, b"x"))]),
        query(ID, NAME, A, &[&opt(1232, [0, 0], 0x4000, &[])]),
        query(ID, NAME, A, &[&tsig(ID)]),
        query(ID, NAME, 255, &[]),
    ];
    for query in queries.iter().chain(&queries) {
        client.ask(query)?;
    }
    ensure!(asked(&setting) == 1 + 2 * queries.len(), "{}", asked(&setting));
    Ok(())
}

#[test]
fn nothing_is_kept_with_size_0() -> Result<()> {
    let setting = Setting::with(&["--cache-size=0"])?;
    let client = setting.place.udp()?;
    client.resolve(NAME)?;
    client.resolve(NAME)?;
    ensure!(asked(&setting) == 2);
    Ok(())
}

/// A name that one nameserver knows may mean another thing to the next.
#[test]
fn answers_of_different_nameservers_are_kept_apart() -> Result<()> {
    let place = Place::new()?;
    let upstream = place.upstream()?;
    let server = |addr: &str, zone| PlainServer::start_on(&place.netns, &[addr.parse()?], zone);
    let first = server("127.0.0.9:53", Zone::Plaintext)?;
    let second = server("127.0.0.10:53", Zone::Encrypted)?;
    let mounts = Mounts::new("nameserver 127.0.0.9\n")?;
    let mut command = place.netns.command(Daemon::program()?);
    mounts.enter(&mut command);
    let args = ["--workers=1", "--route=example.test=original", ON];
    let daemon = Daemon::start_command(command, &place.run_args(&[NAMED_UPSTREAM], &args))?;
    let client = place.udp()?;
    let plaintext = client.ask(&query(ID, NAME, A, &[]))?;
    ensure!(client.ask(&query(ID, NAME, A, &[]))? == plaintext && first.queries().len() == 1);
    mounts.set_resolv_conf("nameserver 127.0.0.10\n")?;
    daemon.wait_for_log("routes follow it", LIMIT)?;
    ensure!(eventually(LIMIT, || client.resolve(NAME).is_ok()), "the first one's answer");
    client.resolve(NAME)?;
    ensure!(second.queries().len() == 1 && upstream.journal().queries.is_empty());
    Ok(())
}

#[test]
fn a_thousand_queries_at_a_time_are_one() -> Result<()> {
    /// Not more than a connection may have in flight, and a socket has room for.
    const EACH: u16 = 100;
    let setting = setting(&[])?;
    setting.upstream.order(Orders::delayed(Duration::from_millis(500)));
    for (name, rcode) in [(NAME, 0), ("servfail.example.test", SERVFAIL)] {
        let udp = setting.place.udp()?;
        let mut tcp = (0..9).map(|_| setting.place.tcp()).collect::<Result<Vec<_>>>()?;
        let queries: Vec<_> = (0..EACH).map(|id| query(id, name, A, &[])).collect();
        let framed = queries.iter().map(|query| frame(query)).collect::<Vec<_>>().concat();
        tcp.iter_mut().try_for_each(|client| client.send_raw(&framed))?;
        queries.iter().try_for_each(|query| udp.send(query))?;
        let mut receivers: Vec<Box<dyn FnMut() -> io::Result<Vec<u8>>>> =
            vec![Box::new(|| udp.receive())];
        receivers.extend(tcp.iter_mut().map(|client| Box::new(|| client.receive()) as Box<_>));
        for receive in &mut receivers {
            let mut answered = vec![false; EACH.into()];
            for n in 0..EACH {
                let answer = receive().with_context(|| format!("{name}: {n} answers"))?;
                answered[usize::from(id_of(&answer)?)] = true;
                ensure!(Summary::of(&answer)?.rcode == rcode, "{answer:02x?}");
            }
            ensure!(answered.into_iter().all(|answered| answered));
        }
        let queries = setting.upstream.journal().queries_for(name).len();
        ensure!(queries == 1, "{name}: {queries} queries");
    }
    Ok(())
}

/// The extended error of an answer, and its TTLs.
fn described(answer: &[u8]) -> Result<(Option<u16>, Vec<u32>)> {
    Ok((Summary::of(answer)?.extended_error.map(|(code, _)| code), ttls(answer)?))
}

#[test]
fn a_stale_answer_is_better_than_none() -> Result<()> {
    let setting = setting(&["--cache-max-ttl=1s", "--upstream-timeout=300ms"])?;
    let client = setting.place.udp()?;
    for name in [NAME, "nx.example.test"] {
        client.ask(&query(ID, name, A, &[]))?;
    }
    setting.upstream.refuse()?;
    setting.upstream.disconnect(Close::Reset);
    for (name, code) in [(NAME, 3), ("nx.example.test", 19)] {
        let asked = query(ID, name, A, &[&plain_opt()]);
        let mut found = (None, Vec::new());
        let stale = eventually(LIMIT, || {
            found = client.ask(&asked).and_then(|answer| described(&answer)).unwrap_or_default();
            found == (Some(code), vec![30])
        });
        ensure!(stale, "{name}: {found:?}");
    }
    // Who never asked before can get nothing.
    let unknown = client.ask(&query(ID, "new.example.test", A, &[]))?;
    ensure!(Summary::of(&unknown)?.rcode == SERVFAIL);
    Ok(())
}

#[test]
fn without_serve_stale_there_is_none() -> Result<()> {
    let args = ["--cache-max-ttl=1s", "--upstream-timeout=300ms", "--serve-stale=0"];
    let setting = setting(&args)?;
    let client = setting.place.udp()?;
    client.resolve(NAME)?;
    setting.upstream.refuse()?;
    setting.upstream.disconnect(Close::Reset);
    let asked = query(ID, NAME, A, &[]);
    let failed = eventually(LIMIT, || {
        let summary = client.ask(&asked).and_then(|answer| Summary::of(&answer));
        summary.is_ok_and(|summary| summary.rcode == SERVFAIL)
    });
    ensure!(failed, "an expired answer is given");
    Ok(())
}

#[test]
fn a_popular_name_is_renewed_before_its_time() -> Result<()> {
    // The last tenth of it is its last second.
    let setting = setting(&["--cache-max-ttl=10s"])?;
    let client = setting.place.udp()?;
    let asked_for = query(ID, NAME, A, &[]);
    client.ask(&asked_for)?;
    // From now on the upstream is so slow that whoever waited for it would notice.
    setting.upstream.order(Orders::delayed(Duration::from_millis(700)));
    let mut last = Vec::new();
    let renewed = eventually(2 * LIMIT, || {
        last = client.ask(&asked_for).and_then(|answer| ttls(&answer)).unwrap_or_default();
        asked(&setting) == 2
    });
    ensure!(renewed && last == [1], "{last:?}");
    Ok(())
}
