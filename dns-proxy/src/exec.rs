//! `dns-proxy exec -- CMD`: one command, and its children, in a cgroup of its own.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{self, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    libc,
    sys::{
        resource::{Resource, getrlimit, rlim_t, setrlimit},
        signal::{SigSet, SigmaskHow, Signal, kill},
        signalfd::{SfdFlags, SignalFd, siginfo},
    },
    unistd::Pid,
};
use tokio::{
    io::unix::AsyncFd,
    process::{Child, Command},
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use crate::{
    app::App,
    config::Config,
    control::{mounts, pattern::CgroupPattern},
    polled::Polled,
};

/// Signals that are passed on to the command.
const FORWARDED: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];
/// How long what the command left behind may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);
/// What a shell exits with when a command cannot be run, or is not there (POSIX 2.8.2).
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs the command and gives its exit status, as a shell would: 128 and the signal's number if a
/// signal ended it.
///
/// # Errors
/// It could not be prepared. A command that does not start is no error but status 126 or 127.
pub async fn exec(mut config: Config, command: Vec<OsString>) -> Result<u8> {
    // Blocked before the command runs, so that none is lost and none ends us first.
    let (signals, unblocked) = block_signals()?;
    let root = mounts::cgroup2_root(config.cgroup_root.as_deref())?;
    let cgroup = OwnCgroup::create(&root)?;
    config.scope.select = vec![cgroup.pattern(&root)?];
    let files = getrlimit(Resource::RLIMIT_NOFILE)?;
    let inherit = Inherit { mask: unblocked, files };
    // Nobody else can want a cgroup of our own.
    let mut app = App::start(config, None)?;
    let status = app.run_until(supervise(&cgroup, command, &signals, inherit)).await;
    if status.is_err() {
        // Nothing of it may run on with nobody to encrypt its DNS.
        cgroup.kill_all();
    }
    app.stop().await?;
    status?
}

/// What the command must find as we did.
#[derive(Clone, Copy)]
struct Inherit {
    mask: SigSet,
    /// Soft and hard limit of open files.
    files: (rlim_t, rlim_t),
}

async fn supervise(
    cgroup: &OwnCgroup,
    command: Vec<OsString>,
    signals: &AsyncFd<Polled<SignalFd>>,
    inherit: Inherit,
) -> Result<u8> {
    let mut child = match cgroup.spawn(&command, inherit) {
        Ok(child) => child,
        Err(error) => {
            let name = command.first().map(|name| name.to_string_lossy().into_owned());
            tracing::error!("{}: {error}", name.unwrap_or_default());
            let missing = error.kind() == io::ErrorKind::NotFound;
            return Ok(if missing { NOT_FOUND } else { CANNOT_RUN });
        }
    };
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.context("cannot wait for the command")?,
            info = next_signal(signals) => forward(&info?, &child),
        }
    };
    cgroup.end_the_rest().await;
    Ok(exit_code(status))
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// Signals as they come, and the mask from before, which the command gets.
fn block_signals() -> Result<(AsyncFd<Polled<SignalFd>>, SigSet)> {
    let set: SigSet = FORWARDED.into_iter().collect();
    let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK).context("cannot block signals")?;
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("cannot receive signals")?;
    Ok((Polled::register(fd)?, before))
}

async fn next_signal(signals: &AsyncFd<Polled<SignalFd>>) -> Result<siginfo> {
    loop {
        let mut ready = signals.readable().await?;
        match ready.try_io(|fd| fd.get_ref().read_signal()?.ok_or(io::ErrorKind::WouldBlock.into()))
        {
            Ok(info) => return Ok(info?),
            Err(_would_block) => {}
        }
    }
}

/// Passes a signal on, unless the terminal sent it to the command as well.
fn forward(info: &siginfo, child: &Child) {
    const FROM_KERNEL: i32 = 0x80; // SI_KERNEL
    if info.ssi_code == FROM_KERNEL {
        return;
    }
    let signal = Signal::try_from(info.ssi_signo as i32).ok();
    if let (Some(signal), Some(pid)) = (signal, child.id())
        && let Err(error) = kill(Pid::from_raw(pid as i32), signal)
    {
        debug!(%error, %signal, "not passed on"); // it has just ended
    }
}

/// The cgroup made for the command, removed when this is dropped.
struct OwnCgroup {
    dir: PathBuf,
}

impl OwnCgroup {
    /// Below our own cgroup, so that limits and scopes that hold for us hold for the command.
    fn create(root: &Path) -> Result<Self> {
        let own =
            fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
        let parent = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let dir = root.join(parent).join(format!("dns-proxy-exec-{}", process::id()));
        fs::create_dir(&dir).with_context(|| {
            format!(
                "cannot make cgroup {}; `exec` needs root and a writable cgroup v2",
                dir.display()
            )
        })?;
        Ok(Self { dir })
    }

    fn pattern(&self, root: &Path) -> Result<CgroupPattern> {
        let below =
            self.dir.strip_prefix(root)?.to_str().context("a cgroup path that is no UTF-8")?;
        Ok(CgroupPattern::literal(below))
    }

    fn spawn(&self, command: &[OsString], inherit: Inherit) -> io::Result<Child> {
        let (program, args) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut procs = fs::OpenOptions::new().write(true).open(self.dir.join("cgroup.procs"))?;
        let mut command = process::Command::new(program);
        command.args(args);
        // SAFETY: between fork and exec only write(2), sigprocmask(2) and setrlimit(2) are called,
        // which are plain system calls; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                procs.write_all(b"0")?;
                inherit.mask.thread_set_mask()?;
                let (soft, hard) = inherit.files;
                setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
                Ok(())
            });
        }
        Command::from(command).spawn()
    }

    /// Ends what the command left running.
    async fn end_the_rest(&self) {
        let pids = self.pids();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            // It may end by itself meanwhile.
            let _: nix::Result<()> = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let end = Instant::now() + GRACE;
        while Instant::now() < end && !self.pids().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
        self.kill_all();
        while Instant::now() < end + GRACE && !self.pids().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn kill_all(&self) {
        // One write ends all, forks included (5.14).
        if fs::write(self.dir.join("cgroup.kill"), "1").is_err() {
            for pid in self.pids() {
                let _: nix::Result<()> = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Processes in the cgroup and below it.
    fn pids(&self) -> Vec<libc::pid_t> {
        let mut all = Vec::new();
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            all.extend(procs.lines().filter_map(|pid| pid.parse::<libc::pid_t>().ok()));
            dirs.extend(subdirectories(&dir));
        }
        all
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        self.kill_all();
        // Leaves first: the command may have made cgroups of its own.
        let mut dirs = vec![self.dir.clone()];
        let mut index = 0;
        while let Some(dir) = dirs.get(index) {
            let below = subdirectories(dir);
            dirs.extend(below);
            index += 1;
        }
        for dir in dirs.iter().rev() {
            if let Err(error) = remove(dir) {
                warn!(%error, cgroup = %dir.display(), "cgroup not removed");
            }
        }
    }
}

/// Removes a cgroup once what was killed in it is gone.
fn remove(dir: &Path) -> io::Result<()> {
    let end = Instant::now() + GRACE;
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}
