//! `cargo xtask test`: format, lints, then every test, with the sum in the last line.

use std::{
    ffi::OsString,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    demo, dist,
    run::{cargo, finish, is_root, succeeds},
    setup,
};

pub(crate) fn run(full: bool, storm: bool, arguments: Vec<OsString>) -> Result<ExitCode> {
    setup::run(setup::Report::Changes, setup::Purpose::Tests)?;
    let tidy = check("fmt", "fmt --all --check")?
        & check("clippy", "clippy --workspace --all-targets -- -D warnings")?;
    // The tests on the real kernel start the daemon, which is another package's binary.
    finish(&mut cargo("build -p dns-proxy"))?;

    let mut tests = cargo("test --workspace --exclude dns-proxy-ebpf --no-fail-fast");
    tests.args(with_ignored(full, arguments));
    if !is_root() {
        // Only the test binaries run as root, not the compiler.
        tests.env(format!("CARGO_TARGET_{}_RUNNER", host_triple()?), "sudo -E");
    }
    let Tally { passed, mut failed } = tally(&mut tests)?;
    if storm && !succeeds(&mut demo::program("dns-proxy-storm")?)? {
        failed += 1;
    }

    if !tidy {
        eprintln!("format or lints are not in order, see above");
    }
    if passed + failed == 0 {
        eprintln!("no test ran");
    }
    println!("{passed} passed, {failed} failed");
    Ok(if tidy && failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one of cargo's subcommands that inspect the source; true if it is content, or if this
/// toolchain does not have it.
fn check(name: &str, arguments: &str) -> Result<bool> {
    if !cargo(name).arg("--version").output()?.status.success() {
        println!("left out: cargo {name}, which this Rust toolchain does not have");
        return Ok(true);
    }
    succeeds(&mut cargo(arguments))
}

/// What follows a second `--` is for the test programs, where `--include-ignored` belongs too.
fn with_ignored(full: bool, mut arguments: Vec<OsString>) -> Vec<OsString> {
    if full {
        let end = arguments.iter().position(|argument| argument == "--").unwrap_or_else(|| {
            arguments.push("--".into());
            arguments.len() - 1
        });
        arguments.insert(end + 1, "--include-ignored".into());
    }
    arguments
}

/// As cargo spells it in the names of variables.
fn host_triple() -> Result<String> {
    Ok(dist::host()?.to_uppercase().replace('-', "_"))
}

/// What all test programs together report.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// Runs `cargo test`, passes its output on as it comes, and adds up its results.
fn tally(tests: &mut Command) -> Result<Tally> {
    let mut child = tests.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let mut output = BufReader::new(child.stdout.take().context("its output is a pipe")?);
    let mut tally = Tally::default();
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        io::stdout().write_all(&line)?;
        tally.add(&String::from_utf8_lossy(&line));
        line.clear();
    }
    if !child.wait()?.success() && tally.failed == 0 {
        eprintln!(
            "cargo test failed though no test did: a test program crashed or did not compile"
        );
        tally.failed = 1;
    }
    Ok(tally)
}

impl Tally {
    /// Counts a line such as `test result: FAILED. 3 passed; 1 failed; 0 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            match count.split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests\n",
            "test a ... ok\n",
            "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
            "test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s\n",
        ] {
            tally.add(line);
        }
        assert_eq!(tally, Tally { passed: 13, failed: 1 });
    }

    #[test]
    fn full_reaches_the_test_programs_whatever_else_they_are_given() {
        let check = |given: &[&str], expected: &[&str]| {
            let given = given.iter().map(OsString::from).collect();
            assert_eq!(with_ignored(true, given), expected);
        };
        check(&[], &["--", "--include-ignored"]);
        check(&["name"], &["name", "--", "--include-ignored"]);
        check(&["name", "--", "--nocapture"], &["name", "--", "--include-ignored", "--nocapture"]);
    }
}
