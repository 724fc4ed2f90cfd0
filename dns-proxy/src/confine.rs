//! What the daemon gives up before it reads the first octet of anybody else's: a bug in a parser must
//! not be worth root on the host.
//!
//! * **Capabilities**: what interception needs, or little more than a low port without it. Workers,
//!   who read what clients and upstreams send, keep only what lets them enter a namespace and exempt a
//!   socket.
//! * **No new privileges**: nothing that is executed could gain any.
//! * **System calls** (seccomp): nobody executes, traces, mounts, loads modules, or goes round this
//!   filter through io_uring.
//! * **Files** (landlock, Linux 5.13): workers have none. The whole daemon cannot be kept from files
//!   this way: a landlocked process may not look at the namespaces of others (`/proc/PID/ns`).
//! * **Core dumps** would hold names that clients ask for, and session keys: there are none.
//!
//! None of it holds for `exec`, but for its workers: its command must find what it would without us.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use landlock::{ABI, Access as _, AccessFs, Ruleset, RulesetAttr as _, RulesetError};
use nix::{errno::Errno, libc, sys::prctl};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use thiserror::Error;

/// What interception takes: bpf(2), to enter namespaces and see those of others, routes and
/// sock_diag; and files and sockets of whoever runs containers.
const INTERCEPTION: [Capability; 7] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
];
/// What listeners take, and a configuration that is read again.
const ALWAYS: [Capability; 2] = [Capability::CAP_NET_BIND_SERVICE, Capability::CAP_DAC_READ_SEARCH];
/// What workers take of it: to enter a namespace (`setns`), and to exempt sockets (bpf(2)).
const WORKER: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN];

/// What is denied to all threads (`EPERM`). Not an enumeration of what is allowed: that would be of
/// what the C library of today does.
const DENIED: &[libc::c_long] = &[
    // To become another program, or be in another one.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // To go round this filter, and parts of the kernel with a past.
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // To change what the host consists of.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
];

/// Why less privilege could not be had.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The kernel refused.
    #[error("cannot give up privileges ({what}): {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The operating system's words.
        source: Errno,
    },
    /// Capabilities.
    #[error("cannot give up capabilities: {0}")]
    Capabilities(#[from] CapsError),
    /// The filter of system calls.
    #[error("cannot filter system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The same, when it is made.
    #[error("cannot make a filter of system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// Files.
    #[error("cannot give up files: {0}")]
    Landlock(#[from] RulesetError),
}

/// Confines the calling thread, and all that it starts from now on: call it before there are others.
///
/// # Errors
/// The kernel refuses what any process may ask of it.
pub fn daemon(intercepts: bool) -> Result<(), ConfineError> {
    let failed = |what| move |source| ConfineError::Kernel { what, source };
    prctl::set_dumpable(false).map_err(failed("PR_SET_DUMPABLE"))?;
    prctl::set_no_new_privs().map_err(failed("PR_SET_NO_NEW_PRIVS"))?;
    let needed = INTERCEPTION.iter().filter(|_| intercepts).chain(&ALWAYS);
    keep(&needed.copied().collect())?;
    let rules = DENIED.iter().map(|number| (*number, Vec::new())).collect();
    let deny = SeccompAction::Errno(Errno::EPERM as u32);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, deny, arch)?.try_into()?;
    Ok(seccompiler::apply_filter(&filter)?)
}

/// Confines the calling thread to what a worker does. A kernel without landlock is no error.
///
/// # Errors
/// As [`daemon`].
pub fn worker() -> Result<(), ConfineError> {
    keep(&WORKER.into_iter().collect())?;
    let files = AccessFs::from_all(ABI::V6);
    Ruleset::default().handle_access(files)?.create()?.restrict_self()?;
    Ok(())
}

/// Gives up all capabilities but those of these that there are.
fn keep(needed: &CapsHashSet) -> Result<(), CapsError> {
    let kept = &caps::read(None, CapSet::Permitted)? & needed;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io, process::Command, thread};

    use super::*;

    /// Filters and capabilities are those of a thread.
    fn in_a_thread<T: Send>(act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| scope.spawn(act).join()).expect("no panic")
    }

    fn is_denied<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)))
    }

    #[test]
    fn the_daemon_and_its_threads_execute_nothing_but_read_files() {
        in_a_thread(|| {
            daemon(true).expect("confined");
            assert!(is_denied(Command::new("/bin/true").status()));
            assert!(in_a_thread(|| is_denied(Command::new("/bin/true").status())));
            assert!(File::open("/proc/self/status").is_ok());
        });
    }

    #[test]
    fn capabilities_that_nothing_needs_are_gone_for_good() {
        in_a_thread(|| {
            let before = caps::read(None, CapSet::Permitted).expect("readable");
            daemon(false).expect("confined");
            for set in [CapSet::Permitted, CapSet::Effective] {
                let kept = caps::read(None, set).expect("readable");
                assert_eq!(kept, &before & &ALWAYS.into_iter().collect());
            }
        });
    }

    #[test]
    fn workers_have_no_files() {
        in_a_thread(|| {
            worker().expect("confined");
            assert!(is_denied(File::open("/proc/self/status")));
            assert!(is_denied(File::create("/tmp/of-a-worker")));
            assert!(is_denied(Command::new("/bin/true").status()));
        });
    }
}
