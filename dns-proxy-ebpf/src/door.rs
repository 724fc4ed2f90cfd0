//! The door of a listener: who gets in.
//!
//! What a socket sends to a token over `lo` is stamped on its way out by the same programs that
//! redirect, so the listener can tell it from what its neighbours forward to it, from raw packets
//! with sources of their choice, and from processes that the scope has nothing to do with. The
//! stamp is a number drawn anew by each daemon, in the packet's priority, which `lo` has no use for
//! and firewalls do not look at. Where the programs of two daemons meet a packet, the stamp of the
//! one that the token belongs to stays.

use core::ptr;

use aya_ebpf::{
    Global,
    bindings::__sk_buff,
    helpers::generated::{bpf_sk_fullsock, bpf_skb_cgroup_id},
    programs::SkBuffContext,
};
use dns_proxy_common::{Counter, STAMPED, Token};

use crate::{
    guard::{LOOPBACK, PASS, interface},
    maps::{self, ORIGINS},
};

/// A socket filter's verdicts: how much of the packet the socket gets.
const ALL: i64 = u32::MAX as i64;
const NOTHING: i64 = 0;

/// `SOCK_STREAM` and `SOCK_DGRAM`; sockets of other types write their addresses themselves.
const STREAM: u32 = 1;
const DATAGRAM: u32 = 2;

/// Protocols of packets, in network order (`ETH_P_IP`, `ETH_P_IPV6`).
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Where the flags are in a TCP header, and the two that matter (RFC 9293 section 3.1).
const TCP_FLAGS: usize = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What the stamp says, [`STAMPED`] or more; 0 if nobody stamps, because there is no guard. Set by the daemon before it
/// loads the programs.
#[unsafe(no_mangle)]
static STAMP: Global<u32> = Global::new(0);

/// Stamps a packet that leaves by `lo`, if it goes to a token.
#[inline(always)]
pub(crate) fn stamp(ctx: &SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    if let Some(token) = goes_to_token(ctx)
        && sends_for_itself(skb)
        && (priority(skb) < STAMPED || is_of_sender(token, skb))
    {
        // SAFETY: the context is valid while the program runs; `priority` may be written (5.0).
        unsafe { ptr::addr_of_mut!((*skb).priority).write_volatile(STAMP.load()) };
    }
    PASS
}

/// Whether the token was made for the cgroup of the packet's socket. It need not be: a process may
/// move to another cgroup with its sockets.
#[inline(always)]
fn is_of_sender(token: Token, skb: *mut __sk_buff) -> bool {
    // SAFETY: the helper takes the program's own context (4.18).
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    ORIGINS.get(token.0).is_some_and(|origin| origin.cgroup == cgroup)
}

/// Lets a datagram in or not.
#[inline(always)]
pub(crate) fn datagram(ctx: &SkBuffContext) -> i64 {
    judge(is_of_ours(ctx.skb.skb))
}

/// Lets a segment in or not. Only the first one is stamped for sure: the kernel answers for sockets
/// that are gone.
#[inline(always)]
pub(crate) fn segment(ctx: &SkBuffContext) -> i64 {
    let skb = ctx.skb.skb;
    let opens = || ctx.load::<u8>(TCP_FLAGS).is_ok_and(|flags| flags & (SYN | ACK) == SYN);
    judge(is_of_ours(skb) || (interface(skb) == LOOPBACK && !opens()))
}

#[inline(always)]
fn judge(admitted: bool) -> i64 {
    if admitted {
        return ALL;
    }
    maps::count(Counter::Stranger);
    NOTHING
}

#[inline(always)]
fn is_of_ours(skb: *mut __sk_buff) -> bool {
    let stamp = STAMP.load();
    interface(skb) == LOOPBACK && (stamp == 0 || priority(skb) == stamp)
}

#[inline(always)]
fn priority(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid while the program runs; `priority` may be read.
    unsafe { ptr::addr_of!((*skb).priority).read_volatile() }
}

/// Packets start at the network header here.
#[inline(always)]
fn goes_to_token(ctx: &SkBuffContext) -> Option<Token> {
    // SAFETY: the context is valid while the program runs; `protocol` may be read.
    match unsafe { ptr::addr_of!((*ctx.skb.skb).protocol).read_volatile() } {
        IPV4 => ctx.load::<[u8; 4]>(16).ok().and_then(Token::from_v4),
        IPV6 => ctx.load::<[u8; 16]>(24).ok().and_then(Token::from_v6),
        _ => None,
    }
}

/// Whether a socket sends under the addresses that the kernel gave it, and through our hooks.
#[inline(always)]
pub(crate) fn sends_for_itself(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid while the program runs, and so is its socket, which the helper
    // takes (5.1); `type` may be read of what it returns.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return false;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() {
            return false;
        }
        matches!(ptr::addr_of!((*sk).type_).read_volatile(), STREAM | DATAGRAM)
    }
}
