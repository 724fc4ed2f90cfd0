//! Captures what is sent to a namespace's listener before it is there.
//!
//! The first query of a namespace that nobody announced makes the daemon set up a listener, which
//! takes a fraction of a millisecond. Meanwhile `redirect` gives out tokens all the same: with
//! nobody behind them they lead nowhere but to `egress`, which hands queries to the daemon and says
//! that they were sent. The listener's first act is to answer them. A TCP client comes again by
//! itself.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sockopt,
    helpers::generated::{
        bpf_get_netns_cookie, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_skb_load_bytes,
    },
    programs::{SkBuffContext, SockoptContext},
};
use dns_proxy_common::{Counter, EarlyQuery, Event, Listener, MAX_EARLY_QUERY, NEWBORN, Token};

use crate::{
    maps::{self, EARLY, EARLY_SHARES, EARLY_UNTIL, ORIGINS, READY},
    scope,
};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Octets of a UDP header (RFC 768).
const UDP_HEADER: u32 = 8;

/// How long after a token was given out early its packets are looked for, in nanoseconds: much longer
/// than a listener takes. Later packets find it, or nobody.
const EXPECTED: u64 = 5_000_000_000;

/// How often one namespace may ask, announced, and have a query captured, in about a second. One that
/// asks for more cannot be served, and must not take the others' room.
const MAX_SHARE: u32 = 128;

/// What a namespace has used of it.
#[repr(C)]
pub(crate) struct Share {
    /// `CLOCK_MONOTONIC` in units of 2^30 ns.
    second: u32,
    count: u32,
}

/// Counts one towards the share of a namespace; whether it had one left. Two CPUs may count at once
/// and lose one.
#[inline(always)]
pub(crate) fn charge(netns: u64) -> bool {
    // SAFETY: the helper takes nothing (5.11).
    let second = (unsafe { bpf_ktime_get_coarse_ns() } >> 30) as u32;
    let Some(share) = EARLY_SHARES.get_ptr_mut(netns) else {
        return EARLY_SHARES.insert(netns, Share { second, count: 1 }, 0).is_ok();
    };
    // SAFETY: the kernel returned a valid pointer to the entry, whose two aligned words are read and
    // written one at a time.
    unsafe {
        if (*share).second != second {
            (*share).second = second;
            (*share).count = 0;
        }
        let count = (*share).count;
        (*share).count = count.saturating_add(1);
        count < MAX_SHARE
    }
}

/// The listener to come of a namespace that has none yet, if queries for it are kept.
#[inline(always)]
pub(crate) fn listener() -> Option<&'static Listener> {
    // SAFETY: the value is one aligned word, replaced as a whole.
    let listener = unsafe { READY.get(NEWBORN) }?;
    // SAFETY: the helper takes nothing (4.1).
    let until = unsafe { bpf_ktime_get_ns() } + EXPECTED;
    // It does not fail: the array has this slot.
    let _: Result<(), i32> = EARLY_UNTIL.set(0, until, 0);
    Some(listener)
}

/// Whether early packets may be on their way. Nearly always there are none, and loopback is for
/// everybody.
#[inline(always)]
pub(crate) fn are_expected() -> bool {
    // SAFETY: the helper takes nothing (5.11).
    EARLY_UNTIL.get(0).is_some_and(|&until| until > unsafe { bpf_ktime_get_coarse_ns() })
}

/// A packet on its way to a token.
pub(crate) struct ToToken {
    token: Token,
    /// Source, IPv4 in its mapped form.
    client: [u8; 16],
    protocol: u8,
    /// Where its transport header starts.
    at: u32,
    is_v6: bool,
}

impl ToToken {
    /// `None` for a packet to anywhere else.
    #[inline(always)]
    pub(crate) fn read(ctx: &SkBuffContext) -> Option<Self> {
        let head = ctx.load::<[u8; 20]>(0).ok()?;
        match head[0] >> 4 {
            4 => {
                let token = Token::from_v4([head[16], head[17], head[18], head[19]])?;
                let mut client = [0; 16];
                (client[10], client[11]) = (0xff, 0xff);
                client[12..].copy_from_slice(&head[12..16]);
                let at = u32::from(head[0] & 0xf) * 4;
                Some(Self { token, client, protocol: head[9], at, is_v6: false })
            }
            6 => {
                let token = Token::from_v6(ctx.load::<[u8; 16]>(24).ok()?)?;
                let client = ctx.load::<[u8; 16]>(8).ok()?;
                Some(Self { token, client, protocol: head[6], at: 40, is_v6: true })
            }
            _ => None,
        }
    }

    /// Whether it is an IPv6 packet. One to a token that came before the route is on its way out by
    /// the default route.
    #[inline(always)]
    pub(crate) fn is_v6(&self) -> bool {
        self.is_v6
    }

