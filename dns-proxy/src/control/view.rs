//! What the control plane shows of itself, to whoever looks, from any thread.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use dns_proxy_common::Counter;

use super::{
    bpf::Counters,
    cgroup::{CgroupTree, Scope},
    identity::Identities,
    netns::NetnsId,
};

/// The window.
pub struct View {
    tree: CgroupTree,
    counters: Arc<Counters>,
    identities: Identities,
    now: Mutex<Arc<Snapshot>>,
}

/// How things were when the control plane last looked.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// What is selected.
    pub scope: Scope,
    /// The cgroups, by their paths, that each of the scope's selectors matches.
    pub selected: Vec<Vec<String>>,
    /// Where programs are attached.
    pub attached: Option<PathBuf>,
    /// Namespaces in service.
    pub namespaces: Vec<Served>,
    /// Token addresses in use, when somebody last looked.
    pub tokens: usize,
    /// Namespaces that could not be put in service.
    pub unservable: Vec<NetnsId>,
}

/// A namespace in service.
#[derive(Clone, Debug)]
pub struct Served {
    /// Which.
    pub id: NetnsId,
    /// Its cookie.
    pub cookie: u64,
    /// A process of the scope in it, if there is one.
    pub pid: Option<u32>,
    /// The listeners' port.
    pub port: u16,
    /// IPv4 nameservers are redirected.
    pub v4: bool,
    /// IPv6 nameservers are redirected.
    pub v6: bool,
    /// Which worker answers.
    pub worker: usize,
}

impl View {
    /// One that shows nothing yet.
    pub(super) fn new(tree: CgroupTree, counters: Arc<Counters>) -> Self {
        let identities = Identities::new(tree.root());
        Self { tree, counters, identities, now: Mutex::default() }
    }

    /// Shows this from now on.
    pub(super) fn show(&self, snapshot: Snapshot) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    /// How things are.
    pub fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A kernel counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(counter)
    }

    /// Who cgroups are.
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// The cgroup tree.
    pub fn tree(&self) -> &CgroupTree {
        &self.tree
    }
}
