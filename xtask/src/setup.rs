//! Brings a machine to where everything builds and every test runs.
//!
//! Looks before it acts: on a machine that has everything it does nothing, in a fraction of a
//! second. What it installs, it installs from Debian's packages, rustup and crates.io.

use std::{ops::RangeInclusive, path::PathBuf};

use anyhow::{Result, ensure};

use crate::{
    apt, demo,
    ebpf_toolchain::{LINKED, Toolchain, command, linker_llvm},
    run::{cargo, exists, finish, succeeds},
};

/// Newer ones may ask for a newer Rust than Debian's, which must be able to compile it.
const LINKER_VERSION: &str = "0.13.0";

/// The major versions of LLVM that this bpf-linker can be built with.
const LINKER_LLVMS: RangeInclusive<u32> = 21..=23;

/// How much of what is found to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    Everything,
    /// Only what is missing and installed now.
    Changes,
}

/// What must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To build everything.
    Build,
    /// To build everything and run the demo.
    Demo,
    /// That and every test.
    Tests,
    /// To build everything and measure it beside other forwarders.
    Bench,
}

/// Programs (or files, if they start with a slash), the Debian packages that bring them, and what
/// they are for. The kernel programs' compiler is not so simple, see [`ebpf_compiler`].
const BUILT_WITH: &[(&str, &[&str], &str)] = &[
    ("cc", &["gcc", "libc6-dev"], "links every program"),
    (
        "/etc/ssl/certs/ca-certificates.crt",
        &["ca-certificates"],
        "crates.io and public DNS servers are verified with it",
    ),
];

/// What the demo, the tests and the bench have in common, in the same way.
const RUN_WITH: &[(&str, &[&str], &str)] = &[
    ("ip", &["iproute2"], "makes network namespaces"),
    ("ss", &["iproute2"], "shows who listens where"),
    ("nsenter", &["util-linux"], "enters namespaces"),
    ("ps", &["procps"], "shows that no process is left behind"),
    ("gcc", &["gcc", "libc6-dev"], "makes a glibc client"),
    ("musl-gcc", &["musl-tools"], "makes a musl client"),
    ("dig", &["bind9-dnsutils"], "a client"),
    ("kdig", &["knot-dnsutils"], "a stricter client"),
    ("nft", &["nftables"], "the redirection that ours is measured against"),
];

/// The programs that only the tests run, in the same way: about 320 MB to fetch onto a bare Debian.
const TESTED_WITH: &[(&str, &[&str], &str)] = &[
    ("dnstap-read", &["bind9-dnsutils"], "reads dnstap"),
    ("fstrm_capture", &["fstrm-bin"], "takes dnstap from a socket"),
    ("tmux", &["tmux"], "a terminal for what has a screen"),
    ("unbound", &["unbound"], "an upstream, and a client; its service stays off"),
    ("dnsdist", &["dnsdist"], "another; its service stays off"),
    ("kresd", &["knot-resolver"], "another; its service stays off"),
    ("host", &["bind9-host"], "a client"),
    ("drill", &["ldnsutils"], "a client, by ldns"),
    ("unbound-host", &["unbound-host"], "a client, by libunbound"),
    ("curl", &["curl"], "a client, by glibc on a thread of its own"),
    ("busybox", &["busybox-static"], "a client, and all that is in the containers of runtimes"),
    ("/usr/bin/python3", &["python3"], "a client"),
    ("/usr/lib/python3/dist-packages/dns/resolver.py", &["python3-dnspython"], "a client"),
    ("/usr/lib/python3/dist-packages/pycares/__init__.py", &["python3-pycares"], "c-ares"),
    ("node", &["nodejs"], "a client, by libuv and by c-ares"),
    ("go", &["golang-go"], "compiles a client that has Go's own resolver"),
    ("javac", &["default-jdk-headless"], "compiles a client on IPv4-mapped sockets"),
    ("/usr/share/perl5/Net/DNS.pm", &["libnet-dns-perl"], "a client"),
    ("ruby", &["ruby"], "a client"),
    ("php", &["php-cli"], "a client, by glibc's res_search"),
    ("dnsmasq", &["dnsmasq-base"], "a forwarder that is a client; it brings no service"),
    ("nscd", &["nscd"], "a client that glibc asks; its service stays off"),
    ("runc", &["runc"], "makes containers"),
    ("podman", &["podman"], "makes containers"),
    ("/usr/lib/podman/netavark", &["netavark", "iptables"], "podman's networks"),
    ("/usr/lib/podman/aardvark-dns", &["aardvark-dns"], "podman's names"),
    ("newuidmap", &["uidmap"], "lets podman make containers without root"),
    ("slirp4netns", &["slirp4netns"], "their network"),
    ("dockerd", &["docker.io"], "makes containers; its services stay off"),
];

/// Packages that would change this machine if they were installed, what they need that would not,
/// and what they are for.
const UNPACKED: &[(&str, &[&str], &str)] = &[
    ("systemd-resolved", &["libsystemd-shared"], "a forwarder that is a client"),
    ("prometheus", &[], "its promtool judges metrics and alert rules; the server stays off"),
];

/// The programs that ours is measured beside, in the same way.
const MEASURED_BESIDE: &[(&str, &[&str], &str)] = &[
    ("taskset", &["util-linux"], "gives each forwarder a core"),
    ("unbound", &["unbound"], "a forwarder; its service stays off"),
    ("dnsdist", &["dnsdist"], "another; its service stays off"),
    ("stubby", &["stubby"], "another; its service stays off"),
    ("kresd", &["knot-resolver"], "another; its service stays off"),
];

