//! Where cgroup v2 and bpffs are mounted, from `/proc/self/mounts` (proc(5)).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Why a file system cannot be used.
#[derive(Debug, Error)]
pub enum MountError {
    /// `/proc` is not there or not readable.
    #[error("cannot read /proc/self/mounts: {0}")]
    Proc(#[source] io::Error),
    /// Nowhere mounted.
    #[error(
        "no cgroup v2 is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup), in a container \
         pass the host's (-v /sys/fs/cgroup:/sys/fs/cgroup --cgroupns=host), or name it with \
         --cgroup-root"
    )]
    NoCgroup2,
    /// The directory that was named is something else.
    #[error("--cgroup-root {0}: not a cgroup v2 directory (it has no cgroup.controllers file)")]
    NotCgroup2(PathBuf),
    /// No bpf file system. We do not mount one: in a container, or a service with a mount namespace
    /// of its own, it would go with the daemon.
    #[error(
        "--fail closed needs the bpf file system, which keeps the programs in place when the daemon \
         is gone, and none is mounted; mount it (mount -t bpf bpf /sys/fs/bpf), or in a container \
         pass the host's (-v /sys/fs/bpf:/sys/fs/bpf)"
    )]
    NoBpffs,
}

/// The root of cgroup v2: the directory that was named (and checked), else the first mount of its
/// kind, which on a hybrid host is found beside the v1 ones.
///
/// # Errors
/// There is none.
pub fn cgroup2_root(named: Option<&Path>) -> Result<PathBuf, MountError> {
    if let Some(dir) = named {
        return Ok(dir.to_owned());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(MountError::Proc)?;
    first_of_type(&mounts, "cgroup2").ok_or(MountError::NoCgroup2)
}

/// Checks that a directory is a cgroup v2 one.
///
/// # Errors
/// [`MountError::NotCgroup2`] if not.
pub fn check_cgroup2(dir: &Path) -> Result<(), MountError> {
    // The one file that every cgroup v2 directory has, and no v1 directory.
    let found = dir.join("cgroup.controllers").is_file();
    found.then_some(()).ok_or_else(|| MountError::NotCgroup2(dir.to_owned()))
}

/// Where the bpf file system is mounted, if it is.
pub fn bpffs() -> Option<PathBuf> {
    first_of_type(&fs::read_to_string("/proc/self/mounts").ok()?, "bpf")
}

fn first_of_type(mounts: &str, wanted: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_device, dir, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == wanted).then(|| PathBuf::from(unescape(dir)))
    })
}

/// Undoes the octal escapes for space, tab, newline and backslash (getmntent(3)).
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
bpf /sys/fs/bpf bpf rw 0 0
";

    #[test]
    fn v2_is_found_on_a_hybrid_host() {
        assert_eq!(first_of_type(HYBRID, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(first_of_type(HYBRID, "bpf"), Some("/sys/fs/bpf".into()));
        assert_eq!(first_of_type("", "cgroup2"), None);
    }

    #[test]
    fn escaped_directories_are_read_back() {
        let mounts = "none /mnt/a\\040b cgroup2 rw 0 0\n";
        assert_eq!(first_of_type(mounts, "cgroup2"), Some("/mnt/a b".into()));
    }
}
