//! The scope as it is on this host, kept up to date by looking only where something changed.
//!
//! A node is a cgroup that matters: one that is selected, with all below it, or one on the way to
//! what a pattern may yet select, with its children. inotify says in which directory a child came or
//! went, and where processes came to an empty cgroup or left one; there, and nowhere else, the census
//! looks again. What inotify does not tell, such as a process that moves to another namespace, is
//! found by looking at the nodes in turn, for a few milliseconds each second.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use dns_proxy_common::Policy;

use super::{
    cgroup::{self, CgroupId, CgroupTree, Scope, unless_gone},
    discover::{Picker, Verdict},
    netns::{Netns, NetnsId},
    standing::{Standing, Wanted},
    watch::{Change, Watcher},
};

/// What is known of the scope.
pub struct Census {
    tree: CgroupTree,
    scope: Scope,
    /// Who is in the scope by what he is, if anybody is.
    picker: Option<Picker>,
    watcher: Watcher,
    root: Option<CgroupId>,
    nodes: HashMap<CgroupId, Node>,
    /// Nodes that have something below or in them; those that were looked at longest ago first.
    round: VecDeque<CgroupId>,
    /// Nodes of which not all could be seen.
    unseen: HashSet<CgroupId>,
    inhabited: HashMap<NetnsId, Inhabited>,
    news: News,
}

/// What has changed.
#[derive(Debug, Default)]
pub struct News {
    /// Cgroups of which the programs must be told something else.
    pub policies: HashMap<CgroupId, Option<Policy>>,
    /// Namespaces in which there was nobody of the scope.
    pub namespaces: Vec<NetnsId>,
    /// New nodes that have something in them, or will.
    pub nodes: Vec<CgroupId>,
    /// Whether some of them are members of the scope.
    pub members: bool,
}

struct Node {
    dir: PathBuf,
    parent: Option<CgroupId>,
    standing: Standing,
    /// Somebody below may be selected by what he is.
    is_roamed: bool,
    /// A new child may be selected by its name.
    is_open: bool,
    /// Whether inotify tells of it.
    is_watched: bool,
    children: HashMap<OsString, CgroupId>,
    policy: Option<Policy>,
    /// Where its processes are.
    namespaces: HashSet<NetnsId>,
}

struct Inhabited {
    /// In how many cgroups there are processes that are in it.
    cgroups: usize,
    /// One of those processes, and its cgroup.
    pid: u32,
    seen_in: CgroupId,
}

impl Census {
    /// Knows nothing yet.
    ///
    /// # Errors
    /// The limit of inotify instances is reached.
    pub fn new(tree: CgroupTree, scope: Scope, picker: Option<Picker>) -> io::Result<Self> {
        Ok(Self {
            tree,
            scope,
            picker,
            watcher: Watcher::new()?,
            root: None,
            nodes: HashMap::new(),
            round: VecDeque::new(),
            unseen: HashSet::new(),
            inhabited: HashMap::new(),
            news: News::default(),
        })
    }

    /// What is selected.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Where the tree is mounted.
    pub fn root(&self) -> &Path {
        self.tree.root()
    }

    /// Who knows who is who.
    pub fn picker(&mut self) -> Option<&mut Picker> {
        self.picker.as_mut()
    }

    /// The paths of the cgroups that each selector matches.
    pub fn selected(&self) -> Vec<Vec<String>> {
        self.picker.as_ref().map(Picker::matches).unwrap_or_default()
    }

    /// Meets those anew of whom something else is known than when they were met.
    ///
    /// # Errors
    /// Something kept us from looking; it is tried again.
    pub fn reconsider(&mut self) -> io::Result<()> {
        let doubts = self.picker.as_mut().map(Picker::doubts).unwrap_or_default();
        let mut result = Ok(());
        for (id, path) in doubts {
            let parent = self.nodes.get(&id).and_then(|node| node.parent);
            let name = path.rsplit('/').next().unwrap_or_default();
            if let Some(parent) = parent {
                result = result.and(self.replace_child(parent, &name.into(), Some(id)));
            }
        }
        result
    }

