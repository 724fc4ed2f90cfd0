//! Who asks: by the cgroup of his token or, where somebody asks on behalf of those whose network he
//! visits, as dockerd does for whom asks 127.0.0.11, by the network.

use std::{
    collections::HashMap,
    fs, process,
    sync::Arc,
    time::{Duration, Instant},
};

use dns_proxy_common::Origin;

use crate::{
    control::{
        cgroup::CgroupId,
        identity::{self, Identities, Identity, Kind},
        netns::{Netns, NetnsId},
        view::View,
    },
    status::gather::Gatherer,
};

/// How long an answer holds: containers are named, and namespaces inhabited, a moment after they are
/// made.
const HOLDS: Duration = Duration::from_secs(2);
/// So many are remembered.
const MAX_KNOWN: usize = 4_096;

/// Finds out, and remembers for a while.
pub(super) struct Who {
    gatherer: Arc<Gatherer>,
    known: HashMap<(u64, u64), (Option<Identity>, Instant)>,
}

impl Who {
    pub(super) fn new(gatherer: Arc<Gatherer>) -> Self {
        Self { gatherer, known: HashMap::new() }
    }

    /// Who is behind an origin.
    pub(super) fn is(&mut self, origin: Option<Origin>) -> Option<Identity> {
        let Origin { cgroup, netns, .. } = origin?;
        if let Some((identity, at)) = self.known.get(&(cgroup, netns))
            && at.elapsed() < HOLDS
        {
            return identity.clone();
        }
        let before = self.known.get(&(cgroup, netns)).and_then(|(identity, _)| identity.clone());
        // Whoever is gone is still who he was.
        let identity = self.find(cgroup, netns).or(before);
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert((cgroup, netns), (identity.clone(), Instant::now()));
        identity
    }

    fn find(&self, cgroup: u64, netns: u64) -> Option<Identity> {
        let identities = self.gatherer.identities()?;
        let own = identities.of(CgroupId(cgroup))?;
        if matches!(own.kind, Kind::Container | Kind::Pod) {
            return Some(own);
        }
        let host = self.gatherer.view().and_then(|view| inhabitant(view, netns, identities));
        Some(host.unwrap_or(own))
    }
}

/// The container that lives in a network namespace other than ours.
fn inhabitant(view: &View, cookie: u64, identities: &Identities) -> Option<Identity> {
    let now = view.now();
    let served = now.namespaces.iter().find(|served| served.cookie == cookie)?;
    if Netns::id_of(process::id()).ok()? == served.id {
        return None;
    }
    let known = served.pid.into_iter().chain(processes_in(served.id));
    let mut of_process = known.filter_map(|pid| {
        let path = identity::path_of_process(pid)?;
        Some(identities.of_path(&path))
    });
    of_process.find(|identity| matches!(identity.kind, Kind::Container | Kind::Pod))
}

fn processes_in(id: NetnsId) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(move |pid| Netns::id_of(*pid).is_ok_and(|own| own == id))
}
