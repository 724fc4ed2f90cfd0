//! Who is in the scope by what he is: who tells of containers and pods, and where in the cgroup tree
//! they are.
//!
//! ```text
//! engine (Docker, podman), kubernetes ─► Change ─► inventory ◄─ bundle (containerd, CRI-O)
//!                                                      ▲
//! cgroup tree ─► census ─► picker ─► spelling ──────────┘ ─► selected, or not yet known
//! ```
//! Where a container is its cgroup's name tells; who it is those tell who made it. Whoever is met in
//! the tree and known to nobody yet is asked for, and treated as selected until there is an answer.

mod bundle;
mod engine;
mod http;
mod inventory;
mod kubernetes;
mod labels;
mod picker;
mod preset;
mod selector;
mod spelling;
mod unit;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use self::inventory::{Change, SourceId};
pub use self::{
    inventory::Verdict,
    kubernetes::{Cluster, ClusterError},
    labels::{LabelSelector, LabelSelectorError},
    picker::{Picker, prefix_of},
    preset::Preset,
    selector::{
        Container, Engine, ImageName, Label, Pod, PodSelector, Selector, SelectorError,
        container_name,
    },
    unit::{UnitName, UnitNameError},
};
use super::{
    cgroup::CgroupTree,
    identity::{Identities, Said},
};

/// How many changes may wait to be taken in; whoever tells of more waits.
const MAX_CHANGES: usize = 4_096;
/// How many ids may wait to be asked for at one engine.
const MAX_ASKED: usize = 1_024;
/// How long after a question without an answer it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Where to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Sockets of engines.
    pub sockets: Vec<PathBuf>,
    /// How to find Kubernetes, if pods are selected.
    pub cluster: Option<Cluster>,
}

/// Everybody who tells.
pub struct Discovery {
    changes: mpsc::Receiver<(SourceId, Change)>,
    engines: Vec<mpsc::Sender<String>>,
    asked: HashMap<String, Instant>,
    /// The tasks end with us, and the way to tell does not end before.
    _tasks: JoinSet<()>,
    _sender: mpsc::Sender<(SourceId, Change)>,
}

/// The way to tell something.
#[derive(Clone)]
struct Teller {
    source: SourceId,
    changes: mpsc::Sender<(SourceId, Change)>,
}

impl Teller {
    async fn tell(&self, change: Change) {
        // The other side ends with the daemon.
        drop(self.changes.send((self.source, change)).await);
    }
}

impl Discovery {
    /// Begins to follow whoever can tell of containers, and of pods if these are to be asked for. Who
    /// is selected is for the picker to say, which knows nothing yet; `None` if nobody is by what he is.
    pub fn start(
        selectors: &[Selector],
        places: &Places,
        tree: &CgroupTree,
    ) -> (Self, Option<Picker>) {
        let (sender, changes) = mpsc::channel(MAX_CHANGES);
        let mut tasks = JoinSet::new();
        let teller = |source| Teller { source: SourceId(source), changes: sender.clone() };
        let mut engines = Vec::new();
        for (source, path) in places.sockets.iter().enumerate() {
            let (ask, asked) = mpsc::channel(MAX_ASKED);
            tasks.spawn(engine::follow(path.clone(), asked, teller(source)));
            engines.push(ask);
        }
        if let Some(cluster) = &places.cluster {
            tasks.spawn(kubernetes::follow(cluster.clone(), teller(engines.len())));
        }
        let prefix = prefix_of(tree.root());
        let picker = (!selectors.is_empty())
            .then(|| Picker::new(selectors, &prefix, tree.is_closed(), engines.len()));
        let asked = HashMap::new();
        (Self { changes, engines, asked, _tasks: tasks, _sender: sender }, picker)
    }

    /// Waits until somebody tells something.
    pub async fn changed(&mut self) -> Told {
        let mut told = Vec::new();
        // Never none: we hold the other end too.
        self.changes.recv_many(&mut told, MAX_CHANGES).await;
        Told(told)
    }

    /// Asks every engine for containers that are met and not known, though not too often.
    pub fn ask<'a>(&mut self, unknown: impl Iterator<Item = &'a str>) {
        let ids: HashSet<_> = unknown.collect();
        self.asked.retain(|id, _| ids.contains(id.as_str()));
        let now = Instant::now();
        for id in ids {
            let is_due = self.asked.get(id).is_none_or(|at| now.duration_since(*at) >= ASK_AGAIN);
            if is_due {
                self.asked.insert(id.to_owned(), now);
                // Whose queue is full is asked again.
                self.engines.iter().for_each(|engine| drop(engine.try_send(id.to_owned())));
            }
        }
    }
}

/// What somebody told.
pub struct Told(Vec<(SourceId, Change)>);

impl Told {
    /// Makes known who is who, and who is in the scope if anybody is by that.
    pub fn to(self, identities: &Identities, picker: Option<&mut Picker>) {
        self.0.iter().for_each(|(_, change)| introduce(change, identities));
        picker.into_iter().for_each(|picker| picker.learn(&self.0));
    }
}

/// What people want to see of containers and pods.
fn introduce(change: &Change, identities: &Identities) {
    let container = |container: &Container| {
        let name = container.names.first().cloned().unwrap_or_default();
        let image = Some(container.image.clone()).filter(|image| !image.is_empty());
        identities.learn(&container.id, Said { name, image, labels: container.labels.clone() });
    };
    let pod = |pod: &Pod| {
        let name = format!("{}/{}", pod.namespace, pod.name);
        identities.learn(&pod.uid, Said { name, image: None, labels: pod.labels.clone() });
    };
    match change {
        Change::Here(one) => container(one),
        Change::All(all) => all.iter().for_each(container),
        Change::PodHere(one) => pod(one),
        Change::AllPods(all) => all.iter().for_each(pod),
        Change::Gone(id) | Change::PodGone(id) => identities.forget(id),
        Change::Reach(_) | Change::Denied(_) => {}
    }
}
