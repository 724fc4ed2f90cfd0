//! Real programs that ask, run inside containers: C libraries, dig, kdig and our own probe.

use crate::artifacts;
use crate::container::Container;
use crate::process::output;
use crate::zone::fnv1a;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs::rename;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use tempfile::TempDir;

/// The program that asks its C library.
const SOURCE: &str = include_str!("../clients/gai.c");

/// A C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libc {
    /// glibc: connected sockets, one nameserver after the other.
    Glibc,
    /// musl: one unconnected socket, all nameservers at once.
    Musl,
}

impl Libc {
    /// Resolves a name in the container through this library.
    pub fn resolve(self, container: &Container, name: &str) -> Result<BTreeSet<IpAddr>> {
        addresses(&output(container.command(self.program()?)?.arg(name))?)
    }

    /// The program `gai NAME` linked with this library, compiled on first use.
    pub fn program(self) -> Result<PathBuf> {
        static COMPILING: Mutex<()> = Mutex::new(());
        let _one = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
        let (compiler, flags): (_, &[&str]) = match self {
            Self::Glibc => ("gcc", &[]),
            Self::Musl => ("musl-gcc", &["-static"]),
        };
        let dir = artifacts::tmp_dir()?;
        let program = dir.join(format!("gai-{compiler}-{:016x}", fnv1a(SOURCE.as_bytes())));
        if !program.exists() {
            let scratch = TempDir::new_in(&dir)?;
            let (source, built) = (scratch.path().join("gai.c"), scratch.path().join("gai"));
            std::fs::write(&source, SOURCE)?;
            let mut command = Command::new(compiler);
            command.args(flags).args(["-O", "-Wall", "-Werror", "-o"]).arg(&built).arg(&source);
            output(&mut command).with_context(|| format!("no {compiler}? cargo xtask setup"))?;
            // Whole or not at all, also when two test runs compile at once.
            rename(&built, &program)?;
        }
        Ok(program)
    }
}

/// Resolves a name in the container as Debian's own programs do.
pub fn getent(container: &Container, name: &str) -> Result<BTreeSet<IpAddr>> {
    addresses(&container.run("getent", &["ahosts", name])?)
}

/// Runs `dig +short` with these arguments in the container; the lines of its answer.
pub fn dig(container: &Container, args: &[&str]) -> Result<Vec<String>> {
    let printed = container.run("dig", &[&["+short", "+tries=1", "+time=5"], args].concat())?;
    Ok(printed.lines().map(ToOwned::to_owned).collect())
}

/// A command for `kdig`, which speaks TLS too.
pub fn kdig(container: &Container) -> Result<Command> {
    let mut command = container.command("kdig")?;
    command.args(["+short", "+retry=0", "+time=5"]);
    Ok(command)
}

/// A command for `dns-proxy-probe`, which makes exactly the sockets it is told to.
pub fn probe(container: &Container) -> Result<Command> {
    container.command(artifacts::program("dns-proxy-probe")?)
}

/// The first word of each line, as an address.
fn addresses(lines: &str) -> Result<BTreeSet<IpAddr>> {
    let words = lines.lines().filter_map(|line| line.split_whitespace().next());
    words.map(|word| word.parse().with_context(|| format!("{word} is no address"))).collect()
}
