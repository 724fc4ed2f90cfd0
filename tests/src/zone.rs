//! What our test nameservers know: one pure function from a query to an answer.
//!
//! | name | answer |
//! |---|---|
//! | `example.test` | A, AAAA and TXT that tell over which road they came; TYPE65400 opaque |
//! | `<anything>.example.test` | A from a hash of the name ([`expected_a`]), TYPE65400 opaque |
//! | `alias.example.test` | CNAME to `example.test` |
//! | `big.example.test` | TXT of about 3 kB |
//! | `nodata.example.test` | no records of any type |
//! | `nx.example.test` and below | NXDOMAIN |
//! | `servfail.example.test`, `refused.example.test` | that error |
//! | anything else | NXDOMAIN |
//!
//! The plaintext twin answers every A with one address, also for names outside the zone, so that a
//! test sees at once which road was taken.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NULL, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The type nobody knows (RFC 3597), and its data.
pub const UNKNOWN_TYPE: RecordType = RecordType::Unknown(65400);
/// The data of [`UNKNOWN_TYPE`] records: looks like a compression pointer, and is not one.
pub const UNKNOWN_DATA: &[u8] = b"\xc0\x0c\x00opaque\xff";
/// The TTL of positive answers, in seconds.
pub const TTL: u32 = 300;
/// The TTL of negative answers, in seconds.
pub const NEGATIVE_TTL: u32 = 60;
/// The payload size our servers announce (DNS flag day 2020).
const PAYLOAD: u16 = 1232;
/// How many bytes pad an answer to a padded query (RFC 7830).
const PADDING: usize = 32;
/// The IANA code of the padding option.
const PADDING_CODE: u16 = 12;

/// Which of the twins answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// What is reached over TLS.
    Encrypted,
    /// What is reached on port 53.
    Plaintext,
}

/// How a query came, and so how long an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// 512 bytes, or what the query's OPT record says.
    Udp,
    /// Any length; also TLS.
    Tcp,
}

impl Zone {
    /// The A record of `example.test`.
    pub const fn a(self) -> Ipv4Addr {
        match self {
            Self::Encrypted => Ipv4Addr::new(203, 0, 113, 77),
            Self::Plaintext => Ipv4Addr::new(198, 51, 100, 53),
        }
    }

    /// The AAAA record of `example.test`.
    pub const fn aaaa(self) -> Ipv6Addr {
        match self {
            Self::Encrypted => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77),
            Self::Plaintext => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53),
        }
    }

    /// The answer to a query; `None` to what is not a query.
    pub fn answer(self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let asked = Message::from_vec(query).ok()?;
        if asked.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = self.respond(&asked)?;
        let bytes = answer.to_vec().ok()?;
        let limit = match transport {
            Transport::Udp => usize::from(asked.max_payload()).max(512),
            Transport::Tcp => usize::from(u16::MAX),
        };
        if bytes.len() <= limit {
            return Some(bytes);
        }
        answer.answers.clear();
        answer.metadata.truncation = true;
        answer.to_vec().ok()
    }

    fn respond(self, asked: &Message) -> Option<Message> {
        let question = asked.queries.first()?;
        let metadata = Metadata::response_from_request(&asked.metadata);
        let mut answer = Message::response(metadata.id, metadata.op_code);
        answer.metadata = metadata;
        answer.metadata.recursion_available = true;
        answer.add_query(question.clone());
        answer.edns = asked.edns.as_ref().map(edns);

        let (rcode, records) = self.look_up(question.name(), question.query_type());
        answer.metadata.response_code = rcode;
        let records = records.into_iter().map(|(name, data)| Record::from_rdata(name, TTL, data));
        answer.answers.extend(records);
        let negative = rcode == ResponseCode::NoError || rcode == ResponseCode::NXDomain;
        if negative && answer.answers.is_empty() {
            answer.add_authority(soa());
        }
        Some(answer)
    }

    fn look_up(self, name: &Name, qtype: RecordType) -> (ResponseCode, Vec<(Name, RData)>) {
        let apex = apex();
        let label = match relative(name, &apex) {
            Some(label) => label,
            None if self == Self::Plaintext => {
                return (ResponseCode::NoError, self.any(name, qtype));
            }
            None => return (ResponseCode::NXDomain, Vec::new()),
        };
        let records = match label.rsplit('.').next().unwrap_or_default() {
            "" => self.any(name, qtype),
            "alias" => {
                let mut records = vec![(name.clone(), RData::CNAME(CNAME(apex.clone())))];
                records.extend(self.any(&apex, qtype));
                records
            }
            "big" if qtype == RecordType::TXT => vec![(name.clone(), big())],
            "nodata" => Vec::new(),
            "nx" => return (ResponseCode::NXDomain, Vec::new()),
            "servfail" => return (ResponseCode::ServFail, Vec::new()),
            "refused" => return (ResponseCode::Refused, Vec::new()),
            _ if qtype == RecordType::A && self == Self::Encrypted => {
                vec![(name.clone(), RData::A(A(expected_a(&name.to_ascii()))))]
            }
            _ if qtype == RecordType::A || qtype == UNKNOWN_TYPE => self.any(name, qtype),
            _ => Vec::new(),
        };
        (ResponseCode::NoError, records)
    }

    /// The records that do not depend on the name.
    fn any(self, name: &Name, qtype: RecordType) -> Vec<(Name, RData)> {
        let data = if qtype == RecordType::A {
            RData::A(A(self.a()))
        } else if qtype == RecordType::AAAA {
            RData::AAAA(AAAA(self.aaaa()))
        } else if qtype == RecordType::TXT {
            RData::TXT(TXT::new(vec![format!("{self:?}").to_lowercase()]))
        } else if qtype == UNKNOWN_TYPE {
            let rdata = NULL::with(UNKNOWN_DATA.to_vec());
            RData::Unknown { code: UNKNOWN_TYPE, rdata }
        } else {
            return Vec::new();
        };
        vec![(name.clone(), data)]
    }
}

