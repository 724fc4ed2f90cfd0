//! What the daemon says of a configuration file that it cannot use, word for word.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Daemon, Netns, require_root_and_bpf};

/// Each case is `### NAME [| ARGUMENTS]`, the file, its drop-ins as `=== NAME`, `---` and what is
/// said.
const BROKEN: &str = include_str!("broken_configurations.txt");
/// What stands below each message about the command line.
const USAGE: &str = "\n\nUsage: dns-proxy <COMMAND>\n\nFor more information, try '--help'.";

#[test]
fn every_mistake_in_a_file_is_named_with_its_place_and_its_remedy() -> Result<()> {
    require_root_and_bpf();
    let netns = Netns::new()?;
    let cases: Vec<_> = BROKEN.split("### ").skip(1).collect();
    ensure!(cases.len() >= 60, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let (head, rest) = case.split_once('\n').context("a case without a name")?;
        let (files, expected) = rest.split_once("---\n").context(head.to_owned())?;
        let (_, args) = head.split_once(" | ").unwrap_or((head, "run --config dns-proxy.toml"));
        let (code, said) = run(&netns, files, args).context(head.to_owned())?;
        if code != Some(2) || said != expected.trim_end() {
            wrong.push(format!("{head}: {code:?}\n{said}\nrather than\n{expected}"));
        }
    }
    ensure!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// The exit code and what was said.
fn run(netns: &Netns, files: &str, args: &str) -> Result<(Option<i32>, String)> {
    let dir = tempfile::tempdir()?;
    let mut files = files.split("=== ");
    fs::write(dir.path().join("dns-proxy.toml"), files.next().unwrap_or_default())?;
    let drop_ins = dir.path().join("dns-proxy.toml.d");
    for (name, text) in files.filter_map(|file| file.split_once('\n')) {
        fs::create_dir_all(&drop_ins)?;
        fs::write(drop_ins.join(name), text)?;
    }
    // One that is not refused would run for good.
    let mut command = netns.command("timeout");
    command.arg("10").arg(Daemon::program()?).args(args.split_whitespace());
    let variables =
        std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("DNS_PROXY_"));
    let output = command.env_clear().envs(variables).env("NO_COLOR", "1").current_dir(dir.path());
    let output = output.output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim_end().replace(USAGE, "");
    Ok((output.status.code(), said))
}
