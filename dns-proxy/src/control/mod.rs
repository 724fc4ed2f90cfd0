//! The control plane: which cgroups and network namespaces are ours, and what must be in place
//! there before the kernel programs may send anybody to it.
//!
//! ```text
//! inotify, kernel events, clock ─► reconcile ─► cgroup (what should be) ─► bpf, namespace (what is)
//! ```
//!
//! Nothing here is on the path of a query.

pub mod agenda;
pub mod anyip;
pub mod bpf;
pub mod census;
pub mod cgroup;
pub mod claim;
pub mod device_routes;
pub mod discover;
pub mod identity;
pub mod kernel;
pub mod locals;
pub mod mounts;
pub mod named;
pub mod namespace;
pub mod netlink;
pub mod netns;
pub mod pattern;
pub mod reconcile;
pub mod sock_diag;
pub mod sockets;
pub mod stale;
pub mod standing;
pub mod stub;
pub mod tokens;
pub mod view;
pub mod watch;
