//! `/metrics`. No names of queries, processes or containers: what a label may say is fixed, or in the
//! configuration, so that there are never many series.

use std::{fs, time::Duration};

use nix::{
    libc,
    sys::resource::{Resource, getrlimit},
};

use super::exposition::{Exposition, Format, Kind};
use crate::{
    datapath::{
        outcome::{Outcome, RCODES, Reason, Source, TRANSPORTS},
        stats::Stats,
        worker::Worker,
    },
    meter::Distribution,
    mnemonic,
    status::{Status, UpstreamState, gather::Gatherer},
    upstream::Transport,
};

/// All that there is to tell.
pub(super) async fn render(gatherer: &Gatherer, format: Format) -> String {
    let status = gatherer.status().await;
    let stats: Vec<&Stats> = gatherer.workers().iter().map(Worker::stats).collect();
    let mut all = Exposition::new(format);
    daemon(&mut all, &status);
    queries(&mut all, &status, &stats);
    cache(&mut all, &status, &stats);
    upstreams(&mut all, &status);
    kernel(&mut all, &status);
    process(&mut all);
    all.finish()
}

fn daemon(all: &mut Exposition, status: &Status) {
    all.family("dns_proxy_build_info", Kind::Gauge, "Which program this is; always 1.");
    all.sample("", &[("version", &status.version)], 1);
    all.family("dns_proxy_config_info", Kind::Gauge, "What the daemon was told to do; always 1.");
    let guard = status.guard.as_deref().unwrap_or("none");
    all.sample("", &[("fail", &status.fail), ("guard", guard)], 1);
    all.gauge(
        "dns_proxy_ready_timestamp_seconds",
        "When the daemon became ready, since 1970.",
        status.since.unix().as_secs_f64(),
    );
    all.gauge(
        "dns_proxy_warnings",
        "Things that are not as they should be.",
        status.warnings.len(),
    );
    all.family(
        "dns_proxy_worker_last_beat_seconds",
        Kind::Gauge,
        "How long ago a thread of the query path last proved that it turns.",
    );
    for (index, worker) in status.workers.iter().enumerate() {
        all.sample("", &[("worker", &index.to_string())], worker.last_beat_seconds);
    }
    let ready = status.namespaces.iter().filter(|namespace| namespace.ready).count();
    all.family(
        "dns_proxy_namespaces",
        Kind::Gauge,
        "Network namespaces: in service, or refused since they could not be served.",
    );
    all.sample("", &[("state", "ready")], ready);
    all.sample("", &[("state", "refused")], status.namespaces.len() - ready);
    all.gauge(
        "dns_proxy_tokens",
        "Token addresses in use, as of the last half minute.",
        status.tokens,
    );
}

fn queries(all: &mut Exposition, status: &Status, stats: &[&Stats]) {
    let counters = &status.counters;
    all.counter("dns_proxy_queries", "Queries, well formed and admitted.", counters.queries);
    all.counter(
        "dns_proxy_queries_intercepted",
        "Those of them that were meant for another nameserver.",
        counters.intercepted,
    );
    all.family(
        "dns_proxy_answers",
        Kind::Counter,
        "Answers to queries, by transport, route, where they came from, and response code.",
    );
    for outcome in Outcome::ALL {
        for transport in TRANSPORTS {
            for rcode in 0..RCODES {
                let count: u64 =
                    stats.iter().map(|stats| stats.answers.of(outcome, transport, rcode)).sum();
                if count > 0 {
                    let labels = [
                        ("transport", name(transport)),
                        ("route", outcome.route()),
                        ("source", outcome.source()),
                        ("rcode", &mnemonic::rcode_name(rcode as u8)),
                    ];
                    all.sample("_total", &labels, count);
                }
            }
        }
    }
    all.family(
        "dns_proxy_failures",
        Kind::Counter,
        "Queries that got an error of ours, by reason.",
    );
    for reason in Reason::ALL {
        let count: u64 = stats.iter().map(|stats| stats.failures.of(reason)).sum();
        all.sample("_total", &[("reason", reason.name())], count);
    }
    all.counter("dns_proxy_malformed", "Messages that are no queries.", counters.malformed);
    all.counter("dns_proxy_denied", "Messages from those who may not ask.", counters.denied);
    all.family(
        "dns_proxy_plaintext",
        Kind::Counter,
        "Queries that left in plaintext: because a route says so, or because nobody stopped them, \
         where the leak guard looks.",
    );
    all.sample("_total", &[("reason", "route")], counters.plaintext_by_route);
    if let Some(leaked) = counters.plaintext_by_leak {
        all.sample("_total", &[("reason", "leak")], leaked);
    }
    all.family(
        "dns_proxy_answer_duration_seconds",
        Kind::Histogram,
        "From when a query was received until its answer was there, by where that came from.",
    );
    for (source, distribution) in latencies(stats) {
        all.histogram(("source", source), &distribution);
    }
}

