//! Cgroups for tests: `<v2 root>/dns-proxy-test-<pid>-<n>/`, removed with all that runs in them.

use crate::leftovers::prefix;
use crate::wait::eventually;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, write};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long the kernel may take to end killed processes.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A cgroup of ours; dropping it kills what is inside and removes it and its children.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// A new one under the root.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::create(v2_root()?.join(format!("{}{number}", prefix())))
    }

    /// A new one inside this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.dir.join(name))
    }

    /// The path below the root, as `--cgroup` wants it.
    pub fn path(&self) -> Result<String> {
        let relative = self.dir.strip_prefix(v2_root()?)?;
        Ok(relative.to_str().context("test cgroups have plain names")?.to_owned())
    }

    /// The whole path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The number by which kernel programs know it.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.dir).with_context(|| self.describe())?.ino())
    }

    /// Moves a process in.
    pub fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("move process {pid} to {}", self.describe()))
    }

    /// The processes directly in it.
    pub fn procs(&self) -> Result<Vec<u32>> {
        procs(&self.dir).with_context(|| self.describe())
    }

    /// Whether it or a child has a process.
    pub fn populated(&self) -> bool {
        populated(&self.dir)
    }

    /// Makes a command move itself in before its first instruction.
    pub(crate) fn enter_before_exec(&self, command: &mut Command) -> Result<()> {
        let file = OpenOptions::new().write(true).open(self.dir.join("cgroup.procs"));
        let entrance = file.with_context(|| format!("open cgroup.procs of {}", self.describe()))?;
        // SAFETY: between fork and exec only the system call write is made, on a descriptor that
        // the closure itself keeps open.
        unsafe {
            command.pre_exec(move || {
                write(&entrance, b"0")?;
                Ok(())
            });
        }
        Ok(())
    }

    fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("create cgroup {}", dir.display()))?;
        Ok(Self { dir })
    }

    fn describe(&self) -> String {
        format!("cgroup {}", self.dir.display())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// Where cgroup v2 is mounted, also on hybrid hosts.
pub fn v2_root() -> Result<&'static Path> {
    static ROOT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let root = ROOT.get_or_init(|| {
        let mounts = fs::read_to_string("/proc/mounts").ok()?;
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        Some(PathBuf::from(*fields.find(|f| f.get(2) == Some(&"cgroup2"))?.get(1)?))
    });
    root.as_deref().context("no cgroup v2 in /proc/mounts: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Kills what is in the cgroup and removes it from the leaves up. What cannot be done is left to
/// the next run's sweep.
pub(crate) fn remove(dir: &Path) {
    if !dir.exists() {
        return;
    }
    let _ = fs::write(dir.join("cgroup.kill"), "1");
    eventually(KILL_LIMIT, || {
        if populated(dir) {
            kill_by_pid(dir);
        }
        !populated(dir)
    });
    for child in children(dir) {
        remove(&child);
    }
    eventually(KILL_LIMIT, || fs::remove_dir(dir).is_ok() || !dir.exists());
}

/// What `cgroup.kill` does, for kernels before 5.14.
fn kill_by_pid(dir: &Path) {
    for pid in procs(dir).into_iter().flatten() {
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
    for child in children(dir) {
        kill_by_pid(&child);
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn procs(dir: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    // 0 stands for a process that this pid namespace cannot see.
    Ok(text.lines().filter_map(|pid| pid.parse().ok()).filter(|&pid| pid != 0).collect())
}

fn populated(dir: &Path) -> bool {
    let events = fs::read_to_string(dir.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}
