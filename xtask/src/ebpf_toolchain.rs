//! Which Rust compiles the kernel programs, and whether `bpf-linker` can link what it makes.
//!
//! Shared with `dns-proxy/build.rs`, so that what `cargo xtask setup` calls complete is what the
//! build then takes; for that reason the standard library is all it uses.
//!
//! Two things must meet. No ready-made `core` exists for the BPF target, so it is compiled from
//! source, which not every toolchain has. And the compiler hands LLVM bitcode to the linker: LLVM
//! reads what older LLVMs wrote, but not what newer ones did.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// The name under which `cargo xtask setup` makes Debian's compiler known to rustup.
pub(crate) const LINKED: &str = "dns-proxy-bpf";

/// A Rust toolchain that is recent enough and has the source of `core`.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// What rustup calls it; `None` is the `rustc` in `PATH` of a machine without rustup.
    pub(crate) name: Option<String>,
    /// Major version of the LLVM that writes its bitcode.
    pub(crate) llvm: u32,
}

impl Toolchain {
    /// The first toolchain whose bitcode the installed `bpf-linker` can read.
    pub(crate) fn linkable() -> Option<Self> {
        let linker = linker_llvm()?;
        Self::with_core_source().find(|toolchain| toolchain.llvm <= linker)
    }

    /// Every toolchain that can compile the kernel programs: the one linked for the purpose
    /// first, then nightlies, which need no coaxing.
    pub(crate) fn with_core_source() -> impl Iterator<Item = Self> {
        let names = match output("rustup", ["toolchain", "list"]) {
            Some(list) => {
                let mut names: Vec<_> = list.lines().filter_map(first_word).collect();
                names.sort_by_key(|name| (name != LINKED, !name.starts_with("nightly")));
                names.into_iter().map(Some).collect()
            }
            None => vec![None],
        };
        names.into_iter().filter_map(Self::inspect)
    }

    fn inspect(name: Option<String>) -> Option<Self> {
        let rustc = |argument| match &name {
            Some(name) => output("rustup", ["run", name, "rustc", argument]),
            None => output("rustc", [argument]),
        };
        let sysroot = rustc("--print=sysroot")?;
        if !Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir() {
            return None;
        }
        let version = rustc("-vV")?;
        let release = field(&version, "release: ")?;
        if minor(release)? < minor(env!("CARGO_PKG_RUST_VERSION"))? {
            return None;
        }
        Some(Self { llvm: major(field(&version, "LLVM version: ")?)?, name })
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("the rustc in PATH");
        write!(formatter, "{name} (LLVM {})", self.llvm)
    }
}

/// Major version of the LLVM inside the installed `bpf-linker`; `None` if there is none.
pub(crate) fn linker_llvm() -> Option<u32> {
    // The linker prints only its own version; LLVM's argument parser, which it exposes, stops at
    // `--version` before any file is opened.
    let arguments = ["--llvm-args=--version", "--output=/dev/null", "/dev/null"];
    major(field(&output("bpf-linker", arguments)?, "LLVM version ")?)
}

/// A command that also finds what `cargo install` installed: where cargo comes from a package,
/// nobody has put that directory into `PATH`.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path());
    command
}

/// `PATH`, and after it the folders into which `cargo install` may have put programs.
pub(crate) fn path() -> OsString {
    let cargo_home = || Some(env::home_dir()?.join(".cargo"));
    let installed = [
        env::var_os("CARGO_INSTALL_ROOT").map(PathBuf::from),
        env::var_os("CARGO_HOME").map(PathBuf::from).or_else(cargo_home),
    ];
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = installed.into_iter().flatten().map(|root| root.join("bin"));
    // Joining fails only on a folder with a colon in its name, which PATH cannot express.
    env::join_paths(env::split_paths(&path).chain(installed)).unwrap_or(path)
}

/// What a command prints, if it exists and succeeds.
fn output<const N: usize>(program: &str, arguments: [&str; N]) -> Option<String> {
    let output = command(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The rest of the first line that contains `key`, after it.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.split_once(key)?.1))
}

fn first_word(line: &str) -> Option<String> {
    line.split_whitespace().next().map(str::to_owned)
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

fn minor(version: &str) -> Option<u32> {
    version.split('.').nth(1)?.parse().ok()
}
