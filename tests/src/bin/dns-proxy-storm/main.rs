//! The first-query storm: many processes in fresh network namespaces, each with its lookup as its
//! very first act.
//!
//! `dns-proxy-storm [LOOKUPS [AT_ONCE]]`, 500 and 20 if not said. For each way to get into a new
//! namespace and each kind of client it prints how many lookups failed and how many packets of
//! port 53 were seen on any interface of the host, and exits with 1 if any was.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

use std::{process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};
use dns_proxy_tests::storm::{Birth, Client, storm};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dns-proxy-storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut args = std::env::args().skip(1);
    let mut number = |default| args.next().map_or(Ok(default), |text| text.parse::<usize>());
    let total = number(500).context("LOOKUPS")?;
    let at_once = number(20).context("AT_ONCE")?;
    println!("{total} first lookups for each line, {at_once} at a time, under load");
    println!(
        "{:<32}  {:<6}  started  answered  failed  refused  captured  plaintext packets  seconds",
        "who asks", "client"
    );
    let mut good = true;
    for birth in Birth::ALL {
        for client in Client::ALL {
            let begun = Instant::now();
            let outcome = storm(birth, client, total, at_once)?;
            println!(
                "{:<32}  {:<6}  {:>7}  {:>8}  {:>6}  {:>7}  {:>8}  {:>17}  {:>7}",
                birth.name(),
                client.name(),
                outcome.started,
                outcome.started - outcome.failed,
                outcome.failed,
                outcome.refused,
                outcome.captured,
                outcome.plaintext,
                begun.elapsed().as_secs()
            );
            outcome.failures.iter().for_each(|failure| eprintln!("{failure}"));
            good &= outcome.is_good();
        }
    }
    Ok(good)
}
