//! Real programs that ask, run inside containers: C libraries, Go, Java, dig, kdig and our own
//! probe.

use crate::artifacts;
use crate::container::Container;
use crate::process::output;
use crate::zone::fnv1a;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs::rename;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use tempfile::TempDir;

/// The program that asks its C library.
const SOURCE: &str = include_str!("../clients/gai.c");
/// The program that asks Go.
const GO_SOURCE: &str = include_str!("../clients/resolve.go");
/// The program that asks Java.
const JAVA_SOURCE: &str = include_str!("../clients/Resolve.java");

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
        let (compiler, flags): (_, &[&str]) = match self {
            Self::Glibc => ("gcc", &[]),
            Self::Musl => ("musl-gcc", &["-static"]),
        };
        compiled(&format!("gai-{compiler}"), ("gai.c", SOURCE), |source, built| {
            let mut command = Command::new(compiler);
            command.args(flags).args(["-O", "-Wall", "-Werror", "-o"]).arg(built).arg(source);
            command
        })
    }
}

/// The program `resolve A|TXT NAME` in Go, compiled on first use.
pub fn go_program() -> Result<PathBuf> {
    let cache = artifacts::tmp_dir()?.join("go-cache");
    compiled("resolve-go", ("resolve.go", GO_SOURCE), |source, built| {
        let mut command = Command::new("go");
        command.args(["build", "-o"]).arg(built).arg(source);
        command.envs([("CGO_ENABLED", "1"), ("GO111MODULE", "off"), ("GOTOOLCHAIN", "local")]);
        command.env("GOCACHE", &cache);
        command
    })
}

/// Where the class `Resolve` is, compiled on first use.
pub fn java_classes() -> Result<PathBuf> {
    compiled("resolve-java", ("Resolve.java", JAVA_SOURCE), |source, built| {
        let mut command = Command::new("javac");
        command.arg("-d").arg(built).arg(source);
        command
    })
}

/// What a compiler made of the source, now or in an earlier run.
fn compiled(
    name: &str,
    (file, text): (&str, &str),
    compiler: impl Fn(&Path, &Path) -> Command,
) -> Result<PathBuf> {
    static COMPILING: Mutex<()> = Mutex::new(());
    let _one = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = artifacts::tmp_dir()?;
    let product = dir.join(format!("{name}-{:016x}", fnv1a(text.as_bytes())));
    if !product.exists() {
        let scratch = TempDir::new_in(&dir)?;
        let (source, built) = (scratch.path().join(file), scratch.path().join("built"));
        std::fs::write(&source, text)?;
        let mut command = compiler(&source, &built);
        output(&mut command).context("if there is no such compiler: cargo xtask setup")?;
        // Whole or not at all; when two test runs compile at once, either product will do.
        let moved = rename(&built, &product);
        ensure!(product.exists(), "keep {}: {moved:?}", product.display());
    }
    Ok(product)
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