/// Installs what is missing.
pub(crate) fn run(report: Report, purpose: Purpose) -> Result<()> {
    let mut packages = Vec::new();
    let further: &[&[_]] = match purpose {
        Purpose::Build => &[],
        Purpose::Demo => &[RUN_WITH],
        Purpose::Tests => &[RUN_WITH, TESTED_WITH],
        Purpose::Bench => &[RUN_WITH, MEASURED_BESIDE],
    };
    for (what, from, why) in [&[BUILT_WITH], further].concat().into_iter().flatten() {
        if exists(what) {
            found(report, what);
        } else {
            missing(what, &format!("install {}: {why}", from.join(" ")));
            packages.extend_from_slice(from);
        }
    }
    packages.sort_unstable();
    packages.dedup();
    if !packages.is_empty() {
        apt::install(&packages)?;
    }
    if purpose == Purpose::Tests {
        for (package, needs, why) in UNPACKED {
            unpacked(report, package, needs, why)?;
        }
    }
    ebpf_compiler(report)
}

/// A package's files in `target/tools`, for the tests to run from there.
fn unpacked(report: Report, package: &str, needs: &[&str], why: &str) -> Result<()> {
    let folder = demo::target()?.join("tools").join(package);
    if folder.is_dir() {
        found(report, package);
        return Ok(());
    }
    let also =
        if needs.is_empty() { String::new() } else { format!(", and install {}", needs.join(" ")) };
    missing(package, &format!("unpack it{also}: {why}"));
    if !needs.is_empty() {
        apt::install(needs)?;
    }
    apt::unpack(package, &folder)
}

/// A Rust that has core's source and a bpf-linker that understands it. The user's own Rust is
/// given what it lacks if that can be had; otherwise Debian's is installed beside it.
fn ebpf_compiler(report: Report) -> Result<()> {
    if let Some(toolchain) = Toolchain::linkable() {
        found(report, &format!("core's source, in {toolchain}"));
        found(report, "bpf-linker");
        return Ok(());
    }
    if Toolchain::with_core_source().next().is_none() && exists("rustup") {
        missing("core's source", "rustup component add rust-src: it is compiled for BPF");
        if !succeeds(command("rustup").args(["component", "add", "rust-src"]))? {
            println!("         rustup cannot deliver it");
        }
    }
    if linker_for_any()? {
        return Ok(());
    }

    missing("core's source", "install rustc-web rust-web-src, Debian's matching pair");
    apt::install(&["rustc-web", "rust-web-src"])?;
    if exists("rustup") {
        missing(LINKED, "rustup toolchain link: so that rustup can run Debian's compiler");
        finish(command("rustup").args(["toolchain", "link", LINKED, "/usr"]))?;
    }
    ensure!(
        linker_for_any()?,
        "Debian's rustc-web is installed, but it is not the rustc in PATH, or older than Rust {} \
         (bookworm-security has a newer one than bookworm), or bpf-linker cannot be had for it",
        env!("CARGO_PKG_RUST_VERSION")
    );
    Ok(())
}

/// Whether one of the toolchains with core's source has a bpf-linker now.
fn linker_for_any() -> Result<bool> {
    for toolchain in Toolchain::with_core_source() {
        if linker(&toolchain)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Installs a bpf-linker that reads what this compiler writes, if one can be had.
fn linker(compiler: &Toolchain) -> Result<bool> {
    let fits = || linker_llvm().is_some_and(|llvm| llvm >= compiler.llvm);
    if fits() {
        return Ok(true);
    }
    if exists("cargo-binstall") {
        missing("bpf-linker", &format!("cargo binstall: to link what {compiler} compiles"));
        if succeeds(&mut cargo("binstall --no-confirm --force bpf-linker"))? && fits() {
            return Ok(true);
        }
    }
    let Some((llvm, prefix)) = llvm(compiler.llvm)? else {
        println!(
            "         no LLVM {} or newer to build a linker with for {compiler};",
            compiler.llvm
        );
        println!("         with cargo-binstall installed, this command would fetch one ready-made");
        return Ok(false);
    };
    missing(
        "bpf-linker",
        &format!(
            "cargo install, against LLVM {llvm}, takes minutes: to link what {compiler} compiles"
        ),
    );
    let mut install = cargo("install bpf-linker --locked --force --quiet --no-default-features");
    install.args(["--version", LINKER_VERSION, "--features", &format!("llvm-{llvm}")]);
    install.env("LLVM_PREFIX", prefix);
    // In a shared target directory its build products would stay for ever.
    install.env_remove("CARGO_TARGET_DIR");
    finish(&mut install)?;
    Ok(fits())
}

/// The oldest LLVM that is new enough and that bpf-linker can be built with, and where it is.
fn llvm(at_least: u32) -> Result<Option<(u32, PathBuf)>> {
    let first = at_least.max(*LINKER_LLVMS.start());
    if exists("apt-get") && !apt::is_known(&format!("llvm-{first}-dev")) {
        apt::update()?;
    }
    for version in first..=*LINKER_LLVMS.end() {
        let (dev, polly) = (format!("llvm-{version}-dev"), format!("libpolly-{version}-dev"));
        let prefix = PathBuf::from(format!("/usr/lib/llvm-{version}"));
        if apt::is_known(&dev) {
            missing("LLVM", &format!("install {dev} {polly} g++: bpf-linker is built with it"));
            apt::install(&[&dev, &polly, "g++"])?;
        } else if !prefix.join("bin/llvm-config").exists() {
            continue;
        }
        return Ok(Some((version, prefix)));
    }
    Ok(None)
}

fn found(report: Report, what: &str) {
    if report == Report::Everything {
        println!("present  {what}");
    }
}

fn missing(what: &str, remedy: &str) {
    println!("missing  {what} -> {remedy}");
}
