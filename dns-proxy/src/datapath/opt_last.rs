//! Encodes a message anew with its OPT record in the last place; the only owner of hickory-proto.
//!
//! Only there can the record be replaced without moving what others point at. Nearly every program
//! puts it there; messages of the rest are the only ones that are not passed on as they came.

use hickory_proto::op::Message;

/// The message with its OPT record last, or `None` if it cannot be decoded.
pub(super) fn encode(message: &[u8]) -> Option<Vec<u8>> {
    Message::from_vec(message).ok()?.to_vec().ok()
}
