//! Whether queries would be answered, asked by those who send or withhold them.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{sync::watch, time::timeout};

use super::http::{Code, Response};
use crate::upstream::{Settings, probe};

/// What was found out of the upstreams holds for so long.
const FRESH: Duration = Duration::from_secs(10);
/// How long each may take to be reached.
const PROBE_LIMIT: Duration = Duration::from_millis(1_500);
/// How long whoever asks is kept waiting for that; probes usually give up after a second.
const PATIENCE: Duration = Duration::from_millis(800);

/// One thing that must be so, and in what words.
pub(super) struct Check {
    pub(super) holds: bool,
    pub(super) what: String,
}

/// The response that these checks make.
pub(super) fn response(checks: &[Check]) -> Response {
    let ready = checks.iter().all(|check| check.holds);
    let mut text = String::from(if ready { "ready\n" } else { "not ready\n" });
    for Check { holds, what } in checks {
        let _ = writeln!(text, "[{}] {what}", if *holds { '+' } else { '-' });
    }
    Response::text(if ready { Code::Ok } else { Code::ServiceUnavailable }, text)
}

/// Looks for an upstream that can be asked, at most every [`FRESH`], and only if somebody wants to know.
#[derive(Default)]
pub(super) struct Prober {
    last: Mutex<Option<Probe>>,
}

/// One look.
#[derive(Clone)]
struct Probe {
    begun: Instant,
    /// Nothing until it is known.
    result: watch::Receiver<Option<Arc<Check>>>,
}

impl Prober {
    /// Whether at least one of the upstreams is authenticated.
    pub(super) async fn check(&self, settings: &Settings) -> Arc<Check> {
        let (mut newest, before) = self.begin(settings);
        // Of one that takes long the one before it says more than nothing.
        let known = timeout(PATIENCE, newest.result.wait_for(Option::is_some)).await;
        if let Ok(Ok(check)) = known
            && let Some(check) = &*check
        {
            return Arc::clone(check);
        }
        let before = before.and_then(|before| before.result.borrow().clone());
        before.unwrap_or_else(|| {
            let what = "no upstream has answered yet".to_owned();
            Arc::new(Check { holds: false, what })
        })
    }

    /// The probe to wait for, and the one before it if it has just begun.
    fn begin(&self, settings: &Settings) -> (Probe, Option<Probe>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(probe) = last.as_ref()
            && now < probe.begun + FRESH
        {
            return (probe.clone(), None);
        }
        let (known, result) = watch::channel(None);
        let settings = settings.clone();
        tokio::spawn(async move {
            let check = any_authenticated(&settings).await;
            // Whoever asked may be gone.
            known.send_replace(Some(Arc::new(check)));
        });
        let probe = Probe { begun: now, result };
        let before = last.replace(probe.clone());
        (probe, before)
    }
}

async fn any_authenticated(settings: &Settings) -> Check {
    let probes = settings
        .upstreams
        .iter()
        .map(|upstream| async move { (upstream, probe(settings, upstream, PROBE_LIMIT).await) });
    let found = join_all(probes).await;
    if let Some((upstream, reachable)) =
        found.iter().find_map(|(upstream, found)| Some((upstream, found.as_ref().ok()?)))
    {
        let what = match &reachable.doubt {
            None => format!("upstream {upstream} is authenticated"),
            Some(doubt) => {
                format!("upstream {upstream} is used without being authenticated: {doubt}")
            }
        };
        return Check { holds: true, what };
    }
    let errors = found.iter().filter_map(|(_, found)| Some(found.as_ref().err()?.to_string()));
    let what = format!("no upstream can be used: {}", errors.collect::<Vec<_>>().join("; "));
    Check { holds: false, what }
}
