//! Debian's dnsdist as a DNS-over-TLS server: a peer that we did not write, in front of a plaintext
//! nameserver that answers for it.

use crate::leftovers::scratch_dir;
use crate::log::Log;
use crate::netns::Netns;
use crate::pki::Identity;
use crate::process::Process;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;

/// How long it may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A running dnsdist, killed on drop.
#[derive(Debug)]
pub struct Dnsdist {
    _process: Process,
    _dir: TempDir,
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
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn(command).context("no dnsdist? cargo xtask setup")?;
        let log = Log::of(&mut process);
        let ready = eventually(START_LIMIT, || {
            process.ended().is_some()
                || netns
                    .run(|| TcpStream::connect(address))
                    .is_ok_and(|connected| connected.is_ok())
        });
        let running = ready && process.ended().is_none();
        ensure!(running, "dnsdist does not serve {address}:\n{}", log.text());
        Ok(Self { _process: process, _dir: dir })
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
