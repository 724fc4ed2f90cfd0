//! Answers that need nobody: names that mean this host, or that mean nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    query::Query,
    response::{append_opt, own},
};
use crate::{
    route::{Answer, Local},
    wire::{HEADER_LEN, option_code, rcode, rr_type},
};

/// Class IN (RFC 1035 section 3.2.4).
const IN: u16 = 1;
/// How long such an answer, or that there is none, holds, in seconds (RFC 6303 section 3).
const TTL: u32 = 10_800;
/// `localhost`, on the wire.
const LOCALHOST: &[u8] = b"\x09localhost\x00";
/// `nobody.invalid`, on the wire: the mailbox of such zones (RFC 6303 section 3).
const NOBODY: &[u8] = b"\x06nobody\x07invalid\x00";
/// Serial, refresh, retry, expire and minimum of such zones (RFC 6303 section 3).
const SOA_NUMBERS: [u32; 5] = [1, 3_600, 1_200, 604_800, TTL];
/// The operator does not want it answered (RFC 8914 section 4.16).
const BLOCKED: u16 = 15;

/// Nobody who would know can be asked (RFC 8914 section 4.23).
const UNREACHABLE: u16 = 22;

/// The answer to a query in a zone that is answered here.
pub(super) fn answer(query: &Query, local: &Local) -> Vec<u8> {
    let is_apex = query.name().eq_ignore_ascii_case(local.zone.wire());
    let records: &[(u16, &[u8])] = &[
        (rr_type::A, &Ipv4Addr::LOCALHOST.octets()),
        (rr_type::AAAA, &Ipv6Addr::LOCALHOST.octets()),
        (rr_type::PTR, LOCALHOST),
    ];
    let (code, records) = match local.answer {
        Answer::Loopback => (rcode::NOERROR, &records[..2]),
        Answer::Localhost if is_apex => (rcode::NOERROR, &records[2..]),
        Answer::NoData => (rcode::NOERROR, &[][..]),
        Answer::Localhost | Answer::NxDomain | Answer::Blocked => (rcode::NXDOMAIN, &[][..]),
        Answer::Refused => (rcode::REFUSED, &[][..]),
        Answer::Circular => (rcode::SERVFAIL, &[][..]),
    };
    let mut out = own(query.id(), query.flags(), code, Some(query.question()));
    let wanted = |rr_type| matches!(query.qtype(), rr_type::ANY) || query.qtype() == rr_type;
    for (rr_type, data) in records.iter().filter(|(rr_type, _)| wanted(*rr_type)) {
        push_record(&mut out, HEADER_LEN, *rr_type, data);
        out[7] += 1; // answers
    }
    if out[7] == 0 && !matches!(code, rcode::REFUSED | rcode::SERVFAIL) {
        // So that nobody asks again for a while (RFC 2308 section 3).
        let zone_at = HEADER_LEN + query.name().len() - local.zone.wire().len();
        let mut data = pointer(zone_at).to_vec();
        data.extend_from_slice(NOBODY);
        data.extend(SOA_NUMBERS.iter().flat_map(|number| number.to_be_bytes()));
        push_record(&mut out, zone_at, rr_type::SOA, &data);
        out[9] += 1; // authority
    }
    if let Some(edns) = query.asked().edns {
        let opt = append_opt(&mut out, edns);
        if matches!(local.answer, Answer::Blocked | Answer::Refused) {
            opt.option(&mut out, option_code::EXTENDED_ERROR, &BLOCKED.to_be_bytes());
        } else if local.answer == Answer::Circular {
            opt.option(&mut out, option_code::EXTENDED_ERROR, &UNREACHABLE.to_be_bytes());
        }
        opt.finish(&mut out);
    }
    out
}

