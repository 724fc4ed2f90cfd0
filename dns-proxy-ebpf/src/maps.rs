//! Every map, and who writes it.

use crate::early::Share;
use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, Queue, RingBuf, SkStorage},
    helpers::generated::bpf_get_current_cgroup_id,
    macros::btf_map,
};
use dns_proxy_common::{
    Counter, Device, EARLY_BYTES, EVENTS_BYTES, EarlyQuery, Event, Held, Listener, MAX_DEVICES,
    MAX_NAMESPACES, MAX_SCOPE, MAX_TOKENS, Origin, Sources,
};

/// `BPF_F_NO_PREALLOC`: memory is taken when an entry is, so that the bounds cost nothing.
const NO_PREALLOC: usize = 1;

/// cgroup id -> `Policy`. Written by the daemon.
#[btf_map]
pub(crate) static SCOPE: HashMap<u64, u32, MAX_SCOPE, NO_PREALLOC> = HashMap::new();

/// Network namespace cookie -> its listener; written by the daemon once everything there is in
/// place, and removed before anything there goes. Under `NEWBORN`: where it will be in a namespace
/// that is not here yet.
#[btf_map]
pub(crate) static READY: HashMap<u64, Listener, MAX_NAMESPACES, NO_PREALLOC> = HashMap::new();

/// Network namespace cookie -> what its sockets show as their own address; written by the daemon.
#[btf_map]
pub(crate) static SOURCES: HashMap<u64, Sources, MAX_NAMESPACES, NO_PREALLOC> = HashMap::new();

/// The devices by which tokens can be reached; an entry is written by the daemon once the route
/// exists, and removed before it goes.
#[btf_map]
pub(crate) static DEVICES: HashMap<Device, u8, MAX_DEVICES, NO_PREALLOC> = HashMap::new();

/// The daemon's own sockets, never redirected. Set by the daemon by file descriptor, so that no
/// application can forge it, which it could with a mark.
#[btf_map]
pub(crate) static EXEMPT: SkStorage<u8> = SkStorage::new();

/// Origin -> its token. Written here; pruned by the daemon.
#[btf_map]
pub(crate) static TOKENS: HashMap<Origin, Held, { MAX_TOKENS as usize }, NO_PREALLOC> =
    HashMap::new();

/// Token number -> origin: the inverse of `TOKENS`, always written before it. The daemon clears a
/// slot long after the entry there, when nobody can use the token any more.
#[btf_map]
pub(crate) static ORIGINS: Array<Origin, { MAX_TOKENS as usize }> = Array::new();

/// Token numbers that nobody has; filled by the daemon, at the start with all of them.
#[btf_map]
pub(crate) static FREE_TOKENS: Queue<u32, { MAX_TOKENS as usize }> = Queue::new();

/// cgroup id -> how many tokens it has, to bound them. Counted here, and put right by the daemon.
#[btf_map]
pub(crate) static QUOTA: HashMap<u64, u32, { MAX_TOKENS as usize }, NO_PREALLOC> = HashMap::new();

/// When the daemon last proved that all its threads turn: nanoseconds of CLOCK_MONOTONIC. Written by
/// the daemon.
#[btf_map]
pub(crate) static PULSE: Array<u64, 1> = Array::new();

/// What redirects under `--fail closed`, while the daemon lives (see `lifeline`). One for each hook:
/// a kernel may take programs of one attach type only.
#[btf_map]
pub(crate) static LIVE_CONNECT4: ProgramArray<1> = ProgramArray::new();
/// As above.
#[btf_map]
pub(crate) static LIVE_CONNECT6: ProgramArray<1> = ProgramArray::new();
/// As above.
#[btf_map]
pub(crate) static LIVE_SENDMSG4: ProgramArray<1> = ProgramArray::new();
/// As above.
#[btf_map]
pub(crate) static LIVE_SENDMSG6: ProgramArray<1> = ProgramArray::new();

/// Outcomes by `Counter`, for each CPU.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();

/// What the daemon should hear about at once.
#[btf_map]
pub(crate) static EVENTS: RingBuf<Event, EVENTS_BYTES> = RingBuf::new();

/// Queries that nobody listens for yet.
#[btf_map]
pub(crate) static EARLY: RingBuf<EarlyQuery, EARLY_BYTES> = RingBuf::new();

/// Network namespace cookie -> how much it has asked early of late.
#[btf_map]
pub(crate) static EARLY_SHARES: LruHashMap<u64, Share, 1024> = LruHashMap::new();

/// Until when some may be on their way (CLOCK_MONOTONIC, nanoseconds).
#[btf_map]
pub(crate) static EARLY_UNTIL: Array<u64, 1> = Array::new();

/// Tells the daemon of something that it has not seen yet, met by process `pid` of the current task.
#[inline(always)]
pub(crate) fn announce(netns: u64, pid: u32, unseen: u32) {
    // SAFETY: the helper takes nothing (4.18).
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if EVENTS.output(Event { cgroup, netns, pid, unseen }, 0).is_err() {
        count(Counter::EventLost);
    }
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(cell) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the kernel returned a valid pointer to this CPU's cell. A hook that interrupts
        // this one on the same CPU could at worst lose one increment.
        unsafe { *cell += 1 };
    }
}
