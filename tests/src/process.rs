//! Child processes that cannot outlive us: killed and reaped on drop, and killed by the kernel when
//! this process dies however it dies.
//!
//! The kernel's parent-death signal is about the *thread* that forked, so all such children are
//! forked by one thread that lives as long as the process.

use crate::wait::eventually;
use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

/// A running child, killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts the command as a child that dies with this process.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let parent = getpid();
        // SAFETY: between fork and exec only the system calls prctl and getppid are made.
        unsafe {
            command.pre_exec(move || {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
            });
        }
        let described = format!("{command:?}");
        let (reply, answer) = channel();
        forker().send((command, reply)).ok().context("the forking thread is gone")?;
        let child = answer.recv().context("the forking thread is gone")?;
        Ok(Self { child: child.with_context(|| format!("start {described}"))? })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The pipes, where the command asked for them.
    pub fn pipes(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.nix_pid(), signal).with_context(|| format!("{signal} to {}", self.pid()))
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the end, no longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut status = None;
        eventually(limit, || {
            status = self.ended();
            status.is_some()
        });
        status.with_context(|| format!("process {} still runs after {limit:?}", self.pid()))
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either fails only for a child that is reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the command to its end and gives what it printed; a failure carries what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}\n{stdout}{stderr}", output.status);
    }
    Ok(stdout)
}

type Order = (Command, Sender<io::Result<Child>>);

/// The one thread that forks.
fn forker() -> &'static Sender<Order> {
    static FORKER: OnceLock<Sender<Order>> = OnceLock::new();
    FORKER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                // The one who asked may have given up; the child is then killed on drop by nobody,
                // but by the kernel when we end.
                let _ = reply.send(command.spawn());
            }
        });
        orders
    })
}
