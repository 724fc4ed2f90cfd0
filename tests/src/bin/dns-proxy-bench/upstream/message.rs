//! The load's messages: made and answered by hand, because whoever measures must cost little.

/// Where the name begins.
const HEADER: usize = 12;
/// The zone that everything is asked of.
const ZONE: &[u8] = b"\x05bench\x07example\0";
/// What every name's address is.
const ANSWER: &[u8] = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xcb\0\x71\x07";
/// An OPT record without options.
const OPT: &[u8] = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";
/// The first letter of names whose answers are late.
const LATE: u8 = b'l';

/// A query for the A record of a name that no other number has, with an OPT record.
pub(super) fn query(id: u16, number: u32, late: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    out.push(9);
    out.push(if late { LATE } else { b'q' });
    out.extend_from_slice(format!("{number:08x}").as_bytes());
    out.extend_from_slice(ZONE);
    out.extend_from_slice(&[0, 1, 0, 1]);
    out.extend_from_slice(OPT);
    out
}

/// A query with its length before it.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

/// The first whole message and what follows.
pub(super) fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// The name of a query, to its root label.
pub(super) fn name(query: &[u8]) -> &[u8] {
    let body = query.get(HEADER..).unwrap_or_default();
    let end = body.iter().position(|octet| *octet == 0).map_or(body.len(), |at| at + 1);
    &body[..end]
}

/// Whether its answer is one of the late ones.
pub(super) fn is_late(query: &[u8]) -> bool {
    query.get(HEADER + 1) == Some(&LATE)
}

/// The answer, with its length before it: one address if that was asked for, else nothing.
pub(super) fn answer(query: &[u8]) -> Vec<u8> {
    let question = HEADER + name(query).len() + 4;
    let Some(asked) = query.get(..question) else {
        return Vec::new();
    };
    let wants_address = asked.ends_with(&[0, 1, 0, 1]);
    let edns = query[11] > 0;
    let mut out = Vec::with_capacity(question + 32);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(asked);
    out[4..6].copy_from_slice(&[0x81, 0x80]);
    out[8..14].copy_from_slice(&[0, u8::from(wants_address), 0, 0, 0, u8::from(edns)]);
    if wants_address {
        out.extend_from_slice(ANSWER);
    }
    if edns {
        out.extend_from_slice(OPT);
    }
    let length = (out.len() - 2) as u16;
    out[..2].copy_from_slice(&length.to_be_bytes());
    out
}

/// Whether an answer to a client says what it should.
pub(super) fn is_good(answer: &[u8]) -> bool {
    answer.len() > HEADER && answer[3] & 0x0f == 0 && answer[6..8] == [0, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_answered() {
        let answer = answer(&query(7, 9, false));
        let (answer, rest) = split_frame(&answer).expect("framed");
        assert!(rest.is_empty() && is_good(answer) && answer[..2] == [0, 7]);
        assert!(is_late(&query(7, 9, true)) && !is_late(&query(7, 9, false)));
    }
}
