//! A container that asks, first with nobody between it and its nameserver, then in the scope of a
//! daemon.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Container, Daemon, Stage, Zone,
    clients::probe,
    container::INTERFACE,
    stage::{Witness, is_token},
};

/// What a row may show differently once it is redirected; the rest must stay as it was.
const MAY_DIFFER: [&str; 4] = ["answer=", "ms=", "to=", "device="];

/// A container, and the internet around it.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) container: Container,
}

/// The scene with a daemon, and cameras on the way out.
#[derive(Debug)]
pub(crate) struct Intercepted<'a> {
    scene: &'a Scene,
    _daemon: Daemon,
    witness: Witness,
    /// What the plaintext nameserver had heard before.
    heard: usize,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        Self::asking("8.8.8.8")
    }

    /// A container whose nameserver is `server`.
    pub(crate) fn asking(server: &str) -> Result<Self> {
        let stage = Stage::new()?;
        let container = stage.world.container_with("app", &format!("nameserver {server}\n"))?;
        Ok(Self { stage, container })
    }

    /// Makes the container drop whatever comes in by another way than it would answer.
    pub(crate) fn filter_reverse_paths(&self) -> Result<()> {
        ["all", "lo", INTERFACE].iter().try_for_each(|conf| {
            self.container.netns().sysctl(&format!("net/ipv4/conf/{conf}/rp_filter"), "1")
        })
    }

    pub(crate) fn intercept(&self) -> Result<Intercepted<'_>> {
        let _daemon = self.daemon()?;
        let witness = self.stage.witness(&self.container)?;
        let heard = self.stage.nameserver.queries().len();
        Ok(Intercepted { scene: self, _daemon, witness, heard })
    }

    /// The daemon without cameras.
    pub(crate) fn daemon(&self) -> Result<Daemon> {
        self.stage.daemon(&[&self.container])
    }

    /// A probe in the container, by a row of its words.
    pub(crate) fn probe(&self, row: &str) -> Result<Command> {
        let mut command = probe(&self.container)?;
        command.args(row.split_whitespace());
        Ok(command)
    }

    /// What such a probe prints, whether it likes what it sees or not.
    pub(crate) fn see(&self, row: &str) -> Result<String> {
        let done = self.probe(row)?.output().with_context(|| row.to_owned())?;
        let printed = String::from_utf8(done.stdout)?;
        ensure!(!printed.is_empty(), "{row}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(printed)
    }

    /// Runs a probe that must find its answers right, those from upstream, and show each of `shown`.
    pub(crate) fn answered(&self, row: &str, shown: &[&str]) -> Result<()> {
        let printed = self.see(row)?;
        let answer = Zone::Encrypted.a().to_string();
        for wanted in shown.iter().copied().chain([answer.as_str()]) {
            ensure!(printed.contains(wanted), "{row}: no {wanted} in: {printed}");
        }
        ensure!(!printed.contains("error="), "{row}: {printed}");
        Ok(())
    }

    /// What a probe prints that nobody answers; nothing of it may be seen outside.
    pub(crate) fn leaks_nothing(&self, row: &str) -> Result<String> {
        let witness = self.stage.witness(&self.container)?;
        let printed = self.see(row)?;
        let (inside, uplink) = witness.packets()?;
        for packet in inside.iter().chain(&uplink) {
            let dns = packet.dst.port() == 53 || packet.src.port() == 53;
            ensure!(!dns && !is_token(packet.dst.ip()), "{row}: {packet}");
        }
        Ok(printed)
    }
}

impl Intercepted<'_> {
    /// Ends the scene: nothing but TLS may have left.
    pub(crate) fn end(self) -> Result<()> {
        self.witness.saw_only_tls()?;
        let heard = self.scene.stage.nameserver.queries();
        ensure!(heard.len() == self.heard, "asked in plaintext: {:?}", heard.last());
        Ok(())
    }
}

/// Runs each row of words as a probe, in plaintext and redirected: but for the answer, the
/// application must see the same.
pub(crate) fn same_with_and_without(scene: &Scene, rows: &[&str]) -> Result<()> {
    let before = rows.iter().map(|row| scene.see(row)).collect::<Result<Vec<_>>>()?;
    let intercepted = scene.intercept()?;
    let (plaintext, encrypted) = (Zone::Plaintext.a().to_string(), Zone::Encrypted.a().to_string());
    for (row, before) in rows.iter().zip(before) {
        let after = scene.see(row)?;
        ensure!(seen(&before) == seen(&after), "{row}: without us:\n{before}with us:\n{after}");
        let (answers, ours) = (before.matches(&plaintext), after.matches(&encrypted));
        ensure!(answers.count() == ours.count(), "{row}: other answers:\n{before}{after}");
    }
    intercepted.end()
}

/// What must not differ; answers may come in any order.
fn seen(printed: &str) -> Vec<String> {
    let kept = |word: &&str| !MAY_DIFFER.iter().any(|key| word.starts_with(key));
    let words = |line: &str| line.split(' ').filter(kept).collect::<Vec<_>>().join(" ");
    let mut lines: Vec<_> = printed.lines().map(words).collect();
    lines.sort();
    lines
}
