//! The project's chores, run as `cargo xtask`: set up a machine, test, demonstrate.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what chores have to say is for the terminal"
)]

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser;

mod apt;
mod bench;
mod demo;
mod dist;
mod ebpf_toolchain;
mod fuzz;
mod run;
mod sbom;
mod setup;
mod test;

/// The project's chores
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
enum Chore {
    /// Bring this machine to where everything builds and all tests run
    ///
    /// Looks before it acts, so it can be repeated. Uses sudo if it must install packages and is
    /// not root.
    Setup {
        /// Only what it takes to build
        #[arg(long)]
        build: bool,
    },
    /// Set up what is missing, then check format and lints and run all tests
    ///
    /// The tests on the real kernel need root: without it they are started with sudo.
    Test {
        /// Run the slow tests too, those marked #[ignore]
        #[arg(long)]
        full: bool,
        /// Then let 500 newcomers of each kind look a name up as their first act
        #[arg(long)]
        storm: bool,
        /// Given to `cargo test`, such as the name of a test, or `-- --nocapture`
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Set up what is missing, then give everything that reads what peers send what nobody would send
    ///
    /// Needs a nightly Rust. What is found lies in fuzz/artifacts.
    Fuzz {
        /// How long for each target, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        time: u32,
    },
    /// Set up what is missing, then kill, starve and flood a daemon, and count what comes of it
    ///
    /// Takes half an hour. Fails if a query leaks, or something is left behind or unanswered.
    Chaos {
        /// How often it is killed in either failure mode
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        kills: u32,
        /// How many namespaces come, ask and go
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        namespaces: u32,
        /// Only faults whose name contains this: kill, pause, uplink, addresses, upstream,
        /// descriptors, names, churn, flood
        #[arg(long, value_name = "WORD")]
        only: Option<String>,
    },
    /// Set up what is missing, then let a daemon run under load while namespaces come and go
    ///
    /// Prints what it takes each minute, and fails if that grows.
    Soak {
        /// How long, in minutes
        #[arg(long, value_name = "N", default_value_t = 60)]
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        minutes: u32,
        /// Queries a second
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        rate: u32,
    },
    /// Set up what is missing, then show that DNS leaves a container only inside TLS
    Demo,
    /// Set up what is missing, then make what users are given, in target/dist
    ///
    /// From the commit that is checked out; for a release that is the one with the version's tag.
    Dist {
        /// What to make; all if nothing is named
        products: Vec<dist::Product>,
    },
    /// Write the bill of materials of the daemon (CycloneDX)
    Sbom {
        /// Where to
        file: PathBuf,
    },
    /// Set up what is missing, then measure what dns-proxy costs
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> Result<ExitCode> {
    let chore = Chore::parse();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::set_current_dir(&workspace)
        .with_context(|| format!("the workspace {} is gone", workspace.display()))?;
    match chore {
        Chore::Setup { build } => {
            let purpose = if build { setup::Purpose::Build } else { setup::Purpose::Tests };
            setup::run(setup::Report::Everything, purpose).map(|()| ExitCode::SUCCESS)
        }
        Chore::Test { full, storm, arguments } => test::run(full, storm, arguments),
        Chore::Fuzz { time } => fuzz::run(time),
        Chore::Chaos { kills, namespaces, only } => {
            let mut args = vec!["--kills".into(), kills.to_string()];
            args.extend(["--namespaces".into(), namespaces.to_string()]);
            args.extend(only.into_iter().flat_map(|only| ["--only".into(), only]));
            demo::become_program("dns-proxy-chaos", &args)
        }
        Chore::Soak { minutes, rate } => {
            let args = ["soak".into(), minutes.to_string(), rate.to_string()];
            demo::become_program("dns-proxy-chaos", &args)
        }
        Chore::Demo => demo::run(),
        Chore::Dist { products } => dist::run(&products).map(|()| ExitCode::SUCCESS),
        Chore::Sbom { file } => sbom::write(&file, &dist::host()?).map(|()| ExitCode::SUCCESS),
        Chore::Bench(bench) => bench::run(&bench),
    }
}
