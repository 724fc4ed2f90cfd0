//! The real `dns-proxy` daemon as a child: started, watched, killed.

use crate::artifacts;
use crate::leftovers::scratch_dir;
use crate::log::Log;
use crate::netns::Netns;
use crate::process::Process;
use crate::wait::eventually;
use crate::world::World;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long it may take to say READY, and to stop.
const LIMIT: Duration = Duration::from_secs(10);
/// How often to look whether it died before it was ready.
const LOOK: Duration = Duration::from_millis(20);

/// The control socket's name.
const CONTROL: &str = "control.sock";

/// A running daemon, killed on drop.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    log: Log,
    notify: UnixDatagram,
    dir: TempDir,
}

impl Daemon {
    /// Starts it on the world's host; it is ready when this returns.
    pub fn start<S: AsRef<OsStr>>(world: &World, args: &[S]) -> Result<Self> {
        Self::start_command(world.command(Self::program()?), args)
    }

    /// Starts it by a command for the program that says where it runs.
    pub fn start_command<S: AsRef<OsStr>>(command: Command, args: &[S]) -> Result<Self> {
        let mut daemon = Self::launch(command, args)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts it and does not wait: for those that are not to become ready.
    pub fn launch<S: AsRef<OsStr>>(mut command: Command, args: &[S]) -> Result<Self> {
        let dir = scratch_dir()?;
        let path = dir.path().join("socket");
        let notify = UnixDatagram::bind(&path).context("bind the notify socket")?;
        notify.set_read_timeout(Some(LOOK))?;
        clean_environment(&mut command);
        command.args(args).env("NOTIFY_SOCKET", &path).env("NO_COLOR", "1");
        // Tests count what reaches the upstream; those of the cache say how large it is to be.
        command.env("DNS_PROXY_CACHE_SIZE", "0");
        // Many daemons run side by side on this machine.
        command.env("DNS_PROXY_CONTROL", dir.path().join(CONTROL));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn(command)?;
        let log = Log::of(&mut process);
        Ok(Self { process, log, notify, dir })
    }

    /// The program of this build.
    pub fn program() -> Result<PathBuf> {
        artifacts::program("dns-proxy")
    }

    /// Waits for the next `READY=1`.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_notify("READY=1")
    }

    /// Waits for a line sent to the service manager.
    pub fn wait_notify(&mut self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut buffer = [0; 1024];
        while Instant::now() < deadline {
            // An error is the time-out that lets us look around.
            if let Ok(length) = self.notify.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..length]);
                if message.lines().any(|line| line == wanted) {
                    return Ok(());
                }
            }
            if let Some(status) = self.process.ended() {
                bail!("the daemon ended before {wanted}: {status}\n{}", self.log.text());
            }
        }
        bail!("the daemon did not say {wanted} within {LIMIT:?}:\n{}", self.log.text());
    }

    /// Waits for a log line that contains `wanted`.
    pub fn wait_for_log(&self, wanted: &str, limit: Duration) -> Result<()> {
        let seen = self.log.wait_until(limit, |lines| lines.iter().any(|l| l.contains(wanted)));
        ensure!(seen, "no {wanted:?} in the daemon's log within {limit:?}:\n{}", self.log.text());
        Ok(())
    }

    /// Waits until it has listeners in the namespace.
    pub fn wait_until_serving(&self, netns: &Netns) -> Result<()> {
        self.wait_namespace(netns, true)
    }

    /// Waits until it has let go of the namespace.
    pub fn wait_until_released(&self, netns: &Netns) -> Result<()> {
        self.wait_namespace(netns, false)
    }

    /// What it has logged.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.path().join(CONTROL)
    }

    /// What `dns-proxy` with these arguments says to it.
    pub fn ask(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(Self::program()?);
        clean_environment(&mut command);
        command.args(args).env("DNS_PROXY_CONTROL", self.control());
        command.output().context("run dns-proxy")
    }

    /// How it says it is.
    pub fn status(&self) -> Result<serde_json::Value> {
        let output = self.ask(&["status", "--json"])?;
        ensure!(output.status.success(), "status: {output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills it, and returns when it is gone.
    pub fn kill9(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.process.wait(LIMIT)?;
        Ok(())
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// Asks it to stop, and gives one of the sums of its closing log line.
    pub fn stop_and_count(self, what: &str) -> Result<u64> {
        let log = self.log.clone();
        ensure!(self.stop()?.success());
        // The process is gone a moment before its last line has been read.
        let counted = |lines: &[String]| {
            let mut words = lines.iter().rev().flat_map(|line| line.split_whitespace());
            words.find_map(|word| word.strip_prefix(what)?.strip_prefix('=')?.parse().ok())
        };
        log.wait_until(LIMIT, |lines| counted(lines).is_some());
        counted(&log.lines()).with_context(|| format!("no {what} in:\n{}", log.text()))
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait(LIMIT).with_context(|| format!("the daemon:\n{}", self.log.text()))
    }

    /// Its resident memory, in bytes.
    pub fn rss(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// How many descriptors it has open.
    pub fn fds(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// Waits until how many descriptors it has open satisfies `holds`.
    pub fn wait_fds(&self, limit: Duration, holds: impl Fn(usize) -> bool) -> bool {
        eventually(limit, || self.fds().is_ok_and(&holds))
    }

    fn wait_namespace(&self, netns: &Netns, serving: bool) -> Result<()> {
        let inode = netns.inode()?;
        let reached = self.log.wait_until(LIMIT, |lines| is_serving(lines, inode) == Some(serving));
        let wanted = if serving { "ready" } else { "released" };
        ensure!(reached, "namespace {inode} is not {wanted}:\n{}", self.log.text());
        Ok(())
    }
}

/// What the log says last about a namespace; `None` if nothing.
fn is_serving(lines: &[String], inode: u64) -> Option<bool> {
    let wanted = format!("netns={inode}");
    let names =
        |line: &&String| line.split([' ', ',', '{', '}', '\t', ':']).any(|word| word == wanted);
    lines.iter().rev().filter(names).find_map(|line| {
        let ready = line.contains("namespace ready");
        (ready || line.contains("namespace released")).then_some(ready)
    })
}

/// Takes away what the caller's environment would configure; what the command was given stays.
fn clean_environment(command: &mut Command) {
    let given: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DNS_PROXY_") && !given.contains(&name) {
            command.env_remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_about_a_namespace_counts() {
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        let ready = "INFO namespace ready netns=12 cgroup=a";
        let other = "INFO namespace ready netns=123";
        let released = "INFO namespace released netns=12";
        assert_eq!(is_serving(&lines(&[other]), 12), None);
        assert_eq!(is_serving(&lines(&[ready, other]), 12), Some(true));
        assert_eq!(is_serving(&lines(&[ready, released, other]), 12), Some(false));
        assert_eq!(is_serving(&lines(&[released, ready]), 12), Some(true));
    }
}
