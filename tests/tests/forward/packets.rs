//! DNS messages by the byte, for what no library would send.

use anyhow::{Context as _, Result};
use hickory_proto::{op::Message, rr::rdata::opt::EdnsOption};

pub(crate) const A: u16 = 1;
pub(crate) const TXT: u16 = 16;
pub(crate) const UNKNOWN: u16 = 65_400;
pub(crate) const IXFR: u16 = 251;
pub(crate) const AXFR: u16 = 252;

/// Recursion desired, as stub resolvers ask.
pub(crate) const RD: u16 = 0x0100;
pub(crate) const AD: u16 = 0x0020;
pub(crate) const CD: u16 = 0x0010;
pub(crate) const TC: u16 = 0x0200;
/// The DO bit, among the flags of EDNS.
pub(crate) const DO: u16 = 0x8000;

pub(crate) const COOKIE: u16 = 10;
pub(crate) const KEEPALIVE: u16 = 11;
pub(crate) const PADDING: u16 = 12;
pub(crate) const EXTENDED_ERROR: u16 = 15;

pub(crate) const NOERROR: u16 = 0;
pub(crate) const FORMERR: u16 = 1;
pub(crate) const SERVFAIL: u16 = 2;
pub(crate) const NXDOMAIN: u16 = 3;
pub(crate) const NOTIMP: u16 = 4;
pub(crate) const REFUSED: u16 = 5;
pub(crate) const BADVERS: u16 = 16;

/// A name on the wire, in the case it is written in.
pub(crate) fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> =
        labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    wire.push(0);
    wire
}

/// A message of these parts, with the counts that belong to them.
pub(crate) fn message(id: u16, flags: u16, questions: &[&[u8]], additional: &[&[u8]]) -> Vec<u8> {
    let mut out = [id, flags, questions.len() as u16, 0, 0, additional.len() as u16]
        .map(u16::to_be_bytes)
        .concat();
    questions.iter().chain(additional).for_each(|part| out.extend_from_slice(part));
    out
}

/// A question of class IN.
pub(crate) fn question(text: &str, qtype: u16) -> Vec<u8> {
    [&name(text)[..], &qtype.to_be_bytes(), &[0, 1]].concat()
}

/// A query with recursion desired and one question.
pub(crate) fn query(id: u16, text: &str, qtype: u16, additional: &[&[u8]]) -> Vec<u8> {
    message(id, RD, &[&question(text, qtype)], additional)
}

/// A resource record of class IN with a TTL of 300 s.
pub(crate) fn record(owner: &[u8], rr_type: u16, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u16;
    [owner, &rr_type.to_be_bytes(), b"\0\x01\0\0\x01\x2c", &length.to_be_bytes(), data].concat()
}

/// One EDNS option.
pub(crate) fn option(code: u16, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

/// An OPT record; `extended` is the upper part of the response code and the version.
pub(crate) fn opt(size: u16, extended: [u8; 2], flags: u16, options: &[u8]) -> Vec<u8> {
    let length = options.len() as u16;
    let (size, flags, length) = (size.to_be_bytes(), flags.to_be_bytes(), length.to_be_bytes());
    [&[0, 0, 41][..], &size, &extended, &flags, &length, options].concat()
}

/// A client's usual OPT record.
pub(crate) fn plain_opt() -> Vec<u8> {
    opt(1232, [0, 0], 0, &[])
}

/// A TSIG record as the last one of a message (RFC 8945 section 4.2).
pub(crate) fn tsig(id: u16) -> Vec<u8> {
    let data = [
        &name("hmac-sha256")[..],
        b"\0\0\x65\x00\x00\x00\x01\x2c\0\x20",
        &[0xab; 32],
        &id.to_be_bytes(),
        b"\0\0\0\0",
    ]
    .concat();
    let length = (data.len() as u16).to_be_bytes();
    [&name("key.test")[..], b"\0\xfa\0\xff\0\0\0\0", &length, &data].concat()
}

/// The transaction id of a message.
pub(crate) fn id_of(message: &[u8]) -> Result<u16> {
    Ok(u16::from_be_bytes(*message.first_chunk().context("no id")?))
}

/// The flags of a message.
pub(crate) fn flags_of(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[2], message[3]])
}

/// Adds to the number of additional records.
pub(crate) fn add_additional(message: &mut [u8], add: i8) {
    let count = i16::from_be_bytes([message[10], message[11]]) + i16::from(add);
    message[10..12].copy_from_slice(&count.to_be_bytes());
}

/// What an answer says in its header and its OPT record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) rcode: u16,
    pub(crate) truncated: bool,
    pub(crate) authentic: bool,
    pub(crate) opt: bool,
    pub(crate) answers: usize,
    pub(crate) authority: usize,
    /// The extended error (RFC 8914): its code and text.
    pub(crate) extended_error: Option<(u16, String)>,
    /// The codes of all EDNS options.
    pub(crate) options: Vec<u16>,
}

impl Summary {
    pub(crate) fn of(answer: &[u8]) -> Result<Self> {
        let message = Message::from_vec(answer).context("the answer")?;
        let mut options = Vec::new();
        let mut extended_error = None;
        for (code, option) in message.edns.iter().flat_map(|edns| edns.options().as_ref()) {
            let code = u16::from(*code);
            options.push(code);
            if code == EXTENDED_ERROR {
                let EdnsOption::Unknown(_, data) = option else {
                    continue;
                };
                let (info, text) = data.split_first_chunk().context("a short extended error")?;
                let text = String::from_utf8_lossy(text).into_owned();
                extended_error = Some((u16::from_be_bytes(*info), text));
            }
        }
        let flags = flags_of(answer);
        Ok(Self {
            rcode: u16::from(message.metadata.response_code),
            truncated: flags & TC != 0,
            authentic: flags & AD != 0,
            opt: message.edns.is_some(),
            answers: message.answers.len(),
            authority: message.authorities.len(),
            extended_error,
            options,
        })
    }
}
