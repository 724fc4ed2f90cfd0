//! Who a cgroup is to people: a container, a pod, a unit, by name.
//!
//! The path says what it can; what only a container runtime knows (a name, an image, labels) is told by
//! whoever asks one ([`Identities::learn`]). Looked up when somebody wants to see it, never on the way of
//! a query.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::cgroup::CgroupId;
use crate::escape;

/// How many are remembered, those of cgroups that are gone included.
const MAX_KNOWN: usize = 16_384;
/// How often the tree is walked for cgroups that nobody has heard of.
const WALK_PAUSE: Duration = Duration::from_millis(50);
/// Containers' ids have so many characters, all hexadecimal; people use the first of them.
const CONTAINER_ID: usize = 64;
const SHORT_ID: usize = 12;

/// What kind of thing a cgroup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Of a container, or inside one.
    Container,
    /// Of a pod, not of one of its containers.
    Pod,
    /// Of a systemd unit.
    Unit,
    /// Of something else.
    Other,
}

/// Who a cgroup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its path below the root.
    pub cgroup: String,
    /// What it is.
    pub kind: Kind,
    /// What people call it: a container's name or short id, a unit's name, the path's last level.
    pub name: String,
    /// A container's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// The uid of the pod that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// A container's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// A container's or pod's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What a runtime says of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// Who is who.
#[derive(Debug)]
pub struct Identities {
    root: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    paths: HashMap<CgroupId, String>,
    walked: Option<Instant>,
    /// By container id, or pod UID.
    said: HashMap<String, Said>,
}

impl Identity {
    /// What a path below the cgroup v2 root says.
    pub fn of_path(path: &str) -> Self {
        let levels: Vec<_> = path.split('/').filter(|level| !level.is_empty()).collect();
        // The innermost of each: whatever it makes for itself below is still it.
        let container_id = levels.iter().rev().find_map(|level| container_id(level));
        let pod_uid = levels.iter().rev().find_map(|level| pod_uid(level));
        let unit = levels.iter().rev().find(|level| is_unit(level));
        let (kind, name) = match (&container_id, &pod_uid, unit) {
            (Some(id), ..) => (Kind::Container, id[..SHORT_ID].to_owned()),
            (None, Some(uid), _) => (Kind::Pod, uid.clone()),
            (None, None, Some(unit)) => (Kind::Unit, (*unit).to_owned()),
            (None, None, None) => (Kind::Other, levels.last().map_or("/", |last| last).to_owned()),
        };
        let cgroup = format!("/{}", levels.join("/"));
        Self { cgroup, kind, name, container_id, pod_uid, image: None, labels: BTreeMap::new() }
    }

    /// Who it is, in a word that is fit to be shown.
    pub fn word(&self) -> String {
        match self.kind {
            Kind::Other => escape::plain(&self.cgroup),
            Kind::Container | Kind::Pod | Kind::Unit => escape::plain(&self.name),
        }
    }

    /// What a runtime says wins.
    fn told(mut self, said: Option<&Said>) -> Self {
        if let Some(Said { name, image, labels }) = said.cloned() {
            (self.name, self.image, self.labels) = (name, image, labels);
        }
        self
    }
}