/// The A record of a name below `example.test`, different for (nearly) every name, so that a
/// mixed-up answer is found out. Case and a last dot do not matter.
pub fn expected_a(name: &str) -> Ipv4Addr {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let [_, b, c, d, ..] = fnv1a(name.as_bytes()).to_be_bytes();
    Ipv4Addr::new(10, b, c, d)
}

/// A small hash that is the same in every build.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What stands before the apex, in lower case; `None` for names elsewhere.
fn relative(name: &Name, apex: &Name) -> Option<String> {
    let extra = usize::from(name.num_labels()).checked_sub(usize::from(apex.num_labels()))?;
    let labels = name.to_lowercase().to_ascii();
    let inside = apex.zone_of(name);
    inside.then(|| labels.split('.').take(extra).collect::<Vec<_>>().join("."))
}

fn apex() -> Name {
    Name::from_labels(["example", "test"]).unwrap_or_else(|_| Name::root())
}

fn soa() -> Record {
    let data = SOA::new(apex(), apex(), 1, 7200, 3600, 86400, NEGATIVE_TTL);
    Record::from_rdata(apex(), NEGATIVE_TTL, RData::SOA(data))
}

fn big() -> RData {
    RData::TXT(TXT::new((0..12).map(|n| format!("{n:02} {}", "x".repeat(247))).collect()))
}

