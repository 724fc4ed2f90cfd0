//! What is on the hooks under `--fail closed`, and stays there when the daemon is gone.
//!
//! The daemon pins these programs; those that redirect are in arrays that it does not. The kernel
//! empties such an array when the last descriptor of it is closed (`prog_array_map_clear`, 4.2),
//! which is the moment in which the daemon is gone, however it went: nobody is sent to where it
//! listened.

use aya_ebpf::{btf_maps::ProgramArray, programs::SockAddrContext};
use dns_proxy_common::DNS_PORT;

use crate::{
    redirect,
    sock_addr::{self, Sockaddr},
};

/// Redirects by the program in `live`, or refuses if the daemon took that along.
#[inline(always)]
pub(crate) fn enter<A: Sockaddr>(ctx: &SockAddrContext, live: &ProgramArray<1>) -> i32 {
    let is_dns = sock_addr::port_be(ctx) == DNS_PORT.to_be();
    if !is_dns && A::addr(ctx).token().is_none() {
        return redirect::PASS;
    }
    // SAFETY: nothing here waits to be dropped.
    unsafe { live.tail_call(ctx, 0) };
    // Nobody listens on a token any more.
    if is_dns { redirect::refuse::<A>(ctx) } else { redirect::PASS }
}
