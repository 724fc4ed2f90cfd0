//! Real container runtimes on a world's host: runc, podman with netavark and aardvark-dns, Docker.
//!
//! All that they keep is in file systems in memory, which only the host of this world sees and which
//! end with it, and all that they start is in cgroups below the world's. So nothing needs to be
//! undone, whatever becomes of the test.

use crate::cgroup::Cgroup;
use crate::clients::Libc;
use crate::leftovers::scratch_dir;
use crate::log::Log;
use crate::netns::Netns;
use crate::process::{Process, output};
use crate::wait::eventually;
use crate::world::World;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How the engines name the one image there is.
pub const IMAGE: &str = "localhost/busybox:local";
/// Where cgroup v2 is on this host, and nothing else.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Where podman's interface is.
const PODMAN_SOCKET: &str = "/run/podman/podman.sock";
/// Debian's client; other ones may come first in `PATH`.
const DOCKER: &str = "/usr/bin/docker";
/// How long dockerd may take to start.
const LIMIT: Duration = Duration::from_secs(30);
/// What of busybox the tests run.
const APPLETS: [&str; 5] = ["sh", "sleep", "cat", "nslookup", "ip"];

/// The mounts of a host for containers, in the host's own view of the file system: cgroup v2 alone,
/// also where the machine has it beside v1, and nothing of what the machine's own runtimes keep.
const PREPARE: &str = r#"
    set -e
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    for dir in /run /var/lib /dev/shm /etc/containers; do
        [ ! -d "$dir" ] || mount -t tmpfs -o mode=755 tmpfs "$dir"
    done
    mkdir -p /run/netns /run/lock /run/containers
    cat >/run/containers/containers.conf <<END
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
[network]
network_backend = "netavark"
[containers]
default_ulimits = []
pids_limit = 0
END
    cat >/run/containers/storage.conf <<END
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
END
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/run/containers/policy.json
"#;

/// A world whose host has container runtimes.
#[derive(Debug)]
pub struct Runtimes<'a> {
    world: &'a World,
    engine: Cgroup,
    containers: Cgroup,
    image: TempDir,
}

/// A container that a runtime made.
#[derive(Debug)]
pub struct Contained {
    netns: Netns,
    exec: Vec<String>,
}

/// A running Docker engine.
#[derive(Debug)]
pub struct Docker<'a> {
    runtimes: &'a Runtimes<'a>,
    _process: Process,
}

impl<'a> Runtimes<'a> {
    /// Prepares the world's host, and an image.
    pub fn new(world: &'a World) -> Result<Self> {
        output(world.command("sh").args(["-c", PREPARE]))?;
        let (engine, containers) =
            (world.cgroup().child("engine")?, world.cgroup().child("containers")?);
        Ok(Self { world, engine, containers, image: image()? })
    }

    /// The cgroup that the engines are in, with what they start besides containers: the nameservers
    /// of their networks.
    pub fn engine(&self) -> &Cgroup {
        &self.engine
    }

    /// The cgroup that the containers' own are in.
    pub fn containers(&self) -> &Cgroup {
        &self.containers
    }

    /// Starts a container by plain runc, in a network namespace that is there already.
    pub fn runc(
        &self,
        netns: &Netns,
        cgroup_below_containers: &str,
        nameserver: &str,
    ) -> Result<Contained> {
        let id = &format!("c{}", netns.inode()?);
        let bundle = self.image.path().join(id);
        fs::create_dir(&bundle)?;
        fs::write(bundle.join("resolv.conf"), format!("nameserver {nameserver}\n"))?;
        let cgroup = format!("/{}/{cgroup_below_containers}", self.containers.path()?);
        fs::write(bundle.join("config.json"), self.config_json(&bundle, &cgroup, &netns.path()))?;
        let mut run = self.command("runc")?;
        run.args(["run", "--detach", "--bundle"]).arg(&bundle).arg(id);
        // What the container says goes nowhere, or it would keep our pipe open.
        run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = run.status().context("no runc? cargo xtask setup")?;
        ensure!(status.success(), "runc run in {}: {status}", bundle.display());
        let state = output(self.command("runc")?.args(["state", id]))?;
        let pid = state.lines().find_map(|line| line.trim().strip_prefix("\"pid\": "));
        let pid = pid.context("runc state says no pid")?.trim_end_matches(',');
        Self::contained(pid, &["runc", "exec", id])
    }

