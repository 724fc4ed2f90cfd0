//! Nameservers on loopback (systemd-resolved's 127.0.0.53, dnsmasq, Docker's 127.0.0.11) that are not
//! in the scope although those who ask them are: what such a stub asks in turn nobody encrypts.
//!
//! Who it is, is found as ss(8) does it: by the sockets of the namespace, and whoever has one open.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::{self, File},
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::Path,
    process,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use dns_proxy_common::DNS_PORT;
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::{
    cgroup::{self, CgroupId},
    discover::prefix_of,
    netns::{Netns, NetnsId},
};
use crate::route::ResolvConf;

/// Docker's, which listens on another port that only a rule of the namespace leads to.
const DOCKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
/// The longest resolver configuration that is read.
const MAX_CONF: u64 = 64 << 10;
/// How often it is looked at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How many views of the file system are looked into.
const MAX_VIEWS: usize = 512;

/// A stub outside the scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stub {
    /// The nameserver that somebody of the scope has.
    pub address: IpAddr,
    /// Whose socket that is, if it can be told.
    pub owner: Option<Owner>,
}

/// A process that answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// What it is called.
    pub name: String,
    /// Its id.
    pub pid: u32,
    /// Its cgroup, below the root of the tree.
    pub cgroup: String,
}

/// Says once of every stub outside the scope that there is one.
#[derive(Debug, Default)]
pub struct Notices {
    said: Arc<Mutex<HashSet<Stub>>>,
    namespaces: HashSet<NetnsId>,
    looked: Option<Instant>,
}

impl Notices {
    /// Looks, on a thread of its own, if there are namespaces that were not looked into, and not too
    /// often.
    pub fn look(
        &mut self,
        namespaces: impl Iterator<Item = NetnsId>,
        pids: impl FnOnce() -> Vec<u32>,
        members: impl FnOnce() -> HashSet<u64>,
        root: &Path,
    ) {
        let namespaces: HashSet<_> = namespaces.collect();
        let is_new = !namespaces.is_subset(&self.namespaces);
        if !is_new || self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        self.namespaces = namespaces;
        self.looked = Some(Instant::now());
        let (pids, members, root) = (pids(), members(), root.to_owned());
        let said = Arc::clone(&self.said);
        spawn_blocking(move || {
            for stub in outside(&pids, &members, &root) {
                if !said.lock().unwrap_or_else(PoisonError::into_inner).insert(stub.clone()) {
                    continue;
                }
                match stub.owner {
                    Some(_) => warn!("{stub}"),
                    // It may be just starting.
                    None => debug!("{stub}"),
                }
            }
        });
    }
}

/// Who has a socket for a nameserver's address.
struct Socket {
    address: IpAddr,
    port: u16,
    inode: u64,
}

/// The stubs outside the scope that processes of it ask. `members` are the cgroups of the scope, in
/// the tree mounted at `root`.
///
/// Looks at every descriptor of every process if there is a stub at all: not for the main thread.
pub fn outside(pids: &[u32], members: &HashSet<u64>, root: &Path) -> Vec<Stub> {
    let mut asked: HashSet<(NetnsId, IpAddr)> = HashSet::new();
    let mut views: HashMap<NetnsId, u32> = HashMap::new();
    let mut seen = HashSet::new();
    for &pid in pids {
        // Several with one view of the file system and the network see the same.
        let Ok(netns) = Netns::id_of(pid) else {
            continue;
        };
        let mounts = fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap_or_default();
        if seen.len() == MAX_VIEWS || !seen.insert((netns, mounts)) {
            continue;
        }
        let conf = ResolvConf::parse(&resolv_conf(pid).unwrap_or_default(), |_| None);
        let stubs = conf.nameservers.iter().map(|addr| addr.ip().to_canonical());
        asked.extend(stubs.filter(IpAddr::is_loopback).map(|ip| (netns, ip)));
        views.insert(netns, pid);
    }
    let mut found: Vec<(IpAddr, u64)> = Vec::new();
    let mut stubs = HashSet::new();
    for (netns, address) in asked {
        let sockets = sockets_of(views[&netns]);
        match sockets.iter().find(|socket| socket.answers(address)) {
            Some(socket) => found.push((address, socket.inode)),
            None => drop(stubs.insert(Stub { address, owner: None })),
        }
    }
    let inodes: HashSet<_> = found.iter().map(|(_, inode)| *inode).collect();
    let owners = if inodes.is_empty() { HashMap::new() } else { owners(&inodes) };
    let prefix = prefix_of(root);
    for (address, inode) in found {
        let Some(pid) = owners.get(&inode).copied().filter(|pid| *pid != process::id()) else {
            continue; // it is gone, or it is us
        };
        let Some(cgroup) = cgroup_of(pid, &prefix) else {
            continue;
        };
        let is_member =
            cgroup::id(&root.join(&cgroup)).is_ok_and(|CgroupId(id)| members.contains(&id));
        if !is_member {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name = name.trim().to_owned();
            stubs.insert(Stub { address, owner: Some(Owner { name, pid, cgroup }) });
        }
    }
    let mut stubs: Vec<_> = stubs.into_iter().collect();
    stubs.sort_by_key(ToString::to_string);
    stubs
}

impl Socket {
    /// Whether what is sent to a nameserver's address comes here.
    fn answers(&self, nameserver: IpAddr) -> bool {
        let is_there = self.address == nameserver
            || self.address.is_unspecified() && (self.address.is_ipv6() || nameserver.is_ipv4());
        is_there && self.port == DNS_PORT || nameserver == DOCKER && self.address == DOCKER
    }
}

