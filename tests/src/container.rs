//! A container: a cgroup, a network namespace and a view of the file system of its own, and a
//! process that holds them, as a container runtime would have made it.

use crate::cgroup::Cgroup;
use crate::mounts::Mounts;
use crate::netns::Netns;
use crate::process::{Process, output};
use anyhow::Result;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

/// The name of a container's own interface.
pub const INTERFACE: &str = "eth0";

/// A running container; dropping it kills what runs inside and takes everything away.
#[derive(Debug)]
pub struct Container {
    // Dropped in this order: the processes, their cgroup, the namespaces.
    _holder: Option<Process>,
    cgroup: Cgroup,
    mounts: Mounts,
    netns: Netns,
    addresses: Addresses,
}

/// Where a container is found.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its global IPv6 address.
    pub v6: Ipv6Addr,
    /// The interface that leads to it, in the host's namespace.
    pub host_link: String,
}

impl Container {
    /// Puts one together from parts that are ready.
    pub(crate) fn start(
        cgroup: Cgroup,
        mounts: Mounts,
        netns: Netns,
        addresses: Addresses,
    ) -> Result<Self> {
        let mut holder = enter(&cgroup, &mounts, &netns, "sleep")?;
        holder.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null());
        let holder = Some(Process::spawn(holder)?);
        Ok(Self { _holder: holder, ..Self::empty(cgroup, mounts, netns, addresses) })
    }

    /// The same with nobody in it yet.
    pub(crate) fn empty(
        cgroup: Cgroup,
        mounts: Mounts,
        netns: Netns,
        addresses: Addresses,
    ) -> Self {
        Self { _holder: None, cgroup, mounts, netns, addresses }
    }

    /// A command that will run inside: in the cgroup before its first instruction.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        enter(&self.cgroup, &self.mounts, &self.netns, program)
    }

    /// The same in another cgroup, as a second container of a pod has.
    pub fn command_in(&self, cgroup: &Cgroup, program: impl AsRef<OsStr>) -> Result<Command> {
        enter(cgroup, &self.mounts, &self.netns, program)
    }

    /// The same in no cgroup of ours.
    pub fn command_outside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.netns.command(program);
        self.mounts.enter(&mut command);
        command
    }

    /// Runs a program inside and gives what it printed; an error carries what it said.
    pub fn run(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Result<String> {
        output(self.command(program)?.args(args))
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its addresses.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Rewrites its `/etc/resolv.conf`.
    pub fn set_resolv_conf(&self, text: &str) -> Result<()> {
        self.mounts.set_resolv_conf(text)
    }

    /// Takes it away, as `docker rm -f` would.
    pub fn destroy(self) {}
}

fn enter(
    cgroup: &Cgroup,
    mounts: &Mounts,
    netns: &Netns,
    program: impl AsRef<OsStr>,
) -> Result<Command> {
    let mut command = netns.command(program);
    mounts.enter(&mut command);
    cgroup.enter_before_exec(&mut command)?;
    Ok(command)
}
