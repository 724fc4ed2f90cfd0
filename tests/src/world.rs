//! A faithful little internet on a machine that has none.
//!
//! ```text
//!  container eth0 ── c1 ┐
//!  container eth0 ── c2 ┤ host (router) uplink ── host0 internet: 8.8.8.8, 1.1.1.1, ... on lo
//!  container eth0 ── c3 ┘
//! ```
//! Nothing is translated on the way: a capture anywhere shows who asked.

use crate::cgroup::Cgroup;
use crate::container::{Addresses, Container, INTERFACE};
use crate::mounts::Mounts;
use crate::netns::Netns;
use crate::process::output;
use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// The host's interface to the internet.
pub const UPLINK: &str = "uplink";

/// The nameserver addresses that the internet has.
pub const NAMESERVERS: [IpAddr; 8] = [
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)),
    IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)),
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8844)),
    IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111)),
];

/// What a container's resolver configuration says unless told otherwise.
const RESOLV_CONF: &str = "nameserver 8.8.8.8\n";

/// The internet, the host and the cgroup that all containers are in.
#[derive(Debug)]
pub struct World {
    internet: Netns,
    host: Netns,
    mounts: Mounts,
    cgroup: Cgroup,
    containers: AtomicU8,
}

impl World {
    /// A new one, without containers.
    pub fn new() -> Result<Self> {
        let (internet, host) = (Netns::new()?, Netns::new()?);
        host.sysctl("net/ipv4/ip_forward", "1")?;
        host.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        host.veth(UPLINK, &internet, "host0")?;
        internet.ip_batch(&internet_setup())?;
        host.ip_batch(HOST_SETUP)?;
        let mounts = Mounts::new(RESOLV_CONF)?;
        Ok(Self { internet, host, mounts, cgroup: Cgroup::new()?, containers: AtomicU8::new(0) })
    }

    /// The namespace that has the nameservers' addresses.
    pub fn internet(&self) -> &Netns {
        &self.internet
    }

    /// The namespace of the host.
    pub fn host(&self) -> &Netns {
        &self.host
    }

