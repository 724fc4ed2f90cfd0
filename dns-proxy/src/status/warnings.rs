//! What is not as it should be, and what to do about it.

use std::time::Duration;

use super::{Status, UpstreamState, Warning};

/// A certificate that expires so soon should have been renewed.
const SOON: Duration = Duration::from_secs(7 * 86_400);
/// Workers that prove so rarely that they turn are overloaded or hang, in seconds.
const SLOW_BEAT: f64 = 3.0;

/// What a status is worth warning of, given how many workers did not say how they are.
pub(super) fn of(status: &Status, speechless: usize) -> Vec<Warning> {
    let mut all = Vec::new();
    let mut warn = |what: String, remedy: &str| {
        all.push(Warning { what, remedy: remedy.to_owned() });
    };
    let counters = &status.counters;
    let kernel = |name: &str| status.kernel.get(name).copied().unwrap_or_default();

    if counters.plaintext_by_leak.is_some_and(|leaked| leaked > 0) {
        let leaked = counters.plaintext_by_leak.unwrap_or_default();
        warn(
            format!("{leaked} packets of the scope left in plaintext"),
            "--guard on refuses them; --fail closed refuses them also while the daemon hangs",
        );
    }
    if status.guard.as_deref() == Some("off") {
        warn(
            "nobody looks whether anything of the scope leaves in plaintext".to_owned(),
            "run with --guard on, or --guard count to look only",
        );
    }
    for upstream in &status.upstreams {
        let who = upstream.name.as_ref().unwrap_or(&upstream.address);
        match upstream.state {
            UpstreamState::Failed | UpstreamState::Silent => {
                let why = upstream.error.as_deref().unwrap_or("it owes answers and is silent");
                warn(
                    format!("upstream {who} does not answer: {why}"),
                    "look whether the network lets TCP to its port pass, and what it says of itself",
                );
            }
            UpstreamState::Up | UpstreamState::Idle => {}
        }
        if upstream.authenticated == Some(false) {
            warn(
                format!("upstream {who} is used without being authenticated"),
                "give its name or pin, or run with --profile strict",
            );
        }
        if let Some(expires) = upstream.certificate_expires
            && expires.since(status.at) < SOON
        {
            warn(
                format!("the certificate of upstream {who} expires on {}", expires.day()),
                "tell whoever runs it, and name a second --upstream meanwhile",
            );
        }
    }
    let refused = status.namespaces.iter().filter(|namespace| namespace.cookie.is_none()).count();
    if refused > 0 {
        warn(
            format!("{refused} network namespaces cannot be served; their DNS is refused"),
            "the log says why (`cannot serve this namespace`)",
        );
    }
    let slow = status.workers.iter().filter(|worker| worker.last_beat_seconds > SLOW_BEAT).count();
    if slow.max(speechless) > 0 {
        warn(
            format!("{} of {} workers do not turn", slow.max(speechless), status.workers.len()),
            "give the daemon more CPU time; if they hang, restart it and report this as a bug",
        );
    }
    for (name, what, remedy) in KERNEL {
        if kernel(name) > 0 {
            warn(format!("{} {what}", kernel(name)), remedy);
        }
    }
    all
}

/// Counters that should be 0, or nearly.
const KERNEL: [(&str, &str, &str); 4] = [
    (
        "refused_device_bound",
        "queries of sockets that insist on a device were refused",
        "give the device an address of the nameserver's family, or take it out of its VRF",
    ),
    (
        "refused_no_token",
        "queries were refused because their cgroup asks too many nameservers at a time",
        "leave a recursive resolver out (--exclude-cgroup), or let it forward to one nameserver",
    ),
    (
        "refused_transport",
        "queries over UDP-Lite were refused",
        "let the application ask over UDP or TCP",
    ),
    (
        "event_lost",
        "messages of the kernel programs were lost",
        "give the daemon more CPU time: it does not read them fast enough",
    ),
];
