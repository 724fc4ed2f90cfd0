//! One container does what it can to keep the others from being answered.

use crate::report::Row;
use crate::scene::Scene;
use anyhow::{Result, ensure};

/// Each flood, and what it is called.
pub(crate) const KINDS: [(&str, &str); 5] = [
    ("names", "random names, nobody reads the answers"),
    ("garbage", "datagrams of noise"),
    ("giant", "datagrams of 60,000 octets"),
    ("slowloris", "2,000 connections, an octet now and then"),
    ("unread", "200 connections, nobody reads the answers"),
];
/// How long each goes on, in seconds.
const SECONDS: u64 = 8;
/// Queries a second of the container that is to be answered meanwhile.
const RATE: u32 = 500;
/// The daemon may grow by so much: what is in flight, and the sockets' buffers.
const GROWTH: u64 = 48 << 20;
/// Of a hundred queries of the others so many must be answered.
const SHARE: u64 = 90;

pub(crate) fn flood((kind, what): (&str, &str)) -> Result<Row> {
    let mut scene = Scene::new(&[])?;
    let daemon = scene.start()?;
    let before = daemon.rss()?;
    let flood = scene.flood(SECONDS + 2, kind)?;
    let tally = scene.ask(SECONDS, RATE)?.end(&mut scene)?;
    let after = daemon.rss()?;
    // Once the daemon has stopped, it would go as before.
    drop(flood);
    ensure!(daemon.stop()?.success(), "it did not stop well");
    let leaked = scene.leaked()?;
    let answered = tally.encrypted * 100 >= tally.asked * SHARE;
    Ok(Row {
        what: format!("flood: {what}"),
        good: answered && leaked == 0 && after < before + GROWTH,
        tally,
        leaked,
        leftovers: scene.leftovers()?,
        memory: Some((before, after)),
    })
}
