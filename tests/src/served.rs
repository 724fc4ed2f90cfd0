//! Servers that we did not write: started, waited for, killed on drop.

use crate::log::Log;
use crate::netns::Netns;
use crate::process::Process;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long one may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A running server and the directory of its files, if it has any.
#[derive(Debug)]
pub(crate) struct Served {
    _process: Process,
    _dir: Option<TempDir>,
}

impl Served {
    /// Starts a command that stays in the foreground; it accepts connections when this returns.
    pub(crate) fn start(
        netns: &Netns,
        mut command: Command,
        dir: Option<TempDir>,
        address: SocketAddr,
    ) -> Result<Self> {
        let name = command.get_program().display().to_string();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process =
            Process::spawn(command).with_context(|| format!("no {name}? cargo xtask setup"))?;
        let log = Log::of(&mut process);
        let ready = eventually(START_LIMIT, || {
            process.ended().is_some()
                || netns
                    .run(|| TcpStream::connect(address))
                    .is_ok_and(|connected| connected.is_ok())
        });
        let running = ready && process.ended().is_none();
        ensure!(running, "{name} does not serve {address}:\n{}", log.text());
        Ok(Self { _process: process, _dir: dir })
    }
}
