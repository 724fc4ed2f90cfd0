//! Debian's dnsmasq as the nameserver of an internal network: a peer that we did not write.
//!
//! It knows the zone `lab.internal` by heart and gives it away, and has nobody to ask.

use crate::netns::Netns;
use crate::served::Served;
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What dnsmasq says is the A record of `db.lab.internal`, whose reverse it knows too.
pub const DNSMASQ_A: Ipv4Addr = Ipv4Addr::new(10, 20, 30, 40);

/// A running dnsmasq, killed on drop.
#[derive(Debug)]
pub struct Dnsmasq {
    _served: Served,
}

impl Dnsmasq {
    /// Starts one in the namespace that gives its zone to `peer`; it accepts connections when this
    /// returns.
    pub fn start(netns: &Netns, address: SocketAddr, peer: IpAddr) -> Result<Self> {
        let (ip, port) = (address.ip(), address.port());
        let mut command = netns.command("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file"]);
        command.args(["--user=root", "--log-facility=-", "--no-resolv", "--no-hosts"]);
        command.arg("--bind-interfaces");
        command.arg(format!("--auth-zone=lab.internal,{DNSMASQ_A}/24"));
        command.arg(format!("--listen-address={ip}")).arg(format!("--port={port}"));
        command.arg(format!("--auth-server=ns.lab.internal,{ip}"));
        command.arg(format!("--auth-peer={peer}"));
        command.arg(format!("--host-record=db.lab.internal,{DNSMASQ_A}"));
        Ok(Self { _served: Served::start(netns, command, None, address)? })
    }
}
