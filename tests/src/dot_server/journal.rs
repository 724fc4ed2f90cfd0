//! What a [`DotServer`](super::DotServer) has seen.

use crate::wire::Question;
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::EdnsCode;
use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};

/// Everything since the server started.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// How many TCP connections were accepted.
    pub accepted: usize,
    /// How many of them are open now.
    pub open: usize,
    /// The completed handshakes, in order.
    pub handshakes: Vec<Handshake>,
    /// Why the others failed.
    pub failed_handshakes: Vec<String>,
    /// The queries, in order.
    pub queries: Vec<Seen>,
    /// How many queries have no answer yet.
    pub in_flight: usize,
    /// The most there have been at once.
    pub max_in_flight: usize,
}

/// A completed TLS handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The version agreed on.
    pub version: Option<ProtocolVersion>,
    /// The application protocol agreed on.
    pub alpn: Option<String>,
    /// The name the client asked for.
    pub server_name: Option<String>,
    /// Whether it resumed an earlier session.
    pub resumed: bool,
    /// Whether data came before it was over (0-RTT), which the server would take.
    pub early: bool,
}

/// A query, as it came out of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The name as it was written, without the last dot.
    pub name: String,
    /// The type.
    pub qtype: RecordType,
    /// The whole message's length.
    pub length: usize,
    /// Whether it has an OPT record.
    pub opt: bool,
    /// How many bytes of padding it has, if it has the option.
    pub padding: Option<usize>,
    /// The connection it came on, counted from 0 in the order of acceptance.
    pub connection: usize,
    /// The whole message.
    pub message: Vec<u8>,
}

impl Journal {
    /// How many handshakes resumed an earlier session.
    pub fn resumed(&self) -> usize {
        self.handshakes.iter().filter(|handshake| handshake.resumed).count()
    }

    /// The queries for a name, in any case.
    pub fn queries_for(&self, name: &str) -> Vec<&Seen> {
        self.queries.iter().filter(|seen| seen.name.eq_ignore_ascii_case(name)).collect()
    }
}

impl Handshake {
    pub(super) fn of(tls: &mut ServerConnection) -> Self {
        let alpn = tls.alpn_protocol().map(|alpn| String::from_utf8_lossy(alpn).into_owned());
        Self {
            version: tls.protocol_version(),
            alpn,
            server_name: tls.server_name().map(ToOwned::to_owned),
            early: tls.early_data().is_some(),
            resumed: tls.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}

impl Seen {
    pub(super) fn of(query: &[u8], connection: usize) -> Option<Self> {
        let message = Message::from_vec(query).ok()?;
        let Question { name, qtype } = message.queries.first()?.into();
        let edns = message.edns.as_ref();
        let padding = edns.and_then(|edns| edns.option(EdnsCode::Padding));
        let padding = padding.map(|padding| usize::from(padding.len()));
        Some(Self {
            name,
            qtype,
            length: query.len(),
            opt: edns.is_some(),
            padding,
            connection,
            message: query.to_vec(),
        })
    }
}
