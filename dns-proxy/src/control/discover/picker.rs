//! Which cgroups of the tree are in the scope by what is known of who is in them.
//!
//! The census meets every cgroup once and asks; when more is known, it is told which ones to ask for
//! again.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use tokio::time::{Duration, Instant};
use tracing::{debug, info, warn};

use super::{
    bundle::{self, Bundles},
    inventory::{Change, Inventory, Judgement, Place, SourceId, Verdict},
    selector::Selector,
    spelling::container_id,
    unit::UnitName,
};
use crate::control::cgroup::CgroupId;

/// How long somebody may be unknown before that is worth a line.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

/// Where runtimes put containers and pods unless told otherwise. A cgroup that is new there is treated
/// as selected until it is known whose it is; elsewhere that holds once a container has been there.
const PARENTS: [&str; 10] = [
    "docker",
    "libpod_parent",
    "machine.slice",
    "kubepods",
    "kubepods/burstable",
    "kubepods/besteffort",
    "kubepods.slice",
    "kubepods.slice/kubepods-burstable.slice",
    "kubepods.slice/kubepods-besteffort.slice",
    "kubelet.slice/kubelet-kubepods.slice",
];

/// Judges cgroups.
#[derive(Debug)]
pub struct Picker {
    inventory: Inventory,
    bundles: Bundles,
    /// Where the tree's root is below that which runtimes see.
    prefix: String,
    /// Paths below which containers have been.
    parents: HashSet<String>,
    /// Slices where named units are to appear.
    homes: Vec<(String, UnitName)>,
    /// To fail closed: a unit may be made anew while nobody sees it.
    is_closed: bool,
    /// Those of whom it may become known that they are somebody else.
    candidates: HashMap<CgroupId, Candidate>,
    unmatched: Option<Vec<String>>,
}

#[derive(Debug)]
struct Candidate {
    path: String,
    judgement: Judgement,
    since: Instant,
    is_complained_of: bool,
}

impl Picker {
    /// For a tree whose root is at `prefix` below the one that runtimes see, and as many engines that
    /// tell of containers.
    pub(super) fn new(
        selectors: &[Selector],
        prefix: &str,
        is_closed: bool,
        engines: usize,
    ) -> Self {
        let is_of_runtimes = |selector: &Selector| !matches!(selector, Selector::Unit(_));
        let parents = if selectors.iter().any(is_of_runtimes) { &PARENTS[..] } else { &[] };
        let units = selectors.iter().filter_map(|selector| {
            let Selector::Unit(unit) = selector else {
                return None;
            };
            Some((unit.home().to_string(), unit.clone()))
        });
        let wants_containers = selectors.iter().any(Selector::is_of_containers);
        Self {
            inventory: Inventory::new(selectors, engines),
            bundles: if wants_containers { Bundles::everywhere() } else { Bundles::nowhere() },
            prefix: prefix.to_owned(),
            parents: parents.iter().map(ToString::to_string).collect(),
            homes: units.collect(),
            is_closed,
            candidates: HashMap::new(),
            unmatched: None,
        }
    }

    /// What becomes of a cgroup that is new, by its path below the root.
    pub fn meet(&mut self, id: CgroupId, path: &str) -> Verdict {
        let mut judgement = self.judge(path);
        if judgement.verdict == Verdict::Undecided && self.look_at_bundles() {
            judgement = self.judge(path);
        }
        let verdict = judgement.verdict;
        if judgement.of.is_some() || !judgement.by.is_empty() {
            let (path, since) = (path.to_owned(), Instant::now());
            let candidate = Candidate { path, judgement, since, is_complained_of: false };
            self.candidates.insert(id, candidate);
        }
        verdict
    }

    /// A cgroup is gone, or is to be met anew.
    pub fn part(&mut self, id: CgroupId) {
        self.candidates.remove(&id);
    }

