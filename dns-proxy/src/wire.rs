//! Walking DNS messages on the wire (RFC 1035 section 4.1), without decoding what they say.
//!
//! Not a message library: records are passed on as the bytes they came in, so all that is ever
//! needed is where one ends. Every function is bounded by the message's own length.

use std::time::Duration;

/// Octets of the fixed header.
pub const HEADER_LEN: usize = 12;
/// The longest message a two-octet length can frame (RFC 1035 section 4.2.2).
pub const MAX_MESSAGE_LEN: usize = 65_535;
/// The longest name on the wire (RFC 1035 section 3.1).
pub const MAX_NAME_LEN: usize = 255;
/// The longest label of a name (RFC 1035 section 3.1).
pub const MAX_LABEL_LEN: usize = 63;

/// Octets of an EDNS option's code and length.
pub const OPTION_HEADER_LEN: usize = 4;
/// What the keepalive option counts in (RFC 7828 section 3.1).
const KEEPALIVE_UNIT: Duration = Duration::from_millis(100);

/// Record types that this program treats in a special way; all others are opaque (RFC 3597).
pub mod rr_type {
    /// IPv4 address (RFC 1035).
    pub const A: u16 = 1;
    /// Nameserver (RFC 1035).
    pub const NS: u16 = 2;
    /// Another name for a name (RFC 1035).
    pub const CNAME: u16 = 5;
    /// Start of a zone (RFC 1035).
    pub const SOA: u16 = 6;
    /// Name of an address (RFC 1035).
    pub const PTR: u16 = 12;
    /// IPv6 address (RFC 3596).
    pub const AAAA: u16 = 28;
    /// Delegation signer (RFC 4034).
    pub const DS: u16 = 43;
    /// Signature of records (RFC 4034).
    pub const RRSIG: u16 = 46;
    /// Key of a zone (RFC 4034).
    pub const DNSKEY: u16 = 48;
    /// All types (RFC 8482).
    pub const ANY: u16 = 255;
    /// EDNS pseudo-record (RFC 6891).
    pub const OPT: u16 = 41;
    /// Transaction signature by public key (RFC 2931).
    pub const SIG: u16 = 24;
    /// Transaction signature by shared key (RFC 8945).
    pub const TSIG: u16 = 250;
    /// Incremental zone transfer (RFC 1995).
    pub const IXFR: u16 = 251;
    /// Zone transfer (RFC 5936).
    pub const AXFR: u16 = 252;
}

/// EDNS option codes (IANA registry "DNS EDNS0 Option Codes").
pub mod option_code {
    /// The client's subnet (RFC 7871).
    pub const CLIENT_SUBNET: u16 = 8;
    /// DNS cookies (RFC 7873).
    pub const COOKIE: u16 = 10;
    /// TCP keepalive (RFC 7828).
    pub const TCP_KEEPALIVE: u16 = 11;
    /// Padding (RFC 7830).
    pub const PADDING: u16 = 12;
    /// Extended DNS errors (RFC 8914).
    pub const EXTENDED_ERROR: u16 = 15;
}

/// Response codes (RFC 6895 section 2.3).
pub mod rcode {
    /// No error.
    pub const NOERROR: u8 = 0;
    /// The query could not be interpreted.
    pub const FORMERR: u8 = 1;
    /// The server could not answer.
    pub const SERVFAIL: u8 = 2;
    /// There is no such name.
    pub const NXDOMAIN: u8 = 3;
    /// This kind of query is not supported.
    pub const NOTIMP: u8 = 4;
    /// The server will not answer.
    pub const REFUSED: u8 = 5;
    /// Unknown EDNS version, in its upper eight bits (RFC 6891 section 9).
    pub const BADVERS_HIGH: u8 = 1;
}

/// Bits of the header's third and fourth octet.
pub mod flag {
    /// Octet 2: a response.
    pub const QR: u8 = 0x80;
    /// Octet 2: the operation.
    pub const OPCODE: u8 = 0x78;
    /// Octet 2: an authoritative answer.
    pub const AA: u8 = 0x04;
    /// Octet 2: truncated.
    pub const TC: u8 = 0x02;
    /// Octet 2: recursion desired.
    pub const RD: u8 = 0x01;
    /// Octet 3: recursion available.
    pub const RA: u8 = 0x80;
    /// Octet 3: authentic data (RFC 4035).
    pub const AD: u8 = 0x20;
    /// Octet 3: checking disabled (RFC 4035).
    pub const CD: u8 = 0x10;
    /// Octet 3: the response code.
    pub const RCODE: u8 = 0x0f;
}

