//! The kernel programs and their maps; the only owner of aya.

mod attach;
mod door;
mod error;
mod events;
mod pins;
mod tokens;

use std::{
    collections::HashMap as StdHashMap,
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, ProgramArray, SkStorage},
};
use dns_proxy_common::{
    Counter, Device, FailMode, GuardMode, Held, Listener, Origin, Policy, STAMPED, Sources, Token,
};
use error::absent_is_fine;
use tokens::TokenMaps;
use tokio::task::JoinHandle;

pub use attach::Attachment;
pub use door::Door;
pub use error::BpfError;
pub use events::Events;
pub use pins::{Pins, has_attachments};

use super::cgroup::CgroupId;
use crate::{datapath::gate::Origins, upstream::Exempt};

/// The object, as build.rs made or was given it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dns-proxy-ebpf"));

/// The loaded programs and the maps that the control plane writes.
pub struct Bpf {
    programs: Ebpf,
    guard: Option<GuardMode>,
    /// What redirects under `--fail closed`: emptied by the kernel when we are gone.
    _live: Vec<ProgramArray<MapData>>,
    pins: Option<Pins>,
    scope: HashMap<MapData, u64, u32>,
    ready: HashMap<MapData, u64, Listener>,
    sources: HashMap<MapData, u64, Sources>,
    devices: HashMap<MapData, Device, u8>,
    pulse: Array<MapData, u64>,
    counters: Arc<Counters>,
    tokens: Arc<TokenMaps>,
    exempt: Arc<ExemptMap>,
    _logger: Option<JoinHandle<()>>,
}

/// What the programs have counted, readable from any thread.
pub struct Counters(PerCpuArray<MapData, u64>);

struct ExemptMap(Mutex<SkStorage<MapData, u8>>);

impl Bpf {
    /// Loads the programs; nothing is attached yet. Without a `guard` there is none. With `pins`,
    /// what is attached stays when the daemon dies, and refuses. With `kernel_log`, the programs also
    /// write what they decide to our log.
    ///
    /// # Errors
    /// Missing privileges, a kernel too old, or an object that is not ours.
    pub fn load(
        guard: Option<GuardMode>,
        pins: Option<Pins>,
        kernel_log: bool,
    ) -> Result<(Self, Events), BpfError> {
        // Off means that the verifier removes the log statements.
        let level: u8 = if kernel_log { aya_log::Level::Debug as u8 } else { 0 };
        let guard_mode = guard.unwrap_or(GuardMode::On) as u8;
        let fail_mode = if pins.is_some() { FailMode::Closed } else { FailMode::Open } as u8;
        // It is the guard that stamps.
        let stamp = guard.map_or(0, |_| rand::random::<u32>() | STAMPED);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("AYA_LOG_LEVEL", &level, true)
            .override_global("GUARD_MODE", &guard_mode, true)
            .override_global("STAMP", &stamp, true)
            .override_global("FAIL_MODE", &fail_mode, true);
        if let Some(pins) = &pins {
            pins.prepare(&mut loader);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let logger = if kernel_log { events::start_logger(&mut ebpf) } else { None };
        attach::load(&mut ebpf)?;
        door::load(&mut ebpf)?;
        let events = Events::of(&mut ebpf)?;
        let bpf = Self {
            scope: take(&mut ebpf, "SCOPE")?,
            ready: take(&mut ebpf, "READY")?,
            sources: take(&mut ebpf, "SOURCES")?,
            devices: take(&mut ebpf, "DEVICES")?,
            pulse: take(&mut ebpf, "PULSE")?,
            counters: Arc::new(Counters(take(&mut ebpf, "COUNTERS")?)),
            tokens: Arc::new(TokenMaps::of(&mut ebpf)?),
            exempt: Arc::new(ExemptMap(Mutex::new(take(&mut ebpf, "EXEMPT")?))),
            _live: if pins.is_some() { attach::load_closed(&mut ebpf)? } else { Vec::new() },
            programs: ebpf,
            guard,
            pins,
            _logger: logger,
        };
        Ok((bpf, events))
    }

    /// Whether there is a leak guard, which refuses tokens on their way to a wire.
    pub fn is_guarded(&self) -> bool {
        self.guard.is_some()
    }

    /// Whether the leak guard refuses what was not redirected.
    pub fn guards(&self) -> bool {
        self.guard == Some(GuardMode::On)
    }

    /// Changes what the scope map says of cgroups, and takes from `changes` what is done.
    ///
    /// # Errors
    /// More cgroups than the map holds.
    pub fn change_scope(
        &mut self,
        changes: &mut StdHashMap<CgroupId, Option<Policy>>,
    ) -> Result<(), BpfError> {
        let failed = |source| BpfError::Map { name: "SCOPE", source };
        let mut result = Ok(());
        // What goes last: nobody is to be passed for a moment who is refused before and after.
        for goes in [false, true] {
            changes.retain(|cgroup, policy| {
                let changed = match policy {
                    None if goes => absent_is_fine(self.scope.remove(&cgroup.0)),
                    Some(policy) if !goes => self.scope.insert(cgroup.0, *policy as u32, 0),
                    _ => return true,
                };
                let is_left = changed.is_err();
                if result.is_ok() {
                    result = changed.map_err(failed);
                }
                is_left
            });
        }
        result
    }

    /// Nobody is in the scope any more.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn empty_scope(&mut self) -> Result<(), BpfError> {
        let failed = |source| BpfError::Map { name: "SCOPE", source };
        let present = self.scope.keys().collect::<Result<Vec<_>, _>>().map_err(failed)?;
        present.iter().try_for_each(|id| absent_is_fine(self.scope.remove(id))).map_err(failed)
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
            .map_err(|source| BpfError::Map { name: "READY", source })?;
        absent_is_fine(self.sources.remove(&netns))
            .map_err(|source| BpfError::Map { name: "SOURCES", source })
    }

