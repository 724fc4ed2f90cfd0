//! Containers that are selected by what Docker and podman say of them: from their first act, and as
//! they come, go and change their names under load.

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Capture, Daemon, Packet, Runtimes, Stage, Zone, eventually, expected_a, port53,
    runtimes::{CGROUP_ROOT, IMAGE},
    world::UPLINK,
};

const V4: &str = "8.8.8.8";
/// Containers that are started at a time, each of both kinds.
const AT_ONCE: usize = 3;
/// How often.
const ROUNDS: usize = 5;
/// Within how long a change must count.
const IN_TIME: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(20);

/// The daemon with these selectors, which looks at no cgroup but the world's.
fn daemon(stage: &Stage, selectors: &[&str]) -> Result<Daemon> {
    let mut args = stage.run_args(&[])?;
    args.push(format!("--cgroup-root={CGROUP_ROOT}/{}", stage.world.cgroup().path()?));
    args.extend(selectors.iter().map(ToString::to_string));
    Daemon::start(&stage.world, &args)
}

/// Starts containers whose first act is to ask, some with the label and some without, `AT_ONCE` at a
/// time, and compares what each was told, and what was to be seen on the uplink, with what it is. Of
/// those without, this many may be taken for others: who is not known yet may be meant.
fn check_first_acts(
    stage: &Stage,
    mistaken: usize,
    run: impl Fn(&[&str], &str) -> Result<String> + Sync,
) -> Result<()> {
    let mut uplink = Capture::on(stage.world.host(), UPLINK)?;
    let of_one = |number: usize| -> Result<()> {
        for round in 0..ROUNDS {
            for (kind, labels, zone) in [
                ("in", &["--label", "encrypt=yes"][..], Zone::Encrypted),
                ("out", &["--label", "encrypt=no"], Zone::Plaintext),
            ] {
                let name = format!("{kind}-{number}-{round}.example.test");
                let found = run(labels, &name).with_context(|| name.clone())?;
                let plain = Zone::Plaintext.a().to_string();
                let is_plain = found.contains(&plain);
                ensure!(is_plain || found.contains(&expected_a(&name).to_string()), "{found}");
                ensure!(!is_plain || zone == Zone::Plaintext, "{name}: {found}");
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|n| scope.spawn(move || of_one(n))).collect();
        let ended = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        ended.collect::<Result<Vec<_>>>()
    })?;
    let plaintext = port53(uplink.packets()?);
    let of = |kind: &[u8]| plaintext.iter().filter(|packet| names(packet, kind)).count();
    ensure!(of(b"in-") == 0, "{} packets of selected containers in plaintext", of(b"in-"));
    let asked: HashSet<_> = plaintext.iter().filter_map(|packet| name_of(packet)).collect();
    let untouched = asked.iter().filter(|name| name.starts_with("out-")).count();
    ensure!(untouched + mistaken >= AT_ONCE * ROUNDS, "only {asked:?} are untouched");
    Ok(())
}

/// The first label of a packet's question.
fn name_of(packet: &Packet) -> Option<String> {
    let label = packet.payload.get(12..)?;
    let label = label.get(1..1 + usize::from(*label.first()?))?;
    String::from_utf8(label.to_vec()).ok()
}

/// Whether a packet's question begins with these octets.
fn names(packet: &Packet, prefix: &[u8]) -> bool {
    packet.payload.windows(prefix.len()).any(|octets| octets == prefix)
}

#[test]
fn docker_containers_with_a_label_are_encrypted_from_their_first_act() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let docker = runtimes.docker()?;
    let daemon = daemon(&stage, &["--container-label=encrypt=yes"])?;
    daemon.wait_for_log("nobody matches these selectors yet", LIMIT)?;
    daemon.wait_for_log("following the containers of this engine", LIMIT)?;
    check_first_acts(&stage, 1, |labels, name| {
        let run = ["run", "--rm", "--dns", V4];
        docker.client(&[&run, labels, &[IMAGE, "gai", name]].concat())
    })
}

#[test]
fn podman_containers_with_a_label_are_encrypted_from_their_first_act() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let options = ["--events-backend=file"];
    runtimes.podman_image()?;
    let _service = runtimes.podman_service(&options)?;
    runtimes.run_podman(&["network", "create", "--subnet", "10.89.200.0/24", "net"])?;
    let daemon = daemon(&stage, &["--container-label=encrypt=yes"])?;
    daemon.wait_for_log("following the containers of this engine", LIMIT)?;
    let parent = format!("--cgroup-parent=/{}", runtimes.containers().path()?);
    // It tells of a new container when it comes to that, and answers only when that has started.
    check_first_acts(&stage, AT_ONCE * ROUNDS / 2, |labels, name| {
        let run = ["run", "--rm", "--pull=never", "--network=net", "--dns", V4, &parent];
        runtimes.run_podman_with(&options, &[&run, labels, &[IMAGE, "gai", name]].concat())
    })
}

/// A container that goes on asking is renamed, into the scope and out of it, while others come and
/// go.
#[test]
fn a_container_that_is_renamed_is_in_or_out_at_once() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let docker = runtimes.docker()?;
    let daemon = daemon(&stage, &["--container=in-*", "--container-image=other"])?;
    daemon.wait_for_log("following the containers of this engine", LIMIT)?;
    let ask = "while :; do gai example.test; done";
    let run = ["run", "-d", "--name", "out-1", "--dns", V4, IMAGE, "sh", "-c", ask];
    docker.client(&run)?;
    let mut uplink = Capture::on(stage.world.host(), UPLINK)?;
    let mut seen = 0;
    let mut fresh = || -> Result<usize> {
        let now = port53(uplink.packets()?).len();
        Ok(now - std::mem::replace(&mut seen, now))
    };
    ensure!(eventually(LIMIT, || fresh().is_ok_and(|new| new > 0)), "it does not ask");

    let (mut into, mut out_of) = (Vec::new(), Vec::new());
    thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| {
            (0..2 * ROUNDS).try_for_each(|_| {
                docker.client(&["run", "--rm", "--name", "in-2", IMAGE, "sleep", "0"]).map(drop)
            })
        });
        for _ in 0..ROUNDS {
            docker.client(&["rename", "out-1", "in-1"])?;
            let renamed = Instant::now();
            let mut last = renamed;
            while last.elapsed() < Duration::from_millis(300) {
                if fresh()? > 0 {
                    last = Instant::now();
                }
                ensure!(renamed.elapsed() < LIMIT, "it goes on in plaintext");
                thread::sleep(Duration::from_millis(1));
            }
            into.push(last - renamed);
            docker.client(&["rename", "in-1", "out-1"])?;
            let renamed = Instant::now();
            ensure!(eventually(LIMIT, || fresh().is_ok_and(|new| new > 0)), "it stays in");
            out_of.push(renamed.elapsed());
        }
        load.join().expect("no panic")
    })?;
    for (which, times) in [("into", &mut into), ("out of", &mut out_of)] {
        times.sort();
        ensure!(times[times.len() / 2] < IN_TIME, "{which} the scope: {times:?}");
    }
    Ok(())
}
