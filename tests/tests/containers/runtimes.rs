//! Containers made by real runtimes, at the places in the cgroup tree where these put them, and on
//! the networks that these make.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Daemon, Netns, Packet, PlainServer, Rootless, Runtimes, Stage, Zone,
    container::INTERFACE,
    port53,
    process::Process,
    runtimes::{CGROUP_ROOT, Contained},
    world::UPLINK,
};

const V4: &str = "8.8.8.8";
const V6: &str = "2001:4860:4860::8888";
const LIMIT: Duration = Duration::from_secs(20);
/// The nameserver of the podman network.
const AARDVARK: &str = "10.89.200.1";

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

/// The containers are not in the scope, and the network's own nameserver is: what that one asks is
/// encrypted.
#[test]
fn aardvark_dns_still_knows_the_neighbours() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let daemon = daemon(&stage, "engine")?;
    network(&runtimes, &[])?;

    // Without this podman names the host's nameservers too, and musl, which asks all at once, would
    // ask them in plaintext: this container is not in the scope.
    let app = runtimes.podman("app", &["--network", "net", "--dns", AARDVARK])?;
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

/// The network's own nameserver is asked for the neighbours, and for nobody else.
fn check_podman_neighbours(options: &[&str]) -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let daemon = daemon(&stage, "containers/libpod-*")?;
    network(&runtimes, options)?;

    let app = runtimes.podman("app", &["--network", "net", "--dns", AARDVARK])?;
    runtimes.podman("neighbour", &["--network", "net", "--ip", "10.89.200.77"])?;
    daemon.wait_until_serving(app.netns())?;
    let witness = stage.witness_on(app.netns(), INTERFACE)?;
    for name in ["neighbour", "neighbour.dns.podman"] {
        let printed = app.run(&runtimes, &["nslookup", name])?;
        ensure!(printed.contains("10.89.200.77"), "{name}:\n{printed}");
    }
    let found = app.run(&runtimes, &["gai", "neighbour"])?;
    ensure!(found.contains("10.89.200.77"), "{found}");
    resolves(&runtimes, &app, &[])?;

    let (inside, uplink) = witness.packets()?;
    ensure!(port53(&uplink).is_empty(), "plaintext on the uplink: {}", port53(&uplink)[0]);
    let aardvark: IpAddr = AARDVARK.parse()?;
    let of_neighbours = |packet: &&Packet| {
        let there = packet.src.ip() == aardvark || packet.dst.ip() == aardvark;
        there && packet.payload.windows(9).any(|octets| octets == b"neighbour")
    };
    ensure!(port53(&inside).iter().all(of_neighbours), "{:?}", port53(&inside));
    ensure!(!port53(&inside).is_empty());
    Ok(())
}

#[test]
fn podman_neighbours_are_known() -> Result<()> {
    check_podman_neighbours(&[])
}

#[test]
fn podman_neighbours_are_known_without_a_way_out() -> Result<()> {
    check_podman_neighbours(&["--internal"])
}

/// Docker's nameserver asks a private one for internal names, from inside the container's own
/// namespace, and so do we.
#[test]
fn docker_passes_internal_names_on_to_a_private_nameserver() -> Result<()> {
    const PRIVATE: &str = "10.99.0.1";
    let stage = Stage::new()?;
    let private = private_nameserver(&stage, PRIVATE)?;
    let runtimes = Runtimes::new(&stage.world)?;
    let docker = runtimes.docker()?;
    let daemon = daemon(&stage, "*")?;
    docker.client(&["network", "create", "--subnet", "10.89.200.0/24", "net"])?;

    let app = docker.container("app", &["--network", "net", "--dns", PRIVATE])?;
    docker.container("neighbour", &["--network", "net", "--ip", "10.89.200.77"])?;
    daemon.wait_until_serving(app.netns())?;
    let printed = app.run(&runtimes, &["nslookup", "neighbour"])?;
    ensure!(printed.contains("10.89.200.77"), "{printed}");
    let found = app.run(&runtimes, &["gai", "db.internal"])?;
    ensure!(found.contains(&Zone::Plaintext.a().to_string()), "{found}");
    resolves(&runtimes, &app, &[])?;
    only_internal(&private)
}

