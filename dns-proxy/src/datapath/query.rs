//! A client's message, parsed once: from here on it is a [`Query`] or an error with its answer.
//!
//! The message keeps its bytes; only where its parts are is noted. What goes upstream is those
//! bytes with the hop-by-hop EDNS record replaced by ours (RFC 6891 section 6.1.1), padded
//! (RFC 8467 section 4.1). A signed message goes as it came (RFC 5625 section 4.5).

use std::ops::Range;

use thiserror::Error;

use super::{
    asked::{Asked, Extended},
    opt_last,
};
use crate::{
    cache::Bits,
    wire::{self, HEADER_LEN, OPTION_HEADER_LEN, Question, flag, option_code, options, rr_type},
};

/// Queries are padded to a multiple of this many octets (RFC 8467 section 4.1).
const PADDING_BLOCK: usize = 128;
/// The UDP payload size we state. Nothing reaches us over UDP, but some servers limit answers to
/// it even on streams; the value is the one that does not fragment (RFC 9715 section 3.1).
pub const EDNS_UDP_SIZE: u16 = 1232;
/// The longest query taken, in octets, over any transport: no client has reason for a longer one,
/// and what we add to it must leave it below the 65,535 that a stream can frame.
pub const MAX_QUERY_LEN: usize = 4_096;
/// Octets of an OPT record without options (RFC 6891 section 6.1.2).
const OPT_LEN: usize = 11;

/// Why a message is not a query that can be answered from upstream. Always the client's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Shorter than a header: there is nothing to answer.
    #[error("shorter than a DNS header")]
    Short,
    /// Longer than [`MAX_QUERY_LEN`].
    #[error("longer than {MAX_QUERY_LEN} octets")]
    Long,
    /// A response: answering it could start a loop.
    #[error("a response, not a query")]
    Response,
    /// An operation other than QUERY (RFC 8906 section 3.2), DSO included (RFC 8490).
    #[error("unsupported operation code")]
    Opcode,
    /// Not exactly one question (RFC 9619).
    #[error("not exactly one question")]
    QuestionCount,
    /// A section that does not hold what the header says.
    #[error("malformed section")]
    Section,
    /// An EDNS version above 0 (RFC 6891 section 6.1.3).
    #[error("unknown EDNS version")]
    EdnsVersion,
}

/// The client's OPT record (RFC 6891 section 6.1).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Edns {
    says: Extended,
    record: Range<usize>,
    options: Range<usize>,
}

/// One question from a client.
#[derive(Clone, Debug)]
pub struct Query {
    message: Vec<u8>,
    question: Question,
    edns: Option<Edns>,
    intact: bool,
}

impl Query {
    /// Parses what a client sent.
    ///
    /// # Errors
    /// Says what is wrong with it; [`super::response::reject`] knows the answer to each.
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        if message.len() < HEADER_LEN {
            return Err(Malformed::Short);
        }
        if message[2] & flag::QR != 0 {
            return Err(Malformed::Response);
        }
        if message[2] & flag::OPCODE != 0 {
            return Err(Malformed::Opcode);
        }
        if message.len() > MAX_QUERY_LEN {
            return Err(Malformed::Long);
        }
        let [questions, answers, authority, additional] =
            wire::counts(message).ok_or(Malformed::Short)?;
        if questions != 1 {
            return Err(Malformed::QuestionCount);
        }
        let question = Question::read(message).ok_or(Malformed::Section)?;

