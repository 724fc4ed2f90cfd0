//! Containers made by real runtimes, at the places in the cgroup tree where these put them, and on
//! the networks that these make.

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Daemon, Runtimes, Stage, Zone,
    container::INTERFACE,
    runtimes::{CGROUP_ROOT, Contained},
    world::UPLINK,
};

const V4: &str = "8.8.8.8";
const V6: &str = "2001:4860:4860::8888";

/// The daemon, for a pattern that the cgroups below the world's are to match.
fn daemon(stage: &Stage, pattern: &str) -> Result<Daemon> {
    let cgroup = format!("--cgroup={}/{pattern}", stage.world.cgroup().path()?);
    let mut args = stage.run_args(&[])?;
    args.extend([cgroup, format!("--cgroup-root={CGROUP_ROOT}")]);
    Daemon::start(&stage.world, &args)
}

/// Asks the nameserver that the container was given, by a C library and directly, and others.
fn resolves(runtimes: &Runtimes<'_>, container: &Contained, servers: &[&str]) -> Result<()> {
    let found = container.run(runtimes, &["gai", "example.test"])?;
    ensure!(found.contains(&Zone::Encrypted.a().to_string()), "{found}");
    for server in [&[""], servers].concat() {
        let command = ["nslookup", "example.test", server];
        let words = command.len() - usize::from(server.is_empty());
        let printed = container.run(runtimes, &command[..words])?;
        for address in [Zone::Encrypted.a().to_string(), Zone::Encrypted.aaaa().to_string()] {
            ensure!(printed.contains(&address), "no {address} by {server:?}:\n{printed}");
        }
    }
    Ok(())
}

/// Runs a container by plain runc where an engine would have put it.
fn check_runc(cgroup: &str, pattern: &str) -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let daemon = daemon(&stage, &format!("containers/{pattern}"))?;
    // An engine's plugins make the network first; here it is that of an idle container.
    let network = stage.world.container("network")?;

    let container = runtimes.runc(network.netns(), cgroup, V4)?;
    daemon.wait_until_serving(container.netns())?;
    let witness = stage.witness(&network)?;
    resolves(&runtimes, &container, &[V6])?;
    witness.saw_only_tls()
}

#[test]
fn runc_as_docker_with_cgroupfs() -> Result<()> {
    check_runc("docker/0123456789ab", "docker")
}

#[test]
fn runc_as_docker_with_systemd() -> Result<()> {
    check_runc("system.slice/docker-0123456789ab.scope", "system.slice/docker-*.scope")
}

#[test]
fn runc_as_podman_with_crun() -> Result<()> {
    check_runc("machine.slice/libpod-0123.scope/container", "machine.slice/libpod-*.scope")
}

#[test]
fn runc_as_containerd_under_kubelet() -> Result<()> {
    let slice = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0123_45.slice";
    check_runc(&format!("{slice}/cri-containerd-0123456789ab.scope"), "kubepods.slice")
}

#[test]
fn podman_on_a_network_of_its_user() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let daemon = daemon(&stage, "containers/libpod-*")?;
    network(&runtimes, &[])?;

    let container = runtimes.podman("app", &["--network", "net", "--dns", V4])?;
    daemon.wait_until_serving(container.netns())?;
    let witness = stage.witness_on(container.netns(), INTERFACE)?;
    resolves(&runtimes, &container, &[V6])?;
    witness.saw_only_tls()
}

#[test]
fn podman_on_a_network_without_a_way_out() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let daemon = daemon(&stage, "containers")?;
    network(&runtimes, &["--internal"])?;

    let container = runtimes.podman("app", &["--network", "net", "--dns", V4])?;
    let routes = container.run(&runtimes, &["ip", "route"])?;
    ensure!(!routes.contains("default"), "{routes}");
    daemon.wait_until_serving(container.netns())?;
    let witness = stage.witness_on(container.netns(), INTERFACE)?;
    resolves(&runtimes, &container, &[V6])?;
    witness.saw_only_tls()
}

#[test]
fn podman_on_the_network_of_the_host() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let daemon = daemon(&stage, "containers")?;

    let container = runtimes.podman("app", &["--network", "host", "--dns", V4])?;
    ensure!(container.netns().inode()? == stage.world.host().inode()?);
    daemon.wait_until_serving(container.netns())?;
    let witness = stage.witness_on(container.netns(), UPLINK)?;
    resolves(&runtimes, &container, &[V6])?;
    witness.saw_only_tls()
}

/// The containers ask the network's own nameserver; what that one asks is encrypted.
#[test]
fn aardvark_dns_still_knows_the_neighbours() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let daemon = daemon(&stage, "engine")?;
    network(&runtimes, &[])?;

    // Without this podman names the host's nameservers too, and musl, which asks all at once, would
    // ask them in plaintext: this container is not in the scope.
    let app = runtimes.podman("app", &["--network", "net", "--dns", "10.89.200.1"])?;
    runtimes.podman("neighbour", &["--network", "net", "--ip", "10.89.200.77"])?;
    daemon.wait_until_serving(stage.world.host())?;
    let witness = stage.witness_on(stage.world.host(), UPLINK)?;
    let printed = app.run(&runtimes, &["nslookup", "neighbour"])?;
    ensure!(printed.contains("10.89.200.77"), "{printed}");
    resolves(&runtimes, &app, &[])?;
    witness.saw_only_tls()
}

/// The same with the nameserver that dockerd is itself: it asks from inside the containers' own
/// namespaces.
#[test]
fn docker_still_knows_the_neighbours() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let docker = runtimes.docker()?;
    let daemon = daemon(&stage, "engine")?;
    docker.client(&["network", "create", "--subnet", "10.89.200.0/24", "net"])?;

    let app = docker.container("app", &["--network", "net"])?;
    docker.container("neighbour", &["--network", "net", "--ip", "10.89.200.77"])?;
    let resolv_conf = app.run(&runtimes, &["cat", "/etc/resolv.conf"])?;
    ensure!(resolv_conf.contains("nameserver 127.0.0.11"), "{resolv_conf}");
    daemon.wait_until_serving(stage.world.host())?;
    daemon.wait_until_serving(app.netns())?;
    let witness = stage.witness_on(app.netns(), INTERFACE)?;
    let printed = app.run(&runtimes, &["nslookup", "neighbour"])?;
    ensure!(printed.contains("10.89.200.77"), "{printed}");
    resolves(&runtimes, &app, &[])?;
    witness.saw_only_tls()
}

#[test]
fn docker_on_its_bridge() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let docker = runtimes.docker()?;
    let daemon = daemon(&stage, "containers")?;

    // Docker switches IPv6 off on such a network: a nameserver there is for nobody.
    let container = docker.container("app", &["--dns", V4, "--dns", V6])?;
    daemon.wait_until_serving(container.netns())?;
    let witness = stage.witness_on(container.netns(), INTERFACE)?;
    resolves(&runtimes, &container, &["8.8.4.4"])?;
    witness.saw_only_tls()
}

/// A podman network named `net`.
fn network(runtimes: &Runtimes<'_>, options: &[&str]) -> Result<()> {
    let subnets = ["--ipv6", "--subnet", "10.89.200.0/24", "--subnet", "fd88:0:0:c8::/64"];
    let create = [&["network", "create"], options, &subnets, &["net"]].concat();
    runtimes.run_podman(&create).map(drop).context("make a network")
}