    /// What redirected sockets of a namespace show as their own address.
    ///
    /// # Errors
    /// More namespaces than the map holds.
    pub fn set_sources(&mut self, netns: u64, sources: Sources) -> Result<(), BpfError> {
        self.sources
            .insert(netns, sources, 0)
            .map_err(|source| BpfError::Map { name: "SOURCES", source })
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

    /// Says that the daemon was alive then, in nanoseconds of CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// The kernel refused; the programs will soon take the daemon for dead.
    pub fn beat(&mut self, at: u64) -> Result<(), BpfError> {
        self.pulse.set(0, at, 0).map_err(|source| BpfError::Map { name: "PULSE", source })
    }

    /// Every origin that has a token.
    ///
    /// # Errors
    /// The kernel refused to tell.
    pub fn tokens(&self) -> Result<Vec<(Origin, Held)>, BpfError> {
        self.tokens.all().map_err(|source| BpfError::Map { name: "TOKENS", source })
    }

    /// Gives nobody new the token of `origin`; whoever has it goes on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn retire(&self, origin: &Origin) -> Result<(), BpfError> {
        self.tokens.retire(origin).map_err(|source| BpfError::Map { name: "TOKENS", source })
    }

    /// Lets retired tokens stand for somebody else. Nobody may have one of them any more.
    ///
    /// # Errors
    /// The kernel refused; those that are left are then nobody's.
    pub fn free(&self, tokens: &[Token]) -> Result<(), BpfError> {
        self.tokens.free(tokens).map_err(|source| BpfError::Map { name: "FREE_TOKENS", source })
    }

    /// Says how many tokens each cgroup has.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_shares(&self, shares: &StdHashMap<u64, u32>) -> Result<(), BpfError> {
        self.tokens.set_shares(shares).map_err(|source| BpfError::Map { name: "QUOTA", source })
    }

    /// What the programs have counted.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
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

impl Counters {
    /// A counter's sum over all CPUs.
    pub fn get(&self, counter: Counter) -> u64 {
        // The index is in range by construction.
        self.0.get(&(counter as u32), 0).map_or(0, |cells| cells.iter().sum())
    }
}

impl Exempt for ExemptMap {
    fn exempt(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(&socket.as_raw_fd(), 1, 0).map_err(io::Error::other)
    }
}

/// One map of the object.
fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, BpfError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(BpfError::Missing(name))?;
    map.try_into().map_err(|source| BpfError::Map { name, source })
}
