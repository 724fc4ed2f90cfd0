//! On the way back: the token becomes the nameserver that the application asked, and loopback the
//! address that it would have asked from.

use aya_ebpf::programs::SockAddrContext;
use dns_proxy_common::{Counter, DNS_PORT, NEWBORN};

use crate::{
    maps::{self, ORIGINS, READY, SOURCES},
    sock_addr::{self, Sockaddr},
};

/// Replaces a token address, if it is one of this namespace and comes from our listener's port.
/// Any other address costs one comparison.
#[inline(always)]
pub(crate) fn restore<A: Sockaddr>(ctx: &SockAddrContext) {
    let Some(token) = A::addr(ctx).token() else {
        return;
    };
    let netns = sock_addr::netns(ctx);
    // SAFETY: the value is one aligned word, replaced as a whole.
    let Some(listener) = (unsafe { READY.get(netns).or_else(|| READY.get(NEWBORN)) }) else {
        return;
    };
    if sock_addr::port_be(ctx) != listener.port_be {
        return;
    }
    match ORIGINS.get(token.0) {
        Some(origin) if origin.netns == netns => {
            A::set_addr(ctx, sock_addr::Addr::from_octets(origin.addr));
            sock_addr::set_port_be(ctx, DNS_PORT.to_be());
            maps::count(Counter::Restored);
        }
        _ => maps::count(Counter::UnknownToken),
    }
}

/// Replaces the own address of a socket that is connected to our listener, if that is loopback. Any
/// other socket costs one comparison.
#[inline(always)]
pub(crate) fn restore_own<A: Sockaddr>(ctx: &SockAddrContext) {
    let own = A::addr(ctx);
    if !own.is_loopback() || A::peer(ctx).token().is_none() {
        return;
    }
    let netns = sock_addr::netns(ctx);
    // SAFETY: the value is one aligned word, replaced as a whole.
    let Some(listener) = (unsafe { READY.get(netns) }) else {
        return;
    };
    if sock_addr::peer_port_be(ctx) != listener.port_be {
        return;
    }
    // SAFETY: entries are replaced, never changed, and live as long as the program runs.
    let Some(sources) = (unsafe { SOURCES.get(netns) }) else {
        return;
    };
    let source = sock_addr::Addr::from_octets(if own.is_v4() { sources.v4 } else { sources.v6 });
    if !source.is_loopback() {
        A::set_addr(ctx, source);
    }
}
