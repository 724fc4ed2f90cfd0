//! Keys that are pinned, and what that is worth (RFC 7858 section 4.2).

use std::slice::from_ref;

use anyhow::{Result, ensure};
use dns_proxy_tests::{Daemon, Pki};

use crate::{
    authentication::{BARE_UPSTREAM, check_gets_nothing, daemon, end, serve},
    place::{NAME, NAMED_UPSTREAM, Place, UPSTREAM},
    upstream::SECOND,
};

/// A pin of nobody's key.
const OTHER_PIN: &str = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Starts a daemon that has only pins to go by, unless `more` names roots.
fn pinned(place: &Place, upstream: &str, pins: &[&str], more: &[&str]) -> Result<Daemon> {
    let pins = pins.iter().map(|pin| format!("127.0.0.1={pin}")).collect::<Vec<_>>().join(",");
    daemon(place, upstream, &[&["--pin", &pins], more].concat())
}

#[test]
fn a_pinned_key_is_all_it_takes_without_a_name() -> Result<()> {
    for make in [Pki::self_signed_server, Pki::server, Pki::expired_server] {
        let place = Place::new()?;
        let identity = make(&place.pki, &["other.test"])?;
        let _server = serve(&place, &identity)?;
        // One of several is enough.
        let _daemon = pinned(&place, BARE_UPSTREAM, &[OTHER_PIN, &identity.pin], &[])?;
        place.udp()?.resolve("www.example.test")?;
    }
    Ok(())
}

#[test]
fn a_key_that_is_not_pinned_is_refused_and_its_pin_is_shown() -> Result<()> {
    let place = Place::new()?;
    let identity = place.identity()?;
    let server = serve(&place, &identity)?;
    let own = format!("its own is --pin {UPSTREAM}={}", identity.pin);
    let ca = place.pki.ca_file().display().to_string();
    for upstream in [BARE_UPSTREAM, NAMED_UPSTREAM] {
        let daemon = pinned(&place, upstream, &[OTHER_PIN], &["--ca", &ca])?;
        check_gets_nothing(&place, &server, &daemon, &["has a pinned key", &own])?;
        ensure!(daemon.stop()?.success());
    }
    Ok(())
}

/// RFC 8310 section 6.4.
#[test]
fn a_pin_and_a_name_must_both_be_right() -> Result<()> {
    let place = Place::new()?;
    let ca = place.pki.ca_file().display().to_string();
    for (names, said) in [(NAME, None), ("other.test", Some("wanted dns.test"))] {
        let identity = place.pki.server(&[names])?;
        let server = serve(&place, &identity)?;
        let daemon = pinned(&place, NAMED_UPSTREAM, &[&identity.pin], &["--ca", &ca])?;
        match said {
            None => place.udp()?.resolve("www.example.test")?,
            Some(said) => check_gets_nothing(&place, &server, &daemon, &[said])?,
        }
        ensure!(daemon.stop()?.success());
        end(server)?;
    }
    let identity = place.pki.self_signed_server(&[NAME])?;
    let server = serve(&place, &identity)?;
    let daemon = pinned(&place, NAMED_UPSTREAM, &[&identity.pin], &[])?;
    check_gets_nothing(&place, &server, &daemon, &["self-signed"])
}

/// The authority may give the server new keys whenever it likes; the address must be in them.
#[test]
fn an_authority_in_the_chain_can_be_pinned_and_is_then_the_only_root() -> Result<()> {
    let place = Place::new()?;
    for (names, said) in [("127.0.0.1", None), ("127.0.0.2", Some("wanted 127.0.0.1"))] {
        let (identity, pin) = place.pki.chained_server(&[names])?;
        let server = serve(&place, &identity)?;
        let daemon = pinned(&place, BARE_UPSTREAM, &[&pin], &[])?;
        match said {
            None => place.udp()?.resolve("www.example.test")?,
            Some(said) => check_gets_nothing(&place, &server, &daemon, &[said])?,
        }
        ensure!(daemon.stop()?.success());
        end(server)?;
    }
    Ok(())
}

/// Certificates are public: anybody can send along what he has no key for.
#[test]
fn a_pinned_certificate_that_did_not_sign_the_servers_is_worth_nothing() -> Result<()> {
    let place = Place::new()?;
    let (genuine, pin) = place.pki.chained_server(&["127.0.0.1"])?;
    for make in [Pki::server, Pki::self_signed_server] {
        let mut forged = make(&Pki::new()?, &["127.0.0.1"])?;
        forged.chain = [from_ref(&genuine.certificate), &genuine.chain].concat();
        let server = serve(&place, &forged)?;
        let daemon = pinned(&place, BARE_UPSTREAM, &[&pin, &genuine.pin], &[])?;
        check_gets_nothing(&place, &server, &daemon, &["the certificate for 127.0.0.1"])?;
        ensure!(daemon.stop()?.success());
        end(server)?;
    }
    Ok(())
}

#[test]
fn a_server_of_a_route_can_be_pinned_too() -> Result<()> {
    let place = Place::new()?;
    let identity = place.pki.self_signed_server(&["other.test"])?;
    let server = serve(&place, &identity)?;
    let route = format!("example.test=tls://{UPSTREAM}");
    let _daemon = pinned(&place, SECOND, &[&identity.pin], &["--route", &route])?;
    place.udp()?.resolve("www.example.test")?;
    ensure!(server.journal().queries.len() == 1);
    Ok(())
}
