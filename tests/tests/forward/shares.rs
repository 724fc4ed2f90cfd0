//! Many clients of one listener, of whom one asks for more than its share.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Orders, Reply, eventually};

use crate::{
    client::{Burst, Udp},
    packets::{A, query},
    place::{LIMIT, LISTEN, Setting},
};

const NEVER: &str = "never.example.test";

/// An upstream that does not answer one name, while nobody gives up.
fn setting() -> Result<Setting> {
    let setting = Setting::with(&["--upstream-timeout", "20s"])?;
    setting.upstream.order(Orders::default().except(NEVER, Reply::Silence));
    Ok(setting)
}

/// Clients with other addresses than the one that floods are answered.
fn check_others(setting: &Setting) -> Result<()> {
    for own in ["127.0.0.8", "127.0.0.9"] {
        let other = Udp::connect_from(&setting.place.netns, own.parse()?, LISTEN.parse()?)?;
        let burst = Burst::new("n", 100)?;
        for query in burst.queries() {
            other.send(&query)?;
        }
        burst.collect(|| other.receive()).with_context(|| own.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_flood_of_datagrams_takes_nobody_elses_answers_away() -> Result<()> {
    let setting = setting()?;
    let flood = setting.place.udp()?;
    let asked = query(7, NEVER, A, &[]);
    // Each round is taken before the next comes, until no more of them have a place.
    for round in 1..=24 {
        (0..256).try_for_each(|_| flood.send(&asked))?;
        let taken = || setting.upstream.journal().in_flight >= round * 256;
        eventually(Duration::from_millis(200), taken);
    }
    ensure!(setting.upstream.journal().in_flight >= 2_000, "no flood");
    check_others(&setting)
}

#[test]
fn a_flood_over_many_connections_takes_nobody_elses_answers_away() -> Result<()> {
    let setting = setting()?;
    let mut floods = (0..40).map(|_| setting.place.tcp()).collect::<Result<Vec<_>>>()?;
    for flood in &mut floods {
        (0..128).try_for_each(|_| flood.send(&query(7, NEVER, A, &[])))?;
    }
    let flooded = || setting.upstream.journal().in_flight >= 2_000;
    ensure!(eventually(LIMIT, flooded), "no flood");
    check_others(&setting)
}

#[test]
fn a_burst_of_two_thousand_loses_nothing() -> Result<()> {
    let setting = Setting::new()?;
    let (client, burst) = (setting.place.udp()?, Burst::new("n", 2_000)?);
    for query in burst.queries() {
        client.send(&query)?;
    }
    burst.collect(|| client.receive())?;
    ensure!(setting.upstream.journal().accepted == 1);
    Ok(())
}
