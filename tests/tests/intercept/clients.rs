//! Real programs: C libraries and the DNS tools of Debian.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Container, Stage, Zone,
    clients::{Libc, dig, getent, kdig},
    process::output,
};

/// Lets a program resolve `example.test` in a container whose nameserver is `server`.
fn check(server: &str, ask: impl Fn(&Container) -> Result<BTreeSet<IpAddr>>) -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container_with("app", &format!("nameserver {server}\n"))?;
    let _daemon = stage.daemon(&[&container])?;
    let witness = stage.witness(&container)?;

    let found = ask(&container)?;

    ensure!(found.contains(&Zone::Encrypted.a().into()), "the answer is {found:?}");
    witness.saw_only_tls()?;
    ensure!(stage.nameserver.queries().is_empty(), "the plaintext nameserver was asked");
    Ok(())
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
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let _daemon = stage.daemon(&[&container])?;
    let witness = stage.witness(&container)?;
    let ask = |args: &[&str]| container.run("dig", &[args, &["@8.8.8.8"]].concat());
    let big = ["big.example.test", "TXT", "+noall", "+comments", "+answer"];

    let truncated = ask(&[&big[..], &["+ignore", "+bufsize=1232"]].concat())?;
    ensure!(truncated.contains("flags: qr tc"), "{truncated}");
    let plain = ask(&[&big[..], &["+ignore", "+noedns"]].concat())?;
    ensure!(plain.contains("flags: qr tc") && !plain.contains("EDNS"), "{plain}");
    let whole = ask(&[&big[..], &["+bufsize=8192"]].concat())?;
    ensure!(whole.contains("\tTXT\t") && !whole.contains(" tc"), "{whole}");
    let retried = ask(&big)?;
    ensure!(retried.contains("\tTXT\t"), "{retried}");
    witness.saw_only_tls()
}
