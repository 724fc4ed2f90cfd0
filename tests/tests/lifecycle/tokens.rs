//! Tokens are given out, taken back and given to others, and nobody notices.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Stage, Zone,
    artifacts::program,
    clients::{dig, probe},
    eventually,
};

const NAME: &str = "example.test";
/// Several times what 5,000 nameservers take on a busy machine.
const LONG: Duration = Duration::from_secs(180);

#[test]
fn a_resolver_can_ask_more_nameservers_than_there_are_tokens_for_it() -> Result<()> {
    let stage = Stage::new()?;
    let (resolver, modest) = (stage.world.container("resolver")?, stage.world.container("modest")?);
    let daemon = stage.daemon_with(&[&resolver, &modest], &["--upstream-timeout=500ms"])?;
    let witness = stage.witness(&resolver)?;
    let mut asking = probe(&resolver)?;
    asking.args(["recurse", "5000", NAME]).stdout(Stdio::piped());
    let mut asking = asking.spawn()?;
    let begun = Instant::now();
    while asking.try_wait()?.is_none() {
        ensure!(begun.elapsed() < LONG, "it still asks: {}", daemon.log().text());
        ensure!(dig(&modest, &[NAME, "@8.8.8.8"])? == [Zone::Encrypted.a().to_string()]);
    }
    let done = asking.wait_with_output()?;
    let printed = String::from_utf8(done.stdout)?;
    println!("{printed}");
    ensure!(done.status.success(), "{printed}{}", daemon.log().text());
    ensure!(printed.starts_with("asked=5000 wrong=0 "), "{printed}");
    ensure!(!printed.contains("refused=0"), "it never met the limit: {printed}");
    witness.saw_only_tls()
}

/// The map of tokens is full. It takes 64 cgroups that each have as many as one may.
#[test]
fn when_all_tokens_are_taken_whoever_has_one_goes_on_and_newcomers_wait_until_some_are_idle()
-> Result<()> {
    const GREEDY: usize = 64;
    const SOON: Duration = Duration::from_secs(60);
    let stage = Stage::new()?;
    let (crowd, modest) = (stage.world.container("crowd")?, stage.world.container("modest")?);
    // A token is not taken back for as long as an answer may take.
    let daemon = stage.daemon_with(&[&crowd, &modest], &["--upstream-timeout=10s"])?;
    let witness = stage.witness(&modest)?;
    let ask = |server: &str| dig(&modest, &[NAME, server, "+time=1"]);
    ensure!(ask("@8.8.8.8")? == [Zone::Encrypted.a().to_string()]);

    let mut sent = 0;
    for n in 0..GREEDY {
        let cgroup = crowd.cgroup().child(&format!("greedy-{n}"))?;
        let mut greedy = crowd.command_in(&cgroup, program("dns-proxy-probe")?)?;
        let printed = String::from_utf8(greedy.args(["tokens", "1024"]).output()?.stdout)?;
        let count = printed.trim().strip_prefix("sent=").and_then(|rest| rest.split(' ').next());
        sent += count.with_context(|| printed.clone())?.parse::<usize>()?;
    }
    // All that there are but the one.
    ensure!(sent == GREEDY * 1024 - 2, "{sent}");
    ensure!(ask("@9.9.9.9").is_err(), "there was one left");
    ensure!(ask("@8.8.8.8")? == [Zone::Encrypted.a().to_string()]);
    let answered = eventually(SOON, || ask("@9.9.9.9").is_ok());
    ensure!(answered, "{}", daemon.log().text());
    witness.saw_only_tls()
}
