//! Puts the compiled kernel programs at `$OUT_DIR/dns-proxy-ebpf`, for the daemon to embed.
//!
//! They come from `dns-proxy-ebpf`, compiled here for the BPF target, or ready-made from the file
//! that `DNS_PROXY_EBPF_OBJECT` names.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya_build::{Package, Toolchain as Named, build_ebpf};
use ebpf_toolchain::Toolchain;

#[path = "../xtask/src/ebpf_toolchain.rs"]
mod ebpf_toolchain;

/// Names a ready-made object, for machines that cannot compile one.
const OBJECT: &str = "DNS_PROXY_EBPF_OBJECT";

/// aya-build's own variable: compiling nothing is enough for editors and documentation.
const SKIP: &str = "AYA_BUILD_SKIP";

/// Tells the second run of this program (see [`compile_quietly`]) which toolchain to use.
const TOOLCHAIN: &str = "DNS_PROXY_EBPF_TOOLCHAIN";

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed={OBJECT}");
    println!("cargo:rerun-if-env-changed={SKIP}");
    // Whatever else the object depends on; aya-build names dns-proxy-ebpf itself.
    for path in [
        "build.rs",
        "../xtask/src/ebpf_toolchain.rs",
        "../dns-proxy-common",
        "../Cargo.toml",
        "../Cargo.lock",
    ] {
        println!("cargo:rerun-if-changed={path}");
    }

    let out =
        Path::new(&env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?).join("dns-proxy-ebpf");
    if let Some(object) = env::var_os(OBJECT) {
        return copy(Path::new(&object), &out);
    }
    if let Ok(toolchain) = env::var(TOOLCHAIN) {
        return compile(&toolchain);
    }
    if env::var_os(SKIP).is_some_and(|value| value == "1" || value == "true") {
        println!("cargo:warning={SKIP} is set: this daemon will have no kernel programs to load");
        return Ok(fs::write(&out, "")?);
    }
    compile_quietly()
}

fn copy(object: &Path, out: &Path) -> Result<()> {
    /// `e_machine` of a BPF program, from Linux' elf-em.h.
    const EM_BPF: u16 = 247;

    println!("cargo:rerun-if-changed={}", object.display());
    let bytes = fs::read(object).with_context(|| {
        format!(
            "{OBJECT}={} cannot be read",
            std::path::absolute(object).unwrap_or_default().display()
        )
    })?;
    let machine = match bytes.get(18..20) {
        Some(&[low, high]) if bytes.starts_with(b"\x7fELF") => {
            if env::var("CARGO_CFG_TARGET_ENDIAN")? == "big" {
                u16::from_be_bytes([low, high])
            } else {
                u16::from_le_bytes([low, high])
            }
        }
        _ => bail!("{OBJECT}={} is not an ELF file", object.display()),
    };
    ensure!(
        machine == EM_BPF,
        "{OBJECT}={} is an ELF file for machine {machine}, not for BPF ({EM_BPF}) in the target's byte order",
        object.display()
    );
    fs::write(out, bytes).with_context(|| format!("cannot write {}", out.display()))
}

/// Compiles in a second process of this same program: that gives aya-build the environment it
/// needs without changing our own, which would be unsafe, and lets its output be sifted.
fn compile_quietly() -> Result<()> {
    let toolchain = Toolchain::linkable().context(
        "no Rust toolchain here can compile the kernel programs: that takes one with core's \
         source, and a bpf-linker whose LLVM is as new as its own.\n\
         Run `cargo xtask setup`, which installs both, \
         or name a ready-made object in DNS_PROXY_EBPF_OBJECT.",
    )?;

    let mut again = Command::new(env::current_exe()?);
    again.env("PATH", ebpf_toolchain::path());
    again.env(TOOLCHAIN, toolchain.name.unwrap_or_default());
    again.env("RUSTC_BOOTSTRAP", "1"); // lets a stable compiler build core; a nightly may anyway
    let output = again.stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines() {
        if !output.status.success() || !is_progress(line) {
            println!("{line}");
        }
    }
    ensure!(output.status.success(), "the kernel programs did not compile");
    Ok(())
}

fn compile(toolchain: &str) -> Result<()> {
    let package =
        Package { name: "dns-proxy-ebpf", root_dir: "../dns-proxy-ebpf", ..Package::default() };
    // Without rustup the name is empty and aya-build takes the toolchain in PATH.
    build_ebpf([package], Named::Custom(toolchain))
}

/// Whether a line is aya-build relaying what cargo does, in the form of a warning, rather than
/// something that deserves one.
fn is_progress(line: &str) -> bool {
    const VERBS: [&str; 10] = [
        "Adding",
        "Blocking",
        "Building",
        "Compiling",
        "Downloaded",
        "Downloading",
        "Finished",
        "Locking",
        "Updating",
        "info:",
    ];
    line.strip_prefix("cargo:warning=").is_some_and(|text| {
        let first = text.split_whitespace().next().unwrap_or_default();
        VERBS.contains(&first) || text.starts_with("which(rustup)=")
    })
}
