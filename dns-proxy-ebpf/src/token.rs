//! Token numbers: found, or drawn on the first query of an origin.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use dns_proxy_common::{
    Counter, Event, Held, MAX_CGROUP_TOKENS, NEARLY_ALL_CGROUP_TOKENS, Origin, Token,
};

use crate::maps::{self, EVENTS, FREE_TOKENS, ORIGINS, QUOTA, TOKENS};

/// `BPF_NOEXIST`: insert only where nothing is.
const NOEXIST: u64 = 1;

/// The token of `origin`, made if need be.
#[inline(always)]
pub(crate) fn of(origin: &Origin) -> Result<Token, Counter> {
    match find(origin) {
        Some(token) => Ok(token),
        None => make(origin),
    }
}

/// The token of `origin`, if it has one, which then counts as used.
#[inline(always)]
fn find(origin: &Origin) -> Option<Token> {
    let held = TOKENS.get_ptr_mut(origin)?;
    let now = now();
    // SAFETY: the kernel returned a valid pointer to the entry, whose two aligned words are read
    // and written one at a time; `token` is never changed in place.
    unsafe {
        if (*held).used != now {
            (*held).used = now;
        }
        Some(Token((*held).token))
    }
}

/// The time as [`Held::used`] has it.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: the helper takes nothing (5.11).
    (unsafe { bpf_ktime_get_coarse_ns() } >> Held::USED_SHIFT) as u32
}

/// Two CPUs may get here with the same origin. Each draws a number and writes its own slot of
/// `ORIGINS`; the insert into `TOKENS` decides, and the loser gives its number back.
#[inline(always)]
fn make(origin: &Origin) -> Result<Token, Counter> {
    charge(origin)?;
    let Some(id) = FREE_TOKENS.pop().ok().flatten() else {
        announce(origin);
        return Err(Counter::NoToken);
    };
    ORIGINS.set(id, origin, 0).map_err(|_| Counter::NoToken)?;
    match TOKENS.insert(origin, Held { token: id, used: now() }, NOEXIST) {
        Ok(()) => Ok(Token(id)),
        Err(_) => {
            let _: Result<(), i32> = ORIGINS.set(id, NOBODY, 0);
            let _: Result<(), i32> = FREE_TOKENS.push(id, 0);
            // Nothing there now means that memory is short.
            find(origin).ok_or(Counter::NoToken)
        }
    }
}

/// Counts a token towards its cgroup's share. Two CPUs may count at once and lose one; the daemon
/// puts the sum right when it frees tokens.
#[inline(always)]
fn charge(origin: &Origin) -> Result<(), Counter> {
    match QUOTA.get_ptr_mut(origin.cgroup) {
        Some(share) => {
            // SAFETY: the kernel returned a valid pointer to the entry's one aligned word.
            let used = unsafe { *share };
            if used >= MAX_CGROUP_TOKENS {
                return Err(Counter::NoToken);
            }
            // SAFETY: as above.
            unsafe { *share = used + 1 };
            if used + 1 == NEARLY_ALL_CGROUP_TOKENS {
                announce(origin);
            }
            Ok(())
        }
        None => QUOTA.insert(origin.cgroup, 1_u32, 0).map_err(|_| Counter::NoToken),
    }
}

/// Tells the daemon that tokens are short.
#[inline(always)]
fn announce(origin: &Origin) {
    let event = Event { cgroup: origin.cgroup, netns: origin.netns, pid: 0, unseen: Event::TOKENS };
    if EVENTS.output(event, 0).is_err() {
        maps::count(Counter::EventLost);
    }
}

/// What a free slot of `ORIGINS` holds: no namespace has cookie 0.
const NOBODY: Origin = Origin { cgroup: 0, netns: 0, addr: [0; 16] };
