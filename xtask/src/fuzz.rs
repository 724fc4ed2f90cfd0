//! `cargo xtask fuzz`: every fuzz target for a while, from its seeds and what earlier runs found.

use std::{fs, process::ExitCode};

use anyhow::{Result, ensure};

use crate::{
    apt,
    ebpf_toolchain::command,
    run::{cargo, exists, finish, succeeds},
};

const TARGETS: [&str; 3] = ["client_query", "upstream_answer", "upstream_stream"];
/// The longest input, in octets: twice the longest query.
const MAX_LEN: u32 = 8192;

/// Runs each target for so many seconds.
pub(crate) fn run(seconds: u32) -> Result<ExitCode> {
    set_up()?;
    let mut sound = true;
    for target in TARGETS {
        let (found, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        fs::create_dir_all(&found)?;
        // The parsers are safe Rust: what sanitizers look for cannot be.
        let mut fuzz = cargo("+nightly fuzz run --fuzz-dir fuzz --sanitizer none");
        fuzz.args([target, &found, &seeds, "--", "-print_final_stats=1"]);
        fuzz.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={MAX_LEN}"));
        // No target runs the kernel programs: they need not be compiled.
        sound &= succeeds(fuzz.env("AYA_BUILD_SKIP", "1"))?;
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn set_up() -> Result<()> {
    let nightly = command("cargo").args(["+nightly", "--version"]).output();
    ensure!(
        nightly.is_ok_and(|output| output.status.success()),
        "libFuzzer takes a nightly Rust: rustup toolchain install nightly"
    );
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
