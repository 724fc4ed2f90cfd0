//! Breaks connections to nameservers that are older than the redirection, so that their owners
//! connect again, through us.
//!
//! Sockets that are not connected are left alone: their next datagram is redirected anyway. Where
//! the kernel cannot destroy sockets, the leak guard still refuses what they send.

use std::io;

use dns_proxy_common::DNS_PORT;

use super::sock_diag::{self, ESTABLISHED, SYN_SENT};

/// Destroys the sockets of these cgroups that are connected to port 53 elsewhere, in the namespace
/// that this thread is in; how many there were.
///
/// # Errors
/// The kernel does not know sock_diag, or may not be asked (CAP_NET_ADMIN).
pub fn destroy(is_meant: impl Fn(u64) -> bool) -> io::Result<usize> {
    let mut destroyed = 0;
    for socket in sock_diag::connected_to(DNS_PORT, ESTABLISHED | SYN_SENT)? {
        let selected = socket.cgroup.is_some_and(&is_meant);
        if selected && !socket.peer().is_loopback() {
            destroyed += usize::from(socket.destroy()?);
        }
    }
    Ok(destroyed)
}
