//! Whom the daemon trusts (RFC 8310): certificates, roots, versions of TLS, and what is said of a
//! server that is not the one that was meant.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Close, Daemon, DotServer, Identity, Orders, Pki, PlainServer, Reply, Zone, dot_server::Tls,
    eventually, zone::Transport,
};
use nix::sys::signal::Signal;
use rustls::{
    ProtocolVersion, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};

use crate::{
    packets::{A, AD, RD, Summary, flags_of, message, question},
    place::{LIMIT, LISTEN, NAME, NAMED_UPSTREAM, Place, UPSTREAM},
    upstream::{NAMED_SECOND, NETWORK_ERROR, SECOND, check_fails},
};

/// The upstream without a name: its address is to be in the certificate.
pub(crate) const BARE_UPSTREAM: &str = UPSTREAM;

pub(crate) fn serve(place: &Place, identity: &Identity) -> Result<DotServer> {
    DotServer::start(&place.netns, &[UPSTREAM.parse()?], identity)
}

/// Ends one, so that another can take its place.
pub(crate) fn end(server: DotServer) -> Result<()> {
    server.refuse().map(|()| drop(server))
}

/// It gets no query, the client an error, the log all these words.
pub(crate) fn check_gets_nothing(
    place: &Place,
    server: &DotServer,
    daemon: &Daemon,
    said: &[&str],
) -> Result<()> {
    check_fails(place, NETWORK_ERROR)?;
    for words in said {
        daemon.wait_for_log(words, LIMIT)?;
    }
    let journal = server.journal();
    ensure!(journal.queries.is_empty(), "a query leaked to a server without a name");
    ensure!(journal.handshakes.iter().all(|handshake| !handshake.resumed));
    Ok(())
}

/// An upstream named so, with this certificate, is refused with these words.
fn check_refused(
    upstream: &str,
    make: impl Fn(&Pki) -> Result<Identity>,
    said: &[&str],
) -> Result<()> {
    let place = Place::new()?;
    let server = serve(&place, &make(&place.pki)?)?;
    let daemon = place.daemon(&[upstream], &["--upstream-timeout", "500ms"])?;
    check_gets_nothing(&place, &server, &daemon, said)
}

#[test]
fn a_certificate_for_another_name_is_refused() -> Result<()> {
    let said = "the certificate is for other.test, 192.0.2.1; wanted dns.test; write \
                127.0.0.1:853#other.test if that is who it should be";
    check_refused(NAMED_UPSTREAM, |pki| pki.server(&["other.test", "192.0.2.1"]), &[said])?;
    let said = "the certificate is for *.test; wanted dns.example";
    check_refused("127.0.0.1:853#dns.example", |pki| pki.server(&["*.test"]), &[said])
}

#[test]
fn a_certificate_for_the_address_alone_does_not_do_for_a_name() -> Result<()> {
    let said = "the certificate is for 127.0.0.1; wanted dns.test";
    check_refused(NAMED_UPSTREAM, |pki| pki.server(&["127.0.0.1"]), &[said])
}

#[test]
fn a_certificate_for_the_name_alone_does_not_do_for_an_address() -> Result<()> {
    let said = "the certificate is for dns.test; wanted 127.0.0.1; write 127.0.0.1:853#dns.test";
    check_refused(BARE_UPSTREAM, |pki| pki.server(&[NAME]), &[said])
}

#[test]
fn a_certificate_for_nobody_is_refused() -> Result<()> {
    let said = "the certificate is for no name or address at all; wanted dns.test";
    check_refused(NAMED_UPSTREAM, |pki| pki.server(&[]), &[said])
}

