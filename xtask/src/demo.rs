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
    setup::run(setup::Report::Changes, setup::Purpose::Demo)?;
    let mut demo = program("dns-proxy-demo")?;
    let error = demo.exec();
    Err(error).with_context(|| format!("cannot run {}", demo.get_program().display()))
}

/// Builds the daemon and one of these programs.
pub(crate) fn program(name: &str) -> Result<Command> {
    finish(&mut cargo("build --release -p dns-proxy --bin dns-proxy"))?;
    finish(&mut cargo(&format!("build --release -p dns-proxy-tests --bin {name}")))?;

    Ok(as_root(target()?.join("release").join(name)))
}

/// Where cargo puts its products.
pub(crate) fn target() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let target = this.parent().and_then(Path::parent).context("xtask lies in target/debug")?;
    Ok(target.to_owned())
}
