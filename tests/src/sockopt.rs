//! Socket options that `nix` does not know.

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// Reads an option whose value is exactly `N` bytes.
pub(crate) fn get<const N: usize>(
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