    /// The deepest cgroup that contains the scope.
    pub fn common_ancestor(&self) -> PathBuf {
        self.tree.common_ancestor(&self.scope)
    }

    /// What has changed since this was last asked.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// Whether a cgroup is selected and not excluded.
    pub fn is_member(&self, id: CgroupId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.standing.is_member())
    }

    /// Whether there are processes in a member.
    pub fn is_peopled(&self, id: CgroupId) -> bool {
        self.nodes.get(&id).is_some_and(|node| !node.namespaces.is_empty())
    }

    /// A process of the scope that is in a namespace, or was when it was last looked at.
    pub fn process_in(&self, id: NetnsId) -> Option<u32> {
        self.inhabited.get(&id).map(|inhabited| inhabited.pid)
    }

    /// The same, after another look at the cgroup where it was seen.
    pub fn process_still_in(&mut self, id: NetnsId) -> Option<u32> {
        let seen_in = self.inhabited.get(&id)?.seen_in;
        // What goes wrong here does so again when it is that cgroup's turn.
        self.look_at(seen_in).ok()?;
        self.process_in(id)
    }

    /// A process of each namespace that processes of the scope are in.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        self.inhabited.values().map(|inhabited| inhabited.pid)
    }

    /// Every cgroup that is selected and not excluded.
    pub fn members(&self) -> impl Iterator<Item = CgroupId> {
        let nodes = self.nodes.iter();
        nodes.filter(|(_, node)| node.standing.is_member()).map(|(id, _)| *id)
    }

    /// Every namespace that processes of the scope are in.
    pub fn inhabited(&self) -> impl Iterator<Item = NetnsId> {
        self.inhabited.keys().copied()
    }

    /// Watches directories in which namespaces have names; `true` if one is new.
    pub fn watch_names<'a>(&mut self, dirs: impl Iterator<Item = &'a Path>) -> bool {
        dirs.filter(|dir| self.watcher.add_names(dir)).count() > 0
    }

    /// Waits until something changed.
    ///
    /// # Errors
    /// inotify failed for good.
    pub async fn changed(&mut self) -> io::Result<Vec<Change>> {
        self.watcher.changed().await
    }

    /// A child of a cgroup may have come or gone.
    ///
    /// # Errors
    /// Something kept us from looking; it is tried again.
    pub fn look_at_child(&mut self, parent: CgroupId, name: &OsString) -> io::Result<()> {
        let Some(node) = self.nodes.get(&parent) else {
            return Ok(());
        };
        let depends = !node.standing.is_member()
            && (node.is_roamed || matches!(self.wanted(&node.standing), Wanted::Only(_)));
        let looked = match unless_gone(cgroup::id(&node.dir.join(name))) {
            Ok(now) if now == node.children.get(name).copied() => Ok(()),
            // Whether others matter depends on this one.
            Ok(_) if depends => self.list(parent),
            Ok(now) => self.replace_child(parent, name, now),
            Err(error) => Err(error),
        };
        if looked.is_err() {
            self.unseen.insert(parent);
        }
        looked
    }

    /// Looks at a cgroup again: who is in it, and, where inotify does not tell, what is below.
    ///
    /// # Errors
    /// Something kept us from looking; it is tried again.
    pub fn look_at(&mut self, id: CgroupId) -> io::Result<()> {
        let looked = match self.nodes.get(&id) {
            None => Ok(()),
            Some(node) if !node.is_watched || self.unseen.contains(&id) => self.explore(id),
            Some(node) if node.standing.is_member() => self.count(id),
            Some(_) => Ok(()),
        };
        if looked.is_err() {
            self.unseen.insert(id);
        }
        looked
    }

    /// Looks at some of the nodes, as many as there is time for, and at what could not be seen before.
    ///
    /// # Errors
    /// Something kept us from looking; it is tried again.
    pub fn look_around(&mut self, time: Duration) -> io::Result<()> {
        let begun = Instant::now();
        let root = unless_gone(cgroup::id(self.tree.root()))?;
        if root != self.root {
            self.root.into_iter().for_each(|gone| self.remove(gone));
            self.root = root;
            if let Some(id) = root {
                let (dir, standing) = (self.tree.root().to_owned(), Standing::of_root(&self.scope));
                let is_roamed = self.picker.is_some() && !standing.is_excluded();
                self.enter(id, None, dir, standing, is_roamed)?;
            }
        }
        let unseen: Vec<_> = self.unseen.iter().copied().collect();
        let mut result = Ok(());
        for id in unseen {
            result = result.and(self.look_at(id));
        }
        for _ in 0..self.round.len() {
            if begun.elapsed() >= time {
                break;
            }
            let Some(id) = self.round.pop_front() else {
                break;
            };
            if self.nodes.contains_key(&id) {
                self.round.push_back(id);
                result = result.and(self.look_at(id));
            }
        }
        result
    }

    /// Looks at everything, since nobody knows what was missed.
    ///
    /// # Errors
    /// Something kept us from looking; it is tried again.
    pub fn look_at_all(&mut self) -> io::Result<()> {
        self.unseen.extend(self.round.iter().filter(|id| self.nodes.contains_key(id)));
        self.look_around(Duration::ZERO)
    }

    /// Takes a cgroup in, with what is below and in it.
    fn enter(
        &mut self,
        id: CgroupId,
        parent: Option<CgroupId>,
        dir: PathBuf,
        standing: Standing,
        is_roamed: bool,
    ) -> io::Result<()> {
        let leads_on = standing.leads_on() || is_roamed;
        self.news.members |= standing.is_member();
        let node = Node {
            dir,
            parent,
            standing,
            is_roamed,
            is_open: false,
            is_watched: false,
            children: HashMap::new(),
            policy: None,
            namespaces: HashSet::new(),
        };
        self.nodes.insert(id, node);
        self.judge(id);
        if !leads_on {
            return Ok(());
        }
        self.round.push_back(id);
        self.news.nodes.push(id);
        let explored = self.explore(id);
        if explored.is_err() {
            self.unseen.insert(id);
        }
        explored
    }

    /// Looks at all of a cgroup, which is watched first so that nothing is missed.
    fn explore(&mut self, id: CgroupId) -> io::Result<()> {
        let Some(node) = self.nodes.get_mut(&id) else {
            return Ok(());
        };
        node.is_watched = self.watcher.add_cgroup(id, &node.dir);
        self.list(id)?;
        self.count(id)?;
        self.unseen.remove(&id);
        Ok(())
    }

    /// Takes in which children there are.
    fn list(&mut self, id: CgroupId) -> io::Result<()> {
        let Some(node) = self.nodes.get(&id) else {
            return Ok(());
        };
        let is_member = node.standing.is_member();
        let mut present = HashMap::new();
        let mut is_open = false;
        if !is_member {
            match self.wanted(&node.standing) {
                Wanted::Any => is_open = true,
                Wanted::Only(names) => {
                    for name in names {
                        let child = unless_gone(cgroup::id(&node.dir.join(name)))?;
                        is_open |= child.is_none();
                        present.extend(child.map(|child| (OsString::from(name), child)));
                    }
                }
            }
        }
        let dir = node.dir.clone();
        let is_roamed = node.is_roamed && !is_member;
        if is_roamed && let Some(picker) = &mut self.picker {
            let children = cgroup::children(&dir)?;
            let path = path_below(self.tree.root(), &dir);
            is_open |= picker.is_open(&path, &children.keys().filter_map(|name| name.to_str()));
        }
        // Before the children are listed: who comes meanwhile is refused rather than passed.
        self.set_open(id, is_open);
        if is_member || is_open || is_roamed {
            present = cgroup::children(&dir)?;
        }
        let known = self.nodes.get(&id).map(|node| node.children.clone()).unwrap_or_default();
        let gone = known.iter().filter(|(name, child)| present.get(*name) != Some(child));
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        let mut result = Ok(());
        for name in gone {
            result = result.and(self.replace_child(id, &name, None));
        }
        for (name, child) in present {
            if known.get(&name) != Some(&child) {
                result = result.and(self.replace_child(id, &name, Some(child)));
            }
        }
        result
    }

    /// Puts one child in the place of another.
    fn replace_child(
        &mut self,
        parent: CgroupId,
        name: &OsString,
        now: Option<CgroupId>,
    ) -> io::Result<()> {
        let Some(node) = self.nodes.get_mut(&parent) else {
            return Ok(());
        };
        let gone = node.children.remove(name);
        if let Some(id) = now {
            node.children.insert(name.clone(), id);
        }
        let (dir, mut standing) = (node.dir.join(name), node.standing.of_child(&self.scope, name));
        let mut is_roamed = node.is_roamed && !standing.is_excluded();
        if let Some(gone) = gone {
            self.remove(gone);
        }
        let Some(id) = now else {
            return Ok(());
        };
        if is_roamed && let Some(picker) = &mut self.picker {
            let verdict = picker.meet(id, &path_below(self.tree.root(), &dir));
            is_roamed = verdict == Verdict::Pass;
            // Who is not known may be meant.
            if matches!(verdict, Verdict::Select | Verdict::Undecided) {
                standing.pick();
            }
        }
        self.enter(id, Some(parent), dir, standing, is_roamed)
    }

    /// Looks which namespaces the processes of a member are in.
    fn count(&mut self, id: CgroupId) -> io::Result<()> {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.standing.is_member()) else {
            return Ok(());
        };
        // A threaded cgroup has no list; its processes are in that of its domain, further up.
        let procs = unless_gone(fs::read_to_string(node.dir.join("cgroup.procs")))?;
        let pids = procs.iter().flat_map(|procs| procs.lines()).filter_map(|pid| pid.parse().ok());
        let mut now: HashMap<_, u32> = HashMap::new();
        for pid in pids {
            if let Ok(netns) = Netns::id_of(pid) {
                // The first is mostly the oldest, and stays the longest.
                now.entry(netns).or_insert(pid);
            }
        }
        let before = std::mem::replace(&mut node.namespaces, now.keys().copied().collect());
        for (netns, pid) in &now {
            let inhabited = self.inhabited.entry(*netns).or_insert_with(|| {
                self.news.namespaces.push(*netns);
                Inhabited { cgroups: 0, pid: *pid, seen_in: id }
            });
            (inhabited.pid, inhabited.seen_in) = (*pid, id);
            inhabited.cgroups += usize::from(!before.contains(netns));
        }
        before.iter().filter(|netns| !now.contains_key(netns)).for_each(|gone| self.leave(*gone));
        Ok(())
    }

    fn leave(&mut self, netns: NetnsId) {
        if let Some(inhabited) = self.inhabited.get_mut(&netns) {
            inhabited.cgroups -= 1;
            if inhabited.cgroups == 0 {
                self.inhabited.remove(&netns);
            }
        }
    }

    fn remove(&mut self, id: CgroupId) {
        let Some(node) = self.nodes.remove(&id) else {
            return;
        };
        self.picker.iter_mut().for_each(|picker| picker.part(id));
        node.children.into_values().for_each(|child| self.remove(child));
        node.namespaces.into_iter().for_each(|netns| self.leave(netns));
        self.unseen.remove(&id);
        if node.policy.is_some() {
            self.news.policies.insert(id, None);
        }
    }

    fn set_open(&mut self, id: CgroupId, is_open: bool) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_open != is_open) else {
            return;
        };
        node.is_open = is_open;
        let children: Vec<_> = node.children.values().copied().collect();
        self.judge(id);
        children.into_iter().for_each(|child| self.judge(child));
    }

    /// Says what the programs must know of it by itself.
    fn judge(&mut self, id: CgroupId) {
        let Some(node) = self.nodes.get(&id) else {
            return;
        };
        let above = node.parent.and_then(|parent| self.nodes.get(&parent));
        let is_seen = above.is_some_and(|above| above.is_open);
        let policy = node
            .standing
            .policy(&self.scope)
            .or_else(|| node.is_open.then_some(Policy::Open))
            .or_else(|| is_seen.then_some(Policy::Ignore));
        if policy != node.policy {
            self.news.policies.insert(id, policy);
            if let Some(node) = self.nodes.get_mut(&id) {
                node.policy = policy;
            }
        }
    }

    fn wanted(&self, standing: &Standing) -> Wanted<'_> {
        standing.wanted(&self.scope, |pattern| self.tree.may_be_remade(pattern.levels()))
    }
}

