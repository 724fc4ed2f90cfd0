//! `cargo xtask fuzz`: every fuzz target for a while, from its seeds and what earlier runs found.

use std::{fs, process::ExitCode};

use anyhow::Result;

use crate::{
    apt,
    ebpf_toolchain::command,
    run::{cargo, exists, finish, succeeds},
};

/// Their names, and whose seeds they begin with.
const TARGETS: [(&str, &str); 6] = [
    ("client_query", "client_query"),
    ("upstream_answer", "upstream_answer"),
    ("upstream_stream", "upstream_stream"),
    ("cached_answer", "upstream_answer"),
    ("zone_transfer", "zone_transfer"),
    ("certificate", "certificate"),
];
/// The longest input, in octets: twice the longest query.
const MAX_LEN: u32 = 8192;

/// Runs each target for so many seconds.
pub(crate) fn run(seconds: u32) -> Result<ExitCode> {
    set_up()?;
    let nightly = command("cargo").args(["+nightly", "--version"]).output();
    let nightly = nightly.is_ok_and(|output| output.status.success());
    let mut sound = true;
    for (target, seeds) in TARGETS {
        let (found, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{seeds}"));
        fs::create_dir_all(&found)?;
        // The parsers are safe Rust: what sanitizers look for cannot be.
        let run = "fuzz run --fuzz-dir fuzz --sanitizer none";
        let mut fuzz = cargo(&if nightly { format!("+nightly {run}") } else { run.to_owned() });
        if !nightly {
            // Nothing but the flags that guide libFuzzer is unstable.
            fuzz.env("RUSTC_BOOTSTRAP", "1");
        }
        fuzz.args([target, &found, &seeds, "--", "-print_final_stats=1"]);
        fuzz.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={MAX_LEN}"));
        // No target runs the kernel programs: they need not be compiled.
        sound &= succeeds(fuzz.env("AYA_BUILD_SKIP", "1"))?;
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn set_up() -> Result<()> {
    if !exists("g++") {
        println!("missing  g++ -> install g++: compiles libFuzzer");
        apt::install(&["g++"])?;
    }
    if !exists("cargo-fuzz") {
        println!("missing  cargo-fuzz -> cargo install cargo-fuzz: builds and runs fuzz targets");
        finish(&mut cargo("install cargo-fuzz --locked --quiet"))?;
    }
    Ok(())
}
