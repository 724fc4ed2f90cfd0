//! The program on other kernels than this machine's, in virtual machines: the same tests that run here,
//! a few of each kind, and what it says where it cannot work.

use std::path::Path;

use anyhow::{Result, ensure};
use dns_proxy_tests::{
    artifacts::test_program,
    vm::{Cgroups, Kernel},
};

/// Every kind of redirection, the guard, the first query, and both ends of the daemon.
const INTERCEPT: &[&str] = &[
    "shapes::connected_udp",
    "shapes::one_unconnected_socket_asks_several_nameservers",
    "shapes::tcp",
    "shapes::peer_names_are_what_was_dialled",
    "device::answers::sockets_bound_to_a_device_are_answered",
    "guard::connections_from_before_are_broken_so_that_their_owners_connect_anew",
    "ipv6::link_local_nameservers_keep_their_interface",
    "scope::two_namespaces_ask_different_nameservers_at_once",
    "routes::a_private_nameserver_is_asked_for_internal_names_and_for_nothing_else",
    "clients::dig_resolves_over_udp_and_tcp",
];
const LIFECYCLE: &[&str] = &[
    "closed::killed_it_refuses_until_it_is_back_and_tokens_stay_valid",
    "daemon::stopped_with_sigterm_it_exits_with_0_and_leaves_nothing",
    "exec::a_command_resolves_over_tls_and_nothing_is_seen_on_port_53",
    "first_query::first_lookups_of_containers_are_answered",
    "isolation::neighbours_cannot_reach_the_listener",
];

/// Runs these tests on Debian's newest kernel of a series; what the console showed.
fn run(series: &str, cgroups: Cgroups, append: &str, tests: &[(&str, &[&str])]) -> Result<String> {
    let kernel = Kernel::fetch(series)?;
    let mut programs = Vec::new();
    let mut script = String::from("/t/debug/dns-proxy --version\n");
    for (name, tests) in tests {
        let program = test_program(name)?;
        let file = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The daemon in there is that of `cargo xtask dist`, and all share two emulated processors.
        script += &format!("/t/debug/deps/{file} --test-threads=1 --exact {}\n", tests.join(" "));
        programs.push(program);
    }
    let programs: Vec<&Path> = programs.iter().map(AsRef::as_ref).collect();
    let console = kernel.run(cgroups, &programs, append, &script)?;
    let passed = console.matches("... ok").count();
    let wanted: usize = tests.iter().map(|(_, tests)| tests.len()).sum();
    ensure!(passed == wanted, "{passed} of {wanted} on {}:\n{console}", kernel.release());
    println!("{} {cgroups:?}: {passed} passed", kernel.release());
    Ok(console)
}

fn everything(series: &str, cgroups: Cgroups) -> Result<()> {
    run(series, cgroups, "", &[("intercept", INTERCEPT), ("lifecycle", LIFECYCLE)]).map(drop)
}

#[test]
#[ignore = "slow: a virtual machine"]
fn linux_6_1() -> Result<()> {
    everything("6.1", Cgroups::V2)
}

#[test]
#[ignore = "slow: a virtual machine"]
fn linux_6_12() -> Result<()> {
    everything("6.12", Cgroups::V2)
}

#[test]
#[ignore = "slow: a virtual machine"]
fn linux_7_3() -> Result<()> {
    everything("7.3", Cgroups::V2)
}

#[test]
#[ignore = "slow: a virtual machine"]
fn linux_6_1_with_both_versions_of_cgroups() -> Result<()> {
    everything("6.1", Cgroups::Hybrid)
}

/// What the program says, started alone where something is missing; it must not be what it says when
/// all is well, nor a panic.
fn says(series: &str, cgroups: Cgroups, append: &str, before: &str, wanted: &[&str]) -> Result<()> {
    let kernel = Kernel::fetch(series)?;
    let script = format!(
        "{before}\nset +e\n/t/debug/dns-proxy run --cgroup /app --control off >/said 2>&1 </dev/null\n\
         code=$?; cat /said; echo CODE=$code; exit 0\n"
    );
    let console = kernel.run(cgroups, &[], append, &script)?;
    ensure!(console.contains("CODE=1"), "{console}");
    for word in wanted {
        ensure!(console.contains(word), "no {word:?} on {}:\n{console}", kernel.release());
    }
    let line = console.lines().find(|line| line.contains("ERROR")).unwrap_or_default();
    println!("{} {cgroups:?}: {line}", kernel.release());
    Ok(())
}

#[test]
#[ignore = "slow: a virtual machine"]
fn linux_5_10_is_too_old_and_is_told_so() -> Result<()> {
    says("5.10", Cgroups::V2, "", "", &["Linux 5.10", "5.15"])
}

#[test]
#[ignore = "slow: a virtual machine"]
fn cgroup_v1_alone_will_not_do() -> Result<()> {
    says("6.1", Cgroups::V1, "", "", &["no cgroup v2 is mounted"])
}

#[test]
#[ignore = "slow: a virtual machine"]
fn locked_down_kernels_let_nobody_load_programs() -> Result<()> {
    says("6.12", Cgroups::V2, "lockdown=confidentiality", "", &["lockdown"])
}