/// As the picker wants it.
fn path_below(root: &Path, dir: &Path) -> String {
    dir.strip_prefix(root).unwrap_or(dir).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use dns_proxy_common::FailMode;
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    const FOREVER: Duration = Duration::from_secs(60);

    /// Plain directories stand in for the tree: only what is made of it is tested here.
    struct Host {
        root: TempDir,
        census: Census,
    }

    impl Host {
        fn new(dirs: &[&str], select: &[&str], exclude: &[&str], fail: FailMode) -> Self {
            let root = tempfile::tempdir().expect("a temporary directory");
            let parse = |list: &[&str]| list.iter().map(|p| p.parse().expect(p)).collect();
            let scope =
                Scope { select: parse(select), selectors: Vec::new(), exclude: parse(exclude) };
            let tree = CgroupTree::new(root.path().to_owned(), fail);
            let mut host = Self { root, census: Census::new(tree, scope, None).expect("inotify") };
            dirs.iter().for_each(|dir| host.make(dir));
            host.census.look_around(FOREVER).expect("readable");
            host
        }

        fn make(&self, dir: &str) {
            fs::create_dir_all(self.root.path().join(dir)).expect(dir);
        }

        fn remove(&self, dir: &str) {
            fs::remove_dir_all(self.root.path().join(dir)).expect(dir);
        }

        fn id(&self, dir: &str) -> CgroupId {
            cgroup::id(&self.root.path().join(dir)).expect(dir)
        }

        /// Follows what inotify tells until it is silent.
        async fn follow(&mut self) {
            while let Ok(changes) = timeout(Duration::from_millis(20), self.census.changed()).await
            {
                for change in changes.expect("inotify") {
                    match change {
                        Change::Child(parent, name) => self.census.look_at_child(parent, &name),
                        Change::Population(id) => self.census.look_at(id),
                        Change::Overflow => self.census.look_at_all(),
                        Change::Name(_) => Ok(()),
                    }
                    .expect("readable");
                }
            }
        }

        /// What the programs would know, by the cgroups' names.
        #[track_caller]
        fn has(&self, wanted: &[(&str, Policy)]) {
            let nodes = self.census.nodes.values();
            let mut has: Vec<_> = nodes
                .filter_map(|node| {
                    Some((node.dir.strip_prefix(self.root.path()).ok()?, node.policy?))
                })
                .map(|(dir, policy)| (dir.display().to_string(), policy))
                .collect();
            has.sort_by(|a, b| a.0.cmp(&b.0));
            let wanted: Vec<_> =
                wanted.iter().map(|(dir, policy)| ((*dir).to_owned(), *policy)).collect();
            assert_eq!(has, wanted);
        }
    }

    #[tokio::test]
    async fn newborn_cgroups_are_open_where_their_name_decides() {
        use Policy::{Ignore, Open, SelectAll};
        let dirs = ["a/app-1/x", "a/other", "b/here"];
        type Case = (&'static [&'static str], &'static [(&'static str, Policy)]);
        let cases: [Case; 4] = [
            (&["a/app-*"], &[("a", Open), ("a/app-1", SelectAll), ("a/other", Ignore)]),
            (
                &["a/*/x"],
                &[("a", Open), ("a/app-1", Ignore), ("a/app-1/x", SelectAll), ("a/other", Open)],
            ),
            (&["b/missing"], &[("b", Open), ("b/here", Ignore)]),
            (&["b/here"], &[("b/here", SelectAll)]),
        ];
        for (select, policies) in cases {
            Host::new(&dirs, select, &[], FailMode::Open).has(policies);
        }
    }

    #[tokio::test]
    async fn to_fail_closed_a_named_cgroup_counts_as_newborn_each_time() {
        use Policy::{Ignore, Open, SelectAll};
        let dirs = ["a/here", "a/other", "top"];
        let service = Host::new(&dirs, &["a/here"], &[], FailMode::Closed);
        service.has(&[("a", Open), ("a/here", SelectAll), ("a/other", Ignore)]);
        Host::new(&dirs, &["top"], &[], FailMode::Closed).has(&[("top", SelectAll)]);
    }

    #[tokio::test]
    async fn what_comes_and_goes_is_followed() {
        use Policy::{Exclude, Ignore, Open, Select};
        let mut host = Host::new(&["a"], &["a/app-*", "b/here"], &["a/app-1/x"], FailMode::Open);
        host.has(&[("", Open), ("a", Open)]);
        host.make("a/app-1/x");
        host.make("a/other");
        host.follow().await;
        host.has(&[
            ("", Open),
            ("a", Open),
            ("a/app-1", Select),
            ("a/app-1/x", Exclude),
            ("a/other", Ignore),
        ]);
        assert!(host.census.is_member(host.id("a/app-1")));
        assert!(!host.census.is_member(host.id("a/app-1/x")));
        host.make("a/app-1/y/z");
        host.make("b");
        host.follow().await;
        assert!(host.census.is_member(host.id("a/app-1/y/z")));
        host.remove("a");
        host.make("b/here");
        host.follow().await;
        host.has(&[("", Open), ("b", Ignore), ("b/here", Select)]);
        host.census.look_around(FOREVER).expect("readable");
        assert!(host.census.round.iter().all(|id| host.census.nodes.contains_key(id)));
    }

    #[tokio::test]
    async fn a_cgroup_that_is_made_anew_is_another_one() {
        let mut host = Host::new(&["a/here/x"], &["a/here"], &[], FailMode::Open);
        let before = host.id("a/here");
        host.census.take_news();
        // An inode number of a file system may come again, that of a cgroup does not.
        fs::rename(host.root.path().join("a/here"), host.root.path().join("old")).expect("renamed");
        host.make("a/here");
        let (parent, name) = (host.id("a"), OsString::from("here"));
        host.census.look_at_child(parent, &name).expect("readable");
        let now = host.id("a/here");
        let news = host.census.take_news();
        assert_eq!(news.policies, HashMap::from([(before, None), (now, Some(Policy::SelectAll))]));
        assert!(host.census.is_member(now) && !host.census.is_member(before));
    }

    #[tokio::test]
    async fn namespaces_are_inhabited_as_long_as_a_process_is_in_them() {
        let mut host = Host::new(&["a/b"], &["a"], &[], FailMode::Open);
        let own = Netns::id_of(std::process::id()).expect("our own");
        for dir in ["a", "a/b"] {
            let procs = host.root.path().join(dir).join("cgroup.procs");
            fs::write(&procs, std::process::id().to_string()).expect("written");
            host.census.look_at(host.id(dir)).expect("readable");
        }
        assert_eq!(host.census.process_in(own), Some(std::process::id()));
        assert_eq!(host.census.take_news().namespaces, [own]);
        host.remove("a/b");
        host.follow().await;
        assert!(host.census.process_in(own).is_some());
        fs::write(host.root.path().join("a/cgroup.procs"), "").expect("written");
        host.census.look_at(host.id("a")).expect("readable");
        assert_eq!(host.census.process_in(own), None);
    }

    #[tokio::test]
    async fn when_too_much_has_changed_everything_is_looked_at() {
        let mut host = Host::new(&["a/old"], &["a/*"], &[], FailMode::Open);
        host.remove("a/old");
        host.make("a/new/x");
        host.census.look_at_all().expect("readable");
        assert!(host.census.is_member(host.id("a/new/x")));
        host.has(&[("a", Policy::Open), ("a/new", Policy::SelectAll)]);
    }
}
