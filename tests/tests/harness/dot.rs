//! The upstreams answer real clients over TLS: ours and Debian's unbound.

use crate::client::{Client, NAME, config};
use anyhow::{Context, Result, ensure};
use dns_proxy_tests::clients::kdig;
use dns_proxy_tests::dot_server::Tls;
use dns_proxy_tests::process::output;
use dns_proxy_tests::unbound::{UNBOUND_A, UNBOUND_AAAA};
use dns_proxy_tests::world::UPLINK;
use dns_proxy_tests::{
    Capture, Container, DotServer, Identity, Pki, Unbound, World, Zone, port53,
    require_root_and_bpf, to_port,
};
use rustls::ProtocolVersion;
use rustls::version::TLS12;
use std::net::SocketAddr;

const SERVER: &str = "9.9.9.9:853";

fn at() -> Result<[SocketAddr; 1]> {
    Ok([SERVER.parse()?])
}

/// What kdig finds when it trusts our authority and wants the server to be `name`.
fn ask(container: &Container, pki: &Pki, name: &str, args: &[&str]) -> Result<String> {
    let mut command = kdig(container)?;
    command.arg("@9.9.9.9").arg(format!("+tls-ca={}", pki.ca_file().display()));
    command.arg(format!("+tls-hostname={name}")).args(args);
    Ok(output(&mut command)?.trim().to_owned())
}

fn check_refused(make: impl Fn(&Pki) -> Result<Identity>) -> Result<()> {
    require_root_and_bpf();
    let (world, pki) = (World::new()?, Pki::new()?);
    let server = DotServer::start(world.internet(), &at()?, &make(&pki)?)?;
    let app = world.container("app")?;
    let refused = ask(&app, &pki, NAME, &["example.test"]);
    let error = refused.expect_err("a bad certificate").to_string();
    ensure!(error.contains("certificate"), "not because of the certificate: {error}");
    assert_eq!(server.journal().queries, []);
    Ok(())
}

#[test]
fn our_server_answers_kdig_and_remembers_what_it_saw() -> Result<()> {
    require_root_and_bpf();
    let (world, pki) = (World::new()?, Pki::new()?);
    let server = DotServer::start(world.internet(), &at()?, &pki.server(&[NAME, "9.9.9.9"])?)?;
    let app = world.container("app")?;
    let capture = Capture::on(world.host(), UPLINK)?;

    let answer = ask(&app, &pki, NAME, &["+edns", "+padding=200", "example.test"])?;

    assert_eq!(answer, Zone::Encrypted.a().to_string());
    let packets = capture.stop()?;
    assert_eq!(port53(&packets), Vec::<&dns_proxy_tests::Packet>::new());
    assert!(!to_port(&packets, 853).is_empty());
    let journal = server.journal();
    let query = journal.queries.first().context("no query")?;
    assert_eq!((query.name.as_str(), query.opt, query.padding), ("example.test", true, Some(200)));
    assert_eq!(journal.handshakes[0].version, Some(ProtocolVersion::TLSv1_3));
    assert_eq!(journal.handshakes[0].server_name.as_deref(), Some(NAME));
    assert_eq!((journal.accepted, journal.max_in_flight, journal.in_flight), (1, 1, 0));
    Ok(())
}

#[test]
fn a_certificate_can_be_for_an_address_and_for_ipv6() -> Result<()> {
    require_root_and_bpf();
    let (world, pki) = (World::new()?, Pki::new()?);
    let address: SocketAddr = "[2620:fe::fe]:853".parse()?;
    let _server = DotServer::start(world.internet(), &[address], &pki.server(&["2620:fe::fe"])?)?;
    let app = world.container("app")?;
    let mut command = kdig(&app)?;
    command.arg("@2620:fe::fe").arg(format!("+tls-ca={}", pki.ca_file().display()));
    let answer = output(command.args(["+tls-hostname=2620:fe::fe", "example.test", "AAAA"]))?;
    assert_eq!(answer.trim(), Zone::Encrypted.aaaa().to_string());
    Ok(())
}

#[test]
fn an_expired_certificate_is_refused_by_kdig() -> Result<()> {
    check_refused(|pki| pki.expired_server(&[NAME]))
}

#[test]
fn a_certificate_with_another_name_is_refused_by_kdig() -> Result<()> {
    check_refused(|pki| pki.server(&["other.test"]))
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_kdig() -> Result<()> {
    check_refused(|_| Pki::new()?.server(&[NAME]))
}

#[test]
fn sessions_are_resumed_and_versions_and_alpn_are_as_configured() -> Result<()> {
    require_root_and_bpf();
    let (world, pki) = (World::new()?, Pki::new()?);
    let tls = Tls { versions: vec![&TLS12], alpn: Vec::new() };
    let (identity, old_at) = (pki.server(&[NAME])?, "8.8.8.8:853".parse()?);
    let server = DotServer::start(world.internet(), &at()?, &identity)?;
    let old = DotServer::start_with(world.internet(), &[old_at], &identity, &tls)?;
    for (server, address, version, alpn) in [
        (server, SERVER.parse()?, ProtocolVersion::TLSv1_3, Some("dot")),
        (old, old_at, ProtocolVersion::TLSv1_2, None),
    ] {
        let config = config(&pki)?;
        for id in 0..2 {
            let mut client = Client::connect(world.host(), address, &config)?;
            client.send(id, "example.test")?;
            client.receive()?;
        }
        let journal = server.journal();
        assert_eq!((journal.handshakes.len(), journal.resumed()), (2, 1));
        assert_eq!(journal.handshakes[1].version, Some(version));
        assert_eq!(journal.handshakes[0].alpn.as_deref(), alpn);
    }
    Ok(())
}

#[test]
fn unbound_answers_kdig_over_tls() -> Result<()> {
    require_root_and_bpf();
    let (world, pki) = (World::new()?, Pki::new()?);
    let _unbound = Unbound::start(world.internet(), SERVER.parse()?, &pki.server(&[NAME])?)?;
    let app = world.container("app")?;
    let answer = ask(&app, &pki, NAME, &["example.org"])?;
    assert_eq!(answer, UNBOUND_A.to_string());
    let answer = ask(&app, &pki, NAME, &["example.org", "AAAA"])?;
    assert_eq!(answer, UNBOUND_AAAA.to_string());
    Ok(())
}
