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
    /// CPU, rate and latency of uncached queries over DNS-over-TLS, and what faults cost, beside
    /// unbound, dnsdist, stubby and knot-resolver; takes ten minutes and more
    Upstream {
        /// How often everything is measured
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        rounds: Option<u32>,
        /// Only forwarders whose name contains this
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
        /// Only rows whose title contains this
        #[arg(long, value_name = "TITLE")]
        scenario: Option<String>,
    },
}

pub(crate) fn run(bench: &Bench) -> Result<ExitCode> {
    let purpose = match bench {
        Bench::Redirect { .. } => setup::Purpose::Demo,
        Bench::Upstream { .. } => setup::Purpose::Bench,
    };
    setup::run(setup::Report::Changes, purpose)?;
    let mut command = demo::program("dns-proxy-bench")?;
    command.arg(match bench {
        Bench::Redirect { .. } => "redirect",
        Bench::Upstream { .. } => "upstream",
    });
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            command.args([name, &value]);
        }
    };
    match bench {
        Bench::Redirect { rounds } => {
            option("--rounds", rounds.map(|rounds| rounds.to_string()));
        }
        Bench::Upstream { rounds, only, scenario } => {
            option("--rounds", rounds.map(|rounds| rounds.to_string()));
            option("--only", only.clone());
            option("--scenario", scenario.clone());
        }
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}
