//! `cargo xtask bench`: builds the bench, which lives with the tests' harness, and becomes it.

use std::{os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::{demo, setup};

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Nanoseconds that redirection adds to connect, sendto and a round trip; takes a minute
    Redirect {
        /// How often each state is measured, 7 or more
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(7..))]
        rounds: Option<u32>,
    },
}

pub(crate) fn run(bench: &Bench) -> Result<ExitCode> {
    setup::run(setup::Report::Changes, setup::Purpose::Demo)?;
    let mut command = demo::program("dns-proxy-bench")?;
    match bench {
        Bench::Redirect { rounds } => {
            command.arg("redirect");
            if let Some(rounds) = rounds {
                command.args(["--rounds", &rounds.to_string()]);
            }
        }
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}
