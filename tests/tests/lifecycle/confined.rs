//! The daemon has no more privileges than its work takes.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use dns_proxy_tests::{Container, Stage};

/// `linux/capability.h`.
const CAP_SYS_MODULE: u64 = 1 << 16;
const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_DAC_OVERRIDE: u64 = 1 << 1;

/// What the kernel says of each thread, by its name.
fn threads(pid: u32) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let fields = status.lines().filter_map(|line| line.split_once(":\t"));
        let fields: BTreeMap<_, _> =
            fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        threads.insert(fields["Name"].clone(), fields);
    }
    Ok(threads)
}

fn capabilities(fields: &BTreeMap<String, String>) -> Result<u64> {
    u64::from_str_radix(&fields["CapPrm"], 16).context("capabilities are hexadecimal")
}

fn confined_daemon(args: impl Fn(&Stage, &Container) -> Result<Vec<String>>) -> Result<[u64; 2]> {
    let stage = Stage::new()?;
    let container = stage.world.container("one")?;
    let daemon = dns_proxy_tests::Daemon::start(&stage.world, &args(&stage, &container)?)?;
    let threads = threads(daemon.pid())?;
    for (name, fields) in &threads {
        assert_eq!(fields["NoNewPrivs"], "1", "{name}");
        assert_eq!(fields["Seccomp"], "2", "{name}: no filter");
        assert_eq!(capabilities(fields)? & CAP_SYS_MODULE, 0, "{name}");
    }
    let of = |name: &str| capabilities(threads.get(name).context("no such thread")?);
    Ok([of("dns-proxy")?, of("worker-0")?])
}

#[test]
fn a_daemon_that_intercepts_keeps_what_that_takes_and_its_workers_less() -> Result<()> {
    let [daemon, worker] =
        confined_daemon(|stage, container| stage.run_args(&[container.cgroup()]))?;
    assert_ne!(daemon & CAP_SYS_PTRACE, 0);
    assert_ne!(worker & CAP_SYS_ADMIN, 0, "workers enter namespaces");
    assert_eq!(worker & (CAP_SYS_PTRACE | CAP_DAC_OVERRIDE), 0);
    Ok(())
}

#[test]
fn a_plain_forwarder_keeps_next_to_nothing_and_its_workers_nothing() -> Result<()> {
    let [daemon, worker] = confined_daemon(|stage, _| {
        let listen = ["run", "--listen", "127.0.0.1:5300"].map(str::to_owned);
        Ok(listen.into_iter().chain(stage.upstream_args()).collect())
    })?;
    assert_eq!(daemon & (CAP_SYS_ADMIN | CAP_SYS_PTRACE | CAP_DAC_OVERRIDE), 0);
    assert_eq!(worker, 0);
    Ok(())
}
