//! What is built in: names that no public resolver knows, and that none should hear of.

use super::{Answer, zone::Zone};

/// Zones of internal networks, which the nameserver that was asked may know.
const ORIGINAL: [&str; 20] = [
    // Link-local names (RFC 6762 section 22.1), among them `cluster.local` of Kubernetes.
    "local",
    // The residential one (RFC 8375 section 4).
    "home.arpa",
    // NAT64 prefixes, which the network's own resolver tells (RFC 8880 section 7.1).
    "ipv4only.arpa",
    "170.0.0.192.in-addr.arpa",
    "171.0.0.192.in-addr.arpa",
    // Reserved for private use (ICANN, 2024), among them `compute.internal` and `ec2.internal` of
    // clouds, `docker.internal` and `containers.internal`.
    "internal",
    // In use for that without having been reserved (RFC 6762 appendix G).
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "localdomain",
    // Of container runtimes: the networks of Docker, of podman (`dns.podman`), LXD and Incus.
    "docker",
    "podman",
    "lxd",
    "incus",
    // Reverse names of private (RFC 6303 section 4.2) and link-local IPv4 addresses (section 4.3).
    // Those of 172.16.0.0/12 and 100.64.0.0/10 are many, and below.
    "10.in-addr.arpa",
    "168.192.in-addr.arpa",
    "254.169.in-addr.arpa",
    // Of unique local IPv6 addresses (RFC 6303 section 4.4); link-local ones are below.
    "d.f.ip6.arpa",
];

/// The zones with a default route to the original nameserver.
pub(super) fn original() -> impl Iterator<Item = Zone> {
    let private = (16..32).map(|n| format!("{n}.172.in-addr.arpa")); // RFC 6303 section 4.2
    let shared = (64..128).map(|n| format!("{n}.100.in-addr.arpa")); // RFC 7793
    let local = ["c.f", "8.e.f", "9.e.f", "a.e.f", "b.e.f"].map(|n| format!("{n}.ip6.arpa"));
    let more = private.chain(shared).chain(local).map(|zone| built_in(&zone));
    ORIGINAL.iter().map(|zone| built_in(zone)).chain(more)
}

/// The zones that are answered here, routes or not.
pub(super) fn answers() -> impl Iterator<Item = (Zone, Answer)> {
    let loopback6 = format!("1.{}ip6.arpa", "0.".repeat(31));
    [
        ("localhost", Answer::Loopback),               // RFC 6761 section 6.3
        ("127.in-addr.arpa", Answer::NxDomain),        // RFC 6303 section 4.2
        ("1.0.0.127.in-addr.arpa", Answer::Localhost), // RFC 1912 section 4.1
        (&loopback6, Answer::Localhost),               // RFC 6303 section 4.4
        ("invalid", Answer::NxDomain),                 // RFC 6761 section 6.4
        ("onion", Answer::NxDomain),                   // RFC 7686 section 2
        // Clients that found the upstream by it would leave us out (RFC 9462 section 6.4).
        ("resolver.arpa", Answer::NoData),
    ]
    .map(|(zone, answer)| (built_in(zone), answer))
    .into_iter()
}

fn built_in(zone: &str) -> Zone {
    zone.parse().expect("a zone in the source")
}