        let mut pos = question.end;
        let mut edns = None;
        let (mut intact, mut opt_is_last) = (false, true);
        for index in 0..u32::from(answers) + u32::from(authority) + u32::from(additional) {
            let record = wire::record_at(message, pos).ok_or(Malformed::Section)?;
            let in_additional = index >= u32::from(answers) + u32::from(authority);
            opt_is_last = edns.is_none();
            match record.rr_type {
                rr_type::OPT if edns.is_some() || !in_additional => {
                    return Err(Malformed::Section); // RFC 6891 section 6.1.1
                }
                rr_type::OPT => edns = Some(read_edns(message, &record)?),
                rr_type::TSIG | rr_type::SIG => intact = true,
                _ => {}
            }
            pos = record.end;
        }
        if !opt_is_last && !intact {
            // What stands behind the OPT record would move when that is replaced.
            return opt_last::encode(message)
                .and_then(|anew| Self::parse(&anew).ok().filter(|query| !query.intact))
                .ok_or(Malformed::Section);
        }
        Ok(Self { message: message[..pos].to_vec(), question, edns, intact })
    }

    /// What its answer is fitted to.
    pub fn asked(&self) -> Asked<'_> {
        let (id, flags, question) = (self.id(), self.flags(), self.question());
        Asked { id, flags, question, edns: self.edns.as_ref().map(|edns| edns.says) }
    }

    /// The transaction id.
    pub fn id(&self) -> [u8; 2] {
        [self.message[0], self.message[1]]
    }

    /// The two octets of header flags.
    pub fn flags(&self) -> [u8; 2] {
        [self.message[2], self.message[3]]
    }

    /// The question as it was asked.
    pub fn question(&self) -> &[u8] {
        &self.message[HEADER_LEN..self.question.end]
    }

    /// The name asked for, on the wire.
    pub fn name(&self) -> &[u8] {
        // Behind it are only type and class.
        &self.message[HEADER_LEN..self.question.end - 4]
    }

    /// The type asked for.
    pub fn qtype(&self) -> u16 {
        self.question.qtype
    }

    /// The class asked for.
    pub fn qclass(&self) -> u16 {
        self.question.qclass
    }

    /// Bits on which its answer depends; `None` if that depends on more than those and the question.
    pub fn bits(&self) -> Option<Bits> {
        let [flags0, flags1] = self.flags();
        let usual = flags0 == flag::RD && flags1 & !(flag::AD | flag::CD) == 0;
        let alone = [1, 0, 0, u16::from(self.edns.is_some())];
        let usual_edns = self.edns.as_ref().is_none_or(|edns| {
            let mut options = options(&self.message[edns.options.clone()]).flatten();
            edns.says.flags & !Extended::DO == 0 && options.all(|(code, _)| is_hop_by_hop(code))
        });
        (usual && usual_edns && wire::counts(&self.message) == Some(alone)).then(|| Bits {
            dnssec_ok: self.edns.as_ref().is_some_and(|edns| edns.says.dnssec_ok()),
            checking_disabled: flags1 & flag::CD != 0,
            authentic_data: flags1 & flag::AD != 0,
        })
    }

    /// Its octets.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.message.len()
    }

    /// Signed, or otherwise not to be touched: neither the query nor its answer.
    pub fn is_intact(&self) -> bool {
        self.intact
    }

    /// Takes the client's subnet out of what is passed on (RFC 7871). What stays is the wish that
    /// nobody add one, which has a prefix of no bits (section 7.1.2), and what is signed.
    pub fn strip_subnet(&mut self) {
        let Some(edns) = self.edns.as_mut().filter(|_| !self.intact) else {
            return;
        };
        let tells = |option: &[u8]| option.get(OPTION_HEADER_LEN + 2).is_some_and(|bits| *bits > 0);
        let kept: Vec<_> = options(&self.message[edns.options.clone()])
            .flatten()
            .filter(|(code, option)| *code != option_code::CLIENT_SUBNET || !tells(option))
            .flat_map(|(_, option)| option)
            .copied()
            .collect();
        let start = edns.options.start;
        self.message.truncate(start);
        self.message[start - 2..].copy_from_slice(&(kept.len() as u16).to_be_bytes());
        self.message.extend_from_slice(&kept);
        edns.options.end = self.message.len();
        edns.record.end = self.message.len();
    }

    /// The message for upstream, with the client's transaction id still in it.
    pub fn to_upstream(&self) -> Vec<u8> {
        if self.intact {
            return self.message.clone();
        }
        let body_end = self.edns.as_ref().map_or(self.message.len(), |edns| edns.record.start);
        let mut out = Vec::with_capacity(self.message.len() + OPT_LEN + PADDING_BLOCK);
        out.extend_from_slice(&self.message[..body_end]);
        if self.edns.is_none() {
            let [.., additional] = wire::counts(&out).unwrap_or_default();
            out[10..12].copy_from_slice(&(additional + 1).to_be_bytes());
        }
        let flags = self.edns.as_ref().map_or(0, |edns| edns.says.flags);
        let opt = OptWriter::start(&mut out, 0, flags);
        if let Some(edns) = &self.edns {
            opt.copy_options(&mut out, &self.message[edns.options.clone()]);
        }
        // Only in queries that ask for it may a server say how long it keeps an idle connection (RFC
        // 7828 section 3.2.1).
        opt.option(&mut out, option_code::TCP_KEEPALIVE, &[]);
        let unpadded = out.len() + OPTION_HEADER_LEN;
        let padding = unpadded.next_multiple_of(PADDING_BLOCK) - unpadded;
        opt.option(&mut out, option_code::PADDING, &[0; PADDING_BLOCK][..padding]);
        opt.finish(&mut out);
        out
    }

    /// The message for a nameserver that is asked in plaintext: without padding, which would hide
    /// nothing (RFC 8467 section 4), and without EDNS if the client has none, so that one that is
    /// older than EDNS is asked as it is used to.
    pub fn to_plaintext(&self) -> Vec<u8> {
        let Some(edns) = self.edns.as_ref().filter(|_| !self.intact) else {
            return self.message.clone();
        };
        let mut out = self.message[..edns.record.start].to_vec();
        let opt = OptWriter::start(&mut out, 0, edns.says.flags);
        opt.copy_options(&mut out, &self.message[edns.options.clone()]);
        opt.finish(&mut out);
        out
    }
}

