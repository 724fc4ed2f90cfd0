//! Hears of cgroups that come, fill, empty and go (inotify(7) on the cgroup v2 tree).

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tracing::warn;

use crate::polled::Polled;

/// Watches directories and their `cgroup.events` files.
pub struct Watcher {
    inotify: AsyncFd<Polled<Inotify>>,
    watched: HashMap<PathBuf, WatchDescriptor>,
}

impl Watcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The limit of inotify instances (`fs.inotify.max_user_instances`) is reached.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self { inotify: Polled::register(inotify)?, watched: HashMap::new() })
    }

    /// Watches `dir` from now on; `true` if it was not watched before, so that something may have
    /// appeared in it that nobody has seen.
    pub fn add(&mut self, dir: &Path) -> bool {
        if self.watched.contains_key(dir) {
            return false;
        }
        let inotify = self.inotify.get_ref();
        let children =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        match inotify.add_watch(dir, children) {
            Ok(descriptor) => {
                self.watched.insert(dir.to_owned(), descriptor);
                // The root has no such file, and a cgroup that goes meanwhile is of no interest.
                let populated = dir.join("cgroup.events");
                let _: Result<_, _> = inotify.add_watch(&populated, AddWatchFlags::IN_MODIFY);
                true
            }
            Err(nix::Error::ENOENT) => false,
            Err(error) => {
                warn!(
                    %error, dir = %dir.display(),
                    "cannot watch a cgroup, so its changes are seen a second late; \
                     raise fs.inotify.max_user_watches"
                );
                false
            }
        }
    }

    /// Waits until something changed, and takes all that did.
    ///
    /// # Errors
    /// inotify failed for good.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match ready.try_io(|inotify| Ok(inotify.get_ref().read_events()?)) {
                Ok(events) => {
                    for event in events? {
                        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                            // Nobody knows what was missed; watching anew does no harm.
                            self.watched.clear();
                        } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                            self.watched.retain(|_, descriptor| *descriptor != event.wd);
                        }
                    }
                    return Ok(());
                }
                Err(_would_block) => {}
            }
        }
    }
}
