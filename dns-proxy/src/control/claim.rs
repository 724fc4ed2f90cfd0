//! Who intercepts what on this host: each `run` has a directory that says so, held by a lock that
//! ends with the daemon.
//!
//! ```text
//! /run/dns-proxy/daemons/v1-0/   of one that fails open
//! BPFFS/dns-proxy/v1-0/          of one that fails closed, with its pins (see `bpf/pins.rs`)
//!     pid -> 1234   select-0 -> docker   exclude-0 -> docker/x
//! ```
//! The bpf file system knows no files, hence the symbolic links. Nobody reads them but a daemon that
//! starts: it refuses to where another one that lives has part of its scope, and takes the place of
//! those that died. `exec` has no part in this: its cgroup is its own, and further down, where its
//! programs are asked first.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, symlink},
    path::{Path, PathBuf},
    process,
    str::FromStr,
};

use dns_proxy_common::FailMode;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use thiserror::Error;
use tracing::warn;

use super::{bpf, cgroup::Scope};

/// Version of what is in the directories.
pub const LAYOUT: &str = "v1";
/// Where those that fail open have theirs.
const RUN: &str = "/run/dns-proxy/daemons";
/// Where in the bpf file system those that fail closed have theirs.
const BPFFS: &str = "dns-proxy";

/// Why a daemon must not start. Always the operator's to mend.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Two daemons for one cgroup.
    #[error(
        "another dns-proxy (pid {pid}) intercepts {scope} already; stop it, or keep the scopes apart \
         with --exclude-cgroup"
    )]
    Taken {
        /// The other daemon.
        pid: String,
        /// Its scope.
        scope: String,
    },
    /// Something that refuses DNS and does not say for whom.
    #[error(
        "{0} holds programs of a dns-proxy that failed closed, but does not say of which scope; \
         remove it (rm -r {0}) once nothing depends on their refusing DNS"
    )]
    Corrupt(String),
    /// No directory can be had.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// The operating system's words.
        source: io::Error,
    },
}

/// A daemon's place, which ends when this is dropped, unless it [stays](Claim::settle).
#[derive(Debug)]
pub struct Claim {
    dir: PathBuf,
    _lock: Flock<File>,
    /// Directories of dead daemons whose place we take, held so that nobody else does.
    predecessors: Vec<(PathBuf, Flock<File>)>,
    fail: FailMode,
    stays: bool,
}

