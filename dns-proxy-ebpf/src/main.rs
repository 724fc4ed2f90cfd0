//! The kernel half of dns-proxy: one line per hook.
//!
//! The `connect` and `sendmsg` programs send port-53 traffic of the selected cgroups to a token
//! address on loopback; `recvmsg` and `getpeername` show the nameserver again instead of the token,
//! and `getsockname` an address of the host's instead of loopback; `egress` is the net under them,
//! which `setsockopt` helps with the first query of a namespace; `datagram` and `segment` keep a
//! listener's door. Everything else passes untouched. Hooks: `cgroup_skb` 4.10, `cgroup/connect`
//! 4.17, `cgroup/sendmsg` 4.18, `cgroup/recvmsg` 5.2, `cgroup/setsockopt` 5.3, `cgroup/getpeername`
//! and `cgroup/getsockname` 5.8.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(
    clippy::needless_pass_by_value,
    missing_docs,
    reason = "the hook macros say what an entry point looks like, and document none"
)]
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a volatile read of one field counts as two operations"
)]

mod door;
mod early;
mod guard;
mod lifeline;
mod maps;
mod pulse;
mod redirect;
mod restore;
mod scope;
mod sock_addr;
mod token;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock_addr, cgroup_sockopt, socket_filter},
    programs::{SkBuffContext, SockAddrContext, SockoptContext},
};
use dns_proxy_common::Counter;
use maps::{LIVE_CONNECT4, LIVE_CONNECT6, LIVE_SENDMSG4, LIVE_SENDMSG6};
use sock_addr::{Sockaddr4, Sockaddr6};

/// TCP and connected UDP over IPv4.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    redirect::redirect::<Sockaddr4>(&ctx, Counter::Connect4)
}

/// TCP and connected UDP over IPv6, and of IPv6 sockets to IPv4-mapped addresses.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    redirect::redirect::<Sockaddr6>(&ctx, Counter::Connect6)
}

/// UDP with an address, over IPv4; also of IPv6 sockets to IPv4-mapped addresses.
#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    redirect::redirect::<Sockaddr4>(&ctx, Counter::Sendmsg4)
}

/// UDP with an address, over IPv6.
#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    redirect::redirect::<Sockaddr6>(&ctx, Counter::Sendmsg6)
}

/// Stands before [`connect4`] under `--fail closed`.
#[cgroup_sock_addr(connect4)]
fn closed_connect4(ctx: SockAddrContext) -> i32 {
    lifeline::enter::<Sockaddr4>(&ctx, &LIVE_CONNECT4)
}

/// Stands before [`connect6`] under `--fail closed`.
#[cgroup_sock_addr(connect6)]
fn closed_connect6(ctx: SockAddrContext) -> i32 {
    lifeline::enter::<Sockaddr6>(&ctx, &LIVE_CONNECT6)
}

/// Stands before [`sendmsg4`] under `--fail closed`.
#[cgroup_sock_addr(sendmsg4)]
fn closed_sendmsg4(ctx: SockAddrContext) -> i32 {
    lifeline::enter::<Sockaddr4>(&ctx, &LIVE_SENDMSG4)
}

/// Stands before [`sendmsg6`] under `--fail closed`.
#[cgroup_sock_addr(sendmsg6)]
fn closed_sendmsg6(ctx: SockAddrContext) -> i32 {
    lifeline::enter::<Sockaddr6>(&ctx, &LIVE_SENDMSG6)
}

/// The source that a received UDP datagram shows on an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    restore::restore::<Sockaddr4>(&ctx);
    1
}

/// The source that a received UDP datagram shows on an IPv6 socket, IPv4-mapped ones included.
#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    restore::restore::<Sockaddr6>(&ctx);
    1
}

/// The peer of a connected IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    restore::restore::<Sockaddr4>(&ctx);
    1
}

/// The peer of a connected IPv6 socket, IPv4-mapped ones included.
#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    restore::restore::<Sockaddr6>(&ctx);
    1
}

/// The own address of an IPv4 socket.
#[cgroup_sock_addr(getsockname4)]
fn getsockname4(ctx: SockAddrContext) -> i32 {
    restore::restore_own::<Sockaddr4>(&ctx);
    1
}

/// The own address of an IPv6 socket, IPv4-mapped ones included.
#[cgroup_sock_addr(getsockname6)]
fn getsockname6(ctx: SockAddrContext) -> i32 {
    restore::restore_own::<Sockaddr6>(&ctx);
    1
}

/// Every packet that leaves.
#[cgroup_skb(egress)]
fn egress(ctx: SkBuffContext) -> i32 {
    guard::judge(&ctx)
}

/// Every datagram for a listener.
#[socket_filter]
fn datagram(ctx: SkBuffContext) -> i64 {
    door::datagram(&ctx)
}

/// Every segment for a listener or one of its connections.
#[socket_filter]
fn segment(ctx: SkBuffContext) -> i64 {
    door::segment(&ctx)
}

/// Every socket option that is set.
#[cgroup_sockopt(setsockopt)]
fn setsockopt(ctx: SockoptContext) -> i32 {
    early::setsockopt(&ctx)
}

/// Lets the programs call GPL-only helpers; the kernel knows this spelling.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {} // unreachable: the verifier refuses a program that could get here
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
