//! Debian's dnsdist as a DNS-over-TLS server: a peer that we did not write, in front of a plaintext
//! nameserver that answers for it.

use crate::leftovers::scratch_dir;
use crate::netns::Netns;
use crate::pki::Identity;
use crate::served::Served;
use anyhow::{Context, Result};
use std::fs;
use std::net::SocketAddr;

/// A running dnsdist, killed on drop.
#[derive(Debug)]
pub struct Dnsdist {
    _served: Served,
}

impl Dnsdist {
    /// Starts one in the namespace that asks `backend`; it accepts connections when this returns.
    pub fn start(
        netns: &Netns,
        address: SocketAddr,
        identity: &Identity,
        backend: SocketAddr,
    ) -> Result<Self> {
        let dir = scratch_dir()?;
        let file = dir.path().join("dnsdist.conf");
        fs::write(&file, configuration(address, identity, backend))
            .context("write dnsdist.conf")?;
        let mut command = netns.command("dnsdist");
        command.args(["--supervised", "--disable-syslog", "-C"]).arg(&file);
        Ok(Self { _served: Served::start(netns, command, Some(dir), address)? })
    }
}

fn configuration(address: SocketAddr, identity: &Identity, backend: SocketAddr) -> String {
    let (certificate, key) = (identity.certificate_file.display(), identity.key_file.display());
    format!(
        r#"setSecurityPollSuffix("")
setACL({{"0.0.0.0/0", "::/0"}})
addTLSLocal("{address}", "{certificate}", "{key}")
newServer({{address = "{backend}", healthCheckMode = "up"}})
"#
    )
}