/// The server chooses the names, so how much of them is shown is bounded.
#[test]
fn a_certificate_for_many_names_is_refused_in_few_words() -> Result<()> {
    let names: Vec<String> = (0..300).map(|n| format!("n{n}.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let said = "n6.test, n7.test and 292 more; wanted dns.test";
    check_refused(NAMED_UPSTREAM, |pki| pki.server(&names), &[said])
}

#[test]
fn a_certificate_out_of_its_time_is_refused() -> Result<()> {
    let said = "the certificate for dns.test expired on 2020-01-01";
    check_refused(NAMED_UPSTREAM, |pki| pki.expired_server(&[NAME]), &[said])?;
    let said = ["the certificate for dns.test is not valid before 4000-01-01", "clock"];
    check_refused(NAMED_UPSTREAM, |pki| pki.early_server(&[NAME]), &said)
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused() -> Result<()> {
    let said = [
        "the certificate for dns.test was issued by CN=dns-proxy test authority, for which no",
        "--ca",
    ];
    check_refused(NAMED_UPSTREAM, |_| Pki::new()?.server(&[NAME]), &said)?;
    // With a name that nobody here knows.
    check_refused(
        NAMED_UPSTREAM,
        |_| Ok(Pki::new()?.chained_server(&[NAME])?.0),
        &["issued by CN=dns-proxy test authority in between, for which no"],
    )
}

#[test]
fn a_certificate_that_only_the_server_signed_is_refused() -> Result<()> {
    let said = ["the certificate for dns.test is self-signed", "--pin"];
    check_refused(NAMED_UPSTREAM, |pki| pki.self_signed_server(&[NAME]), &said)
}

#[test]
fn a_name_or_an_address_in_the_certificate_is_accepted_as_asked() -> Result<()> {
    for (upstream, addr, held, server_name) in [
        ("127.0.0.1:853#dns.test", "127.0.0.1:853", "dns.test", Some("dns.test")),
        ("tls://127.0.0.1:853#DNS.Test", "127.0.0.1:853", "dns.test", Some("dns.test")),
        ("127.0.0.1:853#a.dns.test", "127.0.0.1:853", "*.dns.test", Some("a.dns.test")),
        ("127.0.0.1", "127.0.0.1:853", "127.0.0.1", None),
        ("[::1]:8853", "[::1]:8853", "::1", None),
        ("[::1]:8853#dns.test", "[::1]:8853", "dns.test", Some("dns.test")),
    ] {
        let place = Place::new()?;
        let identity = place.pki.server(&[held])?;
        let server = DotServer::start(&place.netns, &[addr.parse()?], &identity)?;
        let _daemon = place.daemon(&[upstream], &[])?;
        place.udp()?.resolve("www.example.test").with_context(|| upstream.to_owned())?;
        let shown = server.journal().handshakes[0].server_name.clone();
        ensure!(shown.map(|name| name.to_lowercase()).as_deref() == server_name, "{upstream}");
    }
    Ok(())
}

#[test]
fn a_chain_of_authorities_is_followed_to_its_root() -> Result<()> {
    let place = Place::new()?;
    let (identity, _) = place.pki.chained_server(&[NAME])?;
    let _server = serve(&place, &identity)?;
    let _daemon = place.daemon(&[NAMED_UPSTREAM], &[])?;
    place.udp()?.resolve("www.example.test")
}

/// Starts a daemon that trusts only what it is told to here, and gives up soon.
pub(crate) fn daemon(place: &Place, upstream: &str, more: &[&str]) -> Result<Daemon> {
    let own = ["--workers", "1", "--no-system-roots", "--upstream-timeout", "500ms"];
    let args = ["run", "--listen", LISTEN, "--upstream", upstream];
    let args = [&args[..], &own, more].concat();
    place.start(&args.into_iter().map(str::to_owned).collect::<Vec<_>>())
}

/// An answer that claims to be validated.
fn authentic(asked: &[u8]) -> Vec<u8> {
    let mut answer = Zone::Encrypted.answer(asked, Transport::Tcp).unwrap_or_default();
    answer[3] |= AD as u8;
    answer
}

#[test]
fn opportunistic_privacy_uses_whom_it_cannot_authenticate_and_says_so() -> Result<()> {
    let place = Place::new()?;
    let server = serve(&place, &place.pki.server(&["other.test"])?)?;
    server.order(Orders::always(Reply::crafted(authentic)));
    let daemon = place.daemon(&[NAMED_UPSTREAM], &["--profile", "opportunistic"])?;
    let client = place.udp()?;
    let asked = message(7, RD | AD, &[&question("www.example.test", A)], &[]);
    for _ in 0..3 {
        // Resumed sessions are no better than those they continue.
        let answer = client.ask(&asked)?;
        ensure!(Summary::of(&answer)?.answers == 1 && flags_of(&answer) & AD == 0, "{answer:02x?}");
        server.disconnect(Close::Orderly);
        ensure!(eventually(LIMIT, || server.journal().open == 0));
    }
    ensure!(server.journal().resumed() == 2, "sessions were not resumed");
    let said = "used without being authenticated";
    daemon.wait_for_log("wanted dns.test", LIMIT)?;
    let lines = daemon.log().lines().iter().filter(|line| line.contains(said)).count();
    ensure!(lines == 1, "said {lines} times:\n{}", daemon.log().text());

    end(server)?;
    let server = serve(&place, &place.identity()?)?;
    server.order(Orders::always(Reply::crafted(authentic)));
    let answer = client.ask(&asked)?;
    ensure!(flags_of(&answer) & AD != 0, "{answer:02x?}");
    daemon.wait_for_log("upstream is authenticated", LIMIT)?;
    ensure!(daemon.stop_and_count("unauthenticated")? == 3);
    Ok(())
}

/// There is no plaintext to fall back to.
#[test]
fn opportunistic_privacy_is_still_private() -> Result<()> {
    let place = Place::new()?;
    let plain: &[_] = &[UPSTREAM.parse()?];
    let server = PlainServer::start_on(&place.netns, plain, Zone::Plaintext)?;
    let more = ["--profile", "opportunistic", "--upstream-timeout", "500ms"];
    let _daemon = place.daemon(&[NAMED_UPSTREAM], &more)?;
    check_fails(&place, NETWORK_ERROR)?;
    ensure!(server.queries().is_empty(), "{:?}", server.queries());
    Ok(())
}

/// Nor is a session resumed that began while it was valid; the connection itself goes on.
#[test]
fn a_certificate_that_expires_meanwhile_is_refused() -> Result<()> {
    let place = Place::new()?;
    let identity = place.pki.server_for_seconds(&[NAME], 4)?;
    let valid = Instant::now();
    let upstream = serve(&place, &identity)?;
    let daemon = place.daemon(&[NAMED_UPSTREAM], &["--upstream-timeout", "500ms"])?;
    let client = place.udp()?;
    client.resolve("before.example.test")?;
    sleep(Duration::from_secs(6).saturating_sub(valid.elapsed()));
    client.resolve("on.the.same.connection.example.test")?;
    let asked = upstream.journal().queries.len();
    upstream.disconnect(Close::Orderly);
    ensure!(eventually(LIMIT, || upstream.journal().open == 0));
    check_fails(&place, NETWORK_ERROR)?;
    daemon.wait_for_log("expired on", LIMIT)?;
    ensure!(upstream.journal().queries.len() == asked, "a query leaked");
    Ok(())
}

#[test]
fn a_certificate_that_turns_wrong_is_refused_until_it_is_mended() -> Result<()> {
    let place = Place::new()?;
    let server = serve(&place, &place.identity()?)?;
    let daemon = place.daemon(&[NAMED_UPSTREAM], &["--upstream-timeout", "500ms"])?;
    let client = place.udp()?;
    client.resolve("a.example.test")?;

    end(server)?;
    let server = serve(&place, &place.pki.server(&["other.test"])?)?;
    check_gets_nothing(&place, &server, &daemon, &["the certificate is for other.test"])?;

    end(server)?;
    let _server = serve(&place, &place.identity()?)?;
    ensure!(eventually(LIMIT, || client.resolve("b.example.test").is_ok()));
    daemon.wait_for_log("upstream answers again", LIMIT)
}

#[test]
fn roots_that_change_are_read_again_when_a_server_needs_them() -> Result<()> {
    let place = Place::new()?;
    let file = place.pki.dir().join("roots.pem");
    fs::copy(place.pki.ca_file(), &file)?;
    let server = serve(&place, &place.identity()?)?;
    let daemon = daemon(&place, NAMED_UPSTREAM, &["--ca", &file.display().to_string()])?;
    let client = place.udp()?;
    client.resolve("a.example.test")?;

    let next = Pki::new()?;
    fs::copy(next.ca_file(), &file)?;
    end(server)?;
    let _server = serve(&place, &next.server(&[NAME])?)?;
    ensure!(eventually(LIMIT, || client.resolve("b.example.test").is_ok()));
    daemon.wait_for_log("root certificates have changed", LIMIT)
}

#[test]
fn roots_are_read_again_on_sighup_and_connections_stay() -> Result<()> {
    let place = Place::new()?;
    let file = place.pki.dir().join("roots.pem");
    fs::copy(place.pki.ca_file(), &file)?;
    let server = serve(&place, &place.identity()?)?;
    let daemon = daemon(&place, NAMED_UPSTREAM, &["--ca", &file.display().to_string()])?;
    let client = place.udp()?;
    client.resolve("a.example.test")?;

    // What cannot be read changes nothing.
    fs::write(&file, "")?;
    daemon.signal(Signal::SIGHUP)?;
    daemon.wait_for_log("root certificates stay as they are", LIMIT)?;
    fs::copy(Pki::new()?.ca_file(), &file)?;
    daemon.signal(Signal::SIGHUP)?;
    daemon.wait_for_log("root certificates have changed", LIMIT)?;
    client.resolve("b.example.test")?;
    ensure!(server.journal().accepted == 1, "the connection was dropped");

    // No session outlives the trust that it began with.
    server.disconnect(Close::Orderly);
    ensure!(eventually(LIMIT, || server.journal().open == 0));
    check_fails(&place, NETWORK_ERROR)?;
    ensure!(server.journal().queries.len() == 2, "a query leaked");
    daemon.wait_for_log("no trusted root vouches", LIMIT)?;

    fs::copy(place.pki.ca_file(), &file)?;
    daemon.signal(Signal::SIGHUP)?;
    ensure!(eventually(LIMIT, || client.resolve("c.example.test").is_ok()));
    Ok(())
}

fn check_tls(
    version: &'static SupportedProtocolVersion,
    expected: ProtocolVersion,
    alpn: &[&str],
) -> Result<()> {
    let place = Place::new()?;
    let server = speaking(&place, version, alpn)?;
    let _daemon = place.daemon(&[NAMED_UPSTREAM], &[])?;
    let client = place.udp()?;
    client.resolve("a.example.test")?;
    server.disconnect(Close::Orderly);
    ensure!(eventually(LIMIT, || server.journal().open == 0));
    client.resolve("b.example.test")?;
    let journal = server.journal();
    for handshake in &journal.handshakes {
        ensure!(handshake.version == Some(expected), "{handshake:?}");
        ensure!(handshake.alpn.as_deref() == alpn.first().copied(), "{handshake:?}");
    }
    ensure!(journal.resumed() == 1, "the second handshake is a full one");
    Ok(())
}

fn speaking(
    place: &Place,
    version: &'static SupportedProtocolVersion,
    alpn: &[&str],
) -> Result<DotServer> {
    let tls = Tls { versions: vec![version], alpn: alpn.iter().map(ToString::to_string).collect() };
    DotServer::start_with(&place.netns, &[UPSTREAM.parse()?], &place.identity()?, &tls)
}

#[test]
fn tls_1_3_and_1_2_work_with_and_without_alpn_and_sessions_are_resumed() -> Result<()> {
    check_tls(&TLS13, ProtocolVersion::TLSv1_3, &["dot"])?;
    check_tls(&TLS13, ProtocolVersion::TLSv1_3, &[])?;
    check_tls(&TLS12, ProtocolVersion::TLSv1_2, &["dot"])?;
    check_tls(&TLS12, ProtocolVersion::TLSv1_2, &[])
}

#[test]
fn tls_1_2_is_refused_if_it_is_too_old() -> Result<()> {
    let place = Place::new()?;
    let old = speaking(&place, &TLS12, &["dot"])?;
    let more = ["--tls-min", "1.3", "--upstream-timeout", "500ms"];
    let daemon = place.daemon(&[NAMED_UPSTREAM], &more)?;
    check_gets_nothing(&place, &old, &daemon, &["none of the versions that --tls-min allows"])?;
    end(old)?;
    let _new = speaking(&place, &TLS13, &["dot"])?;
    ensure!(eventually(LIMIT, || place.udp().and_then(|u| u.resolve("a.example.test")).is_ok()));
    Ok(())
}

#[test]
fn a_server_of_another_protocol_is_called_so() -> Result<()> {
    let place = Place::new()?;
    let server = speaking(&place, &TLS13, &["h2"])?;
    let daemon = place.daemon(&[NAMED_UPSTREAM], &["--upstream-timeout", "500ms"])?;
    check_gets_nothing(&place, &server, &daemon, &["ALPN dot"])
}

#[test]
fn the_second_upstream_answers_when_the_first_has_a_wrong_certificate() -> Result<()> {
    let place = Place::new()?;
    let one = serve(&place, &place.pki.server(&["other.test"])?)?;
    let two = place.upstream_at(SECOND)?;
    let _daemon = place.daemon(&[NAMED_UPSTREAM, NAMED_SECOND], &[])?;
    place.udp()?.resolve("www.example.test")?;
    ensure!(one.journal().queries.is_empty() && two.journal().queries.len() == 1);
    Ok(())
}
