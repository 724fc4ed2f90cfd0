//! Debian's unbound as a DNS-over-TLS server: a peer that we did not write.
//!
//! It knows the zone `example.org` by heart, since it refuses `.test` and has no internet to ask.

use crate::leftovers::scratch_dir;
use crate::netns::Netns;
use crate::pki::Identity;
use crate::served::Served;
use anyhow::{Context, Result};
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// What unbound says is the A record of `example.org`.
pub const UNBOUND_A: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 88);
/// What unbound says is the AAAA record of `example.org`.
pub const UNBOUND_AAAA: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x88);

/// A running unbound, killed on drop.
#[derive(Debug)]
pub struct Unbound {
    _served: Served,
}

impl Unbound {
    /// Starts one in the namespace; it accepts connections when this returns.
    pub fn start(netns: &Netns, address: SocketAddr, identity: &Identity) -> Result<Self> {
        let dir = scratch_dir()?;
        let file = dir.path().join("unbound.conf");
        fs::write(&file, configuration(address, identity)).context("write unbound.conf")?;
        let mut command = netns.command("unbound");
        command.args(["-d", "-p", "-c"]).arg(&file);
        Ok(Self { _served: Served::start(netns, command, Some(dir), address)? })
    }
}

fn configuration(address: SocketAddr, identity: &Identity) -> String {
    let (ip, port) = (address.ip(), address.port());
    let (key, pem) = (identity.key_file.display(), identity.certificate_file.display());
    format!(
        r#"server:
  interface: {ip}@{port}
  tls-port: {port}
  tls-service-key: "{key}"
  tls-service-pem: "{pem}"
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  do-daemonize: no
  use-syslog: no
  username: ""
  chroot: ""
  directory: ""
  num-threads: 1
  module-config: "iterator"
  local-zone: "example.org." static
  local-data: "example.org. 300 IN A {UNBOUND_A}"
  local-data: "example.org. 300 IN AAAA {UNBOUND_AAAA}"
  local-data: "www.example.org. 300 IN A {UNBOUND_A}"
remote-control:
  control-enable: no
"#
    )
}
