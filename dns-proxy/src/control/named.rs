//! Network namespaces that have a name before anybody is in them.
//!
//! Container runtimes make the namespace first, bind it to a file, plug it into the network, and
//! only then start a process in it. Served while that goes on, it is ready for the first query.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::{self, File},
    path::{Path, PathBuf},
};

use nix::{libc, sys::statfs::fstatfs};

use super::netns::{Netns, NetnsId};

/// Where runtimes bind them: CNI plugins, podman and ip-netns(8); Docker.
pub const DIRS: [&str; 2] = ["/run/netns", "/run/docker/netns"];
/// How many known names are looked at again each time.
const AGAIN: usize = 128;

/// The names that are there.
#[derive(Debug, Default)]
pub struct Names {
    files: HashMap<PathBuf, NetnsId>,
    names: HashMap<NetnsId, HashSet<PathBuf>>,
    /// Those that were looked at longest ago first.
    round: VecDeque<PathBuf>,
}

impl Names {
    /// A file that a namespace is bound to.
    pub fn get(&self, id: NetnsId) -> Option<&Path> {
        self.names.get(&id)?.iter().next().map(PathBuf::as_path)
    }

    /// Every namespace that has a name.
    pub fn ids(&self) -> impl Iterator<Item = NetnsId> {
        self.names.keys().copied()
    }

    /// Looks which names there are, and at some of the known ones again.
    pub fn look_around(&mut self) {
        let entries = DIRS.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        let present: HashSet<_> = entries.map(|entry| entry.path()).collect();
        let gone: Vec<_> =
            self.files.keys().filter(|path| !present.contains(*path)).cloned().collect();
        gone.iter().for_each(|path| self.forget(path));
        for path in present {
            if !self.files.contains_key(&path) {
                self.look_at(&path);
            }
        }
        for _ in 0..self.round.len().min(AGAIN) {
            let Some(path) = self.round.pop_front() else {
                break;
            };
            if self.files.contains_key(&path) && self.look_at(&path) {
                self.round.push_back(path);
            }
        }
    }

    /// Looks at one that may have changed; whether a namespace is bound to it.
    pub fn look_at(&mut self, path: &Path) -> bool {
        if !path.parent().is_some_and(|parent| DIRS.iter().any(|dir| Path::new(dir) == parent)) {
            return false;
        }
        let known = self.files.get(path).copied();
        if known.is_some() && known == Netns::id_at(path).ok() {
            return true;
        }
        self.forget(path);
        let Some(id) = is_bound(path).then(|| Netns::id_at(path).ok()).flatten() else {
            return false;
        };
        self.files.insert(path.to_owned(), id);
        self.names.entry(id).or_default().insert(path.to_owned());
        self.round.push_back(path.to_owned());
        true
    }

    fn forget(&mut self, path: &Path) {
        if let Some(id) = self.files.remove(path)
            && let Some(names) = self.names.get_mut(&id)
        {
            names.remove(path);
            if names.is_empty() {
                self.names.remove(&id);
            }
        }
    }
}

/// Whether a namespace is bound to the file; just created, it is still empty.
fn is_bound(path: &Path) -> bool {
    let file = File::open(path);
    file.is_ok_and(|file| fstatfs(&file).is_ok_and(|fs| fs.filesystem_type().0 == libc::NSFS_MAGIC))
}
