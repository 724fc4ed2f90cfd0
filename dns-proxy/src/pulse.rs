//! Proof that threads still turn, for the kernel programs: a daemon that hangs counts as dead.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};

/// How often each thread proves it (see [`dns_proxy_common::PULSE_LIMIT`]).
pub const BEAT: Duration = Duration::from_secs(1);

/// When a thread last turned.
#[derive(Debug)]
pub struct Pulse(AtomicU64);

impl Pulse {
    /// Of a thread that turns now.
    pub fn new() -> Self {
        Self(AtomicU64::new(now()))
    }

    /// When that was last so, on the clock of [`now`].
    pub fn last(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Beats for as long as the runtime of this thread turns, which is for good.
    pub async fn keep(&self) -> Infallible {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            self.0.store(now(), Ordering::Relaxed);
        }
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, which the kernel programs read as `bpf_ktime_get_coarse_ns`.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    // The clock is always there (clock_getres(2)), and 584 years are enough.
    now.map_or(0, |now| now.as_nanos() as u64)
}
