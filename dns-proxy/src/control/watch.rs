//! Hears of cgroups that come, fill, empty and go, and of named namespaces (inotify(7)).

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::cgroup::CgroupId;
use crate::polled::Polled;

/// Something that changed.
#[derive(Debug)]
pub enum Change {
    /// A child of this cgroup came or went.
    Child(CgroupId, OsString),
    /// The cgroup was empty and is not any more, or the other way round.
    Population(CgroupId),
    /// A file or directory came or went that may be a namespace's name, or where names are.
    Name(PathBuf),
    /// More than could be told.
    Overflow,
}

/// Watches directories, and the `cgroup.events` files in them.
pub struct Watcher {
    inotify: AsyncFd<Polled<Inotify>>,
    watched: HashMap<WatchDescriptor, Watched>,
    named: HashMap<PathBuf, WatchDescriptor>,
    is_short: bool,
}

enum Watched {
    Children(CgroupId),
    Population(CgroupId),
    Names(PathBuf),
}

impl Watcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The limit of inotify instances (`fs.inotify.max_user_instances`) is reached.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let inotify = Polled::register(inotify)?;
        Ok(Self { inotify, watched: HashMap::new(), named: HashMap::new(), is_short: false })
    }

    /// Watches a cgroup from now on, and whether it is populated; `false` if that cannot be.
    pub fn add_cgroup(&mut self, id: CgroupId, dir: &Path) -> bool {
        let watched = self.add_dir(dir, Watched::Children(id)).is_some();
        // The root has no such file, and a cgroup that goes meanwhile is of no interest.
        let populated = dir.join("cgroup.events");
        let events = self.inotify.get_ref().add_watch(&populated, AddWatchFlags::IN_MODIFY);
        if let Ok(descriptor) = events {
            self.watched.insert(descriptor, Watched::Population(id));
        }
        watched
    }

    /// Watches a directory of names; `true` if it was not watched before, so that something may have
    /// appeared in it that nobody has seen.
    pub fn add_names(&mut self, dir: &Path) -> bool {
        if self.named.contains_key(dir) {
            return false;
        }
        let Some(descriptor) = self.add_dir(dir, Watched::Names(dir.to_owned())) else {
            return false;
        };
        self.named.insert(dir.to_owned(), descriptor);
        true
    }

    fn add_dir(&mut self, dir: &Path, watched: Watched) -> Option<WatchDescriptor> {
        let children =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.get_ref().add_watch(dir, children) {
            Ok(descriptor) => {
                self.watched.insert(descriptor, watched);
                Some(descriptor)
            }
            Err(nix::Error::ENOENT) => None,
            Err(error) => {
                // Once is enough: where one cannot be watched, thousands cannot.
                if !std::mem::replace(&mut self.is_short, true) {
                    warn!(
                        %error, dir = %dir.display(),
                        "cannot watch a cgroup, so its changes are seen late; \
                         raise fs.inotify.max_user_watches"
                    );
                }
                None
            }
        }
    }

    /// Waits until something changed, and takes what did.
    ///
    /// # Errors
    /// inotify failed for good.
    pub async fn changed(&mut self) -> io::Result<Vec<Change>> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match ready.try_io(|inotify| Ok(inotify.get_ref().read_events()?)) {
                Ok(events) => {
                    let mut changes = Vec::new();
                    for event in events? {
                        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                            changes.push(Change::Overflow);
                        } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                            if let Some(Watched::Names(dir)) = self.watched.remove(&event.wd) {
                                self.named.remove(&dir);
                            }
                        } else if let Some(watched) = self.watched.get(&event.wd) {
                            changes.extend(watched.change(event.mask, event.name));
                        }
                    }
                    return Ok(changes);
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl Watched {
    fn change(&self, mask: AddWatchFlags, name: Option<OsString>) -> Option<Change> {
        match self {
            // Its files do not matter.
            Self::Children(id) if mask.contains(AddWatchFlags::IN_ISDIR) => {
                Some(Change::Child(*id, name?))
            }
            Self::Children(_) => None,
            Self::Population(id) => Some(Change::Population(*id)),
            Self::Names(dir) => Some(Change::Name(dir.join(name?))),
        }
    }
}