/// A container of a user who is not root asks slirp4netns, which asks the host's nameserver: a
/// private one here.
#[test]
fn podman_without_root() -> Result<()> {
    const PRIVATE: &str = "10.99.0.1";
    let stage = Stage::new()?;
    let private = private_nameserver(&stage, PRIVATE)?;
    stage.world.set_resolv_conf(&format!("nameserver {PRIVATE}\n"))?;
    let runtimes = Runtimes::new(&stage.world)?;
    let rootless = Rootless::new(&runtimes)?;
    let daemon = daemon(&stage, "engine")?;

    rootless.container("app", &[])?;
    let pid = rootless.podman(&["inspect", "-f", "{{.State.Pid}}", "app"])?;
    daemon.wait_until_serving(&Netns::of_process(pid.trim().parse()?)?)?;
    let resolv_conf = rootless.podman(&["exec", "app", "cat", "/etc/resolv.conf"])?;
    ensure!(resolv_conf.contains("nameserver 10.0.2.3"), "{resolv_conf}");
    let found = rootless.podman(&["exec", "app", "gai", "example.test"])?;
    ensure!(found.contains(&Zone::Encrypted.a().to_string()), "{found}");
    let found = rootless.podman(&["exec", "app", "nslookup", "db.internal", "10.0.2.3"])?;
    ensure!(found.contains(&Zone::Plaintext.a().to_string()), "{found}");
    only_internal(&private)
}

/// A nameserver on the internet with a private address.
fn private_nameserver(stage: &Stage, ip: &str) -> Result<PlainServer> {
    stage.world.internet().ip(&["addr", "add", &format!("{ip}/32"), "dev", "lo"])?;
    let address = [format!("{ip}:53").parse()?];
    PlainServer::start_on(stage.world.internet(), &address, Zone::Plaintext)
}

/// It was asked for `db.internal`, and for nothing else.
fn only_internal(private: &PlainServer) -> Result<()> {
    let asked = private.queries();
    let internal = asked.iter().all(|query| query.question.name == "db.internal");
    ensure!(internal && !asked.is_empty(), "{asked:?}");
    Ok(())
}

/// A podman network named `net`.
fn network(runtimes: &Runtimes<'_>, options: &[&str]) -> Result<()> {
    let subnets = ["--ipv6", "--subnet", "10.89.200.0/24", "--subnet", "fd88:0:0:c8::/64"];
    let create = [&["network", "create"], options, &subnets, &["net"]].concat();
    runtimes.run_podman(&create).map(drop).context("make a network")
}

/// Docker's nameserver asks on behalf of containers of the scope, and is not in it itself.
#[test]
fn a_stub_outside_the_scope_is_named_with_what_to_add() -> Result<()> {
    let stage = Stage::new()?;
    let runtimes = Runtimes::new(&stage.world)?;
    let docker = runtimes.docker()?;
    docker.client(&["network", "create", "--subnet", "10.89.200.0/24", "net"])?;
    docker.container("app", &["--network", "net"])?;
    let outside = "ask the nameserver 127.0.0.11, which is dockerd";
    let add = format!(
        "not in the scope, so nobody encrypts what it asks in turn; add --cgroup /{}",
        runtimes.engine().path()?
    );
    let beside = daemon(&stage, "containers")?;
    beside.wait_for_log(outside, LIMIT)?;
    beside.wait_for_log(&add, LIMIT)?;
    ensure!(beside.stop()?.success());

    // With it in the scope there is nothing to say; that of another stub shows that it has looked.
    let app = stage.world.container_with("app", "nameserver 127.0.0.53\n")?;
    let stub = app.netns().command("dnsmasq");
    let _stub = start_stub(stub)?;
    let cgroup = format!("--cgroup={}", app.cgroup().path()?);
    let mut args = stage.run_args(&[])?;
    args.extend([cgroup, format!("--cgroup={}", runtimes.engine().path()?)]);
    args.push(format!("--cgroup={}", runtimes.containers().path()?));
    args.push(format!("--cgroup-root={CGROUP_ROOT}"));
    let whole = Daemon::start(&stage.world, &args)?;
    whole.wait_for_log("ask the nameserver 127.0.0.53, which is dnsmasq", LIMIT)?;
    ensure!(!whole.log().text().contains("127.0.0.11"), "{}", whole.log().text());
    Ok(())
}

/// A local stub, such as systemd-resolved is, in no cgroup of the scope.
fn start_stub(mut command: std::process::Command) -> Result<Process> {
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user=root"]);
    command.args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.53"]);
    Process::spawn(command)
}