impl Claim {
    /// Takes a place. Of daemons that died those that failed open are cleared away; what those that
    /// failed closed left goes on refusing until [`Claim::settle`].
    ///
    /// # Errors
    /// Another daemon is alive and has part of the scope, or directories cannot be made.
    pub fn make(scope: &Scope, fail: FailMode, bpffs: Option<&Path>) -> Result<Self, ClaimError> {
        let run = PathBuf::from(RUN);
        let pins = bpffs.map(|dir| dir.join(BPFFS));
        let home = match (&pins, fail) {
            (Some(pins), FailMode::Closed) => pins,
            _ => &run,
        };
        make_dir(home).map_err(failed(home))?;
        // One at a time, or two would not see each other.
        let homes: Vec<&Path> = [Some(&run), pins.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .filter(|dir| dir.is_dir())
            .collect();
        let turn = homes.iter().map(|home| lock(home, FlockArg::LockExclusive));
        let _turn = turn.collect::<Result<Vec<_>, _>>()?;

        let mut predecessors = Vec::new();
        for home in homes {
            for dir in subdirectories(home).map_err(failed(home))? {
                predecessors.extend(judge(dir, scope)?);
            }
        }
        let (dir, lock) = settle_in(home, scope)?;
        Ok(Self { dir, _lock: lock, predecessors, fail, stays: false })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What dead daemons of this layout left.
    pub fn inheritance(&self) -> Vec<&Path> {
        let dirs = self.predecessors.iter().map(|(dir, _)| dir.as_path());
        dirs.filter(|dir| layout(dir) == Some(LAYOUT)).collect()
    }

    /// Everything is in place: the programs of those whose place we take go, and from now on ours
    /// stay if we are to fail closed.
    pub fn settle(&mut self) {
        self.stays = self.fail == FailMode::Closed;
        for (dir, _lock) in self.predecessors.drain(..) {
            remove(&dir);
        }
    }

    /// We are stopped, not killed: nothing is to stay.
    pub fn withdraw(&mut self) {
        self.stays = false;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.stays {
            remove(&self.dir);
        }
    }
}

/// What another daemon's directory means to us: `Some` if we take its place.
fn judge(dir: PathBuf, scope: &Scope) -> Result<Option<(PathBuf, Flock<File>)>, ClaimError> {
    let file = match File::open(&dir) {
        // It ends in this very moment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed(&dir))?,
    };
    let theirs = read_scope(&dir);
    let overlaps = theirs.as_ref().is_none_or(|theirs| theirs.overlaps(scope));
    let named = || theirs.as_ref().map_or_else(|| "cgroups".to_owned(), ToString::to_string);
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Err((_, Errno::EWOULDBLOCK)) if overlaps => {
            Err(ClaimError::Taken { pid: read(&dir, "pid").unwrap_or_default(), scope: named() })
        }
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(failed(&dir)(error.into())),
        Ok(_) if !bpf::has_attachments(&dir) && theirs.is_none() => {
            remove(&dir); // it came no further
            Ok(None)
        }
        Ok(_) if theirs.is_none() => Err(ClaimError::Corrupt(dir.display().to_string())),
        Ok(lock) if overlaps => Ok(Some((dir, lock))),
        Ok(_) if bpf::has_attachments(&dir) => {
            warn!(
                dir = %dir.display(),
                "another dns-proxy failed closed and still refuses the DNS of {}; start it again, \
                 or remove the directory",
                named()
            );
            Ok(None)
        }
        Ok(_) => {
            remove(&dir);
            Ok(None)
        }
    }
}

/// A directory of our own, with our scope in it.
fn settle_in(home: &Path, scope: &Scope) -> Result<(PathBuf, Flock<File>), ClaimError> {
    let mut numbers = 0_u32..;
    let dir = loop {
        let dir = home.join(format!("{LAYOUT}-{}", numbers.next().unwrap_or_default()));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => break made.map(|()| dir.clone()).map_err(failed(&dir))?,
        }
    };
    let lock = lock(&dir, FlockArg::LockExclusiveNonblock)?;
    let select = scope.select.iter().enumerate().map(|(n, p)| (format!("select-{n}"), p));
    let exclude = scope.exclude.iter().enumerate().map(|(n, p)| (format!("exclude-{n}"), p));
    let selectors = scope.selectors.iter().enumerate().map(|(n, s)| (format!("selector-{n}"), s));
    let selectors = selectors.map(|(name, selector)| (name, selector.to_string()));
    // The scope is whole once there is a pid.
    let said = exclude.chain(select).map(|(name, pattern)| (name, pattern.to_string()));
    let said = said.chain(selectors);
    for (name, value) in said.chain([("pid".to_owned(), process::id().to_string())]) {
        symlink(value, dir.join(name)).map_err(failed(&dir))?;
    }
    Ok((dir, lock))
}

/// The scope that a directory names; `None` if that is not to be read.
fn read_scope(dir: &Path) -> Option<Scope> {
    read(dir, "pid")?;
    let scope = Scope {
        select: read_all(dir, "select")?,
        selectors: read_all(dir, "selector")?,
        exclude: read_all(dir, "exclude")?,
    };
    (!scope.is_empty()).then_some(scope)
}

fn read_all<T: FromStr>(dir: &Path, kind: &str) -> Option<Vec<T>> {
    let values = (0..).map_while(|n| read(dir, &format!("{kind}-{n}")));
    values.map(|value| value.parse().ok()).collect()
}

fn read(dir: &Path, name: &str) -> Option<String> {
    fs::read_link(dir.join(name)).ok()?.into_os_string().into_string().ok()
}

fn layout(dir: &Path) -> Option<&str> {
    dir.file_name()?.to_str()?.split_once('-').map(|(layout, _)| layout)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn lock(dir: &Path, how: FlockArg) -> Result<Flock<File>, ClaimError> {
    let file = File::open(dir).map_err(failed(dir))?;
    Flock::lock(file, how).map_err(|(_, error)| failed(dir)(error.into()))
}

fn subdirectories(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path()));
    let paths = paths.collect::<io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.is_dir() && !path.is_symlink()).collect())
}

/// What refuses goes first, and what says for whom last: whoever is killed in between leaves nothing
/// that cannot be understood.
fn remove(dir: &Path) {
    let subdirectories = subdirectories(dir).unwrap_or_default();
    let removed = subdirectories.iter().try_for_each(fs::remove_dir_all);
    if let Err(error) = removed.and_then(|()| fs::remove_dir_all(dir)) {
        warn!(%error, dir = %dir.display(), "cannot remove");
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ClaimError {
    move |source| ClaimError::Io { path: path.display().to_string(), source }
}
