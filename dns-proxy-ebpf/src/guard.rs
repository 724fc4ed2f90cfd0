//! The net under the redirection: what leaves the host is looked at once more.
//!
//! It catches what the socket hooks cannot: sockets connected before they were there, raw sockets,
//! and tokens that a device-bound socket would carry onto a wire. Out of reach: AF_PACKET.

use core::ptr;

use aya_ebpf::{
    Global,
    bindings::__sk_buff,
    helpers::generated::{bpf_sk_fullsock, bpf_sk_storage_get},
    programs::SkBuffContext,
};
use dns_proxy_common::{Counter, DNS_PORT, GuardMode, Token};

use crate::{
    door,
    early::{self, ToToken},
    maps::{self, EXEMPT},
    pulse, scope,
};

pub(crate) const PASS: i32 = 1;
/// The packet is dropped; a datagram's sender gets EPERM.
const REFUSE: i32 = 0;
/// The packet is dropped as if a queue were full: of that a datagram's sender hears only if it asked
/// to (`IP_RECVERR`).
const TAKE: i32 = 2;

/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`).
pub(crate) const LOOPBACK: u32 = 1;
/// IPv6 extension headers that are looked behind (RFC 8200 section 4); hosts send one or two.
const MAX_EXTENSIONS: usize = 6;

/// What to do with port 53; set by the daemon before it loads the programs.
#[unsafe(no_mangle)]
static GUARD_MODE: Global<u8> = Global::new(GuardMode::On as u8);

/// Judges one outgoing packet.
#[inline(always)]
pub(crate) fn judge(ctx: &SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    if interface(skb) == LOOPBACK {
        return if early::are_expected() && door::sends_for_itself(skb) {
            let early = ToToken::read(ctx).and_then(|packet| packet.capture(ctx));
            early.map_or_else(|| door::stamp(ctx), taken)
        } else {
            door::stamp(ctx)
        };
    }
    let Some(packet) = Packet::read(ctx) else {
        return PASS; // neither IPv4 nor IPv6
    };
    if packet.to_token {
        let early = ToToken::read(ctx).filter(ToToken::is_v6);
        return early.and_then(|packet| packet.capture(ctx)).map_or_else(
            || {
                maps::count(Counter::GuardToken);
                REFUSE
            },
            taken,
        );
    }
    let is_meant = || scope::may_be_selected(scope::of_packet(skb));
    if packet.port != Some(DNS_PORT) || !is_meant() || is_exempt(skb) {
        return PASS;
    }
    if pulse::check() == Err(Counter::Unattended) {
        maps::count(Counter::Unattended);
        return PASS;
    }
    maps::count(Counter::GuardQuery);
    if GUARD_MODE.load() == GuardMode::On as u8 { REFUSE } else { PASS }
}

/// What becomes of a packet that came before its listener.
#[inline(always)]
fn taken(outcome: Counter) -> i32 {
    maps::count(outcome);
    if matches!(outcome, Counter::NotCaptured) { REFUSE } else { TAKE }
}

/// Index of the interface that a packet leaves or has come by.
#[inline(always)]
pub(crate) fn interface(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid while the program runs; `ifindex` may be read.
    unsafe { ptr::addr_of!((*skb).ifindex).read_volatile() }
}

/// What matters of a packet.
struct Packet {
    to_token: bool,
    /// Destination port; `None` for other transports and later fragments.
    port: Option<u16>,
}

impl Packet {
    /// Reads the headers; packets start at the network header here.
    #[inline(always)]
    fn read(ctx: &SkBuffContext) -> Option<Self> {
        // One load for what both versions need of it: an IPv4 header is as long, an IPv6 one longer.
        let head = ctx.load::<[u8; 20]>(0).ok()?;
        match head[0] >> 4 {
            4 => Some(Self::read_v4(ctx, &head)),
            6 => Self::read_v6(ctx, &head),
            _ => None,
        }
    }

    /// RFC 791 section 3.1.
    #[inline(always)]
    fn read_v4(ctx: &SkBuffContext, header: &[u8; 20]) -> Self {
        let to_token = Token::from_v4([header[16], header[17], header[18], header[19]]).is_some();
        let first_fragment = header[6] & 0x1f == 0 && header[7] == 0;
        let port = if first_fragment {
            port(ctx, header[9], usize::from(header[0] & 0xf) * 4)
        } else {
            None
        };
        Self { to_token, port }
    }

    /// RFC 8200 sections 3 and 4.
    #[inline(always)]
    fn read_v6(ctx: &SkBuffContext, head: &[u8; 20]) -> Option<Self> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        /// Hides nothing (RFC 4302 section 2.2).
        const AUTHENTICATION: u8 = 51;
        const DESTINATION: u8 = 60;

        let to_token = Token::from_v6(ctx.load::<[u8; 16]>(24).ok()?).is_some();
        let mut next = head[6];
        let mut at = 40;
        for _ in 0..=MAX_EXTENSIONS {
            let len = match next {
                HOP_BY_HOP | ROUTING | DESTINATION => {
                    (usize::from(ctx.load::<u8>(at + 1).ok()?) + 1) * 8
                }
                AUTHENTICATION => (usize::from(ctx.load::<u8>(at + 1).ok()?) + 2) * 4,
                FRAGMENT => 8,
                _ => return Some(Self { to_token, port: port(ctx, next, at) }),
            };
            if next == FRAGMENT && ctx.load::<u16>(at + 2).ok()?.to_be() & 0xfff8 != 0 {
                return Some(Self { to_token, port: None });
            }
            next = ctx.load::<u8>(at).ok()?;
            at += len;
        }
        // Nobody is to hide a query behind more than there is any use for.
        Some(Self { to_token, port: Some(DNS_PORT) })
    }
}

/// The destination port of a transport that has it where UDP has.
#[inline(always)]
fn port(ctx: &SkBuffContext, protocol: u8, at: usize) -> Option<u16> {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const UDPLITE: u8 = 136;
    match protocol {
        TCP | UDP | UDPLITE => ctx.load::<u16>(at + 2).ok().map(u16::from_be),
        _ => None,
    }
}

/// Whether the packet is one of the daemon's own.
#[inline(always)]
fn is_exempt(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid while the program runs, and so is its socket, which both helpers
    // take (5.1, 5.2); the storage is only looked at for presence.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return false;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() {
            return false;
        }
        let map = ptr::from_ref(&EXEMPT).cast_mut().cast();
        !bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), 0).is_null()
    }
}
