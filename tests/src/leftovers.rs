//! What a killed test run cannot take away itself: its cgroups and temporary files carry its
//! process id in their names, and the next run sweeps up those of the dead.

use crate::cgroup;
use anyhow::{Context, Result, ensure};
use std::env::temp_dir;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use tempfile::TempDir;

/// What all such names begin with; the process id follows.
const PREFIX: &str = "dns-proxy-test-";

/// The beginning of this process's names. Asking for it the first time sweeps.
pub(crate) fn prefix() -> String {
    static SWEPT: OnceLock<()> = OnceLock::new();
    SWEPT.get_or_init(|| {
        // What cannot be swept is in nobody's way.
        let _ = sweep();
    });
    format!("{PREFIX}{}-", process::id())
}

/// A temporary directory, removed on drop or by the next run.
pub(crate) fn scratch_dir() -> Result<TempDir> {
    TempDir::with_prefix(prefix()).context("create a temporary directory")
}

/// Removes what dead test runs left.
pub fn sweep() -> Result<()> {
    for dir in stale(&temp_dir())? {
        let removed = fs::remove_dir_all(&dir);
        // Another run may sweep at the same time.
        ensure!(!dir.exists(), "remove {}: {removed:?}", dir.display());
    }
    stale(cgroup::v2_root()?)?.iter().for_each(|dir| cgroup::remove(dir));
    Ok(())
}

/// The directories in `parent` whose makers are dead.
fn stale(parent: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(parent).with_context(|| format!("list {}", parent.display()))?;
    let is_stale = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let owner = name.and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_stale).collect())
}
