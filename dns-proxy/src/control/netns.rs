//! Network namespaces; the only place that calls setns(2).
//!
//! A thread enters a namespace for one synchronous closure and is back before anything else runs
//! on it: there is no `.await` in a foreign namespace, and no way out of one but back.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    net::{Ipv4Addr, UdpSocket},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process,
};

use nix::{
    libc,
    sched::{CloneFlags, setns},
};
use socket2::{Domain, Socket, Type};

use crate::upstream::{Interfaces, Network};

/// The namespace that this thread is in.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace's identity: its inode in nsfs, unique while somebody holds the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId(pub u64);

/// An open namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
}

impl Netns {
    /// The id of the namespace that a process is in.
    ///
    /// # Errors
    /// The process is gone.
    pub fn id_of(pid: u32) -> io::Result<NetnsId> {
        Self::id_at(&of_process(pid))
    }

    /// The id of the namespace that is bound to a file.
    ///
    /// # Errors
    /// The file is gone.
    pub fn id_at(path: &Path) -> io::Result<NetnsId> {
        Ok(NetnsId(fs::metadata(path)?.ino()))
    }

    /// The namespace that a process is in.
    ///
    /// # Errors
    /// The process is gone, or may not be looked at (CAP_SYS_PTRACE).
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::at(&of_process(pid))
    }

    /// The namespaces that the threads of a process are in, nearly always one, each with a thread.
    pub fn of_threads(pid: u32) -> HashMap<NetnsId, u32> {
        by_id(numbers_in(&format!("/proc/{pid}/task")))
    }

    /// The namespaces that any process of the host is in, each with a process.
    pub fn of_all() -> HashMap<NetnsId, u32> {
        by_id(numbers_in("/proc"))
    }

    /// The namespace that is bound to a file.
    ///
    /// # Errors
    /// The file is gone.
    pub fn at(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let id = NetnsId(file.metadata()?.ino());
        Ok(Self { file, id })
    }

    /// The same, held in a way that keeps nobody from unmounting the file.
    ///
    /// # Errors
    /// The file is gone, or the namespace cannot be entered.
    pub fn bound_to(path: &Path) -> io::Result<Self> {
        // A descriptor that was opened by the file holds its mount, one from within does not.
        let named = Self::at(path)?;
        named.enter(|| Self::at(Path::new(OWN)))?
    }

    /// Its cookie.
    ///
    /// # Errors
    /// It cannot be entered, or no socket made there.
    pub fn cookie(&self) -> io::Result<u64> {
        let socket = self.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        cookie(&socket)
    }

    /// Its identity.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `inside` in the namespace, on this thread. Sockets it opens stay there for good.
    ///
    /// # Errors
    /// The namespace cannot be entered (CAP_SYS_ADMIN).
    pub fn enter<T>(&self, inside: impl FnOnce() -> T) -> io::Result<T> {
        let home = File::open(OWN)?;
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let result = catch_unwind(AssertUnwindSafe(inside));
        if setns(home.as_fd(), CloneFlags::CLONE_NEWNET).is_err() {
            // Everything this thread did from here on would happen in somebody else's network.
            process::abort();
        }
        Ok(result.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl Network for Netns {
    fn socket(&self, domain: Domain, kind: Type) -> io::Result<Socket> {
        self.enter(|| Socket::new(domain, kind, None))?
    }

    fn interfaces(&self) -> io::Result<Interfaces> {
        self.enter(Interfaces::here)?
    }
}

fn of_process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// The ids of processes or threads listed in `dir`; none if it is gone.
fn numbers_in(dir: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn by_id(pids: impl Iterator<Item = u32>) -> HashMap<NetnsId, u32> {
    // `/proc/TID` exists for threads too, though it is not listed.
    pids.filter_map(|pid| Some((Netns::id_of(pid).ok()?, pid))).collect()
}

/// The cookie of the network namespace that a socket is in (`SO_NETNS_COOKIE`, 5.14), the same that
/// the kernel programs see.
///
/// # Errors
/// A kernel before 5.14.
pub fn cookie(socket: &impl std::os::fd::AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` octets, and `cookie` has as many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
