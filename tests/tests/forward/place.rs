//! Where these tests happen: a namespace of its own, in which the daemon only forwards.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use dns_proxy_tests::{Daemon, DotServer, Identity, Netns, Pki, require_root_and_bpf};

use crate::client::{Tcp, Udp};

/// Where the daemon listens.
pub(crate) const LISTEN: &str = "127.0.0.1:53";
/// Where its upstream is, and the name in that one's certificate.
pub(crate) const UPSTREAM: &str = "127.0.0.1:853";
/// The name in the upstream's certificate.
pub(crate) const NAME: &str = "dns.test";
/// The upstream as `--upstream` names it.
pub(crate) const NAMED_UPSTREAM: &str = "127.0.0.1:853#dns.test";
/// Far more than anything takes that is going to happen.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// A namespace and an authority.
pub(crate) struct Place {
    pub(crate) netns: Netns,
    pub(crate) pki: Pki,
}

/// A place with a faithful upstream and a daemon of one worker.
pub(crate) struct Setting {
    // Dropped first: it must not see the others go.
    pub(crate) daemon: Daemon,
    pub(crate) upstream: DotServer,
    pub(crate) place: Place,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        require_root_and_bpf();
        Ok(Self { netns: Netns::new()?, pki: Pki::new()? })
    }

    /// A certificate as the upstream should have it.
    pub(crate) fn identity(&self) -> Result<Identity> {
        self.pki.server(&[NAME, "127.0.0.1"])
    }

    /// A faithful upstream at [`UPSTREAM`].
    pub(crate) fn upstream(&self) -> Result<DotServer> {
        self.upstream_at(UPSTREAM)
    }

    /// A faithful upstream somewhere else.
    pub(crate) fn upstream_at(&self, addr: &str) -> Result<DotServer> {
        DotServer::start(&self.netns, &[addr.parse()?], &self.identity()?)
    }

    /// Arguments of a daemon at [`LISTEN`] that trusts only our authority.
    pub(crate) fn run_args(&self, upstreams: &[&str], more: &[&str]) -> Vec<String> {
        let ca = self.pki.ca_file().display().to_string();
        let mut args = vec!["run", "--listen", LISTEN, "--ca", &ca, "--no-system-roots"];
        for upstream in upstreams {
            args.extend(["--upstream", upstream]);
        }
        args.extend(more);
        args.into_iter().map(str::to_owned).collect()
    }

    /// Starts a daemon of one worker at [`LISTEN`].
    pub(crate) fn daemon(&self, upstreams: &[&str], more: &[&str]) -> Result<Daemon> {
        let more = [&["--workers", "1", "--log", "debug"], more].concat();
        self.start(&self.run_args(upstreams, &more))
    }

    /// Starts a daemon with these arguments.
    pub(crate) fn start(&self, args: &[String]) -> Result<Daemon> {
        Daemon::start_command(self.netns.command(Daemon::program()?), args)
    }

    pub(crate) fn udp(&self) -> Result<Udp> {
        self.udp_to(LISTEN)
    }

    pub(crate) fn udp_to(&self, server: &str) -> Result<Udp> {
        Udp::connect(&self.netns, server.parse::<SocketAddr>()?)
    }

    pub(crate) fn tcp(&self) -> Result<Tcp> {
        self.tcp_to(LISTEN)
    }

    pub(crate) fn tcp_to(&self, server: &str) -> Result<Tcp> {
        Tcp::connect(&self.netns, server.parse::<SocketAddr>()?)
    }
}

impl Setting {
    pub(crate) fn new() -> Result<Self> {
        Self::with(&[])
    }

    /// With more arguments for the daemon.
    pub(crate) fn with(more: &[&str]) -> Result<Self> {
        let place = Place::new()?;
        let upstream = place.upstream()?;
        let daemon = place.daemon(&[NAMED_UPSTREAM], more)?;
        Ok(Self { daemon, upstream, place })
    }
}
