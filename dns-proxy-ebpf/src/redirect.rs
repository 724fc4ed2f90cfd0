//! On the way out: port 53 becomes a token address on loopback.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_current_cgroup_id, programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use dns_proxy_common::{Counter, DNS_PORT, Device, Event, Listener, Origin};

use crate::{
    early,
    maps::{self, DEVICES, EXEMPT, READY},
    pulse, scope,
    sock_addr::{self, Addr, Sockaddr},
    token,
};

pub(crate) const PASS: i32 = 1;
/// The system call fails with EPERM.
const REFUSE: i32 = 0;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_UDPLITE: u32 = 136;
const IPPROTO_MPTCP: u32 = 262;
/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Redirects the address of this call if it is a nameserver's; `hook` counts it.
#[inline(always)]
pub(crate) fn redirect<A: Sockaddr>(ctx: &SockAddrContext, hook: Counter) -> i32 {
    let outcome = if sock_addr::port_be(ctx) == DNS_PORT.to_be() {
        match to_token::<A>(ctx) {
            Ok(()) => hook,
            Err(reason) => reason,
        }
    } else if dials_token::<A>(ctx) {
        Counter::TokenDialled
    } else {
        return PASS;
    };
    conclude(ctx, outcome)
}

/// Refuses what would be redirected if the daemon lived.
#[inline(always)]
pub(crate) fn refuse<A: Sockaddr>(ctx: &SockAddrContext) -> i32 {
    let outcome = match is_asked(ctx, A::addr(ctx)) {
        Ok(()) | Err(Counter::Undecided) => Counter::DaemonDead,
        Err(reason) => reason,
    };
    conclude(ctx, outcome)
}

#[inline(always)]
fn conclude(ctx: &SockAddrContext, outcome: Counter) -> i32 {
    maps::count(outcome);
    debug!(ctx, "port 53, pid {}: outcome {}", ctx.tgid(), outcome as u32);
    verdict(outcome)
}

/// Sets the token address, or names the reason why not.
#[inline(always)]
fn to_token<A: Sockaddr>(ctx: &SockAddrContext) -> Result<(), Counter> {
    let addr = A::addr(ctx);
    match is_asked(ctx, addr) {
        Ok(()) => pulse::check()?,
        // An answer, encrypted, harms nobody whom the daemon then finds not to be selected.
        Err(Counter::Undecided) => {
            pulse::check()?;
            maps::count(Counter::Undecided);
        }
        Err(reason) => return Err(reason),
    }
    if sock_addr::protocol(ctx) == IPPROTO_UDPLITE {
        return Err(Counter::Transport);
    }
    let origin = Origin {
        // SAFETY: the helper takes nothing (4.18).
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        netns: sock_addr::netns(ctx),
        addr: addr.octets(),
    };
    // SAFETY: the value is one aligned word, replaced as a whole.
    let listener = if let Some(listener) = unsafe { READY.get(origin.netns) } {
        listener
    } else {
        if !early::charge(origin.netns) {
            return Err(Counter::NotReady);
        }
        maps::announce(origin.netns, ctx.tgid(), Event::NETNS);
        early::listener().ok_or(Counter::NotReady)?
    };
    let family = if addr.is_v4() { Listener::V4 } else { Listener::V6 };
    if listener.families & family == 0 {
        maps::announce(origin.netns, ctx.tgid(), Event::FAMILY);
        let none = !addr.is_v4() && listener.families & Listener::NO_V6 != 0;
        return Err(if none { Counter::NoIpv6 } else { Counter::NoFamily });
    }
    // Without a route of its own a token would leave the host by the device, in clear.
    let index = sock_addr::bound_device(ctx);
    if !matches!(index, 0 | LOOPBACK) {
        let family = if addr.is_link_local() { Device::LINK_LOCAL } else { u32::from(family) };
        let device = Device { netns: origin.netns, index, family };
        // SAFETY: the value is one octet, only looked at for presence.
        if unsafe { DEVICES.get(device) }.is_none() {
            return Err(Counter::DeviceBound);
        }
    }
    let token = token::of(&origin)?;
    A::set_addr(ctx, addr.token_beside(token));
    sock_addr::set_port_be(ctx, listener.port_be);
    Ok(())
}

/// Whether it is a nameserver out there that somebody of the scope asks, or the reason why not.
#[inline(always)]
fn is_asked(ctx: &SockAddrContext, addr: Addr) -> Result<(), Counter> {
    if addr.is_loopback() {
        return Err(Counter::Loopback);
    }
    let protocol = sock_addr::protocol(ctx);
    let asks = matches!(protocol, IPPROTO_UDP | IPPROTO_TCP | IPPROTO_MPTCP | IPPROTO_UDPLITE);
    if addr.is_multicast() || !asks {
        return Err(Counter::NotDns);
    }
    let judged = scope::of_task();
    // SAFETY: the socket belongs to this context; its storage is only looked at for presence.
    if scope::may_be_selected(judged) && !unsafe { EXEMPT.get_ptr_mut(ctx) }.is_null() {
        return Err(Counter::Exempt);
    }
    judged
}

/// Whether a token is dialled by hand. Whoever it is for gets there by its nameserver's address.
#[inline(always)]
fn dials_token<A: Sockaddr>(ctx: &SockAddrContext) -> bool {
    let addr = A::addr(ctx);
    if addr.token().is_none() || sock_addr::is_connected_there(ctx, addr) {
        return false;
    }
    // SAFETY: the value is one aligned word, replaced as a whole.
    let listener = unsafe { READY.get(sock_addr::netns(ctx)) };
    // Another program's service on an address like a token is none of ours.
    listener.is_some_and(|listener| listener.port_be == sock_addr::port_be(ctx))
}

/// What the caller gets. In a selected cgroup nothing that is not redirected may leave.
#[inline(always)]
fn verdict(outcome: Counter) -> i32 {
    match outcome {
        Counter::Connect4
        | Counter::Connect6
        | Counter::Sendmsg4
        | Counter::Sendmsg6
        | Counter::Restored
        | Counter::NotSelected
        | Counter::Excluded
        | Counter::Exempt
        | Counter::Loopback
        | Counter::NotDns
        | Counter::Unattended
        | Counter::NoIpv6
        | Counter::GuardQuery
        | Counter::GuardToken
        | Counter::UnknownToken
        | Counter::Stranger
        | Counter::EventLost
        | Counter::Captured
        | Counter::Delayed => PASS,
        Counter::NotReady
        | Counter::NoFamily
        | Counter::DeviceBound
        | Counter::Transport
        | Counter::NoToken
        | Counter::Undecided
        | Counter::DaemonDead
        | Counter::TokenDialled
        | Counter::NotCaptured => REFUSE,
    }
}