    /// Whether a new child of the cgroup at `path` may be selected; it has these children.
    pub fn is_open<'a>(
        &mut self,
        path: &str,
        children: &(impl Iterator<Item = &'a str> + Clone),
    ) -> bool {
        let name = path.rsplit('/').next().unwrap_or_default();
        let holds = |child| Place { parent: name, name: child, path: "" }.is_container();
        if !self.parents.is_empty() && !self.parents.contains(path) && children.clone().any(holds) {
            self.parents.insert(path.to_owned());
        }
        self.parents.contains(path) || self.is_home(path, children)
    }

    /// Whether a unit may newly appear among the `children` of the cgroup at `path`.
    fn is_home<'a>(&self, path: &str, children: &(impl Iterator<Item = &'a str> + Clone)) -> bool {
        let is_here = |name: &str| children.clone().any(|child| child == name);
        self.homes.iter().any(|(home, unit)| {
            if home.trim_matches('/') == path {
                return self.is_closed || !unit.fixed().is_some_and(is_here);
            }
            // A slice on the way there that does not exist yet.
            let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
            let next = home.strip_prefix(&prefix).and_then(|rest| rest.split('/').next());
            next.is_some_and(|next| !is_here(next))
        })
    }

    /// Takes in what somebody told.
    pub(super) fn learn(&mut self, told: &[(SourceId, Change)]) {
        for (source, change) in told {
            debug!(source = source.0, ?change, "told");
            self.inventory.apply(*source, change.clone());
        }
    }

    /// Looks for what nobody tells: bundles of containers whose cgroups are named in another way. And
    /// forgets who is gone.
    pub fn look_around(&mut self) {
        self.look_at_bundles();
        let candidates = self.candidates.values();
        let present = candidates.filter_map(|candidate| candidate.judgement.of.as_deref());
        self.inventory.forget(&present.collect());
        self.complain();
        self.report();
    }

    /// The cgroups that something else is to become of than was said, by what is known now.
    pub fn doubts(&mut self) -> Vec<(CgroupId, String)> {
        let mut doubts = Vec::new();
        for (id, candidate) in &mut self.candidates {
            let absolute = absolute(&self.prefix, &candidate.path);
            let now = self.inventory.judge(place(&candidate.path, &absolute));
            if now.verdict != candidate.judgement.verdict {
                doubts.push((*id, candidate.path.clone()));
            }
            candidate.judgement = now;
        }
        doubts
    }

    /// The ids of containers of whom nobody knows.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        let candidates = self.candidates.values();
        let unknown = candidates.filter(|c| c.judgement.verdict == Verdict::Undecided);
        unknown.filter_map(|c| c.judgement.of.as_deref()).filter(|id| container_id(id).is_some())
    }

    /// The paths of the cgroups that each selector matches.
    pub fn matches(&self) -> Vec<Vec<String>> {
        let mut matches = vec![Vec::new(); self.inventory.selectors().len()];
        for candidate in self.candidates.values() {
            for by in &candidate.judgement.by {
                matches[*by].push(candidate.path.clone());
            }
        }
        matches.iter_mut().for_each(|paths| paths.sort());
        matches
    }

    fn judge(&self, path: &str) -> Judgement {
        let absolute = absolute(&self.prefix, path);
        self.inventory.judge(place(path, &absolute))
    }

    /// Whether there are new ones.
    fn look_at_bundles(&mut self) -> bool {
        let changes = self.bundles.look();
        let has_changed = !changes.is_empty();
        for change in changes {
            self.inventory.apply(bundle::SOURCE, change);
        }
        has_changed
    }

    fn complain(&mut self) {
        for candidate in self.candidates.values_mut() {
            let is_unknown = candidate.judgement.verdict == Verdict::Undecided;
            if is_unknown
                && candidate.since.elapsed() >= WORTH_A_LINE
                && !std::mem::replace(&mut candidate.is_complained_of, true)
            {
                warn!(
                    cgroup = candidate.path,
                    "nobody tells whose this container is, so it is treated as one of the scope"
                );
            }
        }
    }

    /// Says which selectors match nobody, whenever that changes.
    fn report(&mut self) {
        let matches = self.matches();
        let all = self.inventory.selectors().iter().zip(&matches);
        let none = all.filter(|(_, matches)| matches.is_empty());
        let none: Vec<_> = none.map(|(selector, _)| selector.to_string()).collect();
        if self.unmatched.as_ref() != Some(&none) {
            if none.is_empty() {
                debug!("every selector matches somebody");
            } else {
                info!(selectors = none.join(" "), "nobody matches these selectors yet");
            }
            self.unmatched = Some(none);
        }
    }
}

