//! The client's answer: an upstream's, fitted to the client, or one of our own.
//!
//! The one place that turns errors into the wire. An upstream's answer goes back byte for byte but
//! for the transaction id, the case of the question, the hop-by-hop EDNS record and, if it does not
//! fit, truncation.

use std::borrow::Cow;

use super::{
    asked::{Asked, Extended},
    opt_last,
    query::{Malformed, OptWriter, Query},
};
use crate::{
    parts::Parts,
    upstream::{ConnectionError, ExchangeError, PlainError, Transport},
    wire::{self, HEADER_LEN, Question, flag, option_code, rcode},
};

/// Octets of our OPT record with an extended error, without text.
const OPT_ROOM: usize = 17;

/// How much the client can take at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// A stream: any message.
    Stream,
    /// Datagrams: what the client's EDNS says, and at most this many octets.
    Datagram {
        /// The most that the path to the client carries in one piece.
        path: u16,
    },
}

impl Room {
    /// How a client that has this room asks, and so how its nameserver is asked.
    pub fn transport(self) -> Transport {
        match self {
            Self::Stream => Transport::Stream,
            Self::Datagram { .. } => Transport::Datagram,
        }
    }

    /// Octets that an answer to `query` may have.
    fn of(self, edns: Option<Extended>) -> usize {
        match self {
            Self::Stream => wire::MAX_MESSAGE_LEN,
            // Without EDNS: RFC 1035 section 2.3.4.
            Self::Datagram { path } => {
                usize::from(edns.map_or(512, |edns| edns.udp_size.min(path)))
            }
        }
    }
}