/// The 16-bit field at `at`, if the message reaches that far.
pub fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The 32-bit field at `at`, if the message reaches that far.
pub fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    message.get(at..at.checked_add(4)?)?.first_chunk().map(|octets| u32::from_be_bytes(*octets))
}

/// The four section counts: questions, answers, authority, additional.
pub fn counts(message: &[u8]) -> Option<[u16; 4]> {
    Some([u16_at(message, 4)?, u16_at(message, 6)?, u16_at(message, 8)?, u16_at(message, 10)?])
}

/// The first whole message of a stream, without its length, and what follows it (RFC 1035 section
/// 4.2.2).
pub fn split_frame(stream: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::from(u16_at(stream, 0)?);
    stream[2..].split_at_checked(len)
}

/// Where the name that starts at `at` ends. A compression pointer ends it; it is not followed.
pub fn skip_name(message: &[u8], at: usize) -> Option<usize> {
    let mut pos = at;
    loop {
        let len = *message.get(pos)?;
        match len {
            0 => return Some(pos + 1),
            1..=63 => pos += 1 + usize::from(len),
            0xc0.. => return (pos + 2 <= message.len()).then_some(pos + 2),
            64..=0xbf => return None,
        }
        if pos - at >= MAX_NAME_LEN {
            return None;
        }
    }
}

/// The one question of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Where it ends; it starts behind the header.
    pub end: usize,
    /// Its type.
    pub qtype: u16,
    /// Its class.
    pub qclass: u16,
}

impl Question {
    /// Reads the first question. A name there has nothing to point back to, so a compressed one is
    /// an error.
    pub fn read(message: &[u8]) -> Option<Self> {
        let name_end = skip_name(message, HEADER_LEN)?;
        if message[name_end - 1] != 0 || name_end - HEADER_LEN > MAX_NAME_LEN {
            return None;
        }
        let qtype = u16_at(message, name_end)?;
        let qclass = u16_at(message, name_end + 2)?;
        Some(Self { end: name_end + 4, qtype, qclass })
    }

    /// Whether two questions on the wire ask the same: type and class alike, the name without
    /// regard to case (RFC 4343).
    pub fn same(a: &[u8], b: &[u8]) -> bool {
        // Length octets are below 64 and so untouched by folding 'A' to 'Z'; type and class are
        // compared exactly.
        a.len() == b.len()
            && a.len() >= 5
            && a[..a.len() - 4].eq_ignore_ascii_case(&b[..b.len() - 4])
            && a[a.len() - 4..] == b[b.len() - 4..]
    }
}

/// Whether a response with the right transaction id, from the right server, answers a question (RFC
/// 5452 section 9.1). Errors may come without it.
pub fn answers(message: &[u8], question: &[u8]) -> bool {
    match counts(message) {
        Some([0, 0, ..]) => message[3] & flag::RCODE != rcode::NOERROR,
        Some([1, ..]) => Question::read(message)
            .is_some_and(|read| Question::same(&message[HEADER_LEN..read.end], question)),
        _ => false,
    }
}

/// One resource record's place in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it starts: at its owner name.
    pub start: usize,
    /// Its type.
    pub rr_type: u16,
    /// Where its fixed part starts: at the type.
    pub fixed: usize,
    /// Where its data starts.
    pub data: usize,
    /// Where it ends.
    pub end: usize,
}

/// Reads the record that starts at `at`.
pub fn record_at(message: &[u8], at: usize) -> Option<Record> {
    let fixed = skip_name(message, at)?;
    let rr_type = u16_at(message, fixed)?;
    let data = fixed + 10;
    let end = data + usize::from(u16_at(message, fixed + 8)?);
    (end <= message.len()).then_some(Record { start: at, rr_type, fixed, data, end })
}

