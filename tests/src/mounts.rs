//! A private view of the file system, as a container has one: its own `/etc/resolv.conf` and
//! `/etc/nsswitch.conf`, its own `/run/dns-proxy` and bpf file system, no name service cache of the machine.

use crate::netns::{enter_before_exec, on_scratch_thread};
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Where the daemon keeps its control socket: every host of ours has its own.
const RUN_DIR: &str = "/run/dns-proxy";
/// Where namespaces have names: every host of ours has its own.
const NETNS_DIR: &str = "/run/netns";
/// Where the daemon keeps what is to outlive it: every host of ours has its own.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Where glibc looks for nscd before it asks anyone else: every host of ours has its own, if any.
const NSCD_DIR: &str = "/run/nscd";
/// Names are looked up as Debian does it, whatever the machine's own way.
const NSSWITCH_CONF: &str = "hosts: files dns\n";

/// A mount namespace held by a descriptor, and gone with it.
#[derive(Debug)]
pub struct Mounts {
    namespace: Arc<OwnedFd>,
    resolv_conf: File,
}

impl Mounts {
    /// A copy of this process's view, with a resolver configuration of its own.
    pub fn new(resolv_conf: &str) -> Result<Self> {
        for dir in [RUN_DIR, NETNS_DIR, NSCD_DIR] {
            fs::create_dir_all(dir).with_context(|| format!("create {dir}"))?;
        }
        let mounts = on_scratch_thread(Self::cover)?;
        mounts.set_resolv_conf(resolv_conf)?;
        Ok(mounts)
    }

    /// Rewrites its `/etc/resolv.conf`, also while programs run.
    pub fn set_resolv_conf(&self, text: &str) -> Result<()> {
        self.resolv_conf.set_len(0)?;
        self.resolv_conf.write_all_at(text.as_bytes(), 0).context("write resolv.conf")
    }

    /// Makes the command run in this view.
    pub fn enter(&self, command: &mut Command) {
        enter_before_exec(command, &self.namespace, CloneFlags::CLONE_NEWNS);
    }

    /// On a scratch thread: leaves the machine's view and changes the copy.
    fn cover() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS): are you root?")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make / private")?;
        // The files live on a tmpfs that the one over it hides: only their mounts show.
        mount_tmpfs(RUN_DIR)?;
        let (resolv_conf, nsswitch_conf) =
            (cover_file("resolv.conf")?, cover_file("nsswitch.conf")?);
        nsswitch_conf.write_all_at(NSSWITCH_CONF.as_bytes(), 0)?;
        mount_tmpfs(RUN_DIR)?;
        mount_tmpfs(NETNS_DIR)?;
        // One of its own, gone with the namespace and all that is pinned in it.
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=700"))
            .with_context(|| format!("mount a bpf file system over {BPFFS}"))?;
        mount_tmpfs(NSCD_DIR)?;
        let namespace = File::open("/proc/thread-self/ns/mnt").context("open ns/mnt")?;
        Ok(Self { namespace: Arc::new(namespace.into()), resolv_conf })
    }
}

/// Mounts a new, empty file over one in `/etc`, and gives it.
fn cover_file(name: &str) -> Result<File> {
    let (from, to) = (Path::new(RUN_DIR).join(name), Path::new("/etc").join(name));
    let file = File::create(&from).with_context(|| format!("create {}", from.display()))?;
    mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("mount over {}", to.display()))?;
    Ok(file)
}

fn mount_tmpfs(dir: &str) -> Result<()> {
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("mount a tmpfs over {dir}"))
}
