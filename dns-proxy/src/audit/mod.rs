//! `dns-proxy audit`: evidence that nothing left in plaintext that was not to.
//!
//! What the daemon says of itself is held against the kernel's counters, and against what is on the wire
//! ([`wire`]), which this process watches by itself in the network namespaces that the daemon serves.

mod text;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
pub use text::page;
use wire::Wire;

use crate::{
    control::netns::Netns,
    control_socket::{Request, client},
    moment::Moment,
    observe::tally::{Asker, Count, Plaintext, Sums},
    status::{Counters, Status},
};

/// How often the daemon is asked for new namespaces.
const ROUND: Duration = Duration::from_secs(1);
/// What was on its way before we listened is answered, or given up, after so long.
const BEFOREHAND: Duration = Duration::from_secs(2);
/// Packets that are told.
const MAX_TOLD: usize = 20;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// When it began.
    pub from: Moment,
    /// When it ended.
    pub until: Moment,
    /// Of the daemon.
    pub version: String,
    /// What selects the scopes.
    pub scopes: Vec<String>,
    /// What the leak guard does.
    pub guard: Option<String>,
    /// What becomes of the scope without the daemon.
    pub fail: String,
    /// Who asked, and what became of it.
    pub askers: Vec<Asker>,
    /// What the daemon counted meanwhile.
    pub counters: Counters,
    /// What the kernel programs counted meanwhile, but for zeros.
    pub kernel: BTreeMap<String, u64>,
    /// What was on the wire.
    pub wire: Seen,
    /// What was looked at.
    pub checks: Vec<Check>,
    /// Whether all of it is well.
    pub clean: bool,
}

/// What was on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Network namespaces that were watched.
    pub namespaces: usize,
    /// Those that could not be: the host's own, which others use too, and those that nobody is in.
    pub unwatched: usize,
    /// Packets to port 53 that left them.
    pub packets: u64,
    /// Those of them that a route explains.
    pub by_route: u64,
    /// Packets that were lost before anybody looked at them.
    pub lost: u64,
    /// Those that nothing explains.
    pub leaks: u64,
    /// Some of those.
    pub examples: Vec<String>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What should be so.
    pub what: String,
    /// Whether it is.
    pub holds: bool,
    /// How that shows.
    pub why: String,
}

/// Watches for so long.
///
/// # Errors
/// No daemon, or one that ends meanwhile; or no right to watch.
pub fn audit(control: &Path, length: Duration) -> Result<Audit> {
    let mut counts = client::ask(control, &Request::Count { seconds: ROUND.as_secs_f64() })?;
    let mut round = || -> Result<Count> {
        let count = counts.line()?;
        count.context("the daemon has ended: there is no evidence of what happened since")
    };
    let mut wire = Wire::default();
    let mut plaintext = HashSet::new();
    // Sockets first, so that none of what we hear of later was before them.
    let mut last = round()?;
    watch_new(&mut wire, &last.status);
    let warm = Moment::now();
    while last.status.at.since(warm) < BEFOREHAND {
        last = round()?;
        plaintext.extend(last.plaintext.drain(..));
        watch_new(&mut wire, &last.status);
    }
    wire.begin()?;
    let (first, mut askers) = (last.status.clone(), BTreeMap::<String, Asker>::new());
    let mut missed = 0;
    loop {
        last = round()?;
        plaintext.extend(last.plaintext.drain(..));
        missed += last.missed;
        watch_new(&mut wire, &last.status);
        wire.look()?;
        for asker in last.askers.drain(..) {
            let key = asker.who.as_ref().map_or_else(|| asker.name(), |who| who.cgroup.clone());
            let empty = Asker { sums: Sums::default(), ..asker.clone() };
            askers.entry(key).or_insert(empty).sums += asker.sums;
        }
        if last.status.at.since(first.at) >= length {
            break;
        }
    }
    let seen = seen(&wire, &plaintext);
    Ok(judge(&first, &last.status, askers.into_values().collect(), seen, missed))
}

/// Watches the namespaces that it does not yet.
fn watch_new(wire: &mut Wire, status: &Status) {
    // Of the daemon, which need not be ours.
    let own = Netns::id_of(status.pid).ok();
    let mut unwatched = BTreeSet::new();
    for namespace in status.namespaces.iter().filter(|namespace| namespace.cookie.is_some()) {
        let is_shared = own.is_some_and(|own| own.0 == namespace.id);
        let netns = namespace.pid.filter(|_| !is_shared).and_then(|pid| Netns::of(pid).ok());
        let netns = netns.filter(|netns| netns.id().0 == namespace.id);
        if !wire.watches(namespace.id) && netns.is_none_or(|netns| wire.watch(&netns).is_err()) {
            unwatched.insert(namespace.id);
        }
    }
    wire.unwatched = unwatched.len();
}

