//! Token addresses: loopback addresses that each stand for one [`Origin`](crate::Origin).

/// The most tokens alive at once: one for each (cgroup, namespace, nameserver).
pub const MAX_TOKENS: u32 = 65_536;

/// The most tokens of one cgroup, so that none can take them all.
pub const MAX_CGROUP_TOKENS: u32 = 1_024;

/// From here on a cgroup is short of tokens, and the daemon looks which it does not use.
pub const NEARLY_ALL_CGROUP_TOKENS: u32 = MAX_CGROUP_TOKENS / 4 * 3;

/// The IPv4 tokens, 127.64.0.0/10: loopback everywhere, and nobody's default.
pub const TOKEN4_NET: [u8; 4] = [127, 64, 0, 0];
/// Prefix length of [`TOKEN4_NET`].
pub const TOKEN4_PREFIX_LEN: u8 = 10;

/// The IPv6 tokens: a unique local /64 (RFC 4193) drawn once at random for this project, which the
/// daemon makes local to a namespace's `lo` (AnyIP) before the first token is given out there.
pub const TOKEN6_NET: [u8; 16] =
    [0xfd, 0x90, 0x2c, 0x8e, 0x59, 0x1c, 0x00, 0x53, 0, 0, 0, 0, 0, 0, 0, 0];
/// The same for link-local nameservers: link-local too (RFC 4291 section 2.5.6), so that the kernel
/// treats the interface that such an address comes with as it would the nameserver's.
pub const TOKEN6_LINK_LOCAL_NET: [u8; 16] =
    [0xfe, 0x90, 0x2c, 0x8e, 0x59, 0x1c, 0x00, 0x53, 0, 0, 0, 0, 0, 0, 0, 0];
/// Prefix length of [`TOKEN6_NET`] and [`TOKEN6_LINK_LOCAL_NET`].
pub const TOKEN6_PREFIX_LEN: u8 = 64;

const ID_MASK: u32 = (1 << (32 - TOKEN4_PREFIX_LEN)) - 1;

/// A token's number, 1 to [`MAX_TOKENS`] - 1; its addresses carry it in their low bits.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u32);

/// A token as the kernel programs find it by its origin.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number.
    pub token: u32,
    /// When somebody was last sent to it: `CLOCK_MONOTONIC` in units of 2^30 ns, about a second,
    /// so that a busy token is written to no more often.
    pub used: u32,
}

impl Held {
    /// Turns nanoseconds into the unit of `used`.
    pub const USED_SHIFT: u32 = 30;
}

impl Token {
    /// The IPv4 address, in network order.
    #[inline(always)]
    pub const fn v4(self) -> [u8; 4] {
        (u32::from_be_bytes(TOKEN4_NET) | (self.0 & ID_MASK)).to_be_bytes()
    }

    /// The IPv6 address, in network order.
    #[inline(always)]
    pub const fn v6(self) -> [u8; 16] {
        self.within(TOKEN6_NET)
    }

    /// The IPv6 address that stands for a link-local one, in network order.
    #[inline(always)]
    pub const fn v6_link_local(self) -> [u8; 16] {
        self.within(TOKEN6_LINK_LOCAL_NET)
    }

    #[inline(always)]
    const fn within(self, n: [u8; 16]) -> [u8; 16] {
        let [a, b, c, d] = self.0.to_be_bytes();
        [n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], 0, 0, 0, 0, a, b, c, d]
    }

    /// The token behind an IPv4 address in network order, if it is in [`TOKEN4_NET`].
    #[inline(always)]
    pub const fn from_v4(addr: [u8; 4]) -> Option<Self> {
        let addr = u32::from_be_bytes(addr);
        if addr & !ID_MASK == u32::from_be_bytes(TOKEN4_NET) {
            Some(Self(addr & ID_MASK))
        } else {
            None
        }
    }

    /// The token behind an IPv6 address in network order, if it is in [`TOKEN6_NET`] or
    /// [`TOKEN6_LINK_LOCAL_NET`].
    #[inline(always)]
    pub const fn from_v6(addr: [u8; 16]) -> Option<Self> {
        let addr = u128::from_be_bytes(addr);
        let net = addr & !(u32::MAX as u128);
        let link_local = u128::from_be_bytes(TOKEN6_LINK_LOCAL_NET);
        if net == u128::from_be_bytes(TOKEN6_NET) || net == link_local {
            Some(Self(addr as u32))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for id in [1, 255, 256, 65_535, MAX_TOKENS - 1, ID_MASK] {
            assert_eq!(Token::from_v4(Token(id).v4()), Some(Token(id)));
            assert_eq!(Token::from_v6(Token(id).v6()), Some(Token(id)));
            assert_eq!(Token::from_v6(Token(id).v6_link_local()), Some(Token(id)));
        }
        assert_eq!(Token(0x01_0203).v4(), [127, 65, 2, 3]);
    }

    #[test]
    fn other_loopback_addresses_are_no_tokens() {
        for addr in [[127, 0, 0, 1], [127, 0, 0, 53], [127, 128, 0, 1], [10, 64, 0, 1]] {
            assert_eq!(Token::from_v4(addr), None, "{addr:?}");
        }
        let mut neighbour = TOKEN6_NET;
        neighbour[7] ^= 1;
        assert_eq!(Token::from_v6(neighbour), None);
    }
}
