//! Where cargo puts what we run, and where we may put what we compile.

use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::PathBuf;

/// The directory of this build's programs, `target/<profile>`: tests run from `deps/` inside it.
pub fn profile_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("where this program is")?;
    let mut dir = exe.parent().context("programs are in directories")?;
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir = dir.parent().context("deps is in the profile's directory")?;
    }
    Ok(dir.to_owned())
}

/// The path of a program of this build.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = profile_dir()?.join(name);
    if !path.exists() {
        let package = if name == "dns-proxy" { name } else { "dns-proxy-tests" };
        let built = path.display();
        bail!("{built} is missing; build it: cargo build -p {package}, or run cargo xtask test");
    }
    Ok(path)
}

/// A directory in `target` for what outlives one run.
pub fn tmp_dir() -> Result<PathBuf> {
    let target = profile_dir()?;
    let dir = target.parent().context("the profile is in target")?.join("tmp");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// A file of a Debian package that `cargo xtask setup` unpacked instead of installing it.
pub fn tool(package: &str, file: &str) -> Result<PathBuf> {
    let target = profile_dir()?;
    let unpacked = target.parent().context("the profile is in target")?.join("tools");
    let path = unpacked.join(package).join(file);
    if !path.exists() {
        bail!("{} is missing: cargo xtask setup", path.display());
    }
    Ok(path)
}

/// The product of `cargo xtask dist` whose name ends so.
pub fn dist(suffix: &str) -> Result<PathBuf> {
    let profile = profile_dir()?;
    let dir = profile.parent().context("the profile is in target")?.join("dist");
    let entries = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = entries.filter(|path| path.to_string_lossy().ends_with(suffix));
    found.next().with_context(|| format!("no *{suffix} in {}: cargo xtask dist", dir.display()))
}

/// The newest test program of this name, in this build.
pub fn test_program(name: &str) -> Result<PathBuf> {
    let dir = profile_dir()?.join("deps");
    let is_one = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let hash = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        hash.is_some_and(|hash| hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let found = fs::read_dir(&dir)?.flatten().map(|entry| entry.path()).filter(is_one);
    let newest =
        found.max_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).ok());
    newest.with_context(|| format!("no test program {name} in {}: cargo test", dir.display()))
}
