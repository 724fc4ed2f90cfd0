//! Who asks whom: real programs in containers, real nameserver addresses.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result};
use dns_proxy_tests::{
    Container,
    clients::{Libc, dig},
};

use crate::{
    report::Check,
    road::{Road, Wants, join},
};

/// The name that is asked for.
pub(crate) const NAME: &str = "example.test";

const GOOGLE: IpAddr = IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8));
const QUAD9: IpAddr = IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9));
const GOOGLE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888));

/// Every client, over IPv4 and IPv6.
pub(crate) const ALL: [Ask; 8] = [
    Ask(Client::Dig, GOOGLE),
    Ask(Client::Dig, GOOGLE_V6),
    Ask(Client::DigTcp, QUAD9),
    Ask(Client::DigTcp, GOOGLE_V6),
    Ask(Client::Glibc, QUAD9),
    Ask(Client::Glibc, GOOGLE_V6),
    Ask(Client::Musl, GOOGLE),
    Ask(Client::Musl, GOOGLE_V6),
];
/// Before there is a daemon.
pub(crate) const BEFORE: Ask = Ask(Client::Dig, GOOGLE);
/// After it was killed; the first, which starts quickest, is timed.
pub(crate) const AFTER: [Ask; 4] = [
    Ask(Client::Musl, GOOGLE),
    Ask(Client::Glibc, GOOGLE_V6),
    Ask(Client::Dig, QUAD9),
    Ask(Client::DigTcp, GOOGLE_V6),
];

/// A client and the nameserver that it asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask(Client, IpAddr);

/// A program that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Dig,
    DigTcp,
    Glibc,
    Musl,
}

/// A container and what the story calls it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    pub(crate) name: &'static str,
    pub(crate) container: &'a Container,
}

/// A question and what became of it.
#[derive(Debug)]
pub(crate) struct Answered {
    container: &'static str,
    ask: Ask,
    answer: Result<BTreeSet<IpAddr>>,
}

impl Ask {
    /// Asks, and waits for what comes.
    pub(crate) fn put(self, from: &Named<'_>) -> Answered {
        match self.prepare(from) {
            Ok(()) => self.put_prepared(from),
            Err(error) => self.answered(from, Err(error)),
        }
    }

    /// Writes the container's resolver configuration, for clients that read it.
    pub(crate) fn prepare(self, from: &Named<'_>) -> Result<()> {
        match self.0 {
            Client::Dig | Client::DigTcp => Ok(()),
            Client::Glibc | Client::Musl => {
                from.container.set_resolv_conf(&format!("nameserver {}\n", self.1))
            }
        }
    }

    /// Asks, in a container that is prepared.
    pub(crate) fn put_prepared(self, from: &Named<'_>) -> Answered {
        self.answered(from, self.run(from.container))
    }

    fn run(self, container: &Container) -> Result<BTreeSet<IpAddr>> {
        let Self(client, nameserver) = self;
        let at = format!("@{nameserver}");
        match client {
            Client::Dig => run_dig(container, &[NAME, &at]),
            Client::DigTcp => run_dig(container, &["+tcp", NAME, &at]),
            Client::Glibc => Libc::Glibc.resolve(container, NAME),
            Client::Musl => Libc::Musl.resolve(container, NAME),
        }
    }

    fn answered(self, from: &Named<'_>, answer: Result<BTreeSet<IpAddr>>) -> Answered {
        Answered { container: from.name, ask: self, answer }
    }
}

impl Client {
    fn name(self) -> &'static str {
        match self {
            Self::Dig => "dig",
            Self::DigTcp => "dig +tcp",
            Self::Glibc => "glibc",
            Self::Musl => "musl",
        }
    }

    fn wants(self) -> Wants {
        match self {
            Self::Dig | Self::DigTcp => Wants::V4,
            Self::Glibc | Self::Musl => Wants::Both,
        }
    }
}

impl Answered {
    /// The table's first line.
    pub(crate) fn header() -> String {
        columns("container", "client", "nameserver", "answer", "came over")
    }

    /// The road it came, if it is the whole answer of one.
    pub(crate) fn road(&self) -> Option<Road> {
        let answer = self.answer.as_ref().ok()?;
        Road::of(answer, self.ask.0.wants())
    }

    /// Its line in the table, right only if it came by this road.
    pub(crate) fn came_by(&self, wanted: Road) -> Check {
        let Ask(client, nameserver) = self.ask;
        let (container, client) = (self.container, client.name());
        let answer = match &self.answer {
            Ok(answer) if answer.is_empty() => "nothing".to_owned(),
            Ok(answer) => join(answer),
            Err(_) => "an error".to_owned(),
        };
        let road = self.road().map_or("?", Road::name);
        let otherwise = match &self.answer {
            Ok(_) => format!(
                "{client} in `{container}` asked {nameserver}, and {answer} is not what comes over \
                 {}",
                wanted.name()
            ),
            Err(error) => format!("{client} in `{container}` asked {nameserver}: {error:#}"),
        };
        Check {
            holds: self.road() == Some(wanted),
            says: columns(container, client, &nameserver.to_string(), &answer, road),
            otherwise,
        }
    }
}

fn run_dig(container: &Container, args: &[&str]) -> Result<BTreeSet<IpAddr>> {
    let lines = dig(container, args).context("no dig? `cargo xtask setup` installs it")?;
    lines
        .iter()
        .map(|line| line.parse().with_context(|| format!("dig printed what is no address: {line}")))
        .collect()
}

fn columns(container: &str, client: &str, nameserver: &str, answer: &str, road: &str) -> String {
    format!("{container:<9}  {client:<8}  {nameserver:<20}  {answer:<30}  {road}")
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn an_answer_by_another_road_or_none_is_wrong() {
        let check = |answer, wanted| {
            let (container, ask) = ("inside", BEFORE);
            let answered = Answered { container, ask, answer };
            answered.came_by(wanted).holds
        };
        let plaintext = || Ok(BTreeSet::from([dns_proxy_tests::Zone::Plaintext.a().into()]));
        assert!(check(plaintext(), Road::Plaintext));
        assert!(!check(plaintext(), Road::Tls));
        assert!(!check(Ok(BTreeSet::new()), Road::Plaintext));
        assert!(!check((|| bail!("timed out"))(), Road::Plaintext));
    }
}