/// How long answers took, by where they came from; always the same ones, in the same order.
pub(super) fn latencies(stats: &[&Stats]) -> Vec<(&'static str, Distribution)> {
    let mut all: Vec<(&str, Distribution)> = Vec::new();
    for outcome in Outcome::ALL {
        let index = all.iter().position(|(source, _)| *source == outcome.source());
        let index = index.unwrap_or_else(|| {
            all.push((outcome.source(), Distribution::default()));
            all.len() - 1
        });
        stats.iter().for_each(|stats| all[index].1.merge(&stats.latencies.of(outcome)));
    }
    all
}

fn cache(all: &mut Exposition, status: &Status, stats: &[&Stats]) {
    let cache = &status.cache;
    all.gauge("dns_proxy_cache_limit_bytes", "What the cache may take.", cache.size);
    all.gauge("dns_proxy_cache_used_bytes", "What answers in the cache take.", cache.used);
    all.gauge("dns_proxy_cache_entries", "Answers in the cache.", cache.names);
    all.counter(
        "dns_proxy_cache_evictions",
        "Answers that were dropped to make room for others.",
        cache.evictions,
    );
    all.family(
        "dns_proxy_cache_lookups",
        Kind::Counter,
        "Queries that might have been in the cache: answered from it, beyond their time, by what \
         somebody else was asking, or by asking.",
    );
    for (result, wanted) in [
        ("hit", Source::Cache),
        ("stale", Source::Stale),
        ("shared", Source::Shared),
        ("miss", Source::Asked),
    ] {
        let is = |o: &Outcome| matches!(o, Outcome::Answered(_, source) if *source == wanted);
        let all_of = |outcome: Outcome| -> u64 {
            let of = |stats: &Stats| -> u64 {
                let codes = (0..RCODES).flat_map(|rcode| TRANSPORTS.map(|t| (t, rcode)));
                codes.map(|(t, rcode)| stats.answers.of(outcome, t, rcode)).sum()
            };
            stats.iter().map(|stats| of(stats)).sum()
        };
        let count: u64 = Outcome::ALL.into_iter().filter(is).map(all_of).sum();
        all.sample("_total", &[("result", result)], count);
    }
}