/// The options in an OPT record's data: code and whole option; `None` once if they are malformed.
pub fn options(data: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let split = u16_at(rest, 2)
            .and_then(|len| rest.split_at_checked(OPTION_HEADER_LEN + usize::from(len)));
        let Some((option, tail)) = split else {
            rest = &[];
            return Some(None);
        };
        rest = tail;
        Some(u16_at(option, 0).map(|code| (code, option)))
    })
}

/// What an answer says to whoever holds its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// How long the server keeps the connection when it is idle (RFC 7828 section 3.1).
    pub keepalive: Option<Duration>,
}

impl Hop {
    /// Reads an answer of one question or none; `None` if it ends before its records do.
    pub fn read(answer: &[u8]) -> Option<Self> {
        let [questions, sections @ ..] = counts(answer)?;
        let records: u32 = sections.iter().map(|count| u32::from(*count)).sum();
        let mut pos = if questions == 0 { HEADER_LEN } else { Question::read(answer)?.end };
        let mut hop = Self::default();
        for _ in 0..records {
            let record = record_at(answer, pos)?;
            if record.rr_type == rr_type::OPT {
                let mut options = options(&answer[record.data..record.end]).flatten();
                let option = options.find(|(code, _)| *code == option_code::TCP_KEEPALIVE);
                let units = option.and_then(|(_, option)| u16_at(option, OPTION_HEADER_LEN));
                hop.keepalive = units.map(|units| KEEPALIVE_UNIT * units.into());
            }
            pos = record.end;
        }
        Some(hop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADER_LEN];
        message.extend_from_slice(name);
        message.extend_from_slice(&[0, 1, 0, 1]);
        message
    }

    #[test]
    fn a_question_ends_behind_its_class() {
        let message = question(b"\x07example\x04test\x00");
        let read = Question::read(&message).expect("well formed");
        assert_eq!(read, Question { end: message.len(), qtype: 1, qclass: 1 });
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = [&[63_u8; 64][..]; 5].concat();
        let cases: [&[u8]; 6] =
            [b"\x07exam", b"\x40x", b"\x80x", b"\xc0\x0c", b"\xc0", long.as_slice()];
        for name in cases {
            assert_eq!(Question::read(&question(name)), None, "{name:?}");
        }
        assert_eq!(Question::read(&[0; HEADER_LEN]), None);
    }

    #[test]
    fn questions_are_the_same_whatever_their_case() {
        let [a, b] = [b"\x01A\x00\x00\x01\x00\x01", b"\x01a\x00\x00\x01\x00\x01"];
        assert!(Question::same(a, b));
        assert!(!Question::same(a, b"\x01a\x00\x00\x1c\x00\x01"));
        assert!(!Question::same(a, b"\x01b\x00\x00\x01\x00\x01"));
    }

    #[test]
    fn keepalive_is_found_behind_other_records_and_options() {
        let mut message = question(b"\x01a\x00");
        message[5] = 1;
        message[7] = 1;
        message[11] = 1;
        message.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04abcd");
        assert_eq!(Hop::read(&message), None, "it says there is one more record");
        message.extend_from_slice(b"\0\0\x29\x04\xd0\0\0\0\0\0\x0a\0\x0c\0\0\0\x0b\0\x02\0\x64");
        let keepalive = Some(Duration::from_secs(10));
        assert_eq!(Hop::read(&message), Some(Hop { keepalive }));
    }

    #[test]
    fn a_frame_is_split_off_when_it_is_whole() {
        assert_eq!(split_frame(b"\0\x02abc"), Some((&b"ab"[..], &b"c"[..])));
        assert_eq!(split_frame(b"\0\0"), Some((&[][..], &[][..])));
        for short in [&b""[..], b"\0", b"\0\x02a"] {
            assert_eq!(split_frame(short), None);
        }
    }

    #[test]
    fn a_record_must_fit_its_message() {
        let mut message = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x02ab".to_vec();
        let record = record_at(&message, 0).expect("well formed");
        assert_eq!((record.rr_type, record.data, record.end), (rr_type::OPT, 11, 13));
        message.pop();
        assert_eq!(record_at(&message, 0), None);
    }
}