    /// Starts a container by podman, with these options, and gives its name to it.
    pub fn podman(&self, name: &str, options: &[&str]) -> Result<Contained> {
        let images = self.run_podman(&["images", "-q"])?;
        if images.trim().is_empty() {
            self.podman_image()?;
        }
        let parent = format!("/{}", self.containers.path()?);
        let run = ["run", "-d", "--pull", "never", "--name", name, "--cgroup-parent", &parent];
        self.run_podman(&[&run, options, &[IMAGE, "sleep", "infinity"]].concat())?;
        let pid = self.run_podman(&["inspect", "-f", "{{.State.Pid}}", name])?;
        let exec = podman_line(&["exec", name]);
        Self::contained(pid.trim(), &exec.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Serves podman's interface where it usually is, until this is dropped; with options that every
    /// podman shares.
    pub fn podman_service(&self, options: &[&str]) -> Result<Process> {
        let line = podman_line(&["system", "service", "--time", "0"]);
        let mut command = self.command(&line[0])?;
        command.args(options).args(&line[1..]).arg(format!("unix://{PODMAN_SOCKET}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        output(self.on_host("mkdir").args(["-p", "/run/podman"]))?;
        let process = Process::spawn(command)?;
        let is_there = || output(self.on_host("test").args(["-S", PODMAN_SOCKET])).is_ok();
        ensure!(eventually(LIMIT, is_there), "podman does not serve {PODMAN_SOCKET}");
        Ok(process)
    }

    /// Runs podman with global options.
    pub fn run_podman_with(&self, options: &[&str], args: &[&str]) -> Result<String> {
        let line = podman_line(args);
        output(self.command(&line[0])?.args(options).args(&line[1..]))
    }

    /// Has an image for podman.
    pub fn podman_image(&self) -> Result<()> {
        self.import(&podman_line(&["import", "-", IMAGE]))
    }

    /// Runs podman.
    pub fn run_podman(&self, args: &[&str]) -> Result<String> {
        let line = podman_line(args);
        output(self.command(&line[0])?.args(&line[1..]))
    }

    /// Starts Docker's engine; it serves when this returns.
    pub fn docker(&'a self) -> Result<Docker<'a>> {
        let mut command = self.command("dockerd")?;
        let parent = format!("--cgroup-parent=/{}", self.containers.path()?);
        command.args(["--exec-opt=native.cgroupdriver=cgroupfs", "--storage-driver=vfs", &parent]);
        command.env("DOCKER_RAMDISK", "yes"); // nothing here can be pivoted away from
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn(command).context("no dockerd? cargo xtask setup")?;
        let log = Log::of(&mut process);
        let served = eventually(LIMIT, || {
            let version = || output(self.command(DOCKER)?.arg("version"));
            process.ended().is_some() || version().is_ok()
        });
        if !served || process.ended().is_some() {
            bail!("dockerd does not serve:\n{}", log.text());
        }
        let import = ["import", "-", IMAGE].map(str::to_owned);
        self.import(&[&[DOCKER.to_owned()], &import[..]].concat())?;
        Ok(Docker { runtimes: self, _process: process })
    }

    /// Runs a program on the host, in the engines' cgroup, and gives what it printed.
    pub fn host(&self, program: &str, args: &[&str]) -> Result<String> {
        output(self.command(program)?.args(args))
    }

    /// A command on the host, outside all test cgroups.
    pub(crate) fn on_host(&self, program: &str) -> Command {
        self.world.command(program)
    }

    /// A command on the host, in the engines' cgroup.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = self.world.command(program);
        self.engine.enter_before_exec(&mut command)?;
        command.env("CONTAINERS_CONF", "/run/containers/containers.conf");
        command.env("CONTAINERS_STORAGE_CONF", "/run/containers/storage.conf");
        command.env("TMPDIR", "/run").env_remove("DOCKER_HOST").env_remove("XDG_RUNTIME_DIR");
        Ok(command)
    }

    /// Feeds the image to an engine.
    pub(crate) fn import(&self, engine: &[String]) -> Result<()> {
        let script = "tar -C \"$0\" -c rootfs --transform 's,^rootfs,.,' | \"$@\"";
        let mut shell = self.command("sh")?;
        output(shell.args(["-c", script]).arg(self.image.path()).args(engine)).map(drop)
    }

    fn contained(pid: &str, exec: &[&str]) -> Result<Contained> {
        let netns = Netns::of_process(pid.parse().with_context(|| format!("{pid} is no pid"))?)?;
        Ok(Contained { netns, exec: exec.iter().map(|&word| word.to_owned()).collect() })
    }

    fn config_json(&self, bundle: &Path, cgroup: &str, netns: &str) -> String {
        let rootfs = self.image.path().join("rootfs");
        let (rootfs, bundle) = (rootfs.display(), bundle.display());
        format!(
            r#"{{
  "ociVersion": "1.0.2",
  "process": {{
    "user": {{ "uid": 0, "gid": 0 }}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sleep", "infinity"]
  }},
  "root": {{ "path": "{rootfs}", "readonly": true }},
  "mounts": [
    {{ "destination": "/proc", "type": "proc", "source": "proc" }},
    {{ "destination": "/dev", "type": "tmpfs", "source": "tmpfs" }},
    {{ "destination": "/etc/resolv.conf", "type": "bind", "source": "{bundle}/resolv.conf",
       "options": ["bind", "ro"] }}
  ],
  "linux": {{
    "cgroupsPath": "{cgroup}",
    "namespaces": [
      {{ "type": "pid" }}, {{ "type": "mount" }}, {{ "type": "ipc" }}, {{ "type": "uts" }},
      {{ "type": "network", "path": "{netns}" }}
    ],
    "resources": {{ "devices": [{{ "allow": true, "access": "rwm" }}] }}
  }}
}}
"#
        )
    }
}

impl Contained {
    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Runs a program inside, through the runtime that made it, and gives what it printed.
    pub fn run(&self, runtimes: &Runtimes<'_>, args: &[&str]) -> Result<String> {
        output(runtimes.command(&self.exec[0])?.args(&self.exec[1..]).args(args))
    }
}

impl Contained {
    /// Starts a program inside that goes on, until what this gives is dropped.
    pub fn spawn(&self, runtimes: &Runtimes<'_>, args: &[&str]) -> Result<Process> {
        let mut command = runtimes.command(&self.exec[0])?;
        command.args(&self.exec[1..]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Process::spawn(command)
    }
}

impl Docker<'_> {
    /// Runs its client.
    pub fn client(&self, args: &[&str]) -> Result<String> {
        output(self.runtimes.command(DOCKER)?.args(args))
    }

    /// Starts a container with these options.
    pub fn container(&self, name: &str, options: &[&str]) -> Result<Contained> {
        let run = ["run", "-d", "--name", name];
        self.client(&[&run, options, &[IMAGE, "sleep", "infinity"]].concat())?;
        let pid = self.client(&["inspect", "-f", "{{.State.Pid}}", name])?;
        Runtimes::contained(pid.trim(), &[DOCKER, "exec", name])
    }
}

/// Podman, told to keep everything where the host's own file systems are.
fn podman_line(args: &[&str]) -> Vec<String> {
    let policy: &[&str] = match args.first() {
        Some(&"import") => &["--signature-policy", "/run/containers/policy.json"],
        _ => &[],
    };
    let places = ["podman", "--network-config-dir", "/run/networks", "--tmpdir", "/run/libpod"];
    let (verb, rest) = args.split_at(args.len().min(1));
    [&places, verb, policy, rest].concat().into_iter().map(str::to_owned).collect()
}

/// A root file system: busybox with what it needs, and `gai`, which asks musl.
fn image() -> Result<TempDir> {
    let dir = scratch_dir()?;
    let rootfs = dir.path().join("rootfs");
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(rootfs.join(name))?;
    }
    fs::write(rootfs.join("etc/resolv.conf"), "")?;
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    let which = output(Command::new("sh").args(["-c", "command -v busybox"]));
    let busybox = which.context("no busybox? cargo xtask setup")?;
    fs::copy(busybox.trim(), rootfs.join("bin/busybox")).context("copy busybox")?;
    for applet in APPLETS {
        symlink("busybox", rootfs.join("bin").join(applet))?;
    }
    let gai = Libc::Musl.program()?;
    fs::copy(&gai, rootfs.join("bin/gai")).with_context(|| format!("copy {}", gai.display()))?;
    // Debian has busybox static and dynamic; ldd fails for the former.
    let libraries = output(Command::new("ldd").arg(busybox.trim())).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = rootfs.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a library is in a directory")?)?;
        fs::copy(library, to).with_context(|| format!("copy {library}"))?;
    }
    Ok(dir)
}
