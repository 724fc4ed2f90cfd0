//! The Debian package on a host with systemd.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Machine, Stage, Zone,
    artifacts::{dist, program},
    process::output,
    stage::{UPSTREAM, UPSTREAM_NAME},
    world::UPLINK,
};

const NAME: &str = "example.test";
const ASK: &str = "getent ahostsv4 example.test";

/// A machine on which the package is installed and told of the stage's upstream.
fn installed<'a>(stage: &'a Stage, scope: &str, masked: &[&str]) -> Result<Machine<'a>> {
    let machine = Machine::boot(&stage.world, masked)?;
    fs::copy(dist(".deb")?, machine.root().join("root/dns-proxy.deb"))?;
    fs::copy(program("dns-proxy-probe")?, machine.root().join("usr/bin/dns-proxy-probe"))?;
    machine.run("dpkg -i /root/dns-proxy.deb")?;
    configure(stage, &machine, scope)?;
    Ok(machine)
}

fn configure(stage: &Stage, machine: &Machine<'_>, scope: &str) -> Result<()> {
    fs::copy(stage.pki.ca_file(), machine.root().join("etc/ca.pem"))?;
    let settings = format!(
        "cgroup = [\"{scope}\"]\nupstream = [\"{UPSTREAM}#{UPSTREAM_NAME}\"]\nca = [\"/etc/ca.pem\"]\n\
         no_system_roots = true\ncache_size = \"0\"\n"
    );
    fs::write(machine.root().join("etc/dns-proxy.toml"), settings).context("write settings")
}

fn is_encrypted(printed: &str) -> Result<()> {
    ensure!(printed.contains(&Zone::Encrypted.a().to_string()), "not by the upstream: {printed}");
    Ok(())
}

#[test]
#[ignore = "slow: boots a host"]
fn the_package_installs_starts_reloads_and_is_removed_without_a_trace() -> Result<()> {
    let stage = Stage::new()?;
    let machine = installed(&stage, "system.slice/app.service", &["systemd-resolved.service"])?;
    let idle = machine.property("dns-proxy", "ActiveState")?;
    ensure!(idle == "inactive", "installed, it is {idle} before anybody told it to");

    machine.run("systemctl enable --now dns-proxy || { journalctl -u dns-proxy; false; }")?;
    let pid = machine.property("dns-proxy", "MainPID")?;
    let witness = stage.witness_on(stage.world.host(), UPLINK)?;
    is_encrypted(&machine.run_unit("app", ASK)?)?;
    machine.run("systemctl reload dns-proxy")?;
    is_encrypted(&machine.run_unit("app", ASK)?)?;
    witness.saw_only_tls()?;
    ensure!(machine.property("dns-proxy", "MainPID")? == pid, "a reload made another process");
    ensure!(machine.property("dns-proxy", "NRestarts")? == "0");
    let sandbox = machine.run("systemd-analyze security --no-pager dns-proxy | tail -n 1")?;
    println!("{sandbox}");

    machine.run("dpkg -r dns-proxy")?;
    let plain = machine.run_unit("app", ASK)?;
    ensure!(plain.contains(&Zone::Plaintext.a().to_string()), "still not as before: {plain}");
    machine.run("dpkg -P dns-proxy")?;
    let left = machine.run(
        "find /etc /usr /var/lib /run /sys/fs/bpf -name '*dns-proxy*' ! -name 'dns-proxy-probe' \
         ! -path '/run/systemd/*' ! -path '/var/lib/systemd/*'; ip route show table local | grep proto.83 || true",
    )?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

/// Everything on the host asks systemd-resolved, whose own queries are what is encrypted.
#[test]
#[ignore = "slow: boots a host"]
fn a_host_whose_programs_ask_systemd_resolved() -> Result<()> {
    let stage = Stage::new()?;
    let machine = installed(&stage, "/", &[])?;
    machine.run(
        "mkdir -p /etc/systemd/resolved.conf.d\n\
         printf '[Resolve]\\nDNS=8.8.8.8\\nFallbackDNS=\\nDNSSEC=no\\nLLMNR=no\\nMulticastDNS=no\\n' \
             >/etc/systemd/resolved.conf.d/dns.conf\n\
         systemctl restart systemd-resolved\n\
         ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf\n\
         systemctl start dns-proxy",
    )?;
    let witness = stage.witness_on(stage.world.host(), UPLINK)?;
    is_encrypted(&machine.run_unit("app", ASK)?)?;
    is_encrypted(&machine.run(&format!("resolvectl query --legend=no -4 {NAME}"))?)?;
    witness.saw_only_tls()
}

/// The same package under a higher version.
fn newer(deb: &str, to: PathBuf) -> Result<()> {
    let script = "rm -rf \"$1.d\"; dpkg-deb -R \"$0\" \"$1.d\" && \
                  sed -i 's/^Version: .*/Version: 99.0.0-1/' \"$1.d/DEBIAN/control\" && \
                  dpkg-deb -b \"$1.d\" \"$1\" && rm -rf \"$1.d\"";
    output(Command::new("sh").args(["-c", script, deb]).arg(to)).map(drop)
}

#[test]
#[ignore = "slow: boots a host"]
fn the_package_is_upgraded_while_a_service_asks() -> Result<()> {
    let stage = Stage::new()?;
    let machine = installed(&stage, "/", &["systemd-resolved.service"])?;
    let deb = dist(".deb")?;
    newer(&deb.display().to_string(), machine.root().join("root/newer.deb"))?;
    machine.run("systemctl start dns-proxy")?;
    let before = machine.property("dns-proxy", "MainPID")?;
    machine.run(
        "systemd-run --quiet --unit=load --property=StandardOutput=file:/root/load \
         dns-proxy-probe --timeout 5 many 20000 8 8.8.8.8 example.test",
    )?;
    let upgraded = machine.run("dpkg -i /root/newer.deb");
    let journal = machine.run("journalctl --no-pager -o cat -u dns-proxy | tail -n 20")?;
    upgraded.with_context(|| journal.clone())?;
    machine.run("while systemctl is-active -q load; do sleep 0.1; done")?;
    let load = fs::read_to_string(machine.root().join("root/load"))?;
    println!("{load}{journal}");
    ensure!(machine.property("dns-proxy", "ActiveState")? == "active", "{journal}");
    ensure!(machine.property("dns-proxy", "MainPID")? != before, "the old one still runs");
    // In between it is as if it were not there (`--fail open`): answered, but not encrypted.
    ensure!(load.contains("lost=0"), "{load}");
    Ok(())
}
