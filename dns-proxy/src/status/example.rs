//! A status with something in each part, for tests and screens.

use super::{
    Cache, Counters, Namespace, Pattern, Scope, Status, Upstream, UpstreamState, Warning, Worker,
};

/// It.
pub(crate) fn example() -> Status {
    let time = |text: &str| text.parse().expect("a time");
    let upstream = |address: &str, name: &str, state, latency, answers| Upstream {
        address: address.to_owned(),
        name: Some(name.to_owned()),
        of_route: false,
        state,
        error: None,
        authenticated: Some(true),
        latency_seconds: latency,
        connections: 2,
        connected: 14,
        resumed: 12,
        answers,
        failures: 0,
        tls_failures: 0,
        latencies: Default::default(),
        certificate_expires: Some(time("2027-02-01T00:00:00.000Z")),
    };
    let namespace = |id: u64, cgroup: &str| Namespace {
        id,
        cookie: Some(id),
        ready: true,
        pid: Some(4321),
        cgroup: Some(cgroup.to_owned()),
        port: Some(61_053),
        ipv4: true,
        ipv6: true,
    };
    let pattern = |pattern: &str, matches: &[&str]| Pattern {
        pattern: pattern.to_owned(),
        matches: matches.iter().map(|path| (*path).to_owned()).collect(),
    };
    Status {
        version: "0.1.0".to_owned(),
        pid: 1234,
        since: time("2026-11-24T21:12:03.000Z"),
        at: time("2026-11-25T09:40:00.000Z"),
        fail: "open".to_owned(),
        guard: Some("on".to_owned()),
        scopes: vec![Scope {
            select: vec![
                pattern("docker", &["/docker"]),
                pattern("system.slice/nginx.service", &["/system.slice/nginx.service"]),
            ],
            exclude: vec![],
        }],
        attached: Some("/".to_owned()),
        namespaces: vec![namespace(4_026_531_840, "/"), namespace(4_026_532_300, "/docker")],
        tokens: 12,
        listen: Vec::new(),
        upstreams: vec![
            upstream("9.9.9.9:853", "dns.quad9.net", UpstreamState::Up, Some(0.0123), 48_211),
            upstream("1.1.1.1:853", "cloudflare-dns.com", UpstreamState::Idle, Some(0.0141), 0),
        ],
        cache: Cache { size: 64 << 20, used: 1_258_291, names: 10_211, hits: 96_400, evictions: 0 },
        counters: Counters {
            queries: 144_628,
            intercepted: 144_628,
            encrypted: 48_211,
            unauthenticated: 0,
            cached: 96_400,
            local: 0,
            plaintext_by_route: 17,
            plaintext_by_leak: Some(0),
            failed: 0,
            malformed: 0,
            denied: 0,
            redirected: 143_902,
            refused: 2,
            captured: 2,
            guarded: 0,
        },
        kernel: [("refused_device_bound".to_owned(), 2)].into(),
        workers: [72_001, 72_627]
            .map(|queries| Worker { queries, last_beat_seconds: 0.4, namespaces: 1 })
            .into(),
        warnings: vec![Warning {
            what: "2 queries of sockets that insist on a device were refused".to_owned(),
            remedy:
                "give the device an address of the nameserver's family, or take it out of its VRF"
                    .to_owned(),
        }],
    }
}
