//! Names that a route sends elsewhere in plaintext: to whom, with what in them, and what is believed.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Daemon, DotServer, PlainServer, Zone, eventually,
    mounts::Mounts,
    runtime::Runtime,
    wire::{Answer, frame, take_message},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
};

use crate::{
    packets::{
        A, AD, AXFR, COOKIE, IXFR, KEEPALIVE, PADDING, REFUSED, SERVFAIL, Summary, UNKNOWN, id_of,
        message, name, opt, option, plain_opt, query, question, record,
    },
    place::{LIMIT, NAMED_UPSTREAM, Place},
};

const ID: u16 = 0x1234;
/// A nameserver of the host.
const RESOLVER: &str = "127.0.0.9:53";
/// Sends `lab.test` there.
const ROUTE: &str = "--route=lab.test=127.0.0.9";

/// A forwarder on a host with a resolver configuration of its own.
struct Host {
    daemon: Daemon,
    mounts: Mounts,
    upstream: DotServer,
    place: Place,
}

impl Host {
    fn new(resolv_conf: &str, args: &[&str]) -> Result<Self> {
        let place = Place::new()?;
        let upstream = place.upstream()?;
        let mounts = Mounts::new(resolv_conf)?;
        let mut command = place.netns.command(Daemon::program()?);
        mounts.enter(&mut command);
        let args = [&["--workers=1", "--log=debug"], args].concat();
        let daemon = Daemon::start_command(command, &place.run_args(&[NAMED_UPSTREAM], &args))?;
        Ok(Self { daemon, mounts, upstream, place })
    }

    fn nameserver(&self, address: &str) -> Result<PlainServer> {
        PlainServer::start_on(&self.place.netns, &[address.parse()?], Zone::Plaintext)
    }

    fn ask(&self, name: &str) -> Result<Vec<IpAddr>> {
        let asked = query(ID, name, A, &[&plain_opt()]);
        Ok(Answer::to(&asked, &self.place.udp()?.ask(&asked)?)?.addresses)
    }

    /// Names that went upstream.
    fn encrypted(&self) -> Vec<String> {
        self.upstream.journal().queries.into_iter().map(|query| query.name).collect()
    }
}

fn names(server: &PlainServer) -> Vec<String> {
    server.queries().into_iter().map(|query| query.question.name).collect()
}

/// What comes to a nameserver that answers datagrams as a function says.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Datagram>>>);

/// A datagram that came.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Datagram {
    client: SocketAddr,
    message: Vec<u8>,
}

impl Seen {
    fn all(&self) -> Vec<Datagram> {
        self.lock().clone()
    }

