//! Network namespaces that have a name before anybody is in them.
//!
//! Container runtimes make the namespace first, bind it to a file, plug it into the network, and
//! only then start a process in it. Served while that goes on, it is ready for the first query.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use nix::{libc, sys::statfs::fstatfs};

use super::netns::{Netns, NetnsId};

/// Where runtimes bind them: CNI plugins, podman and ip-netns(8); Docker.
pub const DIRS: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// Those that are there now, with the file that each is bound to.
pub fn list() -> Vec<(NetnsId, PathBuf)> {
    let entries = DIRS.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    entries
        .map(|entry| entry.path())
        .filter(|path| is_bound(path))
        .filter_map(|path| Some((Netns::id_at(&path).ok()?, path)))
        .collect()
}

/// Whether a namespace is bound to the file; just created, it is still empty.
fn is_bound(path: &Path) -> bool {
    let file = File::open(path);
    file.is_ok_and(|file| fstatfs(&file).is_ok_and(|fs| fs.filesystem_type().0 == libc::NSFS_MAGIC))
}
