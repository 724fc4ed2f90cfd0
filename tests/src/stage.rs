//! The usual cast: a world, an encrypted and a plaintext nameserver in its internet, the daemon on
//! its host, and a camera on the uplink.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};

use crate::{
    Capture, Cgroup, Container, Daemon, DotServer, Netns, Packet, Pki, PlainServer, World,
    container, packet::port53, require_root_and_bpf, world,
};

/// Where the encrypted nameserver is.
pub const UPSTREAM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)), 853);
/// The name in its certificate.
pub const UPSTREAM_NAME: &str = "dns.test";

/// Everything but the containers and the daemon.
#[derive(Debug)]
pub struct Stage {
    /// The world.
    pub world: World,
    /// Answers over TLS.
    pub upstream: DotServer,
    /// Answers in plaintext, and otherwise: whoever hears it was not encrypted.
    pub nameserver: PlainServer,
    /// Signed the upstream's certificate.
    pub pki: Pki,
}

/// Cameras at both ends of a container's way out.
#[derive(Debug)]
pub struct Witness {
    inside: Capture,
    uplink: Capture,
}

impl Stage {
    /// Sets it up.
    pub fn new() -> Result<Self> {
        require_root_and_bpf();
        let world = World::new()?;
        let pki = Pki::new()?;
        let identity = pki.server(&[UPSTREAM_NAME, &UPSTREAM.ip().to_string()])?;
        let upstream = DotServer::start(world.internet(), &[UPSTREAM], &identity)?;
        let nameserver = PlainServer::start(world.internet())?;
        Ok(Self { world, upstream, nameserver, pki })
    }

    /// Arguments that name the upstream and its authority.
    pub fn upstream_args(&self) -> Vec<String> {
        let ca = self.pki.ca_file().display().to_string();
        let upstream = format!("{UPSTREAM}#{UPSTREAM_NAME}");
        ["--upstream", &upstream, "--ca", &ca, "--no-system-roots"].map(str::to_owned).into()
    }

    /// Arguments of a daemon that intercepts these cgroups.
    pub fn run_args(&self, scope: &[&Cgroup]) -> Result<Vec<String>> {
        let mut args = vec!["run".to_owned()];
        args.extend(self.upstream_args());
        for cgroup in scope {
            args.push(format!("--cgroup={}", cgroup.path()?));
        }
        Ok(args)
    }

    /// Starts the daemon for these containers and waits until it serves each.
    pub fn daemon(&self, scope: &[&Container]) -> Result<Daemon> {
        self.daemon_with(scope, &[])
    }

    /// The same with further arguments.
    pub fn daemon_with(&self, scope: &[&Container], further: &[&str]) -> Result<Daemon> {
        let cgroups: Vec<_> = scope.iter().map(|container| container.cgroup()).collect();
        let mut args = self.run_args(&cgroups)?;
        args.extend(further.iter().copied().map(str::to_owned));
        let daemon = Daemon::start(&self.world, &args)?;
        for container in scope {
            daemon.wait_until_serving(container.netns())?;
        }
        Ok(daemon)
    }

    /// Puts up cameras for what a container sends.
    pub fn witness(&self, container: &Container) -> Result<Witness> {
        self.witness_on(container.netns(), container::INTERFACE)
    }

    /// Puts up cameras for what leaves by an interface.
    pub fn witness_on(&self, netns: &Netns, interface: &str) -> Result<Witness> {
        Ok(Witness {
            inside: Capture::on(netns, interface)?,
            uplink: Capture::on(self.world.host(), world::UPLINK)?,
        })
    }
}

impl Witness {
    /// Everything that left the container's interface, and everything on the uplink.
    pub fn packets(self) -> Result<(Vec<Packet>, Vec<Packet>)> {
        Ok((self.inside.stop()?, self.uplink.stop()?))
    }

    /// Checks that nothing of DNS was to be seen but TLS on the uplink, and that there was some.
    pub fn saw_only_tls(self) -> Result<()> {
        let (inside, uplink) = self.packets()?;
        for (place, packets) in [("the container's interface", &inside), ("the uplink", &uplink)] {
            let plaintext = port53(packets);
            ensure!(plaintext.is_empty(), "plaintext on {place}: {}", plaintext[0]);
            let token = packets.iter().find(|packet| is_token(packet.dst.ip()));
            ensure!(token.is_none(), "a token address on {place}: {token:?}");
        }
        let encrypted = uplink.iter().filter(|packet| packet.dst == UPSTREAM).count();
        ensure!(encrypted > 0, "nothing went to {UPSTREAM} on the uplink");
        Ok(())
    }
}

/// Whether an address is one that must never leave its namespace.
pub fn is_token(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_loopback(),
        // As of link-local nameservers (fe90), so of others (fd90).
        IpAddr::V6(v6) => matches!(v6.segments(), [0xfd90 | 0xfe90, 0x2c8e, 0x591c, ..]),
    }
}
