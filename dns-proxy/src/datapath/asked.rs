//! What an answer is fitted to: the part of a query that it repeats, borrowed from the client's message.
//!
//! Every [`Query`](super::query::Query) has one. That of a message of the usual shape is also found
//! without making a query of it, which is all that an answer that is known already needs.

use super::query::is_hop_by_hop;
use crate::{
    cache::Bits,
    wire::{HEADER_LEN, Question, flag, options, rr_type},
};

/// The one question of a message, and who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The transaction id.
    pub id: [u8; 2],
    /// The two octets of header flags.
    pub flags: [u8; 2],
    /// The question on the wire, as it was asked.
    pub question: &'a [u8],
    /// What the client's OPT record says.
    pub edns: Option<Extended>,
}

/// What a client's OPT record says, but for its options (RFC 6891 section 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extended {
    /// The largest UDP payload that it takes, in octets, 512 at least.
    pub udp_size: u16,
    /// The flags, of which DO is the top bit.
    pub flags: u16,
}

impl Extended {
    /// The DO bit (RFC 3225).
    pub const DO: u16 = 0x8000;

    /// From the fields of the record; a smaller size counts as 512 (RFC 6891 section 6.2.3).
    pub(super) fn new(udp_size: u16, flags: u16) -> Self {
        Self { udp_size: udp_size.max(512), flags }
    }

    /// DNSSEC records are wanted.
    pub fn dnssec_ok(self) -> bool {
        self.flags & Self::DO != 0
    }
}

impl<'a> Asked<'a> {
    /// What a message asks if it is of the usual shape, so that its answer depends on nothing but the
    /// question and these bits. Of any other the parser has to say what it is.
    pub fn usual(message: &'a [u8]) -> Option<(Self, Bits)> {
        let [id0, id1, flag::RD, flags1, 0, 1, 0, 0, 0, 0, 0, additional] =
            *message.first_chunk::<HEADER_LEN>()?
        else {
            return None;
        };
        if flags1 & !(flag::AD | flag::CD) != 0 {
            return None;
        }
        let question = Question::read(message)?;
        let edns = match (additional, &message[question.end..]) {
            (0, []) => None,
            (1, &[0, type0, type1, size0, size1, _, 0, flags0, 0, len0, len1, ref data @ ..])
                if [type0, type1] == rr_type::OPT.to_be_bytes()
                    && flags0 & !DO_OCTET == 0
                    && usize::from(u16::from_be_bytes([len0, len1])) == data.len()
                    && options(data)
                        .all(|option| option.is_some_and(|(code, _)| is_hop_by_hop(code))) =>
            {
                let [size, flags] = [[size0, size1], [flags0, 0]].map(u16::from_be_bytes);
                Some(Extended::new(size, flags))
            }
            _ => return None,
        };
        let bits = Bits {
            dnssec_ok: edns.is_some_and(Extended::dnssec_ok),
            checking_disabled: flags1 & flag::CD != 0,
            authentic_data: flags1 & flag::AD != 0,
        };
        let question = &message[HEADER_LEN..question.end];
        Some((Self { id: [id0, id1], flags: [flag::RD, flags1], question, edns }, bits))
    }

    /// The name asked for, on the wire.
    pub fn name(&self) -> &'a [u8] {
        // Behind it are only type and class.
        &self.question[..self.question.len() - 4]
    }

    /// The type asked for.
    pub fn qtype(&self) -> u16 {
        self.last_fields()[0]
    }

    /// The class asked for.
    pub fn qclass(&self) -> u16 {
        self.last_fields()[1]
    }

    /// The client validates, or at least understands, the AD bit (RFC 6840 section 5.7).
    pub fn understands_ad(&self) -> bool {
        self.flags[1] & flag::AD != 0 || self.edns.is_some_and(Extended::dnssec_ok)
    }

    fn last_fields(&self) -> [u16; 2] {
        let fields = self.question.last_chunk().copied().unwrap_or_default();
        let [type0, type1, class0, class1] = fields;
        [[type0, type1], [class0, class1]].map(u16::from_be_bytes)
    }
}

/// The first octet of [`Extended::DO`].
const DO_OCTET: u8 = Extended::DO.to_be_bytes()[0];

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

    use super::*;
    use crate::datapath::query::Query;

    const OPT: &[u8] = b"\0\0\x29\x10\0\0\0\x80\0\0\0";
    const OPT_COOKIE: &[u8] = b"\0\0\x29\x02\0\0\0\0\0\0\x0c\0\x0a\0\x08COOKIE!!";
    const OPT_SUBNET: &[u8] = b"\0\0\x29\x10\0\0\0\0\0\0\x0b\0\x08\0\x07\0\x01\x18\0\xc0\0\x02";

    fn message(flags: [u8; 2], additional: &[u8]) -> Vec<u8> {
        let head = [&b"\x12\x34"[..], &flags, &[0, 1, 0, 0, 0, 0, 0]].concat();
        let question = b"\x03WwW\x07example\x04test\0\0\x1c\0\x01";
        [&head, &[u8::from(!additional.is_empty())][..], question, additional].concat()
    }

    /// What the parser makes of it: the same, or a query whose answer depends on more.
    fn check(message: &[u8]) -> bool {
        let usual = Asked::usual(message);
        let query = Query::parse(message).ok();
        if let Some((asked, bits)) = usual {
            let query = query.as_ref().expect("a query");
            assert_eq!((asked, Some(bits)), (query.asked(), query.bits()), "{message:02x?}");
            assert!(!query.is_intact());
            return true;
        }
        // What stands behind the last record is nobody's.
        let bits = query.filter(|query| query.len() == message.len()).and_then(|q| q.bits());
        assert_eq!(bits, None, "{message:02x?}");
        false
    }

    #[test]
    fn the_usual_shape_is_what_the_parser_finds_usual() {
        for additional in [&b""[..], OPT, OPT_COOKIE] {
            for flags1 in [0, flag::AD, flag::CD, flag::AD | flag::CD] {
                assert!(check(&message([flag::RD, flags1], additional)));
            }
            for flags in [[0, 0], [flag::RD | flag::QR, 0], [flag::RD, 0x40], [flag::RD, 1]] {
                assert!(!check(&message(flags, additional)));
            }
        }
        assert!(!check(&message([flag::RD, 0], OPT_SUBNET)));
    }

    #[test]
    fn so_it_is_whatever_a_message_says() {
        let mut rng = SmallRng::seed_from_u64(5);
        let seeds = [&b""[..], OPT, OPT_COOKIE, OPT_SUBNET].map(|a| message([flag::RD, 0], a));
        let (mut usual, mut not) = (0, 0);
        for _ in 0..200_000 {
            let mut message = seeds[rng.random_range(0..seeds.len())].clone();
            for _ in 0..rng.random_range(0..3) {
                let at = rng.random_range(0..message.len());
                message[at] = rng.random();
            }
            if rng.random_ratio(1, 8) {
                message.truncate(rng.random_range(0..=message.len()));
            }
            *if check(&message) { &mut usual } else { &mut not } += 1;
        }
        assert!(usual > 10_000 && not > 10_000, "{usual} {not}");
    }
}
