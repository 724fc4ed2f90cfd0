//! The world our tests and the demo run in: real namespaces, cgroups, packet captures, servers and
//! client programs on the real kernel, with an internet that exists only on this machine.
//!
//! | to make | use |
//! |---|---|
//! | an internet, a host and containers | [`World`], [`Container`] |
//! | containers made by runc, podman and Docker | [`Runtimes`] |
//! | containers made by podman without root | [`Rootless`] |
//! | one network namespace or cgroup | [`Netns`], [`Cgroup`] |
//! | proof of what left an interface | [`Capture`], [`Packet`] |
//! | a DNS-over-TLS upstream, with faults to order | [`DotServer`], [`Orders`], [`Pki`] |
//! | real ones | [`Unbound`], [`Dnsdist`], [`Kresd`] |
//! | a real internal nameserver | [`Dnsmasq`] |
//! | a plaintext nameserver | [`PlainServer`] |
//! | what both of ours answer | [`Zone`], [`expected_a`] |
//! | the daemon | [`Daemon`] |
//! | a thread of it that hangs | [`freeze::Frozen`] |
//! | an HTTP client | [`http`] |
//! | its start, step by step | [`steps::Starting`] |
//! | another tool's kernel program | [`bpf::Foreign`] |
//! | real programs that ask | [`clients`], the `dns-proxy-probe` binary |
//!
//! Everything is a guard: what a value made is gone when it is dropped, and what the kernel would
//! keep after `kill -9` is held by descriptors or swept up by the next run. `setns` happens only on
//! scratch threads and in children before `exec`, so tests may run as threads of one process.

pub mod artifacts;
pub mod bpf;
pub mod capture;
pub mod cgroup;
pub mod clients;
pub mod container;
pub mod daemon;
pub mod dns_server;
pub mod dnsdist;
pub mod dnsmasq;
pub mod dot_server;
pub mod freeze;
pub mod http;
pub mod kresd;
pub mod kube_api;
pub mod leftovers;
pub mod log;
pub mod machine;
pub mod mounts;
pub mod netns;
pub mod packet;
pub mod pki;
pub mod privilege;
pub mod process;
pub mod rootless;
pub mod runtime;
pub mod runtimes;
mod served;
pub mod sockopt;
pub mod stage;
pub mod steps;
pub mod storm;
pub mod unbound;
pub mod vm;
pub mod wait;
pub mod wire;
pub mod world;
pub mod zone;

pub use capture::Capture;
pub use cgroup::Cgroup;
pub use container::Container;
pub use daemon::Daemon;
pub use dns_server::PlainServer;
pub use dnsdist::Dnsdist;
pub use dnsmasq::Dnsmasq;
pub use dot_server::{Close, DotServer, Orders, Reply};
pub use kresd::Kresd;
pub use machine::Machine;
pub use netns::Netns;
pub use packet::{Packet, port53, to_port};
pub use pki::{Identity, Pki};
pub use privilege::require_root_and_bpf;
pub use rootless::Rootless;
pub use runtimes::Runtimes;
pub use stage::Stage;
pub use unbound::Unbound;
pub use wait::eventually;
pub use world::World;
pub use zone::{Zone, expected_a};
