//! The image, in a real engine: what is in it, and the README's commands, as they stand there.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Runtimes, Stage, Zone,
    artifacts::dist,
    eventually,
    runtimes::{Contained, Docker},
    stage::{UPSTREAM, UPSTREAM_NAME},
    world::UPLINK,
};

const README: &str = include_str!("../../../README.md");
const LIMIT: Duration = Duration::from_secs(20);
/// What is in the image, besides directories.
const FILES: [&str; 3] = [
    "dns-proxy",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/share/doc/dns-proxy/dns-proxy.cdx.json",
];

fn loaded<'a>(runtimes: &'a Runtimes<'a>) -> Result<Docker<'a>> {
    let docker = runtimes.docker()?;
    let image = dist("-image.tar.gz")?;
    docker.client(&["load", "--input", image.to_str().context("a plain path")?])?;
    Ok(docker)
}

#[test]
#[ignore = "slow: needs the image"]
fn there_is_nothing_in_it_but_the_program_and_what_it_reads() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let docker = loaded(&runtimes)?;

    let inspect = |what: &str| docker.client(&["image", "inspect", "-f", what, "dns-proxy"]);
    let size: u64 = inspect("{{.Size}}")?.trim().parse()?;
    println!("{size} octets");
    ensure!(size < 15 * MIB, "{size} octets");
    ensure!(inspect("{{.Config.User}}")?.trim() == "65532:65532");
    ensure!(inspect("{{.Config.Healthcheck.Test}}")?.contains("/dns-proxy health"));
    for label in ["title", "licenses", "version", "revision"] {
        let label = format!("{{{{index .Config.Labels \"org.opencontainers.image.{label}\"}}}}");
        ensure!(!inspect(&label)?.trim().is_empty(), "no {label}");
    }
    docker.client(&["create", "--name", "unpacked", "dns-proxy"])?;
    docker.client(&["export", "--output", "/run/image.tar", "unpacked"])?;
    let listed = runtimes.host("tar", &["-tf", "/run/image.tar"])?;
    let files = listed.lines().filter(|name| !name.ends_with('/'));
    // What engines put in at its start is empty in an image.
    let engine =
        ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", ".dockerenv", "dev/console"];
    let files: Vec<_> = files.filter(|name| !engine.contains(name)).collect();
    ensure!(files == FILES, "{files:?}");
    Ok(())
}

/// The README's command that begins a container with this comment above it, as one line.
fn from_readme(comment: &str) -> Result<String> {
    let after = README.split_once(comment).with_context(|| format!("no {comment:?} in README"))?.1;
    let lines =
        after.lines().skip(1).take_while(|line| !line.is_empty() && !line.starts_with("```"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Gives the README's commands to a shell on the stage's host, with the stage's upstream, its cgroups,
/// and a program for the application to run.
fn run(stage: &Stage, runtimes: &Runtimes<'_>, commands: &str) -> Result<()> {
    let ca = stage.pki.ca_file();
    fs::set_permissions(&ca, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    fs::set_permissions(stage.pki.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let options = format!(
        "docker run -e DNS_PROXY_UPSTREAM={UPSTREAM}#{UPSTREAM_NAME} -e DNS_PROXY_CA=/ca.pem \
         -e DNS_PROXY_NO_SYSTEM_ROOTS=yes -v {}:/ca.pem:ro",
        ca.display()
    );
    let scope = format!("--cgroup /{}", runtimes.containers().path()?);
    let commands = commands.replace("docker run", &options).replace("--cgroup /docker", &scope);
    let commands = commands.replace("docker ", "/usr/bin/docker ");
    // As it is where systemd is.
    runtimes.host("mount", &["--make-rshared", "/run"])?;
    runtimes.host("sh", &["-e", "-c", &commands]).map(drop)
}

/// What the container of the README's commands has logged.
fn log(runtimes: &Runtimes<'_>) -> Result<String> {
    runtimes.host("sh", &["-c", "/usr/bin/docker logs dns 2>&1"])
}

/// A container that asks as the README's do.
fn resolves(docker: &Docker<'_>, runtimes: &Runtimes<'_>, options: &[&str]) -> Result<Contained> {
    let app = docker.container("app", options)?;
    let mut printed = String::new();
    let found = eventually(LIMIT, || {
        printed =
            app.run(runtimes, &["nslookup", "example.test"]).unwrap_or_else(|e| format!("{e:#}"));
        printed.contains(&Zone::Encrypted.a().to_string())
    });
    ensure!(found, "{printed}\n{}", log(runtimes)?);
    Ok(app)
}

#[test]
#[ignore = "slow: needs the image"]
fn a_plain_forwarder_without_root() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let docker = loaded(&runtimes)?;
    let witness = stage.witness_on(stage.world.host(), UPLINK)?;
    run(&stage, &runtimes, &from_readme("# a forwarder, for clients that are pointed at it")?)?;
    resolves(&docker, &runtimes, &["--dns", "192.0.2.2"])?;
    let (_, uplink) = witness.packets()?;
    ensure!(dns_proxy_tests::port53(&uplink).is_empty(), "plaintext on the uplink");
    ensure!(uplink.iter().any(|packet| packet.dst == UPSTREAM));
    let healthy = eventually(LIMIT, || {
        docker
            .client(&["inspect", "-f", "{{.State.Health.Status}}", "dns"])
            .is_ok_and(|s| s.trim() == "healthy")
    });
    ensure!(healthy, "not healthy");
    Ok(())
}

#[test]
#[ignore = "slow: needs the image"]
fn one_network_whose_nameserver_it_is() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let docker = loaded(&runtimes)?;
    let witness = stage.witness_on(stage.world.host(), UPLINK)?;
    run(&stage, &runtimes, &from_readme("# one network, whose nameserver it is")?)?;
    resolves(&docker, &runtimes, &["--network", "apps", "--dns", "10.53.0.53"])?;
    let (_, uplink) = witness.packets()?;
    ensure!(dns_proxy_tests::port53(&uplink).is_empty(), "plaintext on the uplink");
    ensure!(uplink.iter().any(|packet| packet.dst == UPSTREAM));
    Ok(())
}

#[test]
#[ignore = "slow: needs the image"]
fn every_container_of_the_host() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let docker = loaded(&runtimes)?;
    run(&stage, &runtimes, &from_readme("# every container of this host")?)?;
    let ready = eventually(LIMIT, || log(&runtimes).is_ok_and(|log| log.contains("INFO ready")));
    ensure!(ready, "{}", log(&runtimes)?);
    let witness = stage.witness_on(stage.world.host(), UPLINK)?;
    let app = resolves(&docker, &runtimes, &["--dns", "8.8.8.8"])?;
    let resolv_conf = app.run(&runtimes, &["cat", "/etc/resolv.conf"])?;
    ensure!(resolv_conf.contains("nameserver 8.8.8.8"), "{resolv_conf}");
    witness.saw_only_tls()
}
