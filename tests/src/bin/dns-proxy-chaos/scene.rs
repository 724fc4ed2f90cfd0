//! What each fault happens to: a daemon that serves containers, one of which never stops asking, and
//! cameras on every interface of the host.

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::clients::probe;
use dns_proxy_tests::mounts::BPFFS;
use dns_proxy_tests::process::{Process, output};
use dns_proxy_tests::stage::is_token;
use dns_proxy_tests::{Capture, Container, Daemon, Packet, Stage, port53};
use std::io::Read as _;
use std::process::Stdio;
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

/// The nameserver that containers ask.
const SERVER: &str = "8.8.8.8";
/// Below it are the names that they ask for.
const SUFFIX: &str = "example.test";
/// How long an asker waits for an answer.
const PATIENCE: &str = "3";
/// How often to look at what the cameras have seen.
const LOOK: Duration = Duration::from_millis(50);

/// Everything but the fault.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) app: Container,
    pub(crate) neighbour: Container,
    camera: Capture,
    args: Vec<String>,
}

/// A process that asks.
pub(crate) struct Asker {
    process: Process,
    limit: Duration,
}

/// What became of its queries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) asked: u64,
    pub(crate) encrypted: u64,
    pub(crate) plaintext: u64,
    pub(crate) refused: u64,
    pub(crate) failed: u64,
    pub(crate) lost: u64,
}

impl Scene {
    /// A scene whose daemon has these arguments, too; it is started by whoever needs it.
    pub(crate) fn new(further: &[&str]) -> Result<Self> {
        let stage = Stage::new()?;
        let (app, neighbour) = (stage.world.container("app")?, stage.world.container("neighbour")?);
        let mut args = stage.run_args(&[stage.world.cgroup()])?;
        args.extend(further.iter().copied().map(str::to_owned));
        // An upstream shares this machine with whatever is done to it.
        args.push("--upstream-timeout=2s".to_owned());
        let camera = Capture::everywhere(stage.world.host())?.only(is_leak);
        Ok(Self { stage, app, neighbour, camera, args })
    }

    /// Starts the daemon and waits until it serves both containers.
    pub(crate) fn start(&self) -> Result<Daemon> {
        let daemon = Daemon::start(&self.stage.world, &self.args)?;
        for container in [&self.app, &self.neighbour] {
            daemon.wait_until_serving(container.netns())?;
        }
        Ok(daemon)
    }

    /// The same, and waits for nothing.
    pub(crate) fn launch(&self) -> Result<Daemon> {
        Daemon::launch(self.stage.world.command(Daemon::program()?), &self.args)
    }

    /// Lets the app ask at this rate.
    pub(crate) fn ask(&self, seconds: u64, rate: u32) -> Result<Asker> {
        Asker::start(&self.app, seconds, rate)
    }

    /// Lets the neighbour flood its listener.
    pub(crate) fn flood(&self, seconds: u64, kind: &str) -> Result<Process> {
        let mut flood = probe(&self.neighbour)?;
        flood.args(["flood", &seconds.to_string(), kind, SERVER, SUFFIX]);
        flood.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Process::spawn(flood)
    }

    /// Packets of port 53, or to a token, that any interface of the host has seen so far.
    pub(crate) fn leaked(&mut self) -> Result<usize> {
        Ok(self.camera.packets()?.len())
    }

    /// Lets some time pass.
    pub(crate) fn pass(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.leaked()?;
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Looks at what the cameras see until a process ends, which must be soon enough: their memory is
    /// bounded.
    pub(crate) fn watch(&mut self, process: &mut Process, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while process.ended().is_none() {
            ensure!(Instant::now() < end, "process {} still runs after {limit:?}", process.pid());
            self.leaked()?;
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// What a daemon that is gone has left: pins, and routes in the app's namespace.
    pub(crate) fn leftovers(&self) -> Result<usize> {
        let script = format!("find {BPFFS} -mindepth 2 | wc -l");
        let pins = output(self.stage.world.command("sh").args(["-c", &script]))?;
        let routes = ["-4", "-6"].map(|family| {
            let args = [family, "route", "show", "table", "local", "proto", "83"];
            self.app.netns().ip(&args).map(|routes| routes.lines().count())
        });
        let [v4, v6] = routes;
        Ok(pins.trim().parse::<usize>()? + v4? + v6?)
    }
}

impl Asker {
    pub(crate) fn start(container: &Container, seconds: u64, rate: u32) -> Result<Self> {
        let mut asking = probe(container)?;
        asking.args(["--timeout", PATIENCE, "steady", &seconds.to_string(), &rate.to_string()]);
        asking.args([SERVER, SUFFIX]).stdin(Stdio::null()).stdout(Stdio::piped());
        let limit = Duration::from_secs(seconds + 30);
        Ok(Self { process: Process::spawn(asking)?, limit })
    }

    /// Waits until it has asked for its time.
    pub(crate) fn end(mut self, scene: &mut Scene) -> Result<Tally> {
        scene.watch(&mut self.process, self.limit)?;
        let mut printed = String::new();
        let stdout = self.process.pipes().stdout.as_mut().context("piped")?;
        stdout.read_to_string(&mut printed)?;
        let number = |key: &str| -> Result<u64> {
            let mut words = printed.split_whitespace();
            let value = words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            Ok(value.with_context(|| format!("no {key} in {printed:?}"))?.parse()?)
        };
        Ok(Tally {
            asked: number("asked")?,
            encrypted: number("encrypted")?,
            plaintext: number("plaintext")?,
            refused: number("refused")?,
            failed: number("failed")?,
            lost: number("lost")?,
        })
    }
}

fn is_leak(packet: &Packet) -> bool {
    is_token(packet.dst.ip()) || !port53(slice::from_ref(packet)).is_empty()
}

impl Tally {
    /// Queries that got no good answer.
    pub(crate) fn unanswered(&self) -> u64 {
        self.refused + self.failed + self.lost
    }
}
