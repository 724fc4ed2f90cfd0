//! DNS messages as clients make and read them: the little that probes and records need.

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name as it was written, without the last dot.
    pub name: String,
    /// The type.
    pub qtype: RecordType,
}

impl Question {
    /// The question of a message, if it is one.
    pub fn of(message: &[u8]) -> Option<Self> {
        Message::from_vec(message).ok()?.queries.first().map(Self::from)
    }
}

impl From<&Query> for Question {
    fn from(query: &Query) -> Self {
        let name = query.name().to_ascii();
        Self { name: name.trim_end_matches('.').to_owned(), qtype: query.query_type() }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.qtype)
    }
}

/// A query with recursion desired, as stub resolvers send it.
pub fn query(id: u16, name: &str, qtype: RecordType) -> Result<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).with_context(|| format!("{name} is no domain name"))?;
    let name = if name.is_fqdn() { name } else { name.append_domain(&Name::root())? };
    message.add_query(Query::query(name, qtype));
    Ok(message.to_vec()?)
}

/// A message as streams carry it, with its length before it (RFC 1035 section 4.2.2). What is
/// longer than the length can say is cut.
pub fn frame(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut framed = [&length.to_be_bytes(), message].concat();
    framed.truncate(2 + usize::from(length));
    framed
}

/// Takes the first whole message out of a stream's bytes.
pub fn take_message(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = 2 + usize::from(u16::from_be_bytes(*bytes.first_chunk()?));
    (bytes.len() >= end).then(|| bytes.drain(..end).skip(2).collect())
}

/// What an answer says to the one who sent `query`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The response code.
    pub rcode: ResponseCode,
    /// Whether it was cut short.
    pub truncated: bool,
    /// The addresses in it.
    pub addresses: Vec<IpAddr>,
}

impl Answer {
    /// Reads an answer; an error if it does not belong to the query.
    pub fn to(query: &[u8], answer: &[u8]) -> Result<Self> {
        let asked = Message::from_vec(query).context("the query")?;
        let message = Message::from_vec(answer).context("the answer")?;
        ensure!(message.metadata.message_type == MessageType::Response, "not a response");
        ensure!(message.metadata.id == asked.metadata.id, "the answer has another ID");
        ensure!(message.queries == asked.queries, "the answer has another question");
        let addresses = message.answers.iter().filter_map(|record| address(&record.data)).collect();
        let truncated = message.metadata.truncation;
        Ok(Self { rcode: message.metadata.response_code, truncated, addresses })
    }
}

/// A number nobody could guess, from the standard library's hash keys.
pub fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// A random transaction ID.
pub fn random_id() -> u16 {
    let [low, high, ..] = random().to_ne_bytes();
    u16::from_ne_bytes([low, high])
}

fn address(data: &RData) -> Option<IpAddr> {
    if let RData::A(a) = data {
        Some(a.0.into())
    } else if let RData::AAAA(aaaa) = data {
        Some(aaaa.0.into())
    } else {
        None
    }
}
