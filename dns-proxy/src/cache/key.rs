//! What an answer is found by.

use crate::wire::{HEADER_LEN, MAX_NAME_LEN, rr_type};

/// Octets before the name: view, type and bits. The class is IN.
const NAME: usize = 7;
/// Class IN (RFC 1035 section 3.2.4).
const IN: u16 = 1;
/// Types from here on, up to 255, are none of records (RFC 6895 section 3.1).
const FIRST_META_TYPE: u16 = 128;
const LAST_META_TYPE: u16 = 255;

/// A number for those who may be asked: answers of one view are nobody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View(pub u32);

/// Bits of a query on which its answer depends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bits {
    /// DNSSEC records are wanted (RFC 3225).
    pub dnssec_ok: bool,
    /// Checking is disabled (RFC 4035 section 3.2.2).
    pub checking_disabled: bool,
    /// AD is understood (RFC 6840 section 5.7).
    pub authentic_data: bool,
}

/// Everything that an answer depends on: the question without regard to case (RFC 4343), bits of the
/// query, and the view.
#[derive(Clone)]
pub struct Key {
    bytes: [u8; NAME + MAX_NAME_LEN],
    len: u16,
}

impl Key {
    /// The key of a question; `None` if its answer is not for keeping.
    pub fn new(view: View, name: &[u8], qtype: u16, qclass: u16, bits: Bits) -> Option<Self> {
        let is_meta = (FIRST_META_TYPE..=LAST_META_TYPE).contains(&qtype) || qtype == rr_type::OPT;
        if is_meta || qclass != IN || name.len() > MAX_NAME_LEN {
            return None;
        }
        let mut bytes = [0; NAME + MAX_NAME_LEN];
        bytes[..4].copy_from_slice(&view.0.to_be_bytes());
        bytes[4..6].copy_from_slice(&qtype.to_be_bytes());
        bytes[6] = u8::from(bits.dnssec_ok)
            | u8::from(bits.checking_disabled) << 1
            | u8::from(bits.authentic_data) << 2;
        // Length octets are below 64 and so untouched by folding 'A' to 'Z'.
        bytes[NAME..][..name.len()].copy_from_slice(name);
        bytes[NAME..][..name.len()].make_ascii_lowercase();
        Some(Self { bytes, len: (NAME + name.len()) as u16 })
    }

    /// Its octets.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }

    pub(super) fn qtype(&self) -> u16 {
        u16::from_be_bytes([self.bytes[4], self.bytes[5]])
    }

    /// Where the records begin in an answer to it.
    pub(super) fn records_at(&self) -> usize {
        let name_len = usize::from(self.len) - NAME;
        HEADER_LEN + name_len + 4
    }
}
