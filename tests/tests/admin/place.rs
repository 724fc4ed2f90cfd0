//! Where these tests happen: a namespace of its own, in which the daemon only forwards.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Daemon, DotServer, Identity, Netns, Pki,
    http::{self, Response},
    require_root_and_bpf,
    wire::query,
};
use hickory_proto::rr::RecordType;

/// Where the daemon tells of itself unless told otherwise.
pub(crate) const ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9153);
/// Where it listens.
pub(crate) const LISTEN: &str = "127.0.0.1:53";
/// Where its upstream is, and the name in that one's certificate.
pub(crate) const UPSTREAM: &str = "127.0.0.1:853";
/// The same for `--upstream`.
pub(crate) const NAMED_UPSTREAM: &str = "127.0.0.1:853#dns.test";
/// Far more than anything takes that is going to happen.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// A namespace and an authority.
pub(crate) struct Place {
    pub(crate) netns: Netns,
    pub(crate) pki: Pki,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        require_root_and_bpf();
        Ok(Self { netns: Netns::new()?, pki: Pki::new()? })
    }

    pub(crate) fn identity(&self) -> Result<Identity> {
        self.pki.server(&["dns.test", "127.0.0.1"])
    }

    pub(crate) fn upstream(&self) -> Result<DotServer> {
        DotServer::start(&self.netns, &[UPSTREAM.parse()?], &self.identity()?)
    }

    pub(crate) fn args(&self, more: &[&str]) -> Vec<String> {
        let ca = self.pki.ca_file().display().to_string();
        let args = ["run", "--workers=2", "--ca", &ca, "--no-system-roots"];
        let upstream = ["--upstream", NAMED_UPSTREAM];
        args.iter().chain(&upstream).chain(more).map(|arg| (*arg).to_owned()).collect()
    }

    /// A daemon that listens at [`LISTEN`].
    pub(crate) fn daemon(&self, more: &[&str]) -> Result<Daemon> {
        let command = self.netns.command(Daemon::program()?);
        let daemon =
            Daemon::start_command(command, &self.args(&[&["--listen", LISTEN], more].concat()))?;
        daemon.wait_for_log("admin: ", LIMIT)?;
        Ok(daemon)
    }

    pub(crate) fn get(&self, path: &str) -> Result<Response> {
        http::get(&self.netns, ADMIN, path)
    }

    /// A socket from which to ask.
    pub(crate) fn client(&self) -> Result<UdpSocket> {
        let socket = self.netns.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(LISTEN)?;
            socket.set_read_timeout(Some(LIMIT))?;
            io::Result::Ok(socket)
        })??;
        Ok(socket)
    }
}

/// Asks and waits for an answer; its response code.
pub(crate) fn ask(client: &UdpSocket, name: &str) -> Result<u8> {
    let mut buffer = [0; 4096];
    client.send(&query(7, name, RecordType::A)?)?;
    let length = client.recv(&mut buffer).with_context(|| format!("no answer for {name}"))?;
    ensure!(length >= 12, "{length} octets");
    Ok(buffer[3] & 0xf)
}