/// Holds packets against what routes sent.
fn seen(wire: &Wire, plaintext: &HashSet<Plaintext>) -> Seen {
    let mut seen = Seen {
        namespaces: wire.namespaces(),
        unwatched: wire.unwatched,
        packets: wire.packets.len() as u64 + wire.beyond,
        lost: wire.lost + wire.beyond,
        ..Seen::default()
    };
    for packet in &wire.packets {
        let is_by_route = plaintext.iter().any(|sent| {
            let same_name = packet.name.as_ref().is_none_or(|name| *name == sent.name);
            sent.nameserver == packet.to && same_name
        });
        if is_by_route {
            seen.by_route += 1;
            continue;
        }
        seen.leaks += 1;
        if seen.examples.len() < MAX_TOLD {
            seen.examples.push(packet.to_string());
        }
    }
    seen
}

fn judge(first: &Status, last: &Status, askers: Vec<Asker>, wire: Seen, missed: u64) -> Audit {
    let counters = difference(&first.counters, &last.counters);
    let kernel: BTreeMap<_, _> = last
        .kernel
        .iter()
        .map(|(name, count)| {
            let before = first.kernel.get(name).copied().unwrap_or_default();
            (name.clone(), count.saturating_sub(before))
        })
        .filter(|(_, count)| *count > 0)
        .collect();
    let of_kernel = |name: &str| kernel.get(name).copied().unwrap_or_default();
    let check = |what: &str, holds, why: String| Check { what: what.to_owned(), holds, why };
    let answered: u64 = askers.iter().map(|asker| asker.sums.queries).sum();
    let checks = vec![
        check(
            "a daemon intercepts",
            !last.scopes.is_empty(),
            match &last.attached {
                Some(attached) => format!("programs attached to {attached}"),
                None => "nothing is attached".to_owned(),
            },
        ),
        check("it was the same daemon all the time", first.pid == last.pid, {
            format!("pid {}, since {}", last.pid, last.since)
        }),
        check(
            "the guard refused or saw whatever passed the redirection by",
            counters.plaintext_by_leak == Some(0),
            match (counters.plaintext_by_leak, last.guard.as_deref()) {
                (None, _) => "--guard off: nobody looked".to_owned(),
                (Some(leaked), guard) => format!(
                    "{leaked} left, {} refused, with --guard {}",
                    counters.guarded.saturating_sub(leaked),
                    guard.unwrap_or("off"),
                ),
            },
        ),
        check("the daemon was there for every query", of_kernel("unattended") == 0, {
            format!("{} passed it by", of_kernel("unattended"))
        }),
        check(
            "every query that was answered was accounted for",
            missed > 0 || answered <= counters.queries,
            {
                format!(
                    "{} counted, {answered} attributed, {missed} not looked at",
                    counters.queries
                )
            },
        ),
        check("no packet on the wire but by a route", wire.leaks == 0 && wire.lost == 0, {
            format!(
                "{} to port 53 in {} namespaces, {} by a route, {} lost, {} unexplained",
                wire.packets, wire.namespaces, wire.by_route, wire.lost, wire.leaks
            )
        }),
    ];
    let scopes = last.scopes.iter().flat_map(|scope| &scope.select);
    Audit {
        from: first.at,
        until: last.at,
        version: last.version.clone(),
        scopes: scopes.map(|pattern| pattern.pattern.clone()).collect(),
        guard: last.guard.clone(),
        fail: last.fail.clone(),
        askers,
        counters,
        kernel,
        wire,
        clean: checks.iter().all(|check| check.holds),
        checks,
    }
}

fn difference(first: &Counters, last: &Counters) -> Counters {
    let leaked = last.plaintext_by_leak.zip(first.plaintext_by_leak);
    Counters {
        queries: last.queries.saturating_sub(first.queries),
        intercepted: last.intercepted.saturating_sub(first.intercepted),
        encrypted: last.encrypted.saturating_sub(first.encrypted),
        unauthenticated: last.unauthenticated.saturating_sub(first.unauthenticated),
        cached: last.cached.saturating_sub(first.cached),
        local: last.local.saturating_sub(first.local),
        plaintext_by_route: last.plaintext_by_route.saturating_sub(first.plaintext_by_route),
        plaintext_by_leak: leaked.map(|(last, first)| last.saturating_sub(first)),
        failed: last.failed.saturating_sub(first.failed),
        malformed: last.malformed.saturating_sub(first.malformed),
        denied: last.denied.saturating_sub(first.denied),
        redirected: last.redirected.saturating_sub(first.redirected),
        refused: last.refused.saturating_sub(first.refused),
        captured: last.captured.saturating_sub(first.captured),
        guarded: last.guarded.saturating_sub(first.guarded),
    }
}
