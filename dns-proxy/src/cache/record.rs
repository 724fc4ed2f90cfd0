//! An answer as it lies in memory: a head of fixed size, the key, where the TTLs are, the records,
//! and the EDNS options.

use super::{key::Key, ring::UNIT};
use crate::parts::{Opt, Parts};

// Where the fields of the head are. The first two are those that a ring needs.
const TAG: usize = 0;
const LENGTH: usize = 4;
const KEPT_AT: usize = 8;
const LIFETIME: usize = 12;
const RETRY_AT: usize = 16;
const GONE_AT: usize = 20;
const BODY_LEN: usize = 24;
const OPTIONS_LEN: usize = 26;
const KEY_LEN: usize = 28;
const TTL_COUNT: usize = 30;
const COUNTS: usize = 32;
const FLAGS: usize = 38;
const HEAT: usize = 40;
const FAILURES: usize = 41;
const HEAD_LEN: usize = 42;

/// Beyond this a record does not become more popular.
const MAX_HEAT: u8 = 3;

/// Times in a record, in seconds since the cache was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) kept_at: u32,
    /// How long it is fresh.
    pub(super) lifetime: u32,
    /// When not even a stale answer may be given any more.
    pub(super) gone_at: u32,
}

/// A record.
#[derive(Clone, Copy)]
pub(super) struct Record<'a>(pub(super) &'a [u8]);

/// Writes a record in place of what `out` holds. `failures` counts those in a row before this one,
/// if it is one.
pub(super) fn write(
    out: &mut Vec<u8>,
    (hash, key): (u32, &Key),
    parts: &Parts<'_>,
    ttls: &[(u16, u32)],
    times: Times,
    failures: Option<u8>,
) {
    let options = parts.opt.map_or(&[][..], |opt| opt.options);
    out.clear();
    out.extend_from_slice(&hash.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for time in [times.kept_at, times.lifetime, times.kept_at, times.gone_at] {
        out.extend_from_slice(&time.to_le_bytes());
    }
    for len in [parts.body.len(), options.len(), key.bytes().len(), ttls.len()] {
        out.extend_from_slice(&(len as u16).to_le_bytes());
    }
    parts.counts.iter().for_each(|count| out.extend_from_slice(&count.to_le_bytes()));
    out.extend_from_slice(&parts.flags);
    out.extend_from_slice(&[0, failures.map_or(0, |before| before.saturating_add(1))]);
    out.extend_from_slice(key.bytes());
    ttls.iter().for_each(|(at, _)| out.extend_from_slice(&at.to_le_bytes()));
    let body_at = out.len();
    out.extend_from_slice(parts.body);
    for (at, ttl) in ttls {
        let at = body_at + usize::from(*at) - key.records_at();
        out[at..at + 4].copy_from_slice(&ttl.to_be_bytes());
    }
    out.extend_from_slice(options);
    out.resize(out.len().next_multiple_of(UNIT), 0);
    let len = out.len() as u32;
    out[LENGTH..LENGTH + 4].copy_from_slice(&len.to_le_bytes());
}

/// Somebody asked for it; `by` others asked before it was written anew.
pub(super) fn warm(record: &mut [u8], by: u8) {
    record[HEAT] = record[HEAT].saturating_add(by).min(MAX_HEAT);
}

/// It is to be asked for again to stay.
pub(super) fn cool(record: &mut [u8], to: u8) {
    record[HEAT] = to;
}

/// It is not to be renewed before then.
pub(super) fn retry_at(record: &mut [u8], at: u32) {
    record[RETRY_AT..RETRY_AT + 4].copy_from_slice(&at.to_le_bytes());
}

impl<'a> Record<'a> {
    pub(super) fn hash(self) -> u32 {
        self.u32(TAG)
    }

    pub(super) fn kept_at(self) -> u32 {
        self.u32(KEPT_AT)
    }

    pub(super) fn lifetime(self) -> u32 {
        self.u32(LIFETIME)
    }

    pub(super) fn retry_at(self) -> u32 {
        self.u32(RETRY_AT)
    }

    pub(super) fn gone_at(self) -> u32 {
        self.u32(GONE_AT)
    }

    /// How popular it is, up to [`MAX_HEAT`].
    pub(super) fn heat(self) -> u8 {
        self.0[HEAT]
    }

    /// How often the question failed in a row; 0 if this is no failure.
    pub(super) fn failures(self) -> u8 {
        self.0[FAILURES]
    }

    pub(super) fn key(self) -> &'a [u8] {
        &self.0[HEAD_LEN..][..self.u16(KEY_LEN).into()]
    }

    /// Where the TTLs are in the message, each in two octets.
    pub(super) fn ttls(self) -> &'a [u8] {
        &self.0[HEAD_LEN + self.key().len()..][..2 * usize::from(self.u16(TTL_COUNT))]
    }

    /// What it is made of, but for the question.
    pub(super) fn parts(self) -> Parts<'a> {
        let body_at = HEAD_LEN + self.key().len() + self.ttls().len();
        let (body, rest) = self.0[body_at..].split_at(self.u16(BODY_LEN).into());
        let options = &rest[..self.u16(OPTIONS_LEN).into()];
        Parts {
            flags: [self.0[FLAGS], self.0[FLAGS + 1]],
            counts: [0, 2, 4].map(|at| self.u16(COUNTS + at)),
            question: &[],
            body,
            records: body,
            opt: (!options.is_empty()).then_some(Opt { extended_rcode: 0, options }),
            opt_is_last: true,
        }
    }

    fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}