    /// The cgroup above all containers.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A command that will run on the host, outside all test cgroups.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.host.command(program);
        self.mounts.enter(&mut command);
        command
    }

    /// Rewrites the host's `/etc/resolv.conf`.
    pub fn set_resolv_conf(&self, text: &str) -> Result<()> {
        self.mounts.set_resolv_conf(text)
    }

    /// Starts a container that asks 8.8.8.8.
    pub fn container(&self, name: &str) -> Result<Container> {
        self.container_with(name, RESOLV_CONF)
    }

    /// Starts a container with that `/etc/resolv.conf`.
    pub fn container_with(&self, name: &str, resolv_conf: &str) -> Result<Container> {
        let netns = Netns::new()?;
        let addresses = self.plug(&netns)?;
        let cgroup = self.cgroup.child(name)?;
        Container::start(cgroup, Mounts::new(resolv_conf)?, netns, addresses)
    }

    /// Starts a container that shares the network of another, as those of a pod do.
    pub fn beside(&self, name: &str, other: &Container) -> Result<Container> {
        let (cgroup, mounts) = (self.cgroup.child(name)?, Mounts::new(RESOLV_CONF)?);
        Container::start(cgroup, mounts, other.netns().clone(), other.addresses().clone())
    }

    /// Makes a container as runtimes do, up to the moment before its first process starts: a named
    /// namespace, plugged in, and a cgroup.
    pub fn newborn(&self, name: &str) -> Result<Newborn<'_>> {
        let netns = Netns::bare()?;
        self.name_netns(&netns, name)?;
        let container = self.unstarted(name, netns, RESOLV_CONF)?;
        Ok(Newborn { world: self, name: name.to_owned(), container })
    }

    /// The same as runtimes do that give namespaces no name: nobody knows of this one yet.
    pub fn unannounced(&self, name: &str) -> Result<Container> {
        self.unannounced_with(name, RESOLV_CONF)
    }

    /// The same with that `/etc/resolv.conf`.
    pub fn unannounced_with(&self, name: &str, resolv_conf: &str) -> Result<Container> {
        self.unstarted(name, Netns::bare()?, resolv_conf)
    }

    fn unstarted(&self, name: &str, netns: Netns, resolv_conf: &str) -> Result<Container> {
        let addresses = self.plug(&netns)?;
        netns.ip(&["link", "set", "lo", "up"])?;
        let cgroup = self.cgroup.child(name)?;
        Ok(Container::empty(cgroup, Mounts::new(resolv_conf)?, netns, addresses))
    }

    /// Starts a container that shares the host's network, like a pod with `hostNetwork`.
    pub fn host_container(&self, name: &str) -> Result<Container> {
        let (v4, v6) = (HOST_V4, HOST_V6);
        let addresses = Addresses { v4, v6, host_link: UPLINK.to_owned() };
        let (cgroup, mounts) = (self.cgroup.child(name)?, Mounts::new(RESOLV_CONF)?);
        Container::start(cgroup, mounts, self.host.clone(), addresses)
    }

    /// Gives a namespace a name on the host, as container runtimes do before they plug it in.
    pub fn name_netns(&self, netns: &Netns, name: &str) -> Result<()> {
        let script = "touch \"$1\" && mount --bind \"$0\" \"$1\"";
        let file = format!("/run/netns/{name}");
        output(self.command("sh").args(["-c", script, &netns.path(), &file])).map(drop)
    }

    /// Takes the name away.
    pub fn unname_netns(&self, name: &str) -> Result<()> {
        let script = "umount \"$0\" && rm \"$0\"";
        let file = format!("/run/netns/{name}");
        output(self.command("sh").args(["-c", script, &file])).map(drop)
    }

    /// Links a network namespace to the host.
    fn plug(&self, netns: &Netns) -> Result<Addresses> {
        let number = self.containers.fetch_add(1, Ordering::Relaxed).checked_add(1);
        let n = number.context("a world has at most 255 containers")?;
        let host_link = format!("c{n}");
        self.host.veth(&host_link, netns, INTERFACE)?;
        self.host.ip_batch(&format!(
            "addr add 10.88.{n}.1/24 dev {host_link}\n\
             addr add fd88:0:0:{n:x}::1/64 dev {host_link} nodad\n\
             link set {host_link} up\n"
        ))?;
        netns.ip_batch(&format!(
            "addr add 10.88.{n}.2/24 dev {INTERFACE}\n\
             addr add fd88:0:0:{n:x}::2/64 dev {INTERFACE} nodad\n\
             link set {INTERFACE} up\n\
             route add default via 10.88.{n}.1\n\
             route add ::/0 via fd88:0:0:{n:x}::1\n"
        ))?;
        let v4 = Ipv4Addr::new(10, 88, n, 2);
        let v6 = Ipv6Addr::new(0xfd88, 0, 0, n.into(), 0, 0, 0, 2);
        Ok(Addresses { v4, v6, host_link })
    }
}

/// A container that nothing has run in yet.
#[derive(Debug)]
pub struct Newborn<'a> {
    world: &'a World,
    name: String,
    /// Whose first process is still to come.
    pub container: Container,
}

impl Drop for Newborn<'_> {
    fn drop(&mut self) {
        // The world's end takes the name away all the same.
        let _ = self.world.unname_netns(&self.name);
    }
}

/// The host's addresses on its uplink.
const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

const HOST_SETUP: &str = "addr add 192.0.2.2/24 dev uplink\n\
                          addr add 2001:db8:1::2/64 dev uplink nodad\n\
                          link set uplink up\n\
                          route add default via 192.0.2.1\n\
                          route add ::/0 via 2001:db8:1::1\n";

fn internet_setup() -> String {
    let nameservers: String = NAMESERVERS
        .iter()
        .map(|address| match address {
            IpAddr::V4(v4) => format!("addr add {v4}/32 dev lo\n"),
            IpAddr::V6(v6) => format!("addr add {v6}/128 dev lo nodad\n"),
        })
        .collect();
    nameservers
        + "addr add 192.0.2.1/24 dev host0\n\
           addr add 2001:db8:1::1/64 dev host0 nodad\n\
           link set host0 up\n\
           route add 10.88.0.0/16 via 192.0.2.2\n\
           route add fd88::/32 via 2001:db8:1::2\n"
}
