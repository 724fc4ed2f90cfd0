//! The programs that live with the tests' harness: built for release, and run as root.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    run::{as_root, cargo, finish},
    setup,
};

/// `cargo xtask demo`: builds the demo and becomes it.
pub(crate) fn run() -> Result<ExitCode> {
    become_program("dns-proxy-demo", &[])
}

/// Sets up what is missing, builds one of these programs and becomes it.
pub(crate) fn become_program(name: &str, args: &[String]) -> Result<ExitCode> {
    setup::run(setup::Report::Changes, setup::Purpose::Demo)?;
    let mut command = program(name)?;
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// Builds the daemon and one of these programs.
pub(crate) fn program(name: &str) -> Result<Command> {
    finish(&mut cargo("build --release -p dns-proxy --bin dns-proxy"))?;
    // Most of them let the probe ask.
    let programs = format!("build --release -p dns-proxy-tests --bin dns-proxy-probe --bin {name}");
    finish(&mut cargo(&programs))?;

    Ok(as_root(target()?.join("release").join(name)))
}

/// Where cargo puts its products.
pub(crate) fn target() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let target = this.parent().and_then(Path::parent).context("xtask lies in target/debug")?;
    Ok(target.to_owned())
}