impl Identities {
    /// Of the cgroups below a cgroup v2 root.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), known: Mutex::default() }
    }

    /// Who a cgroup is; `None` if there is no such cgroup, or was not when somebody last looked.
    pub fn of(&self, cgroup: CgroupId) -> Option<Identity> {
        let mut known = self.lock();
        if !known.paths.contains_key(&cgroup)
            && known.walked.is_none_or(|walked| walked.elapsed() >= WALK_PAUSE)
        {
            self.walk(&mut known);
        }
        let identity = Identity::of_path(known.paths.get(&cgroup)?);
        Some(known.tell(identity))
    }

    /// Who the cgroup at a path is.
    pub fn of_path(&self, path: &str) -> Identity {
        self.lock().tell(Identity::of_path(path))
    }

    /// What a runtime says of the container with that id, or Kubernetes of the pod with that UID.
    pub fn learn(&self, container_id: &str, said: Said) {
        let mut known = self.lock();
        if known.said.len() < MAX_KNOWN || known.said.contains_key(container_id) {
            known.said.insert(container_id.to_owned(), said);
        }
    }

    /// The container with that id is gone, and so is its name.
    pub fn forget(&self, container_id: &str) {
        self.lock().said.remove(container_id);
    }

    /// Notes all cgroups that there are.
    fn walk(&self, known: &mut Known) {
        known.walked = Some(Instant::now());
        if known.paths.len() >= MAX_KNOWN {
            known.paths.clear();
        }
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            if known.paths.len() >= MAX_KNOWN {
                break;
            }
            if let (Ok(meta), Ok(below)) = (fs::metadata(&dir), dir.strip_prefix(&self.root)) {
                let path = format!("/{}", below.display());
                known.paths.insert(CgroupId(meta.ino()), path);
            }
            // What vanishes meanwhile is not there.
            let children = fs::read_dir(&dir).into_iter().flatten().flatten();
            let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
            dirs.extend(children.filter(is_dir).map(|entry| entry.path()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn tell(&self, identity: Identity) -> Identity {
        let said = |id: &Option<String>| id.as_ref().and_then(|id| self.said.get(id));
        let said = said(&identity.container_id).or_else(|| said(&identity.pod_uid));
        identity.told(said)
    }
}

/// The path below the cgroup v2 root of the cgroup that a process is in, as we see it.
pub fn path_of_process(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    // Hierarchy 0 is version 2 (cgroups(7)).
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// `docker-ID.scope`, `libpod-ID`, `cri-containerd-ID.scope`, `ID` and the like.
fn container_id(level: &str) -> Option<String> {
    let stem = level.strip_suffix(".scope").unwrap_or(level);
    let (_, id) = stem.rsplit_once(['-', ':']).unwrap_or(("", stem));
    let is_id = id.len() == CONTAINER_ID && id.bytes().all(|octet| octet.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

/// `podUID` or `kubepods-burstable-podUID.slice`, in which dashes are underscores.
fn pod_uid(level: &str) -> Option<String> {
    let stem = level.strip_suffix(".slice").unwrap_or(level);
    let uid = match stem.strip_prefix("kubepods") {
        Some(rest) => rest.rsplit_once("-pod")?.1.replace('_', "-"),
        None => stem.strip_prefix("pod")?.to_owned(),
    };
    let is_uid = uid.len() >= 32 && uid.bytes().all(|o| o.is_ascii_hexdigit() || o == b'-');
    is_uid.then_some(uid)
}

fn is_unit(level: &str) -> bool {
    level.ends_with(".service") || level.ends_with(".scope")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "6c1f9a2e-0d3b-4c57-9a11-2f8e4d5b6a70";

    #[test]
    fn every_runtimes_path_says_what_it_is() {
        let uid_ = UID.replace('-', "_");
        let short = &ID[..12];
        let cases = [
            (format!("/docker/{ID}"), Kind::Container, short),
            (format!("/docker/{ID}/init.scope"), Kind::Container, short),
            (format!("/system.slice/docker-{ID}.scope"), Kind::Container, short),
            (format!("/machine.slice/libpod-{ID}.scope/container"), Kind::Container, short),
            (format!("/libpod_parent/libpod-{ID}"), Kind::Container, short),
            (format!("/kubepods/burstable/pod{UID}/{ID}"), Kind::Container, short),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice/\
                     cri-containerd-{ID}.scope"
                ),
                Kind::Container,
                short,
            ),
            (format!("/kubepods.slice/kubepods-pod{uid_}.slice"), Kind::Pod, UID),
            ("/system.slice/nginx.service".to_owned(), Kind::Unit, "nginx.service"),
            ("/user.slice/user@1.service/app.slice/a.service".to_owned(), Kind::Unit, "a.service"),
            ("/my/own".to_owned(), Kind::Other, "own"),
            ("/".to_owned(), Kind::Other, "/"),
            (format!("/docker/{}", &ID[1..]), Kind::Other, &ID[1..]),
        ];
        for (path, kind, name) in cases {
            let identity = Identity::of_path(&path);
            assert_eq!((identity.kind, identity.name.as_str()), (kind, name), "{path}");
            assert_eq!(identity.cgroup, path);
            let in_pod = path.contains("kubepods");
            assert_eq!(identity.pod_uid.as_deref(), in_pod.then_some(UID), "{path}");
        }
    }

    #[test]
    fn a_runtime_knows_better() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = root.path().join(format!("docker/{ID}"));
        fs::create_dir_all(&dir).expect("made");
        let id = CgroupId(fs::metadata(&dir).expect("there").ino());
        let identities = Identities::new(root.path());
        assert_eq!(identities.of(id).expect("known").name, ID[..12]);
        identities.learn(ID, Said { name: "web".to_owned(), ..Said::default() });
        assert_eq!(identities.of(id).expect("known").name, "web");
        // Its queries may be looked at when it is gone.
        fs::remove_dir(&dir).expect("removed");
        assert_eq!(identities.of(id).expect("remembered").name, "web");
        assert_eq!(identities.of(CgroupId(u64::MAX)), None);
    }
}
