//! Makes what a [`DotServer`](super::DotServer) sends for an answer, right or wrong.

use super::orders::{Close, Craft, Reply};
use crate::wire;
use crate::zone::{Transport, Zone};

/// What leaves.
pub(super) enum Outgoing {
    /// A framed message, right or wrong.
    Answer(Vec<u8>),
    /// The beginning of a framed answer whose rest never comes.
    Torso(Vec<u8>),
    /// Nothing more: the connection ends.
    End(Close),
}

impl Reply {
    /// What a query gets; `None` for silence.
    pub(super) fn to(self, query: &[u8]) -> Option<Outgoing> {
        let answer = match self {
            Self::Silence => return None,
            Self::Faithful => faithful(query)?,
            Self::Crafted(Craft(make)) => make(query),
            Self::Junk => vec![0xff; 64],
            Self::WrongId => {
                let mut answer = faithful(query)?;
                *answer.first_mut()? ^= 0x55;
                answer
            }
            Self::WrongQuestion => {
                let id = u16::from_be_bytes(*query.first_chunk()?);
                let qtype = wire::Question::of(query)?.qtype;
                faithful(&wire::query(id, "another.example.test", qtype).ok()?)?
            }
            Self::Stall => {
                let mut torso = wire::frame(&faithful(query)?);
                torso.truncate(torso.len() / 2);
                return Some(Outgoing::Torso(torso));
            }
            Self::Misframed => {
                let mut framed = wire::frame(&faithful(query)?);
                *framed.get_mut(1)? -= 7;
                return Some(Outgoing::Answer(framed));
            }
            Self::End(close) => return Some(Outgoing::End(close)),
        };
        Some(Outgoing::Answer(wire::frame(&answer)))
    }
}

fn faithful(query: &[u8]) -> Option<Vec<u8>> {
    Zone::Encrypted.answer(query, Transport::Tcp)
}
