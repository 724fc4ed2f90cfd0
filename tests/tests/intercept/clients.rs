//! Real programs: C libraries and the DNS tools of Debian.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Container, Zone,
    clients::{Libc, dig, getent, kdig},
    process::output,
};

use crate::scene::Scene;

/// Lets a program resolve `example.test` in a container whose nameserver is `server`.
fn check(server: &str, ask: impl Fn(&Container) -> Result<BTreeSet<IpAddr>>) -> Result<()> {
    let scene = Scene::asking(server)?;
    let intercepted = scene.intercept()?;
    let found = ask(&scene.container)?;
    ensure!(found.contains(&Zone::Encrypted.a().into()), "the answer is {found:?}");
    intercepted.end()
}

fn addresses(lines: &[String]) -> BTreeSet<IpAddr> {
    lines.iter().filter_map(|line| line.parse().ok()).collect()
}

const SERVERS: [&str; 2] = ["8.8.8.8", "2001:4860:4860::8888"];

#[test]
fn glibc_resolves() -> Result<()> {
    for server in SERVERS {
        check(server, |container| Libc::Glibc.resolve(container, "example.test"))?;
        check(server, |container| getent(container, "example.test"))?;
    }
    Ok(())
}

#[test]
fn musl_resolves() -> Result<()> {
    SERVERS.into_iter().try_for_each(|server| {
        check(server, |container| Libc::Musl.resolve(container, "example.test"))
    })
}

#[test]
fn dig_resolves_over_udp_and_tcp() -> Result<()> {
    for (server, transport) in [(SERVERS[0], "+notcp"), (SERVERS[1], "+tcp")] {
        check(server, |container| {
            let at = format!("@{server}");
            Ok(addresses(&dig(container, &[transport, "example.test", &at])?))
        })?;
    }
    Ok(())
}

#[test]
fn kdig_resolves() -> Result<()> {
    check(SERVERS[0], |container| {
        let printed = output(kdig(container)?.args(["@8.8.8.8", "example.test"]))?;
        Ok(printed.lines().filter_map(|line| line.parse().ok()).collect())
    })
}

#[test]
fn large_answers_come_truncated_and_then_whole_over_tcp() -> Result<()> {
    let scene = Scene::new()?;
    let intercepted = scene.intercept()?;
    let ask = |args: &[&str]| scene.container.run("dig", &[args, &["@8.8.8.8"]].concat());
    let big = ["big.example.test", "TXT", "+noall", "+comments", "+answer"];

    let truncated = ask(&[&big[..], &["+ignore", "+bufsize=1232"]].concat())?;
    ensure!(truncated.contains("flags: qr tc"), "{truncated}");
    let plain = ask(&[&big[..], &["+ignore", "+noedns"]].concat())?;
    ensure!(plain.contains("flags: qr tc") && !plain.contains("EDNS"), "{plain}");
    let whole = ask(&[&big[..], &["+bufsize=8192"]].concat())?;
    ensure!(whole.contains("\tTXT\t") && !whole.contains(" tc"), "{whole}");
    let retried = ask(&big)?;
    ensure!(retried.contains("\tTXT\t"), "{retried}");
    intercepted.end()
}
