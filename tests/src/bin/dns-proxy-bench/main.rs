//! What dns-proxy costs, measured on this machine; `bench/README.md` tells how and how fair it is.
//!
//! Exits with 0 whatever the figures are, unless something could not be measured at all.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

mod bpf;
mod load;
mod redirect;
mod states;
mod stats;

use std::{env::args, process::ExitCode};

use anyhow::{Result, bail};

fn main() -> ExitCode {
    let args: Vec<String> = args().skip(1).collect();
    match run(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dns-proxy-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<()> {
    match args {
        ["redirect"] => redirect::run(redirect::ROUNDS),
        ["redirect", "--rounds", rounds] => redirect::run(rounds.parse()?),
        [load::COMMAND] => load::serve(),
        _ => bail!("usage: dns-proxy-bench redirect [--rounds N]"),
    }
}
