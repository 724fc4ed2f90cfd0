//! Tokens are given out, taken back and given to others, and nobody notices.

use std::process::Stdio;

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    Stage, Zone,
    clients::{dig, probe},
};

const NAME: &str = "example.test";

#[test]
fn a_resolver_can_ask_more_nameservers_than_there_are_tokens_for_it() -> Result<()> {
    let stage = Stage::new()?;
    let (resolver, modest) = (stage.world.container("resolver")?, stage.world.container("modest")?);
    let daemon = stage.daemon_with(&[&resolver, &modest], &["--upstream-timeout=500ms"])?;
    let witness = stage.witness(&resolver)?;
    let mut asking = probe(&resolver)?;
    asking.args(["recurse", "5000", NAME]).stdout(Stdio::piped());
    let mut asking = asking.spawn()?;
    while asking.try_wait()?.is_none() {
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