    /// Takes it off its way if its namespace has no listener yet; `None` lets it go on.
    #[inline(always)]
    pub(crate) fn capture(&self, ctx: &SkBuffContext) -> Option<Counter> {
        let netns = ORIGINS.get(self.token.0)?.netns;
        // SAFETY: the value is only looked at for presence. A free token's namespace is `NEWBORN`,
        // which is there if anything is to be captured.
        if unsafe { READY.get(netns) }.is_some() {
            return None;
        }
        // SAFETY: the value is one aligned word, replaced as a whole.
        let listener = unsafe { READY.get(NEWBORN) }?;
        let [source, destination] = ctx.load::<[u16; 2]>(self.at as usize).ok()?;
        if destination != listener.port_be {
            return None;
        }
        match self.protocol {
            TCP => Some(Counter::Delayed),
            UDP if !charge(netns) => Some(Counter::NotCaptured),
            UDP => Some(self.keep(ctx, source)),
            _ => None,
        }
    }

    /// Hands the query to the daemon.
    #[inline(always)]
    fn keep(&self, ctx: &SkBuffContext, port_be: u16) -> Counter {
        let Some(mut entry) = EARLY.reserve(0) else {
            return Counter::NotCaptured;
        };
        let query: *mut EarlyQuery = entry.as_mut_ptr();
        let at = self.at + UDP_HEADER;
        let len = ctx.len().wrapping_sub(at);
        // Between 1 and the most, as the verifier can see; another length than that of the datagram
        // if that is not.
        let kept = (len.wrapping_sub(1) & (MAX_EARLY_QUERY as u32 - 1)) + 1;
        // SAFETY: `entry` is valid for writes; the helper (5.0) writes `kept` octets, which `message`
        // has room for.
        let copied = unsafe {
            (&raw mut (*query).token).write(self.token);
            (&raw mut (*query).port_be).write(port_be);
            (&raw mut (*query).len).write(kept as u16);
            (&raw mut (*query).client).write(self.client);
            bpf_skb_load_bytes(ctx.skb.skb.cast(), at, (&raw mut (*query).message).cast(), kept)
        };
        if copied == 0 && kept == len {
            entry.submit(0);
            Counter::Captured
        } else {
            entry.discard(0);
            Counter::NotCaptured
        }
    }
}

/// Keeps `IP_RECVERR` from a resolver whose namespace has no listener yet: with it, glibc would be
/// told of the captured query that it was not sent (ENOBUFS), and give up. It is there to learn of a
/// nameserver that is not there, and ours is.
///
/// The option is ignored, not refused. All others pass untouched.
#[inline(always)]
pub(crate) fn setsockopt(ctx: &SockoptContext) -> i32 {
    const PASS: i32 = 1;
    /// `SOL_IP`, `IP_RECVERR`.
    const V4: (i32, i32) = (0, 11);
    /// `SOL_IPV6`, `IPV6_RECVERR`.
    const V6: (i32, i32) = (41, 25);
    /// The most that a program is shown (a page). With more it must say that it changed nothing.
    const SHOWN: i32 = 4096;
    /// The kernel takes what the caller gave, not what the program was shown.
    const UNTOUCHED: i32 = 0;
    /// The kernel does nothing, and the caller is told that it did.
    const IGNORED: i32 = -1;

    let sockopt = ctx.sockopt;
    // SAFETY: the context is valid while the program runs; its fields may be read.
    let asked = unsafe { (read(&raw const (*sockopt).level), read(&raw const (*sockopt).optname)) };
    let is_recverr = matches!(asked, V4 | V6);
    if !is_recverr {
        // SAFETY: as above; `optlen` may be written.
        unsafe {
            if read(&raw const (*sockopt).optlen) > SHOWN {
                (&raw mut (*sockopt).optlen).write_volatile(UNTOUCHED);
            }
        }
        return PASS;
    }
    if !scope::may_be_selected(scope::of_task()) || protocol(sockopt) != u32::from(UDP) {
        return PASS;
    }
    // SAFETY: the helper takes the hook's own context (5.15).
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the values are only looked at for presence.
    if unsafe { READY.get(netns).is_some() || READY.get(NEWBORN).is_none() } {
        return PASS;
    }
    // Most probably a query follows: the sooner somebody listens, the better.
    maps::announce(netns, ctx.tgid(), Event::NETNS);
    // SAFETY: as above.
    unsafe { (&raw mut (*sockopt).optlen).write_volatile(IGNORED) };
    PASS
}

/// Reads a field of the context, which the verifier wants at its own offset.
#[inline(always)]
unsafe fn read<T>(field: *const T) -> T {
    // SAFETY: as the caller says.
    unsafe { ptr::read_volatile(field) }
}

#[inline(always)]
fn protocol(sockopt: *mut bpf_sockopt) -> u32 {
    // SAFETY: the context is valid while the program runs, and so is the socket it names.
    unsafe {
        let sk = (*sockopt).__bindgen_anon_1.sk;
        (&raw const (*sk).protocol).read_volatile()
    }
}
