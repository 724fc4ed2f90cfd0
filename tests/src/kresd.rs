//! Debian's Knot Resolver as a DNS-over-TLS server: a peer that we did not write, in front of a
//! plaintext nameserver that answers for it.
//!
//! As it comes, it lets 100 queries of a connection be unanswered, and then reads no more of it.

use crate::leftovers::scratch_dir;
use crate::netns::Netns;
use crate::pki::Identity;
use crate::served::Served;
use anyhow::{Context, Result};
use std::fs;
use std::net::SocketAddr;

/// A running kresd, killed on drop.
#[derive(Debug)]
pub struct Kresd {
    _served: Served,
}

impl Kresd {
    /// Starts one in the namespace that asks `backend`; it accepts connections when this returns.
    pub fn start(
        netns: &Netns,
        address: SocketAddr,
        identity: &Identity,
        backend: SocketAddr,
    ) -> Result<Self> {
        let dir = scratch_dir()?;
        let file = dir.path().join("kresd.conf");
        fs::write(&file, configuration(address, identity, backend)).context("write kresd.conf")?;
        let mut command = netns.command("kresd");
        command.args(["-n", "-c"]).arg(&file).arg(dir.path());
        Ok(Self { _served: Served::start(netns, command, Some(dir), address)? })
    }
}

fn configuration(address: SocketAddr, identity: &Identity, backend: SocketAddr) -> String {
    let (certificate, key) = (identity.certificate_file.display(), identity.key_file.display());
    let (ip, port) = (address.ip(), address.port());
    let backend = format!("{}@{}", backend.ip(), backend.port());
    format!(
        r#"net.tls("{certificate}", "{key}")
net.listen("{ip}", {port}, {{ kind = "tls" }})
trust_anchors.remove(".")
cache.size = 10 * MB
policy.add(policy.all(policy.STUB("{backend}")))
"#
    )
}