fn place<'a>(path: &'a str, absolute: &'a str) -> Place<'a> {
    let mut names = path.rsplit('/');
    let (name, parent) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
    Place { parent, name, path: absolute }
}

fn absolute(prefix: &str, path: &str) -> String {
    if prefix.is_empty() { path.to_owned() } else { format!("{prefix}/{path}") }
}

/// The path of a cgroup directory below the root that runtimes see; empty if nobody can tell, as in
/// a cgroup namespace, or if it is that root.
pub fn prefix_of(root: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    prefix_in(&mounts, root)
}

fn prefix_in(mounts: &str, root: &Path) -> String {
    // ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [...] - TYPE (proc_pid_mountinfo(5)); the last
    // mount over a directory is the one that shows.
    let of = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (within, at) = (fields.next()?, PathBuf::from(fields.next()?));
        let below = root.strip_prefix(at).ok()?;
        let within = if within.starts_with("/..") { "" } else { within };
        kind.starts_with("cgroup2 ").then(|| Path::new(within).join(below))
    };
    let prefix = mounts.lines().rev().find_map(of).unwrap_or_default();
    prefix.to_string_lossy().trim_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picker(selectors: &[&str], is_closed: bool) -> Picker {
        let selectors: Vec<_> = selectors.iter().map(|text| text.parse().expect(text)).collect();
        Picker::new(&selectors, "", is_closed, 1)
    }

    #[test]
    fn a_place_is_open_where_containers_are_or_have_been() {
        let mut picker = picker(&["container:web"], false);
        let id = "0a".repeat(32);
        assert!(picker.is_open("docker", &[].into_iter()));
        assert!(!picker.is_open("jobs", &["tool"].into_iter()));
        assert!(picker.is_open("jobs", &["tool", &id].into_iter()));
        assert!(picker.is_open("jobs", &["tool"].into_iter()));
        assert!(!picker.is_open("system.slice", &["nginx.service"].into_iter()));
    }

    #[test]
    fn a_unit_that_is_not_there_may_appear() {
        let slice = ["other.service", "system-getty.slice"];
        for (is_closed, children, open) in [
            (false, &slice[..], true),
            (false, &["nginx.service", "system-getty.slice"], false),
            (false, &["nginx.service"], true),
            (true, &["nginx.service", "system-getty.slice"], true),
        ] {
            let mut picker = picker(&["unit:nginx", "unit:getty@tty1"], is_closed);
            assert_eq!(
                picker.is_open("system.slice", &children.iter().copied()),
                open,
                "{children:?}"
            );
            assert!(!picker.is_open("docker", &[].into_iter()));
        }
        let mut picker = picker(&["unit:nginx"], false);
        assert!(picker.is_open("", &["user.slice"].into_iter()));
        assert!(!picker.is_open("", &["system.slice"].into_iter()));
    }

    #[test]
    fn the_place_of_a_directory_is_read_from_its_mount() {
        let mounts = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 23 0:27 /a/b /mnt rw - cgroup2 cgroup2 rw
41 23 0:27 /../../.. /host rw - cgroup2 cgroup2 rw
";
        let cases = [
            ("/sys/fs/cgroup/unified", ""),
            ("/sys/fs/cgroup/unified/x/y", "x/y"),
            ("/mnt", "a/b"),
            ("/mnt/c", "a/b/c"),
            ("/host", ""),
            ("/nowhere", ""),
        ];
        for (root, prefix) in cases {
            assert_eq!(prefix_in(mounts, Path::new(root)), prefix, "{root}");
        }
    }
}
