//! Socket options that `nix` does not know.

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

/// Reads an option whose value is exactly `N` bytes.
///
/// # Errors
/// The kernel refuses, or the value has another length.
pub fn get<const N: usize>(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
) -> Result<[u8; N]> {
    let fd = socket.as_fd().as_raw_fd();
    let mut value = [0_u8; N];
    let mut length = libc::socklen_t::try_from(N)?;
    // SAFETY: getsockopt(2) writes at most `length` bytes, which is the size of `value`, and
    // stores how many in `length`; any bytes are a valid `value`.
    let got = unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &mut length) };
    Errno::result(got).with_context(|| format!("getsockopt {level} {name}"))?;
    ensure!(usize::try_from(length)? == N, "option {level} {name} has {length} bytes, not {N}");
    Ok(value)
}

/// Lets a socket be bound to any address of this family, its host's or not; it takes no privilege.
pub fn freebind(socket: impl AsFd, addr: IpAddr) -> Result<()> {
    let (level, option) = match addr {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_FREEBIND),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
    };
    set(socket, level, option, &1_i32.to_ne_bytes())
}

/// Sets an option to these bytes.
///
/// # Errors
/// The kernel refuses.
pub fn set(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: &[u8]) -> Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let length = libc::socklen_t::try_from(value.len())?;
    // SAFETY: setsockopt(2) reads `length` bytes, which is the size of `value`.
    let set = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), length) };
    Errno::result(set).map(drop).with_context(|| format!("setsockopt {level} {name}"))
}
