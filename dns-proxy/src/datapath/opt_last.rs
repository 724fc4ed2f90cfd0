//! Encodes a message anew with its OPT record in the last place; the only owner of hickory-proto.
//!
//! Only there can the record be replaced without moving what others point at. Nearly every program
//! puts it there; messages of the rest are the only ones that are not passed on as they came.

use hickory_proto::op::Message;

/// Octets of the transaction id and the flags.
const ID_AND_FLAGS: usize = 4;

/// The message with its OPT record last, or `None` if it cannot be decoded.
pub(super) fn encode(message: &[u8]) -> Option<Vec<u8>> {
    let mut anew = Message::from_vec(message).ok()?.to_vec().ok()?;
    // The encoder does not know them all: one is reserved.
    let flags = message.get(..ID_AND_FLAGS)?;
    anew.get_mut(..ID_AND_FLAGS)?.copy_from_slice(flags);
    Some(anew)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opt_record_goes_last_and_the_flags_stay() {
        let head = b"\x12\x34\x01\x40\0\x01\0\0\0\0\0\x02\x01a\0\0\x01\0\x01";
        let opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";
        let other = b"\x01b\0\xff\x78\0\x01\0\0\0\0\0\x01x";
        let anew = encode(&[&head[..], opt, other].concat()).expect("well formed");
        assert_eq!(anew, [&head[..], other, opt].concat());
    }
}
