//! The kernel programs and their maps; the only owner of aya.

use std::{
    collections::HashMap as StdHashMap,
    fs::File,
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, Queue, RingBuf, SkStorage},
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Program, ProgramError,
        cgroup_skb::CgroupSkbLink, cgroup_sock_addr::CgroupSockAddrLink,
    },
};
use aya_log::EbpfLogger;
use dns_proxy_common::{
    Counter, Device, Event, GuardMode, Listener, MAX_TOKENS, Origin, Policy, Token,
};
use thiserror::Error;
use tokio::io::unix::AsyncFd;

use super::cgroup::CgroupId;
use crate::{datapath::gate::Origins, polled::Polled, upstream::Exempt};

/// The object, as build.rs made or was given it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dns-proxy-ebpf"));

/// One program for each socket hook, by the name that it has in the object.
const PROGRAMS: [&str; 8] = [
    // The way back first: whoever is redirected must find it there.
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
];

/// The leak guard's program.
const GUARD: &str = "egress";

/// What a free slot of the origin map holds.
const NOBODY: Origin = Origin { cgroup: 0, netns: 0, addr: [0; 16] };

/// Why the kernel side is not there.
#[derive(Debug, Error)]
pub enum BpfError {
    /// The kernel refused the object: privileges or age.
    #[error(
        "the kernel refused the eBPF programs: {0}; this needs Linux 5.15 and root \
         (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN)"
    )]
    Load(#[from] EbpfError),
    /// The kernel refused one program.
    #[error("the kernel refused eBPF program {name}: {source}")]
    Program {
        /// Which one.
        name: &'static str,
        /// Its words.
        source: ProgramError,
    },
    /// A map operation failed.
    #[error("eBPF map {name}: {source}")]
    Map {
        /// Which map.
        name: &'static str,
        /// The kernel's words.
        source: MapError,
    },
    /// The object is not ours.
    #[error("the eBPF object has no {0}; was DNS_PROXY_EBPF_OBJECT built from another version?")]
    Missing(&'static str),
    /// The cgroup is gone or not ours to attach to.
    #[error("cannot attach to cgroup {cgroup}: {source}")]
    Cgroup {
        /// Its directory.
        cgroup: String,
        /// The operating system's words.
        source: io::Error,
    },
}

/// The loaded programs and the maps that the control plane writes.
pub struct Bpf {
    programs: Ebpf,
    guard: Option<GuardMode>,
    scope: HashMap<MapData, u64, u32>,
    ready: HashMap<MapData, u64, Listener>,
    devices: HashMap<MapData, Device, u8>,
    counters: PerCpuArray<MapData, u64>,
    tokens: Arc<TokenMaps>,
    exempt: Arc<ExemptMap>,
    _logger: Option<tokio::task::JoinHandle<()>>,
}

/// The programs attached to one cgroup, until this is dropped.
#[derive(Debug)]
pub struct Attachment {
    cgroup: CgroupId,
    // Dropped first, and so detached first: the guard must not meet what is no longer redirected.
    _guard: Option<CgroupSkbLink>,
    _links: Vec<CgroupSockAddrLink>,
}

/// The stream of events from the kernel.
pub struct Events(AsyncFd<Polled<RingBuf<MapData>>>);

/// Tokens and what they stand for.
struct TokenMaps {
    maps: Mutex<TokenMapsInner>,
    generation: AtomicU64,
}

struct TokenMapsInner {
    tokens: HashMap<MapData, Origin, u32>,
    origins: Array<MapData, Origin>,
    free: Queue<MapData, u32>,
    quota: HashMap<MapData, u64, u32>,
}

struct ExemptMap(Mutex<SkStorage<MapData, u8>>);

macro_rules! take {
    ($ebpf:ident, $name:literal) => {
        $ebpf
            .take_map($name)
            .ok_or(BpfError::Missing($name))?
            .try_into()
            .map_err(|source| BpfError::Map { name: $name, source })?
    };
}

impl Bpf {
    /// Loads the programs; nothing is attached yet. Without a `guard` there is none. With
    /// `kernel_log`, they also write what they decide to our log.
    ///
    /// # Errors
    /// Missing privileges, a kernel too old, or an object that is not ours.
    pub fn load(guard: Option<GuardMode>, kernel_log: bool) -> Result<(Self, Events), BpfError> {
        // Off means that the verifier removes the log statements.
        let level: u8 = if kernel_log { aya_log::Level::Debug as u8 } else { 0 };
        let guard_mode = guard.unwrap_or(GuardMode::On) as u8;
        let mut ebpf = EbpfLoader::new()
            .override_global("AYA_LOG_LEVEL", &level, true)
            .override_global("GUARD_MODE", &guard_mode, true)
            .load(OBJECT)?;
        let logger = if kernel_log { start_logger(&mut ebpf) } else { None };
        for name in PROGRAMS {
            program(&mut ebpf, name)?
                .load()
                .map_err(|source| BpfError::Program { name, source })?;
        }
        guard_program(&mut ebpf)?
            .load()
            .map_err(|source| BpfError::Program { name: GUARD, source })?;
        let mut free: Queue<MapData, u32> = take!(ebpf, "FREE_TOKENS");
        for token in 1..MAX_TOKENS {
            free.push(token, 0).map_err(|source| BpfError::Map { name: "FREE_TOKENS", source })?;
        }
        let tokens = TokenMapsInner {
            tokens: take!(ebpf, "TOKENS"),
            origins: take!(ebpf, "ORIGINS"),
            free,
            quota: take!(ebpf, "QUOTA"),
        };
        let events: RingBuf<MapData> = take!(ebpf, "EVENTS");
        let events = Polled::register(events)
            .map_err(|error| BpfError::Map { name: "EVENTS", source: MapError::IoError(error) })?;
        let bpf = Self {
            scope: take!(ebpf, "SCOPE"),
            ready: take!(ebpf, "READY"),
            devices: take!(ebpf, "DEVICES"),
            counters: take!(ebpf, "COUNTERS"),
            tokens: Arc::new(TokenMaps { maps: Mutex::new(tokens), generation: AtomicU64::new(0) }),
            exempt: Arc::new(ExemptMap(Mutex::new(take!(ebpf, "EXEMPT")))),
            programs: ebpf,
            guard,
            _logger: logger,
        };
        Ok((bpf, Events(events)))
    }

    /// Attaches every program to the cgroup at `dir`. They run beside other tools' programs
    /// (`BPF_F_ALLOW_MULTI` is implied by links) and die with the daemon.
    ///
    /// # Errors
    /// The cgroup is gone, or another tool holds it exclusively.
    pub fn attach(&mut self, dir: &Path) -> Result<Attachment, BpfError> {
        let failed = |source| BpfError::Cgroup { cgroup: dir.display().to_string(), source };
        let cgroup = super::cgroup::id(dir).map_err(failed)?;
        let file = File::open(dir).map_err(failed)?;
        let mut links = Vec::with_capacity(PROGRAMS.len());
        for name in PROGRAMS {
            let refused = |source| BpfError::Program { name, source };
            let program = program(&mut self.programs, name)?;
            let id = program.attach(&file, CgroupAttachMode::Single).map_err(refused)?;
            links.push(program.take_link(id).map_err(refused)?);
        }
        let mut guard = None;
        if self.guard.is_some() {
            let refused = |source| BpfError::Program { name: GUARD, source };
            let program = guard_program(&mut self.programs)?;
            let id = program
                .attach(&file, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)
                .map_err(refused)?;
            guard = Some(program.take_link(id).map_err(refused)?);
        }
        Ok(Attachment { cgroup, _guard: guard, _links: links })
    }

    /// Whether there is a leak guard, which refuses tokens on their way to a wire.
    pub fn is_guarded(&self) -> bool {
        self.guard.is_some()
    }

    /// Whether the leak guard refuses what was not redirected.
    pub fn guards(&self) -> bool {
        self.guard == Some(GuardMode::On)
    }

    /// Makes the scope map say exactly this.
    ///
    /// # Errors
    /// More cgroups than the map holds.
    pub fn set_scope(&mut self, wanted: &StdHashMap<CgroupId, Policy>) -> Result<(), BpfError> {
        let failed = |source| BpfError::Map { name: "SCOPE", source };
        let present: StdHashMap<u64, u32> =
            self.scope.iter().collect::<Result<_, _>>().map_err(failed)?;
        for (cgroup, policy) in wanted {
            if present.get(&cgroup.0) != Some(&(*policy as u32)) {
                self.scope.insert(cgroup.0, *policy as u32, 0).map_err(failed)?;
            }
        }
        for gone in present.keys().filter(|id| !wanted.contains_key(&CgroupId(**id))) {
            absent_is_fine(self.scope.remove(gone)).map_err(failed)?;
        }
        Ok(())
    }

    /// Lets the programs send a namespace's queries to its listener. Call it last.
    ///
    /// # Errors
    /// More namespaces than the map holds.
    pub fn set_ready(&mut self, netns: u64, listener: Listener) -> Result<(), BpfError> {
        self.ready
            .insert(netns, listener, 0)
            .map_err(|source| BpfError::Map { name: "READY", source })
    }

    /// Takes a namespace out of service. Call it first.
    ///
    /// # Errors
    /// The kernel refused; the namespace is then still in service.
    pub fn clear_ready(&mut self, netns: u64) -> Result<(), BpfError> {
        absent_is_fine(self.ready.remove(&netns))
            .map_err(|source| BpfError::Map { name: "READY", source })
    }

    /// Lets sockets that are bound to a device be redirected. Call it once the route exists.
    ///
    /// # Errors
    /// More devices than the map holds.
    pub fn set_device(&mut self, device: Device) -> Result<(), BpfError> {
        self.devices
            .insert(device, 1, 0)
            .map_err(|source| BpfError::Map { name: "DEVICES", source })
    }

    /// Refuses sockets that are bound to a device. Call it before the route goes.
    ///
    /// # Errors
    /// The kernel refused; they are then still redirected.
    pub fn clear_device(&mut self, device: &Device) -> Result<(), BpfError> {
        absent_is_fine(self.devices.remove(device))
            .map_err(|source| BpfError::Map { name: "DEVICES", source })
    }

    /// Frees the tokens of which `dead` says that nobody can use them any more.
    ///
    /// # Errors
    /// The kernel refused a map operation.
    pub fn reclaim(&self, dead: impl Fn(&Origin) -> bool) -> Result<usize, BpfError> {
        self.tokens.reclaim(dead).map_err(|source| BpfError::Map { name: "TOKENS", source })
    }

    /// A counter's sum over all CPUs.
    pub fn counter(&self, counter: Counter) -> u64 {
        // The index is in range by construction.
        self.counters.get(&(counter as u32), 0).map_or(0, |cells| cells.iter().sum())
    }

    /// Marks sockets as our own.
    pub fn exempt(&self) -> Arc<dyn Exempt> {
        Arc::clone(&self.exempt) as Arc<dyn Exempt>
    }

    /// Looks tokens up.
    pub fn origins(&self) -> Arc<dyn Origins> {
        Arc::clone(&self.tokens) as Arc<dyn Origins>
    }
}

impl Attachment {
    /// The cgroup it is attached to.
    pub fn cgroup(&self) -> CgroupId {
        self.cgroup
    }
}

impl Events {
    /// Waits for the next events and takes all there are.
    ///
    /// # Errors
    /// The ring buffer failed for good.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        let mut ready = self.0.readable_mut().await?;
        let mut events = Vec::new();
        while let Some(item) = ready.get_inner_mut().next() {
            if let Ok(bytes) = <[u8; size_of::<Event>()]>::try_from(&*item) {
                let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
                events.push(Event {
                    cgroup: word(0),
                    netns: word(8),
                    pid: word(16) as u32,
                    unseen: (word(16) >> 32) as u32,
                });
            }
        }
        ready.clear_ready();
        Ok(events)
    }
}

