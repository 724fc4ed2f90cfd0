//! Everybody in the story: the stage of the tests, two containers, cameras on every wire.

use std::{collections::BTreeSet, ops::Sub};

use anyhow::{Context as _, Result};
use dns_proxy_tests::{Container, Daemon, Stage, stage};

use crate::{ask::Named, cameras::Cameras, evidence::Counts, report::Check, sighting::Wire};

/// All of them; dropping it takes everything away.
pub(crate) struct Cast {
    // Dropped in this order: what looks on, who lives there, the world.
    cameras: Cameras,
    /// The container in scope.
    pub(crate) inside: Container,
    /// The one that is not.
    pub(crate) outside: Container,
    stage: Stage,
}

impl Cast {
    /// Sets it all up; the cameras are running.
    pub(crate) fn new() -> Result<Self> {
        let stage = Stage::new()?;
        let inside = stage.world.container("inside")?;
        let outside = stage.world.container("outside")?;
        let cameras = Cameras::new(&stage.world, &inside, &outside)?;
        Ok(Self { cameras, inside, outside, stage })
    }

    /// The container in scope, by name.
    pub(crate) fn inside(&self) -> Named<'_> {
        let (name, container) = ("inside", &self.inside);
        Named { name, container }
    }

    /// The other one.
    pub(crate) fn outside(&self) -> Named<'_> {
        let (name, container) = ("outside", &self.outside);
        Named { name, container }
    }

    /// What a user types after `dns-proxy`.
    pub(crate) fn daemon_args(&self) -> Result<Vec<String>> {
        self.stage.run_args(&[self.inside.cgroup()])
    }

    /// Starts the daemon on the host; it serves `inside` when this returns.
    pub(crate) fn start_daemon(&self, args: &[String]) -> Result<Daemon> {
        let daemon = Daemon::start(&self.stage.world, args).context("start the daemon")?;
        daemon.wait_until_serving(self.inside.netns())?;
        Ok(daemon)
    }

    /// How many queries each nameserver has seen.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            tls: self.stage.upstream.journal().queries.len(),
            plaintext: self.stage.nameserver.queries().len(),
        }
    }

    /// What the cameras have seen since the last time.
    pub(crate) fn develop(&mut self) -> Result<Vec<Wire>> {
        self.cameras.develop(self.outside.addresses())
    }

    /// Whether the upstream was spoken to as it should be.
    pub(crate) fn handshakes(&self) -> Check {
        let journal = self.stage.upstream.journal();
        let (done, failed) = (&journal.handshakes, &journal.failed_handshakes);
        let names: BTreeSet<_> = done.iter().map(|done| &done.server_name).collect();
        let wanted = Some(stage::UPSTREAM_NAME.to_owned());
        Check {
            holds: names == BTreeSet::from([&wanted]) && failed.is_empty(),
            says: format!(
                "TLS:     {} handshake(s) in all, for {}, and {} that failed",
                done.len(),
                stage::UPSTREAM_NAME,
                failed.len()
            ),
            otherwise: format!(
                "the upstream completed {} handshakes for {names:?}; others failed: {failed:?}",
                done.len()
            ),
        }
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { tls: self.tls - earlier.tls, plaintext: self.plaintext - earlier.plaintext }
    }
}