/// Why a well-formed query gets no answer from upstream.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// Upstream's fault.
    #[error(transparent)]
    Upstream(#[from] ExchangeError),
    /// Upstream's fault: its answer cannot be parsed.
    #[error("the upstream's answer is malformed")]
    BadAnswer,
    /// The fault of a nameserver that a route names, or of the way there. No other one is asked: its
    /// names are nobody else's business.
    #[error("by route: {0}")]
    Plain(#[from] PlainError),
    /// A zone transfer without an original nameserver, from which alone it could come, or by UDP
    /// (RFC 5936 section 4.2).
    #[error("no nameserver for a zone transfer")]
    ZoneTransfer,
    /// The client has as many queries in flight as it may.
    #[error("too many queries in flight")]
    Busy,
}

/// Fits an upstream's answer to the client's query.
///
/// # Errors
/// [`Failure::BadAnswer`] if it is not a well-formed answer to this question.
pub fn relay(query: &Query, answer: &[u8], room: Room) -> Result<Vec<u8>, Failure> {
    let answer = with_opt_last(answer, query.is_intact())?;
    let parts = Parts::read(&answer).ok_or(Failure::BadAnswer)?;
    let mut out = Vec::new();
    if query.is_intact() {
        out = intact(query, &answer, &parts);
    } else {
        compose(&mut out, &query.asked(), &parts, None);
    }
    limit(&mut out, 0, &query.asked(), room);
    Ok(out)
}

/// Appends the answer that these parts make for a query that is not signed, of any length, with the
/// extended error, if there is one to add (RFC 8914).
pub(super) fn compose(
    out: &mut Vec<u8>,
    asked: &Asked<'_>,
    parts: &Parts<'_>,
    extended_error: Option<u16>,
) {
    let options = parts.opt.map_or(&[][..], |opt| opt.options);
    let extended_rcode = parts.opt.map_or(0, |opt| opt.extended_rcode);
    out.reserve(HEADER_LEN + asked.question.len() + parts.body.len() + OPT_ROOM + options.len());
    let [flags0, mut flags1] = parts.flags;
    if !asked.understands_ad() {
        flags1 &= !flag::AD; // RFC 6840 section 5.8
    }
    if asked.edns.is_none() && extended_rcode != 0 {
        // A response code that needs EDNS means nothing to a client without.
        flags1 = flags1 & !flag::RCODE | rcode::SERVFAIL;
    }
    let [answers, authority, additional] = parts.counts;
    let additional = additional.saturating_add(asked.edns.is_some().into());
    out.extend_from_slice(&header(asked.id, [flags0, flags1], [1, answers, authority, additional]));
    out.extend_from_slice(asked.question);
    out.extend_from_slice(parts.body);
    if let Some(edns) = asked.edns {
        let writer = OptWriter::start(out, extended_rcode, edns.flags & Extended::DO);
        writer.copy_options(out, options);
        if let Some(code) = extended_error {
            writer.option(out, option_code::EXTENDED_ERROR, &code.to_be_bytes());
        }
        writer.finish(out);
    }
}

fn header(id: [u8; 2], flags: [u8; 2], counts: [u16; 4]) -> [u8; HEADER_LEN] {
    let [id0, id1, flags0, flags1] = [id[0], id[1], flags[0], flags[1]];
    let [[a, b], [c, d], [e, f], [g, h]] = counts.map(u16::to_be_bytes);
    [id0, id1, flags0, flags1, a, b, c, d, e, f, g, h]
}

/// The answer to a signed query, all of whose records are signed too.
fn intact(query: &Query, answer: &[u8], parts: &Parts<'_>) -> Vec<u8> {
    let mut out = [&answer[..HEADER_LEN], query.question(), parts.records].concat();
    out[..2].copy_from_slice(&query.id());
    out[4..6].copy_from_slice(&1_u16.to_be_bytes());
    out
}

/// Cuts the answer that begins at `start` down to its truncation if the client cannot take it: the
/// header, the question and the EDNS record (RFC 2181 section 9).
pub(super) fn limit(out: &mut Vec<u8>, start: usize, asked: &Asked<'_>, room: Room) {
    if out.len() - start <= room.of(asked.edns) {
        return;
    }
    let flags = [out[start + 2] | flag::TC, out[start + 3]];
    out.truncate(start);
    let edns = u16::from(asked.edns.is_some());
    out.extend_from_slice(&header(asked.id, flags, [1, 0, 0, edns]));
    out.extend_from_slice(asked.question);
    if let Some(edns) = asked.edns {
        OptWriter::start(out, 0, edns.flags & Extended::DO).finish(out);
    }
}

/// The answer to a query that got none: the response code, and the extended error that says why
/// (RFC 8914) if the client speaks EDNS.
pub fn fail(query: &Query, failure: &Failure) -> Vec<u8> {
    // The text is for whoever looks at the client; details of the upstream are for the log only.
    let (code, extended, text) = match failure {
        // 22: no reachable authority, 23: network error.
        Failure::Upstream(ExchangeError::Timeout) => {
            (rcode::SERVFAIL, 22_u16, "no answer from upstream in time")
        }
        Failure::Upstream(ExchangeError::Connection(ConnectionError::Tls { .. })) => {
            (rcode::SERVFAIL, 23, "upstream could not be authenticated")
        }
        Failure::Upstream(ExchangeError::Connection(
            ConnectionError::Io { .. }
            | ConnectionError::Unreachable { .. }
            | ConnectionError::Silent { .. }
            | ConnectionError::Closed { .. }
            | ConnectionError::Junk { .. },
        )) => (rcode::SERVFAIL, 23, "no connection to upstream"),
        // 24: invalid data, 21: not supported, 0: other.
        Failure::BadAnswer => (rcode::SERVFAIL, 24, "malformed answer from upstream"),
        Failure::Plain(PlainError::Timeout { .. }) => {
            (rcode::SERVFAIL, 22, "no answer in time from the nameserver of this route")
        }
        Failure::Plain(PlainError::Io { .. }) => {
            (rcode::SERVFAIL, 23, "the nameserver of this route cannot be reached")
        }
        Failure::Plain(PlainError::NoServer) => {
            (rcode::SERVFAIL, 22, "there is no nameserver for this route")
        }
        Failure::ZoneTransfer => {
            (rcode::REFUSED, 21, "zone transfers need TCP and a nameserver of their own")
        }
        Failure::Busy
        | Failure::Plain(PlainError::Busy)
        | Failure::Upstream(ExchangeError::Connection(ConnectionError::Full { .. })) => {
            (rcode::SERVFAIL, 0, "too many queries in flight")
        }
    };
    let mut out = own(query.id(), query.flags(), code, Some(query.question()));
    if let Some(edns) = query.asked().edns {
        let opt = append_opt(&mut out, edns);
        let data = [&extended.to_be_bytes()[..], text.as_bytes()].concat();
        opt.option(&mut out, option_code::EXTENDED_ERROR, &data);
        opt.finish(&mut out);
    }
    out
}

/// The answer to what is not a query, if it may have one.
pub fn reject(message: &[u8], reason: Malformed) -> Option<Vec<u8>> {
    let code = match reason {
        Malformed::Short | Malformed::Response => return None,
        Malformed::Opcode => rcode::NOTIMP,
        Malformed::Long | Malformed::QuestionCount | Malformed::Section => rcode::FORMERR,
        Malformed::EdnsVersion => rcode::NOERROR, // the rest of BADVERS is in the OPT record
    };
    let [id0, id1, flags0, flags1, ..] = *message else {
        return None;
    };
    let question = (reason == Malformed::EdnsVersion)
        .then(|| Question::read(message).map(|question| &message[HEADER_LEN..question.end]))
        .flatten();
    let mut out = own([id0, id1], [flags0, flags1], code, question);
    if reason == Malformed::EdnsVersion {
        set_additional(&mut out, 1);
        OptWriter::start(&mut out, rcode::BADVERS_HIGH, 0).finish(&mut out);
    }
    Some(out)
}

/// A response of our own: the header, with RD and CD as they were asked, and the question.
pub(super) fn own(id: [u8; 2], flags: [u8; 2], code: u8, question: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(&id);
    out.push(flag::QR | flags[0] & (flag::OPCODE | flag::RD));
    out.push(flag::RA | flags[1] & flag::CD | code);
    out.extend_from_slice(&[0, u8::from(question.is_some()), 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(question.unwrap_or_default());
    out
}

/// Our OPT record in an answer of our own: the client's DO bit (RFC 3225 section 3), our payload size.
pub(super) fn append_opt(out: &mut Vec<u8>, client: Extended) -> OptWriter {
    let [.., additional] = wire::counts(out).unwrap_or_default();
    set_additional(out, additional.saturating_add(1));
    OptWriter::start(out, 0, client.flags & Extended::DO)
}

fn set_additional(out: &mut [u8], count: u16) {
    out[10..12].copy_from_slice(&count.to_be_bytes());
}

/// The answer with its OPT record in the last place, where it can be taken off.
fn with_opt_last(answer: &[u8], intact: bool) -> Result<Cow<'_, [u8]>, Failure> {
    let parts = Parts::read(answer).ok_or(Failure::BadAnswer)?;
    if parts.opt_is_last || intact {
        return Ok(Cow::Borrowed(answer));
    }
    let anew = opt_last::encode(answer).ok_or(Failure::BadAnswer)?;
    // Not so if a signature had to stay behind it.
    let opt_is_last = Parts::read(&anew).is_some_and(|parts| parts.opt_is_last);
    if opt_is_last { Ok(Cow::Owned(anew)) } else { Err(Failure::BadAnswer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] = b"\x01A\x04test\x00\x00\x01\x00\x01";
    const ANSWER: &[u8] = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xcb\x00\x71\x4d";
    /// Upstream's OPT: extended response code 0, a cookie, an extended error, padding.
    const OPT: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x16\
        \x00\x0a\x00\x08COOKIE!!\x00\x0f\x00\x02\x00\x03\x00\x0c\x00\x00";
    const CLIENT_OPT: &[u8] = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00";
    const STREAM: Room = Room::Stream;

    fn message(flags: [u8; 2], counts: [u8; 4], parts: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![0x12, 0x34, flags[0], flags[1]];
        out.extend(counts.iter().flat_map(|count| [0, *count]));
        parts.iter().for_each(|part| out.extend_from_slice(part));
        out
    }

    fn query(opt: bool) -> Query {
        let parts: &[&[u8]] = if opt { &[QUESTION, CLIENT_OPT] } else { &[QUESTION] };
        let bytes = message([flag::RD, 0], [1, 0, 0, u8::from(opt)], parts);
        Query::parse(&bytes).expect("well formed")
    }

    fn answer(parts: &[&[u8]], counts: [u8; 4]) -> Vec<u8> {
        let mut out = message([flag::QR | flag::RD, flag::RA | flag::AD], counts, parts);
        out[..2].copy_from_slice(&[0xab, 0xcd]);
        out
    }

    #[test]
    fn a_client_without_edns_gets_the_answer_without_opt() {
        let upstream = answer(&[QUESTION, ANSWER, OPT], [1, 1, 0, 1]);
        let relayed = relay(&query(false), &upstream, STREAM).expect("well formed");
        let expected = message([flag::QR | flag::RD, flag::RA], [1, 1, 0, 0], &[QUESTION, ANSWER]);
        assert_eq!(relayed, expected);
    }

    #[test]
    fn a_client_with_edns_gets_our_opt_and_the_options_that_are_not_hop_by_hop() {
        let upstream = answer(&[QUESTION, ANSWER, OPT], [1, 1, 0, 1]);
        let relayed = relay(&query(true), &upstream, STREAM).expect("well formed");
        let ours = b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x06\x00\x0f\x00\x02\x00\x03";
        assert!(relayed.ends_with(ours), "{relayed:02x?}");
        assert_eq!(wire::counts(&relayed), Some([1, 1, 0, 1]));
        assert_eq!(relayed[3] & flag::AD, flag::AD, "DO in the query stands for AD");
    }

    #[test]
    fn an_upstream_without_edns_still_gives_an_edns_client_its_opt() {
        let upstream = answer(&[QUESTION, ANSWER], [1, 1, 0, 0]);
        let relayed = relay(&query(true), &upstream, STREAM).expect("well formed");
        assert_eq!(wire::counts(&relayed), Some([1, 1, 0, 1]));
    }

    #[test]
    fn the_question_comes_back_as_it_was_asked() {
        let lower = QUESTION.to_ascii_lowercase();
        let upstream = answer(&[&lower, ANSWER], [1, 1, 0, 0]);
        let relayed = relay(&query(false), &upstream, STREAM).expect("well formed");
        assert_eq!(relayed[HEADER_LEN..][..QUESTION.len()], *QUESTION);
    }

    #[test]
    fn an_opt_that_is_not_last_is_taken_out_all_the_same() {
        let upstream = answer(&[QUESTION, OPT, ANSWER], [1, 0, 0, 2]);
        let relayed = relay(&query(false), &upstream, STREAM).expect("well formed");
        assert_eq!(wire::counts(&relayed), Some([1, 0, 0, 1]));
        assert!(relayed.ends_with(b"\x00\x04\xcb\x00\x71\x4d"), "{relayed:02x?}");
    }

    #[test]
    fn what_does_not_fit_is_truncated_to_nothing_but_the_question_and_opt() {
        let records = ANSWER.repeat(40);
        let upstream = answer(&[QUESTION, &records], [1, 40, 0, 0]);
        let datagram = Room::Datagram { path: 1232 };
        let plain = relay(&query(false), &upstream, datagram).expect("well formed");
        assert_eq!(plain.len(), HEADER_LEN + QUESTION.len());
        assert_eq!(plain[2] & flag::TC, flag::TC);
        assert_eq!(wire::counts(&plain), Some([1, 0, 0, 0]));
        let edns = relay(&query(true), &upstream, datagram).expect("well formed");
        assert_eq!(wire::counts(&edns), Some([1, 40, 0, 1]), "675 octets fit its 1232");
        assert_eq!(relay(&query(false), &upstream, STREAM).expect("well formed").len(), 664);
    }

    #[test]
    fn malformed_answers_are_refused() {
        let cases: [Vec<u8>; 6] = [
            vec![],
            answer(&[QUESTION], [1, 1, 0, 0]),
            answer(&[QUESTION, QUESTION], [2, 0, 0, 0]),
            answer(&[QUESTION, OPT, OPT], [1, 0, 0, 2]),
            answer(&[ANSWER], [0, 1, 0, 0]),
            answer(&[QUESTION, &ANSWER[..15]], [1, 1, 0, 0]),
        ];
        for case in cases {
            let relayed = relay(&query(false), &case, STREAM);
            assert!(matches!(relayed, Err(Failure::BadAnswer)), "{case:02x?}: {relayed:?}");
        }
    }

    #[test]
    fn an_error_without_its_question_is_given_one() {
        let mut refused = answer(&[], [0, 0, 0, 0]);
        refused[3] |= rcode::REFUSED;
        let relayed = relay(&query(false), &refused, STREAM).expect("well formed");
        assert_eq!(wire::counts(&relayed), Some([1, 0, 0, 0]));
        assert!(relayed.ends_with(QUESTION));
    }

    #[test]
    fn a_failure_says_why_to_who_understands() {
        let failure = Failure::Upstream(ExchangeError::Timeout);
        let edns = fail(&query(true), &failure);
        assert_eq!(edns[3] & flag::RCODE, rcode::SERVFAIL);
        let text = b"\x00\x16no answer from upstream in time";
        assert!(edns.ends_with(text), "{edns:02x?}");
        let plain = fail(&query(false), &failure);
        assert_eq!(plain.len(), HEADER_LEN + QUESTION.len());
    }

    #[test]
    fn what_is_no_query_is_answered_only_if_that_is_safe() {
        let notify = message([4 << 3 | flag::RD, 0], [1, 0, 0, 0], &[QUESTION]);
        let rejected = reject(&notify, Malformed::Opcode).expect("has an answer");
        assert_eq!(rejected[2..4], [flag::QR | 4 << 3 | flag::RD, flag::RA | rcode::NOTIMP]);
        assert_eq!(reject(&notify, Malformed::Response), None);
        assert_eq!(reject(&[0; 5], Malformed::Short), None);
        let badvers = reject(&notify, Malformed::EdnsVersion).expect("has an answer");
        assert!(badvers.ends_with(b"\x00\x00\x29\x04\xd0\x01\x00\x00\x00\x00\x00"));
    }
}
