//! What the daemon and its kernel programs agree on.
//!
//! Map keys and values are plain integers and byte arrays without padding, locked by the layout
//! test below: both sides are compiled separately, by different compilers, and meet only in memory.
//! Addresses are bytes in network order; an IPv4 address is its IPv4-mapped form (RFC 4291
//! section 2.5.5.2), so that one key serves both families.

#![cfg_attr(target_arch = "bpf", no_std)]

mod counter;
mod early;
mod token;

pub use counter::Counter;
pub use early::{EARLY_BYTES, EarlyQuery, MAX_EARLY_QUERY, NEWBORN};
pub use token::{
    Held, MAX_CGROUP_TOKENS, MAX_TOKENS, NEARLY_ALL_CGROUP_TOKENS, TOKEN4_NET, TOKEN4_PREFIX_LEN,
    TOKEN6_LINK_LOCAL_NET, TOKEN6_NET, TOKEN6_PREFIX_LEN, Token,
};

/// The port whose traffic is redirected (RFC 1035 section 4.2).
pub const DNS_PORT: u16 = 53;

/// The most network namespaces that can be served at once.
pub const MAX_NAMESPACES: usize = 16_384;

/// The most [`Device`]s at once; more are refused as if they had no route.
pub const MAX_DEVICES: usize = 65_536;

/// The most cgroups that the scope may name; what is below a named one needs no entry.
pub const MAX_SCOPE: usize = 65_536;

/// Cgroup levels that the programs look at, from the root down; what is nested deeper is judged by
/// its ancestor at the last level.
pub const MAX_CGROUP_DEPTH: i32 = 32;

/// The age in nanoseconds at which the daemon's last beat no longer proves that it is alive.
///
/// A daemon that is scheduled at all has one of 2 s at most: it looks once a second at workers that
/// each beat once a second. The rest is for machines so loaded that a thread waits for seconds: to
/// take such a daemon for dead would be a leak if it is to fail open.
pub const PULSE_LIMIT: u64 = 10_000_000_000;

/// Priorities of packets from here on are daemons' stamps: those in use are lower (tc(8)).
pub const STAMPED: u32 = 1 << 31;

/// Bytes of the ring buffer that carries [`Event`]s to the daemon (a power of two, whole pages).
pub const EVENTS_BYTES: usize = 1 << 16;

/// Who asks whom: the cgroup and network namespace of a client and the nameserver it addressed.
///
/// Each origin has its own [`Token`], and each live token one origin.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Id of the asking task's cgroup v2 (the inode number of its directory).
    pub cgroup: u64,
    /// Cookie of the socket's network namespace (`SO_NETNS_COOKIE`); 0 marks a free slot.
    pub netns: u64,
    /// The nameserver's address, IPv4 in its mapped form.
    pub addr: [u8; 16],
}

/// Where the listener of a ready network namespace waits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// UDP and TCP port, in network byte order.
    pub port_be: u16,
    /// [`Listener::V4`] and [`Listener::V6`]: the families in which it listens; or
    /// [`Listener::NO_V6`].
    pub families: u16,
}

impl Listener {
    /// It serves IPv4 tokens.
    pub const V4: u16 = 1;
    /// It serves IPv6 tokens, and the route to them exists.
    pub const V6: u16 = 2;
    /// No interface of its namespace has an IPv6 address.
    pub const NO_V6: u16 = 4;
}

/// What sockets of a namespace have as their own address when they speak to somebody outside. An
/// unspecified one is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Over IPv4, in its mapped form.
    pub v4: [u8; 16],
    /// Over IPv6.
    pub v6: [u8; 16],
}

/// A device by which a family's tokens can be reached: the route exists. No entry: it may not.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Its index there.
    pub index: u32,
    /// [`Listener::V4`], [`Listener::V6`] or [`Device::LINK_LOCAL`].
    pub family: u32,
}

impl Device {
    /// Tokens of link-local nameservers.
    pub const LINK_LOCAL: u32 = 1 << 16;
}

/// What the scope says of a cgroup. No entry: as the parent.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Redirect its port-53 traffic, and that of everything below it.
    Select = 1,
    /// Leave it alone, and everything below it; wins over any `Select` above or below.
    Exclude = 2,
    /// A new child may be selected: one without an entry of its own is treated as if it were until the
    /// daemon has seen it. The cgroup itself is as its parent.
    Open = 3,
    /// A child of an `Open` one that was seen and is not selected.
    Ignore = 4,
    /// Like `Select`, where nothing is excluded at all: no need to look further down.
    SelectAll = 5,
}

/// A query that was refused only because the daemon has not seen something yet, or soon will be.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The asking task's cgroup.
    pub cgroup: u64,
    /// The socket's network namespace.
    pub netns: u64,
    /// The asking process (thread group).
    pub pid: u32,
    /// What has not been seen: one of the constants below.
    pub unseen: u32,
}

impl Event {
    /// The namespace has no listener.
    pub const NETNS: u32 = 0;
    /// The listener of the namespace cannot be reached in this family, or could not so far.
    pub const FAMILY: u32 = 1;
    /// Not something unseen: the cgroup has nearly all the tokens it may have, or none is left.
    pub const TOKENS: u32 = 2;
}

/// What the leak guard does with port-53 packets of the scope that leave past the redirection.
/// A token address that leaves the host is refused either way.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardMode {
    /// Counts them.
    Count = 1,
    /// Refuses and counts them.
    On = 2,
}

/// What becomes of the scope's queries when the daemon is dead or hangs.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    /// They go where they would without us.
    Open = 1,
    /// They are refused.
    Closed = 2,
}

#[cfg(not(target_arch = "bpf"))]
mod pod {
    // SAFETY: each is `repr(C)`, `Copy`, without padding (`layout_is_locked` below) and valid for
    // every bit pattern.
    unsafe impl aya::Pod for super::Origin {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Listener {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Device {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Sources {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Event {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Held {}
}

const _: () = {
    assert!(size_of::<Origin>() == 32 && align_of::<Origin>() == 8);
    assert!(size_of::<Listener>() == 4);
    assert!(size_of::<Device>() == 16 && align_of::<Device>() == 8);
    assert!(size_of::<Sources>() == 32);
    assert!(size_of::<Event>() == 24);
    assert!(size_of::<Token>() == 4);
    assert!(size_of::<Held>() == 8 && align_of::<Held>() == 4);
};

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn layout_is_locked() {
        assert_eq!(offset_of!(Origin, cgroup), 0);
        assert_eq!(offset_of!(Origin, netns), 8);
        assert_eq!(offset_of!(Origin, addr), 16);
        assert_eq!(offset_of!(Listener, port_be), 0);
        assert_eq!(offset_of!(Listener, families), 2);
        assert_eq!(offset_of!(Device, netns), 0);
        assert_eq!(offset_of!(Device, index), 8);
        assert_eq!(offset_of!(Device, family), 12);
        assert_eq!(offset_of!(Event, cgroup), 0);
        assert_eq!(offset_of!(Event, netns), 8);
        assert_eq!(offset_of!(Event, pid), 16);
        assert_eq!(offset_of!(Held, token), 0);
        assert_eq!(offset_of!(Held, used), 4);
    }
}