fn edns(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_version(0);
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    if asked.option(EdnsCode::Padding).is_some() {
        edns.options_mut().insert(EdnsOption::Unknown(PADDING_CODE, vec![0; PADDING]));
    }
    edns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Answer, query};

    fn ask(zone: Zone, name: &str, qtype: RecordType, transport: Transport) -> Message {
        let query = query(7, name, qtype).expect("a query");
        let answer = zone.answer(&query, transport).expect("an answer");
        Answer::to(&query, &answer).expect("an answer to this query");
        Message::from_vec(&answer).expect("a message")
    }

    #[track_caller]
    fn check(name: &str, qtype: RecordType, rcode: ResponseCode, answers: &[RData]) {
        let message = ask(Zone::Encrypted, name, qtype, Transport::Tcp);
        let found: Vec<RData> = message.answers.iter().map(|record| record.data.clone()).collect();
        assert_eq!((message.metadata.response_code, found.as_slice()), (rcode, answers), "{name}");
    }

    #[test]
    fn every_name_has_the_answer_the_table_says() {
        let ok = ResponseCode::NoError;
        let encrypted = RData::A(A(Ipv4Addr::new(203, 0, 113, 77)));
        check("example.test", RecordType::A, ok, std::slice::from_ref(&encrypted));
        let hashed = RData::A(A(expected_a("www.example.test")));
        check("www.example.test", RecordType::A, ok, &[hashed]);
        check("www.example.test", RecordType::AAAA, ok, &[]);
        let alias = RData::CNAME(CNAME(apex()));
        check("alias.example.test", RecordType::A, ok, &[alias, encrypted]);
        check("nodata.example.test", RecordType::A, ok, &[]);
        check("a.nx.example.test", RecordType::A, ResponseCode::NXDomain, &[]);
        check("servfail.example.test", RecordType::A, ResponseCode::ServFail, &[]);
        check("refused.example.test", RecordType::A, ResponseCode::Refused, &[]);
        check("elsewhere.test", RecordType::A, ResponseCode::NXDomain, &[]);
        let rdata = NULL::with(UNKNOWN_DATA.to_vec());
        let opaque = RData::Unknown { code: UNKNOWN_TYPE, rdata };
        check("example.test", UNKNOWN_TYPE, ok, &[opaque]);
    }

    #[test]
    fn the_twins_never_give_the_same_address() {
        for name in ["example.test", "www.example.test", "printer"] {
            let message = ask(Zone::Plaintext, name, RecordType::A, Transport::Udp);
            assert_eq!(message.answers[0].data, RData::A(A(Ipv4Addr::new(198, 51, 100, 53))));
        }
    }

    #[test]
    fn negative_answers_carry_an_soa() {
        for name in ["nx.example.test", "nodata.example.test"] {
            let message = ask(Zone::Encrypted, name, RecordType::A, Transport::Udp);
            assert_eq!(message.authorities, [soa()], "{name}");
        }
    }

    #[test]
    fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
        let cut = ask(Zone::Encrypted, "big.example.test", RecordType::TXT, Transport::Udp);
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let whole = ask(Zone::Encrypted, "big.example.test", RecordType::TXT, Transport::Tcp);
        assert!(!whole.metadata.truncation);
        assert!((2900..3200).contains(&whole.to_vec().expect("bytes").len()));
    }

    #[test]
    fn the_case_of_the_question_comes_back_and_does_not_matter() {
        let message = ask(Zone::Encrypted, "wWw.ExAmPlE.tEsT", RecordType::A, Transport::Udp);
        assert_eq!(message.queries[0].name().to_ascii(), "wWw.ExAmPlE.tEsT.");
        assert_eq!(message.answers[0].data, RData::A(A(expected_a("www.example.test."))));
    }

    #[test]
    fn an_opt_record_comes_only_when_asked_for() {
        let plain = ask(Zone::Encrypted, "example.test", RecordType::A, Transport::Udp);
        assert_eq!(plain.edns, None);
        let bytes = query(7, "example.test", RecordType::A).expect("a query");
        let mut asked = Message::from_vec(&bytes).expect("a message");
        let mut padded = Edns::new();
        padded.options_mut().insert(EdnsOption::Unknown(PADDING_CODE, vec![0; 9]));
        asked.set_edns(padded);
        let bytes = asked.to_vec().expect("bytes");
        let answer = Zone::Encrypted.answer(&bytes, Transport::Udp).expect("an answer");
        let edns = Message::from_vec(&answer).expect("a message").edns.expect("an OPT record");
        let padding = EdnsOption::Unknown(PADDING_CODE, vec![0; PADDING]);
        assert_eq!(edns.option(EdnsCode::Padding), Some(&padding));
    }

    #[test]
    fn garbage_and_answers_get_no_answer() {
        let query = query(7, "example.test", RecordType::A).expect("a query");
        let answer = Zone::Encrypted.answer(&query, Transport::Udp).expect("an answer");
        for bytes in [&b""[..], &b"garbage"[..], &answer] {
            assert_eq!(Zone::Encrypted.answer(bytes, Transport::Udp), None);
        }
    }
}
