//! On the way back: the token becomes the nameserver that the application asked.

use aya_ebpf::programs::SockAddrContext;
use dns_proxy_common::{Counter, DNS_PORT};

use crate::{
    maps::{self, ORIGINS, READY},
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
    let Some(listener) = (unsafe { READY.get(netns) }) else {
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
