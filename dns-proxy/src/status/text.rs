//! A status as a page that a person reads at a glance.

use std::{fmt::Write as _, time::Duration};

use super::{Pattern, Status, Upstream, UpstreamState};
use crate::escape::plain;

/// Cgroups of one pattern that are listed.
const MAX_MATCHES: usize = 5;
/// Where what a line is about begins.
const INDENT: usize = 12;

/// The page.
pub fn page(status: &Status) -> String {
    let mut page = format!(
        "dns-proxy {}, pid {}, for {} (since {})\n\n",
        status.version,
        status.pid,
        span(status.at.since(status.since)),
        status.since,
    );
    let counters = &status.counters;
    let leaked = match counters.plaintext_by_leak {
        Some(leaked) => format!("{} plaintext by leak", number(leaked)),
        None if status.guard.is_some() => "plaintext by leak unknown".to_owned(),
        None => "nothing intercepted".to_owned(),
    };
    let _ = writeln!(
        page,
        "{} intercepted, {} encrypted, {leaked}, {} plaintext by route\n",
        number(counters.intercepted),
        number(counters.encrypted),
        number(counters.plaintext_by_route),
    );
    let mut section = |title: &str, lines: Vec<String>| {
        for (index, line) in lines.iter().enumerate() {
            let title = if index == 0 { title } else { "" };
            let _ = writeln!(page, "{title:INDENT$}{line}");
        }
    };
    section("scope", scopes(status));
    section("namespaces", namespaces(status));
    section("listeners", status.listen.clone());
    section("upstreams", status.upstreams.iter().flat_map(upstream).collect());
    section("cache", vec![cache(status)]);
    section("queries", vec![queries(status)]);
    section("kernel", kernel(status));
    section("workers", vec![workers(status)]);
    let warnings = status.warnings.iter();
    section(
        "warnings",
        warnings
            .flat_map(|warning| [plain(&warning.what), format!("  -> {}", plain(&warning.remedy))])
            .collect(),
    );
    page
}

fn scopes(status: &Status) -> Vec<String> {
    let selected = |pattern: &Pattern| {
        let shown = pattern.matches.iter().take(MAX_MATCHES).map(|path| plain(path));
        let mut matches = shown.collect::<Vec<_>>().join(" ");
        if pattern.matches.is_empty() {
            matches = "matches nothing yet".to_owned();
        } else if pattern.matches.len() > MAX_MATCHES {
            let _ = write!(matches, " and {} more", pattern.matches.len() - MAX_MATCHES);
        }
        format!("{:<32}{matches}", plain(&pattern.pattern))
    };
    let excluded = |pattern: &Pattern| format!("without {}", plain(&pattern.pattern));
    let scopes = status.scopes.iter();
    let all = scopes.flat_map(|scope| {
        scope.select.iter().map(selected).chain(scope.exclude.iter().map(excluded))
    });
    let mut all: Vec<_> = all.collect();
    if let (Some(guard), Some(attached)) = (&status.guard, &status.attached) {
        all.push(format!("guard {guard}, fail {}, attached to {}", status.fail, plain(attached)));
    }
    all
}

fn namespaces(status: &Status) -> Vec<String> {
    if status.scopes.is_empty() {
        return Vec::new();
    }
    let ready = status.namespaces.iter().filter(|namespace| namespace.ready).count();
    let refused = status.namespaces.len() - ready;
    vec![match refused {
        0 => format!("{ready} ready"),
        _ => format!("{ready} ready, {refused} not ready: their DNS is refused"),
    }]
}

fn upstream(upstream: &Upstream) -> [String; 2] {
    let state = match upstream.state {
        UpstreamState::Up => "up",
        UpstreamState::Idle => "idle",
        UpstreamState::Silent => "SILENT",
        UpstreamState::Failed => "FAILED",
    };
    let name = upstream.name.as_ref().map(|name| format!("#{name}")).unwrap_or_default();
    let latency = upstream.latency_seconds;
    let latency = latency.map_or("-".to_owned(), |latency| format!("{:.1} ms", latency * 1e3));
    let first = format!(
        "{:<32}{state:<7}{latency:>9}  {} answers, {} failures",
        plain(&format!("{}{name}", upstream.address)),
        number(upstream.answers),
        number(upstream.failures),
    );
    let mut second = format!(
        "    {} connections open, {} made, {} resumed",
        number(upstream.connections),
        number(upstream.connected),
        number(upstream.resumed),
    );
    if let Some(expires) = upstream.certificate_expires {
        let _ = write!(second, ", certificate until {}", expires.day());
    }
    if upstream.of_route {
        second.push_str(", for a route");
    }
    [first, second]
}

fn cache(status: &Status) -> String {
    let cache = &status.cache;
    if cache.size == 0 {
        return "off".to_owned();
    }
    let rate = 100.0 * cache.hits as f64 / status.counters.queries.max(1) as f64;
    format!(
        "{} of {} used, {} answers, {} hits ({rate:.0} %)",
        octets(cache.used),
        octets(cache.size),
        number(cache.names),
        number(cache.hits),
    )
}

fn queries(status: &Status) -> String {
    let counters = &status.counters;
    let all = [
        ("received", counters.queries),
        ("cached", counters.cached),
        ("answered here", counters.local),
        ("failed", counters.failed),
        ("malformed", counters.malformed),
        ("denied", counters.denied),
        ("from unauthenticated upstreams", counters.unauthenticated),
    ];
    let shown = all.iter().enumerate().filter(|(index, (_, count))| *index < 4 || *count > 0);
    let shown = shown.map(|(_, (name, count))| format!("{} {name}", number(*count)));
    shown.collect::<Vec<_>>().join(", ")
}

fn kernel(status: &Status) -> Vec<String> {
    if status.scopes.is_empty() {
        return Vec::new();
    }
    let counters = &status.counters;
    let sums = format!(
        "{} redirected, {} refused, {} captured, {} guarded",
        number(counters.redirected),
        number(counters.refused),
        number(counters.captured),
        number(counters.guarded),
    );
    let refused = status.kernel.iter().filter(|(name, count)| {
        **count > 0 && (name.starts_with("refused_") || name.starts_with("guard_"))
    });
    let refused: Vec<_> =
        refused.map(|(name, count)| format!("{name} {}", number(*count))).collect();
    let mut lines = vec![sums];
    if !refused.is_empty() {
        lines.push(refused.join(", "));
    }
    lines
}

fn workers(status: &Status) -> String {
    let queries: Vec<_> = status.workers.iter().map(|worker| number(worker.queries)).collect();
    format!("{} ({} queries)", status.workers.len(), queries.join(" + "))
}

/// 12345 as `12,345`.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in the largest unit that fits.
pub fn octets(octets: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.iter().find(|(shift, _)| octets >= 1 << shift);
    match unit {
        Some((shift, unit)) if octets.trailing_zeros() >= *shift => {
            format!("{} {unit}", octets >> shift)
        }
        Some((shift, unit)) => format!("{:.1} {unit}", octets as f64 / (1_u64 << shift) as f64),
        None => format!("{octets} B"),
    }
}

/// A span in its two largest units.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3_600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown = parts[first..].iter().take(2).map(|(count, unit)| format!("{count}{unit}"));
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_spans_are_as_people_write_them() {
        for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(number(n), text);
        }
        for (n, text) in [(0, "0 B"), (1 << 10, "1 KiB"), (64 << 20, "64 MiB"), (1_536, "1.5 KiB")]
        {
            assert_eq!(octets(n), text);
        }
        for (seconds, text) in [(0, "0s"), (61, "1m 1s"), (3_600, "1h 0m"), (90_061, "1d 1h")] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
