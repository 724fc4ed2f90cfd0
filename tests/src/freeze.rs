//! Threads that hang, because we hold them (ptrace(2)).

use std::fs;

use anyhow::{Context, Result};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A thread of another process that does not run while this lives. Only the thread that made this
/// can let it go.
#[derive(Debug)]
pub struct Frozen(Pid);

impl Frozen {
    /// Holds the thread of that name.
    pub fn thread(process: u32, name: &str) -> Result<Self> {
        let named = |entry: &fs::DirEntry| {
            let comm = fs::read_to_string(entry.path().join("comm"));
            comm.is_ok_and(|comm| comm.trim_end() == name)
        };
        let mut threads = fs::read_dir(format!("/proc/{process}/task"))?.flatten();
        let thread = threads.find(named).with_context(|| format!("no thread {name}"))?;
        let id = Pid::from_raw(thread.file_name().to_string_lossy().parse()?);
        ptrace::seize(id, ptrace::Options::empty()).context("ptrace(PTRACE_SEIZE)")?;
        let frozen = Self(id);
        ptrace::interrupt(id).context("ptrace(PTRACE_INTERRUPT)")?;
        waitpid(id, Some(WaitPidFlag::__WALL)).context("wait for the thread to stop")?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It fails only for a thread that is gone.
        let _ = ptrace::detach(self.0, None);
    }
}
