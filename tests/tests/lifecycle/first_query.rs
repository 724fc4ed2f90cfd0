//! The first query of a namespace, which is made before anybody listens there: captured, and
//! answered.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Daemon, Stage, Zone,
    clients::Libc,
    process::{Process, output},
    stage::is_token,
    storm::{Birth, Client, storm},
};

/// Lookups for each birth and client; the storm makes 500.
const LOOKUPS: usize = 20;
const AT_ONCE: usize = 10;
const LIMIT: Duration = Duration::from_secs(10);

#[track_caller]
fn check(birth: Birth) -> Result<()> {
    for client in Client::ALL {
        let outcome = storm(birth, client, LOOKUPS, AT_ONCE)?;
        ensure!(outcome.is_good() && outcome.refused == 0, "{}: {outcome:?}", client.name());
        // The kernel knows nothing of a service's processes that change their namespace, nor do we:
        // without capture these could not be answered.
        if matches!((birth, client), (Birth::Entered | Birth::Unshared, Client::Glibc)) {
            ensure!(outcome.captured > 0, "{outcome:?}");
        }
    }
    Ok(())
}

#[test]
fn first_lookups_of_containers_are_answered() -> Result<()> {
    check(Birth::Announced)
}

#[test]
fn first_lookups_of_containers_that_nobody_announced_are_answered() -> Result<()> {
    check(Birth::Unannounced)
}

#[test]
fn first_lookups_of_processes_that_move_into_the_scope_are_answered() -> Result<()> {
    check(Birth::Moved)
}

#[test]
fn first_lookups_of_a_service_that_enters_another_namespace_are_answered() -> Result<()> {
    check(Birth::Entered)
}

#[test]
fn first_lookups_of_a_service_that_makes_itself_a_namespace_are_answered() -> Result<()> {
    check(Birth::Unshared)
}

#[test]
fn first_lookups_of_containers_that_a_pattern_names_are_answered() -> Result<()> {
    check(Birth::Patterned)
}

#[test]
fn first_lookups_of_containers_that_share_a_namespace_are_answered() -> Result<()> {
    check(Birth::Pod)
}

/// Namespaces that a service enters one after the other. The daemon looks around every second: it may
/// see the service in one or another before the query is made, but not in all.
const PLACES: usize = 8;

/// What becomes of the queries that a service makes first in each place.
struct Entered {
    answers: Vec<Result<String>>,
    captured: u64,
}

/// A service that asks `server`, with glibc's options, and the daemon with further arguments.
fn enter_places(server: &str, options: &str, args: &[&str]) -> Result<Entered> {
    let gai = Libc::Glibc.program()?.display().to_string();
    enter_places_with(
        server,
        args,
        &["env", &format!("RES_OPTIONS={options}"), &gai, "example.test"],
    )
}

/// The same by another program.
fn enter_places_with(server: &str, args: &[&str], program: &[&str]) -> Result<Entered> {
    let stage = Stage::new()?;
    let service = stage.world.container_with("service", &format!("nameserver {server}\n"))?;
    let places = (0..PLACES).map(|n| stage.world.unannounced(&format!("place-{n}")));
    let places = places.collect::<Result<Vec<_>>>()?;
    let mut all = stage.run_args(&[service.cgroup()])?;
    all.extend(args.iter().map(ToString::to_string));
    let daemon = Daemon::start(&stage.world, &all)?;
    let mut answers = Vec::new();
    for place in &places {
        let witness = stage.witness(place)?;
        let mut entering = service.command("nsenter")?;
        entering.arg(format!("--net={}", place.netns().path()));
        answers.push(output(entering.args(program)));
        let (inside, uplink) = witness.packets()?;
        for packet in inside.iter().chain(&uplink) {
            let leaked = [packet.src, packet.dst].iter().any(|end| end.port() == 53);
            ensure!(!leaked && !is_token(packet.dst.ip()), "{server} {program:?}: {packet}");
        }
    }
    Ok(Entered { answers, captured: daemon.stop_and_count("captured")? })
}

#[test]
fn first_queries_are_captured_over_udp_and_come_again_over_tcp() -> Result<()> {
    for server in ["8.8.8.8", "2001:4860:4860::8888"] {
        for options in ["", "use-vc"] {
            let entered = enter_places(server, options, &[])?;
            for answer in entered.answers {
                let answer = answer.with_context(|| format!("{server} {options}"))?;
                ensure!(answer.contains(&Zone::Encrypted.a().to_string()), "{answer}");
            }
            let captured = entered.captured;
            ensure!((captured > 0) == options.is_empty(), "{server} {options}: {captured}");
        }
    }
    Ok(())
}

/// As with cookies, padding and whatever else EDNS brings, up to what a packet takes.
#[test]
fn long_first_queries_are_captured_too() -> Result<()> {
    for server in ["8.8.8.8", "2001:4860:4860::8888"] {
        for octets in [100, 600, 1400] {
            let padding = format!("+padding={octets}");
            let at = format!("@{server}");
            let kdig = ["kdig", "+short", "+retry=0", "+time=5", &padding, "example.test", &at];
            let entered = enter_places_with(server, &[], &kdig)?;
            for answer in entered.answers {
                let answer = answer.with_context(|| format!("{server} {octets}"))?;
                ensure!(answer.trim() == Zone::Encrypted.a().to_string(), "{answer}");
            }
            ensure!(entered.captured > 0, "{server} {octets}: none was captured");
        }
    }
    Ok(())
}

#[test]
fn first_queries_are_refused_without_the_guard() -> Result<()> {
    let entered = enter_places("8.8.8.8", "", &["--guard=off"])?;
    ensure!(entered.answers.iter().any(Result::is_err), "all were answered");
    ensure!(entered.captured == 0, "{} captured", entered.captured);
    Ok(())
}

/// A namespace that cannot be served keeps nobody's first query from being captured.
#[test]
fn first_queries_are_answered_while_somebody_asks_from_where_nobody_can_listen() -> Result<()> {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/flood.py");
    let stage = Stage::new()?;
    let (hostile, service) = (stage.world.container("hostile")?, stage.world.container("service")?);
    let daemon = stage.daemon(&[&hostile, &service])?;
    let mut flood = hostile.command("/usr/bin/python3")?;
    flood.arg(SCRIPT).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _flood = Process::spawn(flood)?;
    daemon.wait_for_log("cannot serve this namespace", LIMIT)?;
    for n in 0..PLACES {
        let place = stage.world.unannounced(&format!("place-{n}"))?;
        let mut entering = service.command("nsenter")?;
        entering.arg(format!("--net={}", place.netns().path()));
        entering.arg(Libc::Glibc.program()?).arg("example.test").env("RES_OPTIONS", "attempts:1");
        let answer = output(&mut entering).with_context(|| format!("place {n}"))?;
        ensure!(answer.contains(&Zone::Encrypted.a().to_string()), "{answer}");
    }
    Ok(())
}

#[test]
fn only_recverr_of_datagrams_is_ignored_and_only_where_nobody_listens_yet() -> Result<()> {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/options.py");
    let stage = Stage::new()?;
    let service = stage.world.container("service")?;
    let _daemon = stage.daemon(&[&service])?;
    let printed = service.run("/usr/bin/python3", &[SCRIPT])?;
    ensure!(printed == "served 1 1 7 lo\nnew 0\nnew 1 7 lo\n", "{printed}");
    Ok(())
}
