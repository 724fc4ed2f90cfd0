//! One counter for everything a kernel program can decide.

/// Index into the per-CPU counter map: the outcome of one hook call on a port-53 address or a
/// token. Traffic of other ports is not counted, and costs nothing.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Sent to a token: `connect` of TCP or UDP, over IPv4.
    Connect4 = 0,
    /// Sent to a token: `connect` of TCP or UDP, over IPv6.
    Connect6,
    /// Sent to a token: one `sendto` or `sendmsg` with an IPv4 address.
    Sendmsg4,
    /// Sent to a token: one `sendto` or `sendmsg` with an IPv6 address.
    Sendmsg6,
    /// A received datagram shows its nameserver again instead of the token.
    Restored,
    /// Left alone: the cgroup is not in the scope.
    NotSelected,
    /// Left alone: the cgroup is excluded.
    Excluded,
    /// Left alone: one of the daemon's own sockets.
    Exempt,
    /// Left alone: a nameserver on loopback, such as 127.0.0.53 or 127.0.0.11.
    Loopback,
    /// Left alone: multicast, broadcast or a protocol that carries no DNS.
    NotDns,
    /// Left alone: nothing of the namespace has IPv6, so that the kernel refuses, in its own words.
    NoIpv6,
    /// Refused: the namespace has no listener yet, and nothing waits for what comes early.
    NotReady,
    /// Refused: the namespace has no listener of that family.
    NoFamily,
    /// Refused: the socket is bound to a device by which no token can be reached (yet).
    DeviceBound,
    /// Refused: a transport on which no listener answers (UDP-Lite, RFC 3828).
    Transport,
    /// Refused: no token is free, or the cgroup has as many as it may.
    NoToken,
    /// Counted besides: the daemon has not seen the cgroup yet, which may be selected, and so is
    /// treated as if it were.
    Undecided,
    /// Refused: somebody dialled a token himself, who can only have meant another's.
    TokenDialled,
    /// Refused: the daemon hangs or is dead, and is to fail closed.
    DaemonDead,
    /// Left alone, though of the scope: the daemon hangs, and is to fail open.
    Unattended,
    /// The guard met a port-53 packet that leaves past the redirection, such as that of a socket
    /// connected before the daemon started; refused unless the guard only counts.
    GuardQuery,
    /// Refused by the guard: a token address on its way out of the host.
    GuardToken,
    /// A token address that stands for nothing in its namespace; shown as it is.
    UnknownToken,
    /// Dropped at a listener's door: not from `lo`, or not from a socket that could be redirected.
    Stranger,
    /// An event for the daemon was lost because its ring buffer was full.
    EventLost,
    /// A query that came before the listener of its namespace: the daemon has it, and answers.
    Captured,
    /// A TCP segment that came before the listener of its namespace: dropped, it comes again.
    Delayed,
    /// Refused: a query that came early and was too long or one too many to keep.
    NotCaptured,
}

impl Counter {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 28] = [
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Restored,
        Self::NotSelected,
        Self::Excluded,
        Self::Exempt,
        Self::Loopback,
        Self::NotDns,
        Self::NoIpv6,
        Self::NotReady,
        Self::NoFamily,
        Self::DeviceBound,
        Self::Transport,
        Self::NoToken,
        Self::Undecided,
        Self::TokenDialled,
        Self::DaemonDead,
        Self::Unattended,
        Self::GuardQuery,
        Self::GuardToken,
        Self::UnknownToken,
        Self::Stranger,
        Self::EventLost,
        Self::Captured,
        Self::Delayed,
        Self::NotCaptured,
    ];

    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Its name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Restored => "restored",
            Self::NotSelected => "not_selected",
            Self::Excluded => "excluded",
            Self::Exempt => "exempt",
            Self::Loopback => "loopback",
            Self::NotDns => "not_dns",
            Self::NoIpv6 => "no_ipv6",
            Self::NotReady => "refused_not_ready",
            Self::NoFamily => "refused_no_family",
            Self::DeviceBound => "refused_device_bound",
            Self::Transport => "refused_transport",
            Self::NoToken => "refused_no_token",
            Self::Undecided => "undecided",
            Self::TokenDialled => "refused_token_dialled",
            Self::DaemonDead => "refused_daemon_dead",
            Self::Unattended => "unattended",
            Self::GuardQuery => "guard_query",
            Self::GuardToken => "guard_token",
            Self::UnknownToken => "unknown_token",
            Self::Stranger => "stranger",
            Self::EventLost => "event_lost",
            Self::Captured => "captured",
            Self::Delayed => "delayed",
            Self::NotCaptured => "refused_not_captured",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_follow_the_order_of_all() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index, "{}", counter.name());
        }
    }
}