fn upstreams(all: &mut Exposition, status: &Status) {
    // One server may be asked for several zones.
    let mut servers: Vec<(String, crate::status::Upstream)> = Vec::new();
    for upstream in &status.upstreams {
        let label = match &upstream.name {
            Some(name) => format!("{}#{name}", upstream.address),
            None => upstream.address.clone(),
        };
        match servers.iter_mut().find(|(known, _)| *known == label) {
            Some((_, sum)) => sum.merge(upstream.clone()),
            None => servers.push((label, upstream.clone())),
        }
    }
    let mut each = |name: &'static str,
                    kind,
                    help: &str,
                    value: &dyn Fn(&crate::status::Upstream) -> Option<f64>| {
        all.family(name, kind, help);
        let suffix = if kind == Kind::Counter { "_total" } else { "" };
        for (label, upstream) in &servers {
            if let Some(value) = value(upstream) {
                all.sample(suffix, &[("upstream", label)], value);
            }
        }
    };
    let well = |state| matches!(state, UpstreamState::Up | UpstreamState::Idle);
    each(
        "dns_proxy_upstream_up",
        Kind::Gauge,
        "Whether the upstream did not fail the last time.",
        &|u| Some(f64::from(u8::from(well(u.state)))),
    );
    each(
        "dns_proxy_upstream_authenticated",
        Kind::Gauge,
        "Whether the upstream is known to be who it should be, once there was a connection.",
        &|u| u.authenticated.map(|yes| f64::from(u8::from(yes))),
    );
    each("dns_proxy_upstream_connections", Kind::Gauge, "Connections that are open.", &|u| {
        Some(u.connections as f64)
    });
    each("dns_proxy_upstream_answers", Kind::Counter, "Answers from the upstream.", &|u| {
        Some(u.answers as f64)
    });
    each("dns_proxy_upstream_failures", Kind::Counter, "Times that the upstream failed.", &|u| {
        Some(u.failures as f64)
    });
    each(
        "dns_proxy_upstream_tls_failures",
        Kind::Counter,
        "Those of them for which TLS or authentication was the reason.",
        &|u| Some(u.tls_failures as f64),
    );
    each(
        "dns_proxy_upstream_certificate_expiry_timestamp_seconds",
        Kind::Gauge,
        "When the upstream's certificate expires, since 1970.",
        &|u| u.certificate_expires.map(|at| at.unix().as_secs_f64()),
    );
    all.family(
        "dns_proxy_upstream_handshakes",
        Kind::Counter,
        "TLS handshakes that succeeded: full ones, and those that resumed a session.",
    );
    for (label, upstream) in &servers {
        let full = upstream.connected.saturating_sub(upstream.resumed);
        for (kind, count) in [("full", full), ("resumed", upstream.resumed)] {
            all.sample("_total", &[("upstream", label), ("kind", kind)], count);
        }
    }
    all.family(
        "dns_proxy_upstream_duration_seconds",
        Kind::Histogram,
        "From when a query was given to a connection until the upstream answered it.",
    );
    for (label, upstream) in &servers {
        all.histogram(("upstream", label), &upstream.latencies);
    }
    all.counter(
        "dns_proxy_unauthenticated_answers",
        "Answers of upstreams that are not authenticated (--profile opportunistic).",
        status.counters.unauthenticated,
    );
}

fn kernel(all: &mut Exposition, status: &Status) {
    if status.kernel.is_empty() {
        return;
    }
    all.family(
        "dns_proxy_kernel_decisions",
        Kind::Counter,
        "What the kernel programs decided on port-53 traffic, by reason.",
    );
    for (reason, count) in &status.kernel {
        all.sample("_total", &[("reason", reason)], count);
    }
}

/// What every program tells of itself (Prometheus' client library guidelines), as far as it can be read.
fn process(all: &mut Exposition) {
    let page = page_size();
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(stat_fields)
    {
        // By their numbers in proc_pid_stat(5), from the third.
        let field = |number: usize| stat.get(number - 3).and_then(|text| text.parse::<u64>().ok());
        let ticks = ticks_per_second();
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            let seconds = (user + system) as f64 / ticks;
            all.counter("process_cpu_seconds", "User and system CPU time.", seconds);
        }
        if let (Some(started), Some(booted)) = (field(22), boot_time()) {
            let at = booted + started as f64 / ticks;
            all.gauge("process_start_time_seconds", "When the process started, since 1970.", at);
        }
        for (name, help, value) in [
            ("process_virtual_memory_bytes", "Virtual memory.", field(23)),
            ("process_resident_memory_bytes", "Resident memory.", field(24).map(|n| n * page)),
            ("process_threads", "Threads.", field(20)),
        ] {
            if let Some(value) = value {
                all.gauge(name, help, value);
            }
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        all.gauge("process_open_fds", "Open file descriptors.", open.count());
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        all.gauge("process_max_fds", "The most file descriptors that may be open.", soft);
    }
}

/// What stands behind the program's name, which may hold anything.
fn stat_fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect())
}

fn ticks_per_second() -> f64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
}

fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size: libc::c_long| u64::try_from(size).ok()).unwrap_or(4096)
}

/// Seconds since 1970.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(Duration::from_secs(line.trim().parse().ok()?).as_secs_f64())
}

fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Datagram => "udp",
        Transport::Stream => "tcp",
    }
}