impl Owner {
    /// What to add so that it is in the scope.
    fn remedy(&self) -> String {
        let last = self.cgroup.rsplit('/').next().unwrap_or_default();
        // Those of transient scopes are other ones each time.
        match last.ends_with(".service") || last.ends_with(".slice") {
            true => format!("--unit {last}"),
            false => format!("--cgroup /{}", self.cgroup),
        }
    }
}

impl fmt::Display for Stub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match &self.owner {
            None => write!(
                f,
                "processes of the scope ask the nameserver {address}, which is left alone, and \
                 nobody answers there"
            ),
            Some(owner) => write!(
                f,
                "processes of the scope ask the nameserver {address}, which is {} (pid {}) and not \
                 in the scope, so nobody encrypts what it asks in turn; add {}",
                owner.name,
                owner.pid,
                owner.remedy()
            ),
        }
    }
}

/// A process's `/etc/resolv.conf`, in its own view of the file system: links in it lead nowhere
/// outside, and what is no file is not read.
fn resolv_conf(pid: u32) -> Option<String> {
    let root = format!("/proc/{pid}/root");
    let root = open(root.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(openat2(root.as_fd(), "etc/resolv.conf", how).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_CONF).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// The UDP sockets of the namespace that a process is in.
fn sockets_of(pid: u32) -> Vec<Socket> {
    let tables = ["udp", "udp6"].map(|name| fs::read_to_string(format!("/proc/{pid}/net/{name}")));
    let tables = tables.into_iter().flatten();
    tables.flat_map(|table| table.lines().filter_map(socket).collect::<Vec<_>>()).collect()
}

/// A line of `/proc/net/udp`: number, address with port, and in the tenth field the inode.
fn socket(line: &str) -> Option<Socket> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let (address, port) = fields.get(1)?.split_once(':')?;
    let words: Vec<u32> = (0..address.len() / 8)
        .map(|n| u32::from_str_radix(address.get(n * 8..n * 8 + 8)?, 16).ok())
        .collect::<Option<_>>()?;
    // Each word is as in memory, so in network order for this machine.
    let octets: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let address = match (<[u8; 4]>::try_from(octets.clone()), <[u8; 16]>::try_from(octets)) {
        (Ok(v4), _) => IpAddr::from(Ipv4Addr::from(v4)),
        (_, Ok(v6)) => IpAddr::from(Ipv6Addr::from(v6)).to_canonical(),
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(Socket { address, port, inode: fields.get(9)?.parse().ok()? })
}

/// Who has these sockets open.
fn owners(inodes: &HashSet<u64>) -> HashMap<u64, u32> {
    let mut owners = HashMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for descriptor in descriptors {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            let inode = target.to_str().and_then(|target| {
                target.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
            });
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                // A child may have inherited it; the first that opened it has the lower number.
                owners.entry(inode).or_insert(pid);
            }
        }
    }
    owners
}

/// A process's cgroup, below a root that is itself at `prefix`; `None` if it is not there.
fn cgroup_of(pid: u32, prefix: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let below = path.strip_prefix(prefix)?.trim_start_matches('/');
    (!below.starts_with("..")).then(|| below.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_read_as_the_kernel_shows_them() {
        let cases = [
            (
                "  77: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 101 0 4242 2 0 0",
                Some(("127.0.0.53", 53, 4242)),
            ),
            (
                "1: 0B00007F:A1B2 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 7 2 0 0",
                Some(("127.0.0.11", 0xa1b2, 7)),
            ),
            (
                "1: 00000000000000000000000001000000:0035 0:0 07 0:0 00:0 0 0 0 9 2 0 0",
                Some(("::1", 53, 9)),
            ),
            (
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid",
                None,
            ),
        ];
        for (line, expected) in cases {
            let found = socket(line).map(|s| (s.address.to_string(), s.port, s.inode));
            let expected = expected.map(|(ip, port, inode)| (ip.to_owned(), port, inode));
            // Written for machines of little endianness, as all are that we build for.
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn a_socket_answers_for_its_address_and_port() {
        let answers = |address: &str, port, nameserver: &str| {
            let address = address.parse().expect(address);
            Socket { address, port, inode: 0 }.answers(nameserver.parse().expect(nameserver))
        };
        assert!(answers("127.0.0.53", 53, "127.0.0.53"));
        assert!(answers("0.0.0.0", 53, "127.0.0.1"));
        assert!(answers("::", 53, "127.0.0.1"));
        assert!(answers("127.0.0.11", 40_000, "127.0.0.11"));
        assert!(!answers("127.0.0.53", 5353, "127.0.0.53"));
        assert!(!answers("0.0.0.0", 53, "::1"));
        assert!(!answers("127.0.0.1", 53, "127.0.0.53"));
    }

    #[test]
    fn what_to_add_is_said() {
        let remedy = |cgroup: &str| {
            let cgroup = cgroup.to_owned();
            Owner { name: "x".to_owned(), pid: 1, cgroup }.remedy()
        };
        assert_eq!(
            remedy("system.slice/systemd-resolved.service"),
            "--unit systemd-resolved.service"
        );
        assert_eq!(remedy("system.slice/run-r1.scope"), "--cgroup /system.slice/run-r1.scope");
        assert_eq!(remedy("engine"), "--cgroup /engine");
    }
}
