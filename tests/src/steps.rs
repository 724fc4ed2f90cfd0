//! A daemon's start, step by step (ptrace(2)): each system call by which it changes something that
//! outlives the call.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use crate::log::Log;
use crate::wait::eventually;
use crate::{Daemon, World};
use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long a shell may take to stop itself.
const LIMIT: Duration = Duration::from_secs(5);

/// Operations of bpf(2) that change no more than an entry of a map, or nothing (linux/bpf.h).
const ENTRIES: [u64; 5] = [1, 2, 3, 4, 21];

/// A daemon that is starting, held before each step.
#[derive(Debug)]
pub struct Starting {
    daemon: Daemon,
    main: Pid,
}

impl Starting {
    /// Starts it on the world's host. Only this thread can let it go on.
    pub fn launch<S: AsRef<OsStr>>(world: &World, args: &[S]) -> Result<Self> {
        let mut command: Command = world.command("sh");
        command.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""]).arg(Daemon::program()?);
        let daemon = Daemon::launch(command, args)?;
        let main = Pid::from_raw(daemon.pid().cast_signed());
        let stopped = || {
            let stat = std::fs::read_to_string(format!("/proc/{main}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        ensure!(eventually(LIMIT, stopped), "the shell does not stop itself");
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
        ptrace::seize(main, options).context("ptrace(PTRACE_SEIZE)")?;
        daemon.signal(Signal::SIGCONT)?;
        Ok(Self { daemon, main })
    }

    /// Lets it take that many steps, and gives how many it took: fewer if there are no more, as
    /// there are when it begins to wait for something to do.
    pub fn take(&mut self, steps: usize) -> Result<usize> {
        let mut taken = 0;
        let mut entering = false;
        loop {
            let signal = match waitpid(self.main, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceSyscall(_) => {
                    entering = !entering;
                    if entering {
                        match self.call()? {
                            Call::Step if taken == steps => return Ok(taken),
                            Call::Step => taken += 1,
                            Call::Wait => return Ok(taken),
                            Call::Other => {}
                        }
                    }
                    None
                }
                WaitStatus::Stopped(_, Signal::SIGTRAP | Signal::SIGSTOP | Signal::SIGCONT)
                | WaitStatus::PtraceEvent(..) => None,
                WaitStatus::Stopped(_, signal) => Some(signal),
                ended @ (WaitStatus::Exited(..)
                | WaitStatus::Signaled(..)
                | WaitStatus::Continued(_)
                | WaitStatus::StillAlive) => {
                    bail!("it ended: {ended:?}\n{}", self.daemon.log().text())
                }
            };
            ptrace::syscall(self.main, signal).context("ptrace(PTRACE_SYSCALL)")?;
        }
    }

    /// What it has logged.
    pub fn log(&self) -> &Log {
        self.daemon.log()
    }

    /// Kills it where it is.
    pub fn kill9(self) -> Result<()> {
        self.daemon.kill9()
    }

    fn call(&self) -> Result<Call> {
        let info = ptrace::syscall_info(self.main).context("ptrace(PTRACE_GET_SYSCALL_INFO)")?;
        ensure!(info.op == libc::PTRACE_SYSCALL_INFO_ENTRY, "not before a system call");
        // SAFETY: the kernel says that it filled in this member.
        let entry = unsafe { info.u.entry };
        Ok(Call::of(entry.nr.cast_signed(), entry.args[0]))
    }
}

/// What a system call is to a start.
enum Call {
    Step,
    /// It has started.
    Wait,
    Other,
}

impl Call {
    fn of(number: libc::c_long, first: u64) -> Self {
        match number {
            libc::SYS_bpf if ENTRIES.contains(&first) => Self::Other,
            libc::SYS_bpf
            | libc::SYS_setns
            | libc::SYS_flock
            | libc::SYS_bind
            | libc::SYS_sendto
            | libc::SYS_clone3
            | libc::SYS_mkdir
            | libc::SYS_symlink
            | libc::SYS_rename
            | libc::SYS_unlink
            | libc::SYS_rmdir
            | libc::SYS_mkdirat
            | libc::SYS_symlinkat
            | libc::SYS_renameat
            | libc::SYS_unlinkat => Self::Step,
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Self::Wait,
            _ => Self::Other,
        }
    }
}
