//! Running other programs, as ourselves or as root.

use std::{env, ffi::OsStr, fs, os::unix::fs::MetadataExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::ebpf_toolchain::{command, path};

/// Runs a program to its end; that it fails is an error.
pub(crate) fn finish(command: &mut Command) -> Result<()> {
    ensure!(succeeds(command)?, "{} failed", shown(command));
    Ok(())
}

/// Runs a program to its end and says whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    Ok(status.success())
}

/// Cargo, with arguments that contain no spaces.
pub(crate) fn cargo(arguments: &str) -> Command {
    let mut cargo = command("cargo");
    cargo.args(arguments.split(' '));
    cargo
}

/// A command that runs as root, through sudo if need be; sudo may ask for a password.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return command(program);
    }
    let mut sudo = command("sudo");
    sudo.arg("-E").arg(program); // with our environment: RUST_BACKTRACE and the like
    sudo
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Whether a program is in `PATH` (as [`command`] extends it, or an administrator), or a file, given
/// by its absolute path, exists.
pub(crate) fn exists(program: &str) -> bool {
    env::split_paths(&path())
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|folder| folder.join(program).is_file())
}

/// A command as somebody would type it.
fn shown(command: &Command) -> String {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        shown += " ";
        shown += &argument.to_string_lossy();
    }
    shown
}
