//! Queries that come before the listener of their namespace is there.

use crate::Token;

/// The key of the ready map under which the daemon says where it will listen in namespaces that it
/// has not seen yet. No namespace has this cookie. Without the entry their queries are refused.
pub const NEWBORN: u64 = 0;

/// The longest early query that is kept, in octets (a power of two): more than a datagram that is not
/// broken up on an Ethernet. DNS over UDP may have 512 without EDNS (RFC 1035 section 4.2.1), and a
/// resolver's question has fewer with it.
pub const MAX_EARLY_QUERY: usize = 2_048;

/// Bytes of the ring buffer that carries [`EarlyQuery`]s to the daemon (a power of two, whole
/// pages): room for 500.
pub const EARLY_BYTES: usize = 1 << 20;

/// A datagram that was taken off its way to a token, since nobody listens there yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlyQuery {
    /// Where it was sent to.
    pub token: Token,
    /// The client's port, in network byte order.
    pub port_be: u16,
    /// How much of `message` it fills.
    pub len: u16,
    /// The client's address, IPv4 in its mapped form; the token is of the same family.
    pub client: [u8; 16],
    /// The query.
    pub message: [u8; MAX_EARLY_QUERY],
}

#[cfg(not(target_arch = "bpf"))]
// SAFETY: `repr(C)`, `Copy`, without padding (see below) and valid for every bit pattern.
unsafe impl aya::Pod for EarlyQuery {}

const _: () = {
    assert!(size_of::<EarlyQuery>() == 24 + MAX_EARLY_QUERY && align_of::<EarlyQuery>() == 4);
};
