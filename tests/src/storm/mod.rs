//! Many processes at once, in network namespaces that were not there a moment ago, each with a
//! lookup as its very first act.

mod birth;

pub use birth::Birth;

use crate::clients::Libc;
use crate::clients::{go_program, probe};
use crate::container::Container;
use crate::packet::port53;
use crate::process::output;
use crate::stage::is_token;
use crate::zone::Zone;
use crate::{Capture, Daemon, Stage};
use anyhow::{Context as _, Result, ensure};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Namespaces that are made in one world, which has addresses for little more.
const WORLD: usize = 200;
/// How many failures are told in full.
const TOLD: usize = 3;

/// Who looks the name up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// glibc: one connected socket, `IP_RECVERR`; an error ends the lookup.
    Glibc,
    /// musl: one socket that is not connected.
    Musl,
    /// c-ares: connected sockets; an error ends the lookup.
    CAres,
    /// Go's own resolver: connected sockets.
    Go,
}

/// What became of the lookups.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Lookups.
    pub started: usize,
    /// Those that failed, or found what the plaintext nameserver says.
    pub failed: usize,
    /// What the first of them said.
    pub failures: Vec<String>,
    /// System calls that the kernel programs refused.
    pub refused: usize,
    /// Queries that came before the listener was there.
    pub captured: usize,
    /// Packets of port 53, or to a token, on any interface of the host, and so at the other end of
    /// each container's.
    pub plaintext: usize,
}

impl Client {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Glibc, Self::Musl, Self::CAres, Self::Go];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::CAres => "c-ares",
            Self::Go => "Go",
        }
    }

    /// The words of a command that prints the addresses of `example.test`.
    fn command(self) -> Result<Vec<String>> {
        const CARES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/cares.py");
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let program = |path: std::path::PathBuf, args: &[&str]| {
            [vec![path.display().to_string()], words(args)].concat()
        };
        Ok(match self {
            Self::Glibc => program(Libc::Glibc.program()?, &["example.test"]),
            Self::Musl => program(Libc::Musl.program()?, &["example.test"]),
            Self::CAres => words(&["/usr/bin/python3", CARES, "A", "example.test"]),
            Self::Go => {
                let go = program(go_program()?, &["A", "example.test"]);
                [words(&["env", "GODEBUG=netdns=go"]), go].concat()
            }
        })
    }
}

impl Outcome {
    /// Every lookup found the encrypted answer, and nothing else left.
    pub fn is_good(&self) -> bool {
        self.failed == 0 && self.plaintext == 0
    }

    fn add(&mut self, other: Self) {
        self.started += other.started;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.failures.truncate(TOLD);
        self.refused += other.refused;
        self.captured += other.captured;
        self.plaintext += other.plaintext;
    }
}

/// Lets `total` newcomers look a name up, `at_once` at a time, while a container that has long been
/// there asks and asks.
pub fn storm(birth: Birth, client: Client, total: usize, at_once: usize) -> Result<Outcome> {
    let mut sum = Outcome::default();
    while sum.started < total {
        sum.add(in_one_world(birth, client, (total - sum.started).min(WORLD), at_once)?);
    }
    Ok(sum)
}

fn in_one_world(birth: Birth, client: Client, total: usize, at_once: usize) -> Result<Outcome> {
    let stage = Stage::new()?;
    let words = client.command()?;
    let steady = stage.world.container("steady")?;
    let mut args = stage.run_args(&[])?;
    args.extend(birth.scope(&stage.world, &steady)?);
    // The upstream shares this machine with all of them; it is not what is looked at here.
    args.push("--upstream-timeout=10s".to_owned());
    let daemon = Daemon::start(&stage.world, &args)?;
    daemon.wait_until_serving(steady.netns())?;
    let camera = Capture::everywhere(stage.world.host())?;

    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    let one = |number: usize| -> Result<()> {
        let printed = birth.run(&stage.world, &steady, number, &words)?;
        ensure!(printed.contains(&Zone::Encrypted.a().to_string()), "{printed}");
        Ok(())
    };
    let starter = || {
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && number < total
        {
            if let Err(error) = one(number) {
                failed.fetch_add(1, Ordering::Relaxed);
                let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.push(format!("{number}: {error:#}"));
            }
        }
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| keep_asking(&steady, &done));
        let starters: Vec<_> = (0..at_once).map(|_| scope.spawn(starter)).collect();
        for starter in starters {
            starter.join().expect("starters do not panic");
        }
        done.store(true, Ordering::Relaxed);
        load.join().expect("the load does not panic").context("the steady container")
    })?;

    let packets = camera.stop()?;
    let tokens = packets.iter().filter(|packet| is_token(packet.dst.ip())).count();
    let log = daemon.log().clone();
    let refused = usize::try_from(daemon.stop_and_count("refused")?)?;
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.truncate(TOLD);
    Ok(Outcome {
        started: total,
        failed: failed.into_inner(),
        failures,
        refused,
        captured: last_number(&log.text(), "captured=")?,
        plaintext: port53(&packets).len() + tokens,
    })
}

fn keep_asking(steady: &Container, done: &AtomicBool) -> Result<()> {
    while !done.load(Ordering::Relaxed) {
        let mut queries = probe(steady)?;
        let many = ["--timeout", "20", "many", "200", "4", "8.8.8.8", "example.test"];
        output(queries.args(many))?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The number behind the last `key` of a log.
fn last_number(log: &str, key: &str) -> Result<usize> {
    let (_, rest) = log.rsplit_once(key).with_context(|| format!("no {key} in:\n{log}"))?;
    Ok(rest.split_whitespace().next().unwrap_or_default().parse()?)
}
