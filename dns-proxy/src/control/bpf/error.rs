//! Why the kernel side is not there.

use std::io;

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use nix::libc;
use thiserror::Error;

/// Why the kernel side is not there.
#[derive(Debug, Error)]
pub enum BpfError {
    /// The kernel refused the object: privileges or age.
    #[error(
        "the kernel refused the eBPF programs: {0}; this needs Linux 5.15 and root \
         (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN)"
    )]
    Load(#[from] EbpfError),
    /// The kernel refused one program.
    #[error("the kernel refused eBPF program {name}: {source}")]
    Program {
        /// Which one.
        name: &'static str,
        /// Its words.
        source: ProgramError,
    },
    /// A map operation failed.
    #[error("eBPF map {name}: {source}")]
    Map {
        /// Which map.
        name: &'static str,
        /// The kernel's words.
        source: MapError,
    },
    /// The object is not ours.
    #[error("the eBPF object has no {0}; was DNS_PROXY_EBPF_OBJECT built from another version?")]
    Missing(&'static str),
    /// Somebody else holds the cgroup.
    #[error(
        "cannot attach {program} to cgroup {cgroup}: another tool has attached a program of its own \
         there, or to a cgroup above, and lets nobody in beside it; `bpftool cgroup tree` shows \
         which; have it attach with BPF_F_ALLOW_MULTI, or leave the cgroup out of the scope"
    )]
    Held {
        /// Its directory.
        cgroup: String,
        /// The program, which has the name of its hook.
        program: &'static str,
    },
    /// The bpf file system.
    #[error("cannot keep {path} for --fail closed: {source}")]
    Pins {
        /// The pin or directory.
        path: String,
        /// The operating system's words.
        source: io::Error,
    },
    /// The cgroup is gone or not ours to attach to.
    #[error("cannot attach to cgroup {cgroup}: {source}")]
    Cgroup {
        /// Its directory.
        cgroup: String,
        /// The operating system's words.
        source: io::Error,
    },
}

/// Removing what is not there is no failure.
pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}