/// A record whose owner is the part of the question's name that starts at `owner`.
fn push_record(out: &mut Vec<u8>, owner: usize, rr_type: u16, data: &[u8]) {
    out.extend_from_slice(&pointer(owner));
    out.extend_from_slice(&rr_type.to_be_bytes());
    out.extend_from_slice(&IN.to_be_bytes());
    out.extend_from_slice(&TTL.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

/// A name given by where it stands already (RFC 1035 section 4.1.4).
fn pointer(at: usize) -> [u8; 2] {
    (0xc000 | at as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, ResponseCode};

    use super::*;
    use crate::route::Zone;

    const OPT: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";

    /// What the answer says, as another library reads it: its code, its answers, its authority.
    fn ask(name: &str, qtype: u16, zone: &str, kind: Answer) -> (ResponseCode, String, String) {
        let name: Zone = name.parse().expect("a name");
        let mut message = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01".to_vec();
        message.extend_from_slice(name.wire());
        message.extend_from_slice(&[0, qtype as u8, 0, 1]);
        message.extend_from_slice(OPT);
        let query = Query::parse(&message).expect("well formed");
        let local = Local { zone: zone.parse().expect("a zone"), answer: kind };
        let answer = Message::from_vec(&answer(&query, &local)).expect("well formed");
        assert_eq!((answer.metadata.id, answer.queries.len()), (0x1234, 1));
        assert!(answer.edns.is_some());
        let show = |records: &[hickory_proto::rr::Record]| {
            let shown = records.iter().map(|r| format!("{} {}", r.name, r.data));
            shown.collect::<Vec<_>>().join(", ")
        };
        (answer.metadata.response_code, show(&answer.answers), show(&answer.authorities))
    }

    #[test]
    fn localhost_is_this_host() {
        let ask = |qtype| ask("a.LocalHost", qtype, "localhost", Answer::Loopback);
        let (code, none) = (ResponseCode::NoError, String::new());
        assert_eq!(ask(rr_type::A), (code, "a.localhost. 127.0.0.1".to_owned(), none.clone()));
        assert_eq!(ask(rr_type::AAAA), (code, "a.localhost. ::1".to_owned(), none.clone()));
        let both = "a.localhost. 127.0.0.1, a.localhost. ::1".to_owned();
        assert_eq!(ask(rr_type::ANY), (code, both, none.clone()));
        let (code, answers, authority) = ask(rr_type::PTR);
        assert_eq!((code, answers), (ResponseCode::NoError, none));
        assert!(authority.starts_with("localhost. localhost. nobody.invalid. 1 "), "{authority}");
    }

    #[test]
    fn its_reverse_is_localhost() {
        let zone = "1.0.0.127.in-addr.arpa";
        let (code, answers, _) = ask(zone, rr_type::PTR, zone, Answer::Localhost);
        assert_eq!(code, ResponseCode::NoError);
        assert_eq!(answers, "1.0.0.127.in-addr.arpa. localhost.");
        let below = ask(&format!("x.{zone}"), rr_type::PTR, zone, Answer::Localhost);
        assert_eq!(below.0, ResponseCode::NXDomain);
    }

    #[test]
    fn what_there_is_not_may_be_remembered() {
        for (kind, code) in [
            (Answer::NxDomain, ResponseCode::NXDomain),
            (Answer::Blocked, ResponseCode::NXDomain),
            (Answer::NoData, ResponseCode::NoError),
        ] {
            let (found, answers, authority) = ask("www.some.onion", rr_type::A, "onion", kind);
            assert_eq!((found, answers.as_str()), (code, ""));
            assert!(authority.starts_with("onion. onion. nobody.invalid. 1 3600"), "{authority}");
        }
        let (code, _, authority) = ask("www.some.onion", rr_type::A, "onion", Answer::Refused);
        assert_eq!((code, authority.as_str()), (ResponseCode::Refused, ""));
        let (_, _, authority) = ask("a.b", rr_type::A, ".", Answer::Blocked);
        assert!(authority.starts_with(". . nobody.invalid."), "{authority}");
    }
}
