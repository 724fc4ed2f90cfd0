//! The loud check: tests on the real kernel never skip themselves.

use crate::cgroup::v2_root;
use nix::unistd::geteuid;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};

/// Bit numbers in `CapEff` of /proc/self/status, see capabilities(7).
const NEEDED: [(u32, &str); 3] =
    [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")];
/// `BPF_MAP_CREATE` of bpf(2).
const BPF_MAP_CREATE: libc::c_long = 0;
/// `BPF_MAP_TYPE_ARRAY` of bpf(2).
const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// Panics unless this process may make namespaces, cgroups and kernel programs.
#[track_caller]
pub fn require_root_and_bpf() {
    let hint = "these tests need root on a kernel with eBPF: run `cargo xtask test` with sudo, \
                or in a privileged container";
    assert!(geteuid().is_root(), "not root; {hint}");
    let effective = effective_capabilities();
    for (bit, name) in NEEDED {
        assert!(effective >> bit & 1 == 1, "{name} is missing; {hint}");
    }
    let made = create_map();
    assert!(made.is_ok(), "bpf(BPF_MAP_CREATE): {made:?}; {hint}");
    let root = v2_root();
    assert!(root.is_ok(), "{root:?}; {hint}");
}

fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Makes the smallest map there is, and lets it go.
fn create_map() -> nix::Result<OwnedFd> {
    // map_type, key_size, value_size, max_entries: the head of union bpf_attr.
    let attr: [u32; 4] = [BPF_MAP_TYPE_ARRAY, 4, 4, 1];
    // SAFETY: bpf(2) reads the 16 bytes of `attr` and writes nothing.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attr.as_ptr(), size_of_val(&attr)) };
    let fd = nix::errno::Errno::result(fd)?;
    let fd = i32::try_from(fd).map_err(|_| nix::Error::EBADF)?;
    // SAFETY: the descriptor was just made and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
