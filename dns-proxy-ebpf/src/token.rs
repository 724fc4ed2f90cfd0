//! Token numbers: found, or drawn on the first query of an origin.

use dns_proxy_common::{Counter, MAX_CGROUP_TOKENS, Origin, Token};

use crate::maps::{FREE_TOKENS, ORIGINS, QUOTA, TOKENS};

/// `BPF_NOEXIST`: insert only where nothing is.
const NOEXIST: u64 = 1;

/// The token of `origin`, made if need be.
#[inline(always)]
pub(crate) fn of(origin: &Origin) -> Result<Token, Counter> {
    // SAFETY: the value is one aligned word, never changed in place.
    match unsafe { TOKENS.get(origin) } {
        Some(&id) => Ok(Token(id)),
        None => make(origin),
    }
}

/// Two CPUs may get here with the same origin. Each draws a number and writes its own slot of
/// `ORIGINS`; the insert into `TOKENS` decides, and the loser gives its number back.
#[inline(always)]
fn make(origin: &Origin) -> Result<Token, Counter> {
    charge(origin.cgroup)?;
    let id = FREE_TOKENS.pop().ok().flatten().ok_or(Counter::NoToken)?;
    ORIGINS.set(id, origin, 0).map_err(|_| Counter::NoToken)?;
    match TOKENS.insert(origin, id, NOEXIST) {
        Ok(()) => Ok(Token(id)),
        Err(_) => {
            let _: Result<(), i32> = ORIGINS.set(id, NOBODY, 0);
            let _: Result<(), i32> = FREE_TOKENS.push(id, 0);
            // SAFETY: as in `of`. Nothing there now means that memory is short.
            unsafe { TOKENS.get(origin) }.map(|&id| Token(id)).ok_or(Counter::NoToken)
        }
    }
}

/// Counts a token towards its cgroup's share. Two CPUs may count at once and lose one; the daemon
/// puts the sum right when it frees tokens.
#[inline(always)]
fn charge(cgroup: u64) -> Result<(), Counter> {
    match QUOTA.get_ptr_mut(cgroup) {
        Some(used) => {
            // SAFETY: the kernel returned a valid pointer to the entry's one aligned word.
            unsafe {
                if *used >= MAX_CGROUP_TOKENS {
                    return Err(Counter::NoToken);
                }
                *used += 1;
            }
            Ok(())
        }
        None => QUOTA.insert(cgroup, 1_u32, 0).map_err(|_| Counter::NoToken),
    }
}

/// What a free slot of `ORIGINS` holds: no namespace has cookie 0.
const NOBODY: Origin = Origin { cgroup: 0, netns: 0, addr: [0; 16] };
