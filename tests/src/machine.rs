//! A whole host with a real systemd, in systemd-nspawn on a world's host: its network is the world's
//! host's, its file system Debian 13's, fresh each time.
//!
//! Making the file system takes half a minute and a Debian mirror; what was made stays in
//! `target/tmp` for the next run.

use crate::artifacts::tmp_dir;
use crate::cgroup::Cgroup;
use crate::leftovers::scratch_dir;
use crate::log::Log;
use crate::process::{Process, output};
use crate::wait::eventually;
use crate::world::World;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// What is in it besides the smallest Debian.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,ca-certificates,systemd-resolved,procps";
const SUITE: &str = "trixie";
/// How long systemd may take to start everything.
const BOOT: Duration = Duration::from_secs(60);

/// The machine, switched off on drop.
#[derive(Debug)]
pub struct Machine<'a> {
    world: &'a World,
    // Dropped in this order: the container, its cgroup, its files.
    nspawn: Process,
    log: Log,
    shell: Cgroup,
    _cgroup: Cgroup,
    root: TempDir,
    leader: u32,
}

impl<'a> Machine<'a> {
    /// Starts one; its units are up when this returns. These units are masked.
    pub fn boot(world: &'a World, masked: &[&str]) -> Result<Self> {
        let root = scratch_dir()?;
        let tar = base(SUITE, PACKAGES)?;
        output(Command::new("tar").arg("-C").arg(root.path()).arg("-xf").arg(tar))?;
        let etc = root.path().join("etc");
        fs::write(etc.join("hostname"), "machine\n")?;
        replace(&etc.join("resolv.conf"), "nameserver 8.8.8.8\n")?;
        replace(&etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
        let units = etc.join("systemd/system");
        let always =
            ["systemd-modules-load.service", "systemd-udevd.service", "systemd-networkd.service"];
        for unit in always.iter().chain(masked) {
            let _ = fs::remove_file(units.join(unit));
            std::os::unix::fs::symlink("/dev/null", units.join(unit))?;
        }
        // Cgroup v2 alone, as hosts have it, also where the machine has it beside v1.
        let mount = "mount -t cgroup2 cgroup2 /sys/fs/cgroup";
        output(world.command("sh").args(["-c", mount]))?;
        let (cgroup, shell) = (world.cgroup().child("machine")?, world.cgroup().child("shell")?);
        let mut command = world.command("systemd-nspawn");
        cgroup.enter_before_exec(&mut command)?;
        command.arg("--directory").arg(root.path()).args([
            "--machine=machine",
            "--register=no",
            "--keep-unit",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--capability=all",
            "--system-call-filter=bpf keyctl add_key @mount @module perf_event_open",
            "--bind=/sys/fs/bpf",
            "--console=pipe",
            "--boot",
            "systemd.log_level=warning",
        ]);
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut nspawn = Process::spawn(command).context("no systemd-nspawn? cargo xtask setup")?;
        let log = Log::of(&mut nspawn);
        let mut machine = Self { world, nspawn, log, shell, _cgroup: cgroup, root, leader: 0 };
        machine.wait_until_up()?;
        Ok(machine)
    }

    /// Where its file system is.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A command inside, as an administrator would give it who is logged in.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.world.command("nsenter");
        self.shell.enter_before_exec(&mut command)?;
        let leader = self.leader.to_string();
        command.args(["-t", &leader, "-m", "-u", "-i", "-p", "-C", "--wdns=/", "env", "-i"]);
        command.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb", "LC_ALL=C.UTF-8"]);
        command.args(["DEBIAN_FRONTEND=noninteractive", program]);
        Ok(command)
    }

    /// Runs a shell script inside to its end, and gives what it printed.
    pub fn run(&self, script: &str) -> Result<String> {
        output(self.command("sh")?.args(["-e", "-c", script]))
            .with_context(|| format!("the machine says:\n{}", self.log.text()))
    }

    /// Runs a shell script as a unit of that name, in `system.slice`, and gives what it printed.
    pub fn run_unit(&self, unit: &str, script: &str) -> Result<String> {
        let mut command = self.command("systemd-run")?;
        let unit = format!("--unit={unit}");
        command.args(["--quiet", "--wait", "--pipe", "--collect", &unit, "sh", "-e", "-c", script]);
        output(&mut command)
    }

    /// What the service manager says of a unit's property.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.run(&format!("systemctl show --value -p {name} {unit}"))?.trim().to_owned())
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let mut state = String::new();
        let up = eventually(BOOT, || {
            // The first that nspawn starts only starts the next.
            self.leader = child_of(self.nspawn.pid()).unwrap_or_default();
            let asked = self.command("systemctl").map(|mut c| c.arg("is-system-running").output());
            if let Ok(Ok(asked)) = asked {
                state = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
            }
            matches!(state.as_str(), "running" | "degraded") || self.nspawn.ended().is_some()
        });
        ensure!(up && !state.is_empty(), "it does not come up ({state}):\n{}", self.log.text());
        Ok(())
    }
}

/// A file system of these packages and the smallest Debian, as a tar archive.
pub fn base(suite: &str, packages: &str) -> Result<PathBuf> {
    let tar = tmp_dir()?.join(format!("{suite}.tar"));
    // One at a time; the others wait and find it.
    let lock = File::create(tar.with_extension("lock"))?;
    lock.lock()?;
    if !tar.exists() {
        let new = tar.with_extension("new.tar");
        let mut make = Command::new("mmdebstrap");
        make.arg("--quiet").arg("--variant=minbase").arg(format!("--include={packages}"));
        output(make.arg(suite).arg(&new)).context("mmdebstrap: cargo xtask setup --full")?;
        fs::rename(new, &tar)?;
    }
    Ok(tar)
}

/// Writes a file where there may be a link.
fn replace(path: &Path, text: &str) -> Result<()> {
    let _ = fs::remove_file(path);
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// The first child of a process.
fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
