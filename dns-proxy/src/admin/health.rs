//! Whether the daemon is alive: whether all of its threads turn.

use std::{fmt, time::Duration};

use dns_proxy_common::PULSE_LIMIT;

use super::{
    Phase,
    http::{Code, Response},
};
use crate::{datapath::worker::Worker, pulse};

/// A start that takes longer hangs; with hundreds of namespaces it takes a second or two.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What the pulses say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Health {
    Starting,
    /// All threads turn.
    Well,
    /// This one does not.
    Hangs {
        /// Which.
        thread: String,
        /// For how long.
        since: Duration,
    },
}

impl Health {
    /// In this phase, now.
    pub(super) fn of(phase: &Phase) -> Self {
        let (parts, main) = match phase {
            Phase::Starting(since) if since.elapsed() < START_LIMIT => return Self::Starting,
            Phase::Starting(since) => {
                return Self::Hangs { thread: "start-up".to_owned(), since: since.elapsed() };
            }
            Phase::Running(parts) => (parts, Some(parts.main.last())),
            // The control plane waits for the workers then.
            Phase::Draining(parts) => (parts, None),
        };
        let main = main.map(|last| ("control plane".to_owned(), last));
        let workers = parts.workers.iter().map(Worker::last_beat).enumerate();
        let workers = workers.map(|(index, last)| (format!("worker {index}"), last));
        Self::judge(main.into_iter().chain(workers), pulse::now())
    }

    /// Given when each thread beat last. The programs go by the same limit.
    fn judge(threads: impl Iterator<Item = (String, u64)>, now: u64) -> Self {
        let silent = threads.map(|(thread, last)| (now.saturating_sub(last), thread));
        match silent.max() {
            Some((since, thread)) if since > PULSE_LIMIT => {
                Self::Hangs { thread, since: Duration::from_nanos(since) }
            }
            Some(_) | None => Self::Well,
        }
    }

    /// It need not be restarted.
    pub(super) fn is_well(&self) -> bool {
        matches!(self, Self::Starting | Self::Well)
    }

    pub(super) fn response(&self) -> Response {
        let code = if self.is_well() { Code::Ok } else { Code::ServiceUnavailable };
        Response::text(code, format!("{self}\n"))
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Well => f.write_str("all threads turn"),
            Self::Hangs { thread, since } => {
                write!(f, "{thread} has not turned for {:.1} s", since.as_secs_f64())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_thread_decides() {
        let judge = |beats: &[u64]| {
            let threads = beats.iter().enumerate().map(|(n, last)| (n.to_string(), *last));
            Health::judge(threads, 3 * PULSE_LIMIT)
        };
        assert_eq!(judge(&[3 * PULSE_LIMIT, 2 * PULSE_LIMIT, 4 * PULSE_LIMIT]), Health::Well);
        let hangs = judge(&[3 * PULSE_LIMIT, PULSE_LIMIT]);
        assert_eq!(hangs.to_string(), "1 has not turned for 20.0 s");
        assert!(!hangs.is_well());
    }
}
