//! `cargo xtask demo`: builds the demo, which lives with the tests' harness, and becomes it.

use std::{os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    run::{as_root, cargo, finish},
    setup,
};

pub(crate) fn run() -> Result<ExitCode> {
    setup::run(setup::Report::Changes)?;
    finish(&mut cargo("build --release -p dns-proxy --bin dns-proxy"))?;
    finish(&mut cargo("build --release -p dns-proxy-tests --bin dns-proxy-demo"))?;

    // Wherever cargo puts its products, this program lies in `debug`, beside `release`.
    let this = std::env::current_exe()?;
    let target =
        this.parent().and_then(|debug| debug.parent()).context("xtask lies in target/debug")?;
    let demo = target.join("release/dns-proxy-demo");
    let error = as_root(&demo).exec();
    Err(error).with_context(|| format!("cannot run {}", demo.display()))
}
