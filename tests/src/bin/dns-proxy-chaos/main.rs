//! Faults and floods, driven and counted: what is asked meanwhile, what leaks, what is left behind,
//! what memory it takes.
//!
//! `dns-proxy-chaos [--kills N] [--names MILLIONS] [--namespaces N] [--only WORD]` prints a row for
//! each, and exits with 1 if something promised did not hold. `dns-proxy-chaos soak MINUTES RATE` lets
//! a daemon run under load and prints what it takes each minute.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

mod faults;
mod floods;
mod report;
mod scene;
mod soak;

use anyhow::{Context as _, Result, bail};
use report::Row;
use std::env::args;
use std::process::ExitCode;

/// How much of everything.
struct Plan {
    kills: u32,
    millions: u32,
    namespaces: u32,
    only: Option<String>,
}

/// A fault, by a word that names it.
type Fault = (&'static str, Box<dyn Fn(&Plan) -> Result<Row>>);

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dns-proxy-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let args: Vec<String> = args().skip(1).collect();
    if let [what, minutes, rate] = args.as_slice()
        && what == "soak"
    {
        return soak::soak(number(minutes)?, number(rate)?);
    }
    let plan = Plan::read(&args)?;
    report::print_head();
    let mut good = true;
    for (name, fault) in faults() {
        if plan.only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
            let row = fault(&plan).with_context(|| name)?;
            row.print();
            good &= row.is_good();
        }
    }
    Ok(good)
}

fn faults() -> Vec<Fault> {
    let mut all: Vec<Fault> = vec![
        ("kill-closed", Box::new(|plan| faults::killed("closed", plan.kills))),
        ("kill-open", Box::new(|plan| faults::killed("open", plan.kills))),
        ("pause", Box::new(|_| faults::paused())),
        ("uplink", Box::new(|_| faults::uplink_flaps())),
        ("addresses", Box::new(|_| faults::addresses_change())),
        ("upstream", Box::new(|_| faults::upstream_restarts())),
        ("descriptors", Box::new(|_| faults::out_of_descriptors())),
        ("names", Box::new(|plan| faults::many_names(plan.millions))),
        ("churn", Box::new(|plan| faults::churn(plan.namespaces))),
    ];
    for kind in floods::KINDS {
        all.push(("flood", Box::new(move |_| floods::flood(kind))));
    }
    all
}

impl Plan {
    fn read(args: &[String]) -> Result<Self> {
        let mut plan = Self { kills: 1_000, millions: 1, namespaces: 10_000, only: None };
        for pair in args.chunks(2) {
            match pair {
                [name, value] if name == "--kills" => plan.kills = number(value)?,
                [name, value] if name == "--names" => plan.millions = number(value)?,
                [name, value] if name == "--namespaces" => plan.namespaces = number(value)?,
                [name, value] if name == "--only" => plan.only = Some(value.clone()),
                _ => bail!(
                    "usage: dns-proxy-chaos [--kills N] [--names MILLIONS] [--namespaces N] [--only WORD]"
                ),
            }
        }
        Ok(plan)
    }
}

fn number(text: &str) -> Result<u32> {
    text.parse().with_context(|| format!("{text} is no number"))
}