impl TokenMaps {
    fn reclaim(&self, dead: impl Fn(&Origin) -> bool) -> Result<usize, MapError> {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let all = maps.tokens.iter().collect::<Result<Vec<_>, _>>()?;
        let mut freed = 0;
        let mut used = StdHashMap::new();
        for (origin, token) in all {
            let share: &mut u32 = used.entry(origin.cgroup).or_default();
            if dead(&origin) {
                absent_is_fine(maps.tokens.remove(&origin))?;
                maps.origins.set(token, NOBODY, 0)?;
                maps.free.push(token, 0)?;
                freed += 1;
            } else {
                *share += 1;
            }
        }
        if freed > 0 {
            for (cgroup, share) in used {
                match share {
                    0 => absent_is_fine(maps.quota.remove(&cgroup))?,
                    _ => maps.quota.insert(cgroup, share, 0)?,
                }
            }
            self.generation.fetch_add(1, Ordering::Release);
        }
        Ok(freed)
    }
}

impl Origins for TokenMaps {
    fn origin(&self, token: Token) -> Option<Origin> {
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.origins.get(&token.0, 0).ok().filter(|origin| *origin != NOBODY)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

impl Exempt for ExemptMap {
    fn exempt(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(&socket.as_raw_fd(), 1, 0).map_err(io::Error::other)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, BpfError> {
    ebpf.program_mut(name)
        .ok_or(BpfError::Missing(name))?
        .try_into()
        .map_err(|source| BpfError::Program { name, source })
}

fn guard_program(ebpf: &mut Ebpf) -> Result<&mut CgroupSkb, BpfError> {
    match ebpf.program_mut(GUARD) {
        Some(Program::CgroupSkb(program)) => Ok(program),
        _ => Err(BpfError::Missing(GUARD)),
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(nix::libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn start_logger(ebpf: &mut Ebpf) -> Option<tokio::task::JoinHandle<()>> {
    let logger = EbpfLogger::init(ebpf)
        .map_err(|error| tracing::warn!(%error, "no log from the kernel programs"))
        .ok()?;
    let mut logger = Polled::register(logger)
        .map_err(|error| tracing::warn!(%error, "no log from the kernel programs"))
        .ok()?;
    Some(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }))
}
