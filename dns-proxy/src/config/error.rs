//! Why a configuration makes no sense.

use std::net::SocketAddr;

use thiserror::Error;

use crate::{
    control::{discover::ClusterError, mounts::MountError},
    pin::Pin,
    route::Contradiction,
    upstream::TlsError,
};

/// Why the configuration makes no sense. Always the operator's to mend.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A variable of the original Go proxy; clap checks all others.
    #[error("{variable}=`{value}`: {problem}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with that.
        problem: &'static str,
    },
    /// Neither interception nor listeners.
    #[error(
        "nothing to do: select cgroups (--cgroup, such as --cgroup /docker), or listen for clients \
         (--listen, such as --listen 127.0.0.1:53), or both"
    )]
    NothingToDo,
    /// `--exclude-cgroup` alone.
    #[error("--exclude-cgroup excludes from nothing: it needs --cgroup, such as --cgroup /")]
    ExcludeFromNothing,
    /// `--allow-from` alone.
    #[error("--allow-from is for the clients of --listen, and there is none")]
    AllowToNothing,
    /// `--fail closed` alone.
    #[error("--fail closed refuses the DNS of a scope, and there is none: it needs --cgroup")]
    ClosedWithoutScope,
    /// Listeners without a transport.
    #[error(
        "DNS_PROXY_ENABLE_UDP and DNS_PROXY_ENABLE_TCP are both off, so --listen would serve \
         nothing; turn one of them on"
    )]
    NothingToListen,
    /// A guard that lets plaintext through.
    #[error(
        "--fail closed needs --guard on: without the guard, sockets that were connected while the \
         daemon was gone could go on in plaintext"
    )]
    ClosedWithoutGuard,
    /// Bounds that contradict each other.
    #[error("--cache-min-ttl is above --cache-max-ttl; lower the one or raise the other")]
    CacheTtl,
    /// `--route`.
    #[error("--route: {0}")]
    Route(#[from] Contradiction),
    /// `--pin`.
    #[error("--pin {0}: no upstream is at that address, so it would pin nothing")]
    Pin(Pin),
    /// `--ca` and its kin.
    #[error(transparent)]
    Trust(#[from] TlsError),
    /// `--cgroup-root`.
    #[error(transparent)]
    CgroupRoot(#[from] MountError),
    /// A route or upstream that is ourselves.
    #[error(
        "{what} {addr} leads back to us: {listener}; names would go round in circles, so name a \
         nameserver that is not this daemon"
    )]
    Circular {
        /// The flag.
        what: &'static str,
        /// What it names.
        addr: SocketAddr,
        /// Who we are there.
        listener: String,
    },
    /// `--pod-namespace` and `--pod-selector`.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl ConfigError {
    /// The keys that it is about.
    pub fn keys(&self) -> &'static [&'static str] {
        match self {
            Self::Variable { .. } => &[],
            Self::NothingToDo => &["cgroup", "listen"],
            Self::ExcludeFromNothing => &["exclude_cgroup", "cgroup"],
            Self::AllowToNothing => &["allow_from", "listen"],
            Self::ClosedWithoutScope => &["fail", "cgroup"],
            Self::NothingToListen => &["listen"],
            Self::ClosedWithoutGuard => &["fail", "guard"],
            Self::CacheTtl => &["cache_min_ttl", "cache_max_ttl"],
            Self::Route(_) => &["route"],
            Self::Pin(_) => &["pin", "upstream"],
            Self::Trust(_) => &["ca", "no_system_roots"],
            Self::CgroupRoot(_) => &["cgroup_root"],
            Self::Circular { .. } => &["route", "upstream", "listen"],
            Self::Cluster(_) => &["pod_namespace", "pod_selector", "kubeconfig", "node_name"],
        }
    }
}
