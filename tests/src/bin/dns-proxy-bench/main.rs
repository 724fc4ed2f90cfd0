//! What dns-proxy costs, measured on this machine; `bench/README.md` tells how and how fair it is.
//!
//! Exits with 0 whatever the figures are, unless something could not be measured at all.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

mod load;
mod redirect;
mod states;
mod stats;
mod upstream;

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
        ["upstream", options @ ..] => upstream::run(&choice(options)?),
        [load::COMMAND] => load::serve(),
        _ => bail!("usage: dns-proxy-bench redirect|upstream [--rounds N] ..."),
    }
}

/// Pairs of options and their values.
fn choice(options: &[&str]) -> Result<upstream::Choice> {
    let mut choice =
        upstream::Choice { rounds: upstream::ROUNDS, only: String::new(), scenario: String::new() };
    for pair in options.chunks(2) {
        match pair {
            ["--rounds", rounds] => choice.rounds = rounds.parse()?,
            ["--only", name] => choice.only = (*name).to_owned(),
            ["--scenario", name] => choice.scenario = (*name).to_owned(),
            _ => bail!(
                "usage: dns-proxy-bench upstream [--rounds N] [--only NAME] [--scenario NAME]"
            ),
        }
    }
    Ok(choice)
}