    /// Notes what came; how much came before.
    fn note(&self, client: SocketAddr, message: &[u8]) -> usize {
        let mut all = self.lock();
        all.push(Datagram { client, message: message.to_vec() });
        all.len() - 1
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Datagram>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts such a nameserver. The function is told what comes and how much came before.
fn scripted(
    place: &Place,
    answers: impl Fn(&[u8], usize) -> Vec<Vec<u8>> + Send + 'static,
) -> Result<(Seen, Runtime)> {
    let runtime = Runtime::inside(&place.netns)?;
    let socket = runtime.run(UdpSocket::bind(RESOLVER))??;
    let seen = Seen::default();
    let journal = seen.clone();
    runtime.spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let asked = &buffer[..length];
            let before = journal.note(client, asked);
            for answer in answers(asked, before) {
                if socket.send_to(&answer, client).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok((seen, runtime))
}

/// The answer to a query, with one address and these flags.
fn answer(asked: &[u8], flags: u16) -> Vec<u8> {
    let question = &asked[12..asked.len().min(12 + 14)];
    let address = record(b"\xc0\x0c", A, &[198, 51, 100, 53]);
    let id = u16::from_be_bytes([asked[0], asked[1]]);
    let mut out = message(id, 0x8180 | flags, &[question], &[]);
    out[7] = 1;
    out.extend_from_slice(&address);
    out
}

/// What [`answer`] can answer: its question is 14 octets long.
const SHORT: &str = "lab.test";

#[test]
fn original_means_the_hosts_own_nameservers_and_not_ourselves() -> Result<()> {
    let conf = "search corp.example\nnameserver 127.0.0.1\nnameserver 127.0.0.9\n";
    let host = Host::new(conf, &["--route=lab.test=original"])?;
    let resolver = host.nameserver(RESOLVER)?;
    let internal = ["db.internal", "db", "www.corp.example", "a.lab.test"];
    for name in internal {
        let found = host.ask(name)?;
        ensure!(found == [IpAddr::from(Zone::Plaintext.a())], "{name}: {found:?}");
    }
    host.place.udp()?.resolve("www.example.test")?;
    ensure!(names(&resolver) == internal && host.encrypted() == ["www.example.test"]);
    let log = host.daemon.log().clone();
    host.daemon.stop()?;
    ensure!(log.text().contains("queries=5 encrypted=1 failed=0"), "{}", log.text());
    ensure!(log.text().contains("plaintext=4 local=0"), "{}", log.text());
    Ok(())
}

#[test]
fn routes_follow_the_hosts_resolver_configuration() -> Result<()> {
    let host = Host::new("search one.example\nnameserver 127.0.0.9\n", &[])?;
    let (first, second) = (host.nameserver(RESOLVER)?, host.nameserver("127.0.0.10:53")?);
    host.ask("www.one.example")?;
    host.mounts.set_resolv_conf("search two.example\nnameserver 127.0.0.10\n")?;
    host.daemon.wait_for_log("routes follow it", LIMIT)?;
    let followed = eventually(LIMIT, || {
        host.ask("www.two.example").is_ok_and(|found| found == [IpAddr::from(Zone::Plaintext.a())])
    });
    ensure!(followed, "{:?}", host.encrypted());
    host.ask("www.one.example")?;
    ensure!(names(&first) == ["www.one.example"]);
    ensure!(names(&second).iter().all(|name| name == "www.two.example"));
    ensure!(host.encrypted().last().is_some_and(|name| name == "www.one.example"));
    Ok(())
}

#[test]
fn without_a_nameserver_of_its_own_the_host_has_only_what_is_encrypted() -> Result<()> {
    let host = Host::new("nameserver 127.0.0.1\n", &["--route=lab.test=original"])?;
    host.ask("db.internal")?;
    ensure!(host.encrypted() == ["db.internal"], "nobody near to ask");
    let answer = host.place.udp()?.ask(&query(ID, SHORT, A, &[&plain_opt()]))?;
    let summary = Summary::of(&answer)?;
    ensure!(summary.rcode == SERVFAIL, "{summary:?}");
    ensure!(summary.extended_error.is_some_and(|(_, text)| text.contains("no nameserver")));
    ensure!(host.encrypted() == ["db.internal"], "what was said to stay leaked");
    Ok(())
}

#[test]
fn a_public_nameserver_of_the_host_is_not_asked_by_default() -> Result<()> {
    let host = Host::new("nameserver 192.0.2.9\n", &[])?;
    host.ask("db.internal")?;
    ensure!(host.encrypted() == ["db.internal"]);
    Ok(())
}

#[test]
fn the_next_nameserver_is_asked_if_one_refuses_or_is_silent() -> Result<()> {
    let args = ["--route=lab.test=127.0.0.7,lab.test=127.0.0.8,lab.test=127.0.0.9"];
    let host = Host::new("", &args)?;
    let _silent = host.place.netns.run(|| std::net::UdpSocket::bind("127.0.0.8:53"))??;
    let resolver = host.nameserver(RESOLVER)?;
    let found = host.ask("a.lab.test")?;
    ensure!(found == [IpAddr::from(Zone::Plaintext.a())], "{found:?}");
    ensure!(names(&resolver) == ["a.lab.test"]);
    Ok(())
}

#[test]
fn a_lost_datagram_is_sent_again() -> Result<()> {
    let host = Host::new("", &[ROUTE])?;
    let lossy = |asked: &[u8], before| if before == 0 { vec![] } else { vec![answer(asked, 0)] };
    let (seen, _nameserver) = scripted(&host.place, lossy)?;
    ensure!(host.ask(SHORT)?.len() == 1);
    let all = seen.all();
    ensure!(all.len() == 2 && all[0] == all[1], "not the same, from the same: {all:?}");
    Ok(())
}

#[test]
fn only_the_answer_to_the_question_is_believed() -> Result<()> {
    let host = Host::new("", &[ROUTE])?;
    let forged = |asked: &[u8], _| {
        let wrong = |change: fn(&mut [u8])| {
            let mut answer = answer(asked, 0);
            change(&mut answer);
            let last = answer.len() - 1;
            answer[last] = 66;
            answer
        };
        let (id, question, query) =
            (wrong(|m| m[1] ^= 1), wrong(|m| m[13] ^= 1), wrong(|m| m[2] &= 0x7f));
        vec![id, question, query, b"junk".to_vec(), vec![], answer(asked, 0)]
    };
    let (_seen, _nameserver) = scripted(&host.place, forged)?;
    let found = host.ask(SHORT)?;
    ensure!(found == [IpAddr::from(Zone::Plaintext.a())], "{found:?}");
    Ok(())
}

#[test]
fn each_query_has_an_id_and_a_port_that_nobody_can_guess() -> Result<()> {
    const COUNT: usize = 32;
    let host = Host::new("", &[ROUTE])?;
    let (seen, _nameserver) = scripted(&host.place, |asked, _| vec![answer(asked, 0)])?;
    for _ in 0..COUNT {
        host.ask(SHORT)?;
    }
    let all = seen.all();
    ensure!(all.len() == COUNT);
    let mut ids = all.iter().map(|seen| id_of(&seen.message)).collect::<Result<Vec<_>>>()?;
    let mut ports: Vec<_> = all.iter().map(|seen| seen.client.port()).collect();
    ids.sort_unstable();
    ids.dedup();
    ports.sort_unstable();
    ports.dedup();
    // A few may be equal by chance.
    ensure!(ids.len() > COUNT - 4 && ports.len() > COUNT - 4, "{ids:?} {ports:?}");
    Ok(())
}

#[test]
fn what_is_hop_by_hop_ends_here_and_nothing_is_padded() -> Result<()> {
    let host = Host::new("", &[ROUTE])?;
    let (seen, _nameserver) = scripted(&host.place, |asked, _| vec![answer(asked, AD)])?;
    let hop_by_hop =
        [option(COOKIE, b"COOKIE!!"), option(KEEPALIVE, b""), option(PADDING, &[0; 9])];
    let options = [&hop_by_hop.concat()[..], &option(UNKNOWN, b"x")].concat();
    let client = host.place.udp()?;
    let flags = AD;
    let asked = message(ID, flags, &[&question(SHORT, A)], &[&opt(4096, [0, 0], 0, &options)]);
    let with = Summary::of(&client.ask(&asked)?)?;
    ensure!(!with.authentic, "nobody has authenticated it");
    let without = Summary::of(&client.ask(&query(ID, SHORT, A, &[]))?)?;
    ensure!(!without.opt);
    let all = seen.all();
    let first = Summary::of(&all[0].message)?;
    ensure!(first.options == [UNKNOWN], "{first:?}");
    ensure!(all[1].message[2..] == query(ID, SHORT, A, &[])[2..], "touched: {:02x?}", all[1]);
    Ok(())
}

/// Serves zone transfers in three messages, the last two only after a while, and then keeps silent.
fn transfers(place: &Place) -> Result<Runtime> {
    let runtime = Runtime::inside(&place.netns)?;
    let listener = runtime.run(TcpListener::bind(RESOLVER))??;
    runtime.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut inbox = Vec::new();
                while stream.read_buf(&mut inbox).await.is_ok_and(|length| length > 0) {
                    while let Some(asked) = take_message(&mut inbox) {
                        for part in parts(&asked) {
                            if stream.write_all(&frame(&part)).await.is_err() {
                                return;
                            }
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            });
        }
    });
    Ok(runtime)
}

/// The messages of a transfer: SOA, an address, SOA. Only the first has the question.
fn parts(asked: &[u8]) -> [Vec<u8>; 3] {
    let id = u16::from_be_bytes([asked[0], asked[1]]);
    let owner = name(SHORT);
    let soa =
        record(&owner, 6, &[&name("ns.lab.test")[..], &name("a.lab.test"), &[7; 20]].concat());
    let address = record(&name("a.lab.test"), A, &[198, 51, 100, 53]);
    let part = |questions: &[&[u8]], record: &[u8]| {
        let mut out = message(id, 0x8400, questions, &[]);
        out[7] = 1;
        out.extend_from_slice(record);
        out
    };
    [part(&[&question(SHORT, AXFR)], &soa), part(&[], &address), part(&[], &soa)]
}

#[test]
fn a_zone_transfer_comes_with_all_its_messages() -> Result<()> {
    let host = Host::new("", &[ROUTE])?;
    let _nameserver = transfers(&host.place)?;
    let mut client = host.place.tcp()?;
    let asked = query(ID, SHORT, AXFR, &[]);
    client.send(&asked)?;
    // Another question does not wait for the end.
    client.send(&query(ID + 1, "www.example.test", A, &[]))?;
    let mut received = Vec::new();
    let mut other = 0;
    while received.len() < 3 {
        let message = client.receive().context("the transfer is not whole")?;
        if id_of(&message)? == ID { received.push(message) } else { other += 1 }
    }
    ensure!(received == parts(&asked), "{received:02x?}");
    if other == 0 {
        client.receive()?;
    }
    // It has ended: nothing of it is in the way.
    client.finish()?;
    ensure!(client.is_closed(), "more came");
    ensure!(host.encrypted() == ["www.example.test"]);
    Ok(())
}

#[test]
fn zone_transfers_are_refused_by_udp_and_where_nobody_was_asked() -> Result<()> {
    let host = Host::new("", &[ROUTE, "--route=tls.test=tls://127.0.0.1:853#dns.test"])?;
    let resolver = host.nameserver(RESOLVER)?;
    for (name, by_tcp) in [(SHORT, false), ("example.test", true), ("tls.test", true)] {
        let asked = query(ID, name, AXFR, &[&plain_opt()]);
        let answer =
            if by_tcp { host.place.tcp()?.ask(&asked)? } else { host.place.udp()?.ask(&asked)? };
        let summary = Summary::of(&answer)?;
        ensure!(summary.rcode == REFUSED, "{name}: {summary:?}");
        ensure!(summary.extended_error.as_ref().is_some_and(|error| error.0 == 21), "{summary:?}");
    }
    // RFC 1995 section 2 allows these.
    host.place.udp()?.ask(&query(ID, SHORT, IXFR, &[]))?;
    ensure!(names(&resolver) == [SHORT] && host.encrypted().is_empty());
    Ok(())
}

#[test]
fn a_silent_nameserver_holds_up_nobody_else() -> Result<()> {
    const COUNT: u16 = 600;
    /// As many as may be under way, and what a daemon has open besides.
    const DESCRIPTORS: usize = 256 + 64;
    let host = Host::new("", &[ROUTE, "--upstream-timeout=3s"])?;
    let _silent = host.place.netns.run(|| std::net::UdpSocket::bind(RESOLVER))??;
    let client = host.place.udp()?;
    for id in 0..COUNT {
        client.send(&query(id, SHORT, A, &[]))?;
    }
    for n in 0..20 {
        host.place.udp()?.resolve(&format!("n{n}.example.test"))?;
        let descriptors = host.daemon.fds()?;
        ensure!(descriptors < DESCRIPTORS, "{descriptors} descriptors");
    }
    for _ in 0..COUNT {
        ensure!(Summary::of(&client.receive()?)?.rcode == SERVFAIL);
    }
    Ok(())
}

#[test]
fn routes_have_environment_twins() -> Result<()> {
    let place = Place::new()?;
    let upstream = place.upstream()?;
    let resolver = [RESOLVER.parse()?];
    let resolver = PlainServer::start_on(&place.netns, &resolver, Zone::Plaintext)?;
    let mut command = place.netns.command(Daemon::program()?);
    let mounts = Mounts::new("nameserver 127.0.0.9\n")?;
    mounts.enter(&mut command);
    command.env("DNS_PROXY_ROUTE", "lab.test=127.0.0.9,no.test=refuse");
    command.env("DNS_PROXY_NO_DEFAULT_ROUTES", "true");
    let _daemon = Daemon::start_command(command, &place.run_args(&[NAMED_UPSTREAM], &[]))?;
    let ask = |name: &str| place.udp()?.ask(&query(ID, name, A, &[]));
    ask(SHORT)?;
    ensure!(Summary::of(&ask("a.no.test")?)?.rcode == REFUSED);
    ask("db.internal")?;
    ensure!(names(&resolver) == [SHORT]);
    ensure!(upstream.journal().queries_for("db.internal").len() == 1);
    Ok(())
}