fn read_edns(message: &[u8], record: &wire::Record) -> Result<Edns, Malformed> {
    let root_owner = record.fixed == record.start + 1;
    let field = |at| wire::u16_at(message, record.fixed + at).ok_or(Malformed::Section);
    let (udp_size, extended, flags) = (field(2)?, field(4)?, field(6)?);
    if !root_owner || options(&message[record.data..record.end]).any(|option| option.is_none()) {
        return Err(Malformed::Section);
    }
    if extended.to_be_bytes()[1] != 0 {
        return Err(Malformed::EdnsVersion);
    }
    Ok(Edns {
        says: Extended::new(udp_size, flags),
        record: record.start..record.end,
        options: record.data..record.end,
    })
}

/// Whether an option ends where it is understood: cookies (RFC 7873), keepalive (RFC 7828) and
/// padding (RFC 7830).
pub(super) fn is_hop_by_hop(code: u16) -> bool {
    matches!(code, option_code::COOKIE | option_code::TCP_KEEPALIVE | option_code::PADDING)
}

/// Appends an OPT record to a message, option by option.
pub struct OptWriter {
    length_at: usize,
}

impl OptWriter {
    /// Starts the record. `extended_rcode` is the upper eight bits of the response code.
    pub fn start(out: &mut Vec<u8>, extended_rcode: u8, flags: u16) -> Self {
        out.push(0);
        out.extend_from_slice(&rr_type::OPT.to_be_bytes());
        out.extend_from_slice(&EDNS_UDP_SIZE.to_be_bytes());
        out.extend_from_slice(&[extended_rcode, 0]);
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        Self { length_at: out.len() - 2 }
    }

    /// Appends one option.
    pub fn option(&self, out: &mut Vec<u8>, code: u16, data: &[u8]) {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(&(data.len() as u16).to_be_bytes());
        out.extend_from_slice(data);
    }

    /// Copies the options that are not hop by hop.
    pub fn copy_options(&self, out: &mut Vec<u8>, data: &[u8]) {
        let passing = options(data).flatten().filter(|(code, _)| !is_hop_by_hop(*code));
        passing.for_each(|(_, option)| out.extend_from_slice(option));
    }

