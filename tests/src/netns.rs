//! Network namespaces without a name: held by a descriptor, gone when the last holder is, even if
//! that is this process by `kill -9`.

use crate::process::output;
use crate::sockopt;
use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::fstat;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

/// A network namespace; clones are the same one.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// A new one, with its loopback up and IPv6 addresses usable at once.
    pub fn new() -> Result<Self> {
        let netns = Self::bare()?;
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// A new one as the kernel makes it: its loopback is down.
    pub fn bare() -> Result<Self> {
        let netns = on_scratch_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET): are you root?")?;
            Self::current()
        })?;
        for conf in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{conf}/accept_dad"), "0")?;
            netns.sysctl(&format!("net/ipv6/conf/{conf}/router_solicitations"), "0")?;
        }
        Ok(netns)
    }

    /// The one this thread is in.
    pub fn current() -> Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The one a process is in.
    pub fn of_process(pid: u32) -> Result<Self> {
        Self::open(&format!("/proc/{pid}/ns/net"))
    }

    fn open(path: &str) -> Result<Self> {
        let fd = File::open(path).with_context(|| format!("open {path}"))?;
        Ok(Self { fd: Arc::new(fd.into()) })
    }

    /// Runs `f` inside, on a thread of its own. What it opens stays here.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_scratch_thread(|| {
            self.enter()?;
            Ok(f())
        })
    }

    /// Moves the calling thread here for good: for threads made for that.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&*self.fd, CloneFlags::CLONE_NEWNET).context("setns to a network namespace")
    }

    /// A command that will run here.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        enter_before_exec(&mut command, &self.fd, CloneFlags::CLONE_NEWNET);
        command
    }

    /// Runs iproute2's `ip` here.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        output(self.command("ip").args(args))
    }

    /// Runs many `ip` commands here at the price of one, a line each.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut command = self.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start ip -batch")?;
        let mut stdin = child.stdin.take().context("a pipe to ip")?;
        stdin.write_all(lines.as_bytes()).context("write to ip -batch")?;
        drop(stdin);
        let done = child.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "ip -batch: {stderr}in\n{lines}");
        Ok(())
    }

    /// Makes a pair of virtual Ethernet interfaces: `name` here and `peer_name` in `peer`.
    pub fn veth(&self, name: &str, peer: &Self, peer_name: &str) -> Result<()> {
        let there = peer.path();
        let peer = ["peer", "name", peer_name, "netns", &there];
        self.ip(&[&["link", "add", name, "type", "veth"][..], &peer].concat())?;
        Ok(())
    }

    /// Whether an interface of that name exists here.
    pub fn has_link(&self, name: &str) -> bool {
        self.ip(&["link", "show", "dev", name]).is_ok()
    }

    /// Sets a file under `/proc/sys`, as this namespace sees it.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{path}");
        self.run(|| fs::write(&path, value).with_context(|| format!("write {value} to {path}")))?
    }

    /// The inode number, by which `/proc/PID/ns/net` and log lines name it.
    pub fn inode(&self) -> Result<u64> {
        Ok(fstat(&*self.fd).context("stat of a network namespace")?.st_ino)
    }

    /// The cookie, by which kernel programs name it.
    pub fn cookie(&self) -> Result<u64> {
        self.run(|| {
            let (family, kind) = (AddressFamily::Unix, SockType::Datagram);
            let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
            let cookie = sockopt::get(&socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE);
            cookie.map(u64::from_ne_bytes).context("SO_NETNS_COOKIE: Linux 5.14 or newer")
        })?
    }

    /// A path that names it to other programs while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }
}

/// The processes that are in a network namespace or hold a descriptor of it, as `/proc` shows them.
/// Sockets hold it too and do not show: see whether the other end of its veth still exists.
pub fn holders(inode: u64) -> Vec<String> {
    let wanted = PathBuf::from(format!("net:[{inode}]"));
    let numbered = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|e| e.file_name().to_string_lossy().parse::<u32>().is_ok()).map(|e| e.path())
    };
    let mut found = Vec::new();
    for process in numbered(Path::new("/proc")) {
        let tasks = numbered(&process.join("task")).map(|task| task.join("ns/net"));
        let links = tasks.chain(numbered(&process.join("fd")));
        let ours = links.filter(|link| fs::read_link(link).is_ok_and(|target| target == wanted));
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        found.extend(ours.map(|link| format!("{} ({})", link.display(), name.trim())));
    }
    found
}

/// Makes the command enter a namespace before it runs.
pub(crate) fn enter_before_exec(command: &mut Command, fd: &Arc<OwnedFd>, kind: CloneFlags) {
    let fd = Arc::clone(fd);
    // SAFETY: between fork and exec only the system call setns is made, on a descriptor that the
    // closure itself keeps open.
    unsafe {
        command.pre_exec(move || Ok(setns(&*fd, kind)?));
    }
}

/// Runs `f` on a thread whose namespaces nobody else will see, and waits for it.
pub(crate) fn on_scratch_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(f).join().unwrap_or_else(|panic| resume_unwind(panic)))
}
