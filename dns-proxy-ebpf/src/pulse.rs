//! Is the daemon alive?

use aya_ebpf::{Global, helpers::generated::bpf_ktime_get_coarse_ns};
use dns_proxy_common::{Counter, FailMode, PULSE_LIMIT};

use crate::maps::PULSE;

/// What to do when it is not; set by the daemon before it loads the programs.
#[unsafe(no_mangle)]
static FAIL_MODE: Global<u8> = Global::new(FailMode::Open as u8);

/// Names what becomes of a query if the daemon hangs.
#[inline(always)]
pub(crate) fn check() -> Result<(), Counter> {
    let beat = PULSE.get(0).copied().unwrap_or(0);
    // SAFETY: the helper takes nothing (5.11). The clock is that of the daemon's beats
    // (CLOCK_MONOTONIC), a tick behind at most.
    let age = unsafe { bpf_ktime_get_coarse_ns() }.saturating_sub(beat);
    if age <= PULSE_LIMIT {
        return Ok(());
    }
    let closed = FAIL_MODE.load() == FailMode::Closed as u8;
    Err(if closed { Counter::DaemonDead } else { Counter::Unattended })
}
