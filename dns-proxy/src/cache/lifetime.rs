//! Whether an answer is for keeping, and for how long.

use std::time::Duration;

use super::key::Key;
use crate::{
    parts::Parts,
    wire::{self, flag, option_code, rcode, rr_type},
};

/// The longest that a negative answer is kept, in seconds (RFC 2308 section 5).
const MAX_NEGATIVE: u32 = 3 * 3_600;
/// Octets of the numbers at the end of an SOA record's data (RFC 1035 section 3.3.13).
const SOA_NUMBERS: usize = 20;

/// Bounds that the operator sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What is kept at all is kept so long at least.
    pub min_ttl: Duration,
    /// Nothing is fresh for longer.
    pub max_ttl: Duration,
    /// How long an answer that is no longer fresh may be given if there is no other (RFC 8767).
    pub max_stale: Duration,
}

/// What is to be done with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is fresh for so many seconds.
    Keep(u32),
    /// The server could not answer (RFC 9520 section 2).
    Failure,
    /// It is for whoever asked, now.
    Pass,
}

/// Whether an answer says that the name could not be looked up, rather than what it is (RFC 8767
/// section 4).
pub fn is_failure(parts: &Parts<'_>) -> bool {
    let code = parts.flags[1] & flag::RCODE;
    let extended = parts.opt.is_some_and(|opt| opt.extended_rcode != 0);
    extended || !matches!(code, rcode::NOERROR | rcode::NXDOMAIN)
}

/// Judges an answer to a key at a time in seconds since 1970; notes where the TTLs are and what they
/// are from now on.
pub(super) fn judge(
    key: &Key,
    parts: &Parts<'_>,
    limits: &Limits,
    unix: u32,
    ttls: &mut Vec<(u16, u32)>,
) -> Verdict {
    ttls.clear();
    let whole = parts.flags[0] & (flag::QR | flag::OPCODE | flag::TC) == flag::QR;
    if !whole || !parts.opt_is_last || is_for_one_subnet(parts) {
        return Verdict::Pass;
    }
    let (Some(found), failed) = (read(key, parts, limits, unix, ttls), is_failure(parts)) else {
        return Verdict::Pass;
    };
    if failed {
        let code = parts.flags[1] & flag::RCODE;
        let is_known = matches!(code, rcode::SERVFAIL | rcode::REFUSED);
        return if is_known { Verdict::Failure } else { Verdict::Pass };
    }
    let exists = parts.flags[1] & flag::RCODE == rcode::NOERROR && found.has_data;
    let longest = match (exists, found.has_soa) {
        (true, _) => u32::MAX,
        (false, true) => MAX_NEGATIVE,
        // RFC 2308 section 5.
        (false, false) => return Verdict::Pass,
    };
    let lifetime = ttls.iter().map(|(_, ttl)| *ttl).min().unwrap_or(0).min(longest);
    match lifetime.min(found.valid_for) {
        0 => Verdict::Pass,
        lifetime => Verdict::Keep(lifetime),
    }
}

/// What the records of an answer say.
struct Found {
    /// There are some of the type asked for.
    has_data: bool,
    has_soa: bool,
    /// How long the signatures are valid, in seconds.
    valid_for: u32,
}

/// Reads all records; `None` if one forbids to keep them.
fn read(
    key: &Key,
    parts: &Parts<'_>,
    limits: &Limits,
    unix: u32,
    ttls: &mut Vec<(u16, u32)>,
) -> Option<Found> {
    let [answers, authority, additional] = parts.counts.map(u32::from);
    let mut found = Found { has_data: false, has_soa: false, valid_for: u32::MAX };
    let (body, mut at) = (parts.body, 0);
    for index in 0..answers + authority + additional {
        let record = wire::record_at(body, at)?;
        at = record.end;
        let data = &body[record.data..record.end];
        let mut ttl = ttl_at(body, record.fixed + 4)?;
        match record.rr_type {
            rr_type::TSIG | rr_type::SIG | rr_type::OPT => return None,
            rr_type::SOA if (answers..answers + authority).contains(&index) => {
                found.has_soa = true;
                let minimum = data.len().checked_sub(4).filter(|at| *at >= SOA_NUMBERS - 4)?;
                ttl = ttl.min(ttl_at(data, minimum)?); // RFC 2308 section 5
            }
            // RFC 4035 section 5.3.3.
            rr_type::RRSIG => {
                ttl = ttl.min(ttl_at(data, 4)?);
                let expires = wire::u32_at(data, 8)?;
                // In serial number arithmetic (RFC 4034 section 3.1.5).
                let left = expires.wrapping_sub(unix) as i32;
                found.valid_for = found.valid_for.min(left.max(0) as u32);
            }
            _ => {}
        }
        found.has_data |= index < answers && record.rr_type == key.qtype();
        let ttl = ttl.max(seconds(limits.min_ttl)).min(seconds(limits.max_ttl));
        let offset = key.records_at() + record.fixed + 4;
        ttls.push((u16::try_from(offset).ok()?, ttl));
    }
    Some(found)
}

/// A TTL; one with the top bit set is 0 (RFC 2181 section 8).
fn ttl_at(bytes: &[u8], at: usize) -> Option<u32> {
    wire::u32_at(bytes, at).map(|ttl| if ttl > i32::MAX as u32 { 0 } else { ttl })
}

/// The answer holds for some clients only (RFC 7871 section 7.3.1).
fn is_for_one_subnet(parts: &Parts<'_>) -> bool {
    /// Where the option says for how many bits of the address it holds.
    const SCOPE: usize = wire::OPTION_HEADER_LEN + 3;
    let options = parts.opt.map_or(&[][..], |opt| opt.options);
    wire::options(options).any(|option| match option {
        Some((option_code::CLIENT_SUBNET, option)) => option.get(SCOPE) != Some(&0),
        Some(_) => false,
        None => true,
    })
}

pub(super) fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