    /// Writes the record's length.
    pub fn finish(self, out: &mut [u8]) {
        let len = (out.len() - self.length_at - 2) as u16;
        out[self.length_at..self.length_at + 2].copy_from_slice(&len.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a query for `a.test` with these raw additional records.
    pub(crate) fn message(additional: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![0x12, 0x34, flag::RD, 0, 0, 1, 0, 0, 0, 0, 0, additional.len() as u8];
        out.extend_from_slice(b"\x01a\x04test\x00\x00\x01\x00\x01");
        additional.iter().for_each(|record| out.extend_from_slice(record));
        out
    }

    const OPT_DO: &[u8] = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00";
    const OPT_COOKIE: &[u8] =
        b"\x00\x00\x29\x01\x00\x00\x00\x00\x00\x00\x11\x00\x0a\x00\x08COOKIE!!\xfd\xe9\x00\x01x";
    const OPT_VERSION_1: &[u8] = b"\x00\x00\x29\x10\x00\x00\x01\x00\x00\x00\x00";
    const TSIG: &[u8] = b"\x01k\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x01x";

    #[test]
    fn each_malformed_message_is_named() {
        let mut response = message(&[]);
        response[2] |= flag::QR;
        let mut notify = message(&[]);
        notify[2] |= 4 << 3;
        let mut two = message(&[]);
        two[5] = 2;
        let mut missing_record = message(&[]);
        missing_record[11] = 1;
        let cases = [
            (vec![0; 11], Malformed::Short),
            (response, Malformed::Response),
            (notify, Malformed::Opcode),
            (two, Malformed::QuestionCount),
            ([message(&[]), vec![0; MAX_QUERY_LEN]].concat(), Malformed::Long),
            (missing_record, Malformed::Section),
            (message(&[OPT_DO, OPT_DO]), Malformed::Section),
            (message(&[OPT_VERSION_1]), Malformed::EdnsVersion),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Query::parse(&bytes).expect_err("malformed"), expected);
        }
    }

    #[test]
    fn upstream_gets_our_own_padded_opt() {
        for additional in [&[][..], &[OPT_DO], &[OPT_COOKIE]] {
            let sent = Query::parse(&message(additional)).expect("well formed").to_upstream();
            assert_eq!(sent.len() % PADDING_BLOCK, 0, "{additional:?}");
            let parsed = Query::parse(&sent).expect("what we send is well formed");
            assert_eq!(parsed.edns.map(|edns| edns.says.udp_size), Some(EDNS_UDP_SIZE));
        }
    }

    #[test]
    fn nothing_is_padded_in_plaintext_and_edns_is_only_the_clients() {
        let sent = |additional: &[&[u8]]| {
            let sent = Query::parse(&message(additional)).expect("well formed").to_plaintext();
            let edns = Query::parse(&sent).expect("what we send is well formed").edns?;
            Some((edns.says.udp_size, edns.says.dnssec_ok(), sent[edns.options].to_vec()))
        };
        assert_eq!(sent(&[]), None);
        assert_eq!(sent(&[OPT_DO]), Some((EDNS_UDP_SIZE, true, vec![])));
        let unknown = b"\xfd\xe9\x00\x01x".to_vec();
        assert_eq!(sent(&[OPT_COOKIE]), Some((EDNS_UDP_SIZE, false, unknown)));
    }

    #[test]
    fn dnssec_ok_and_unknown_options_pass_but_cookies_do_not() {
        let sent = Query::parse(&message(&[OPT_DO])).expect("well formed").to_upstream();
        assert!(
            Query::parse(&sent).is_ok_and(|query| query.edns.is_some_and(|e| e.says.dnssec_ok()))
        );
        let sent = Query::parse(&message(&[OPT_COOKIE])).expect("well formed").to_upstream();
        let edns = Query::parse(&sent).expect("well formed").edns.expect("has OPT");
        let codes: Vec<u16> =
            options(&sent[edns.options]).flatten().map(|(code, _)| code).collect();
        assert_eq!(codes, [0xfde9, option_code::TCP_KEEPALIVE, option_code::PADDING]);
    }

    #[test]
    fn the_subnet_is_stripped_and_the_wish_for_none_is_not() {
        const TELLS: &[u8] = b"\0\x08\0\x07\0\x01\x18\0\xc0\0\x02";
        const NONE: &[u8] = b"\0\x08\0\x04\0\x01\0\0";
        const OTHER: &[u8] = b"\xfd\xe9\0\x01x";
        for (sent, left) in [
            ([TELLS, OTHER].concat(), OTHER.to_vec()),
            ([OTHER, TELLS].concat(), OTHER.to_vec()),
            ([NONE, OTHER].concat(), [NONE, OTHER].concat()),
            (b"\0\x08\0\0".to_vec(), b"\0\x08\0\0".to_vec()),
        ] {
            let opt = [&OPT_DO[..9], &[0, sent.len() as u8], &sent].concat();
            let mut query = Query::parse(&message(&[&opt])).expect("well formed");
            query.strip_subnet();
            let expected = message(&[&[&OPT_DO[..9], &[0, left.len() as u8], &left].concat()]);
            assert_eq!(query.message, expected, "{sent:02x?}");
            let passed = Query::parse(&query.to_upstream()).expect("well formed");
            assert!(
                passed.edns.is_some_and(|edns| passed.message[edns.options].starts_with(&left))
            );

            let signed = message(&[&opt, TSIG]);
            let mut query = Query::parse(&signed).expect("well formed");
            query.strip_subnet();
            assert_eq!(query.to_upstream(), signed);
        }
    }

    #[test]
    fn payload_sizes_below_512_count_as_512() {
        let query = Query::parse(&message(&[OPT_COOKIE])).expect("well formed");
        assert_eq!(query.edns.map(|edns| edns.says.udp_size), Some(512));
    }

    #[test]
    fn signed_messages_stay_as_they_are() {
        for additional in [&[TSIG][..], &[OPT_DO, TSIG]] {
            let bytes = message(additional);
            let query = Query::parse(&bytes).expect("well formed");
            assert!(query.is_intact());
            assert_eq!([query.to_upstream(), query.to_plaintext()], [&bytes[..], &bytes]);
        }
    }

    #[test]
    fn an_opt_that_is_not_last_is_replaced_all_the_same() {
        const A: &[u8] = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xcb\x00\x71\x4d";
        let query = Query::parse(&message(&[OPT_COOKIE, A])).expect("well formed");
        let sent = query.to_upstream();
        assert_eq!(sent.len() % PADDING_BLOCK, 0);
        assert!(!sent.windows(8).any(|octets| octets == b"COOKIE!!"), "{sent:02x?}");
        assert!(sent.windows(4).any(|octets| octets == [0xcb, 0, 0x71, 0x4d]), "{sent:02x?}");
    }

    #[test]
    fn octets_behind_the_last_record_are_dropped() {
        let mut bytes = message(&[]);
        let len = bytes.len();
        bytes.extend_from_slice(b"junk");
        assert_eq!(Query::parse(&bytes).expect("well formed").message.len(), len);
    }
}
