//! The cgroup v2 tree: which directories the scope selects, and who is in them.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use dns_proxy_common::FailMode;
use nix::libc;

use super::pattern::{CgroupPattern, Level};

/// A cgroup's id: the inode number of its directory, the same that the kernel programs see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupId(pub u64);

/// What is selected and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// `--cgroup`.
    pub select: Vec<CgroupPattern>,
    /// `--exclude-cgroup`; wins.
    pub exclude: Vec<CgroupPattern>,
}

impl Scope {
    /// Whether there can be a cgroup that both select. May say yes where that is hard to tell.
    pub fn overlaps(&self, other: &Self) -> bool {
        let excluded = |pattern| {
            let mut exclude = self.exclude.iter().chain(&other.exclude);
            exclude.any(|exclude| exclude.covers(pattern))
        };
        let mut pairs = self.select.iter().flat_map(|a| other.select.iter().map(move |b| (a, b)));
        pairs.any(|(a, b)| a.overlaps(b) && !excluded(a) && !excluded(b))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let select: Vec<_> = self.select.iter().map(ToString::to_string).collect();
        write!(f, "{}", select.join(", "))?;
        for exclude in &self.exclude {
            write!(f, " without {exclude}")?;
        }
        Ok(())
    }
}

/// The scope, as it is on this host at one moment.
#[derive(Debug, Default)]
pub struct Survey {
    /// Cgroups that a pattern selects by itself; what is below them is not listed.
    pub selected: Vec<CgroupId>,
    /// Cgroups that a pattern excludes by itself.
    pub excluded: Vec<CgroupId>,
    /// Cgroups of which a new child may be selected by its name.
    pub open: Vec<CgroupId>,
    /// Their children of today that are not.
    pub ignored: Vec<CgroupId>,
    /// Every selected cgroup that is not excluded, down to the leaves.
    pub members: Vec<CgroupId>,
    /// Processes in those.
    pub pids: Vec<u32>,
    /// Directories where something that matters may appear or go.
    pub watch: Vec<PathBuf>,
}

/// The mounted tree.
#[derive(Clone, Debug)]
pub struct CgroupTree {
    root: PathBuf,
    fail: FailMode,
}

impl CgroupTree {
    /// The tree mounted at `root`. To fail closed, a cgroup that is named must be refused also if it
    /// is made anew, as a service's is that starts again, while nobody lives to see it.
    pub fn new(root: PathBuf, fail: FailMode) -> Self {
        Self { root, fail }
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The deepest existing cgroup that contains all that the scope may ever select; to fail closed,
    /// one that stays when what is selected goes.
    pub fn common_ancestor(&self, scope: &Scope) -> PathBuf {
        let mut prefixes = scope.select.iter().map(|pattern| {
            let mut prefix = pattern.fixed_prefix();
            if self.may_be_remade(pattern.levels()) {
                prefix.pop();
            }
            prefix
        });
        let first = prefixes.next().unwrap_or_default();
        let common = prefixes.fold(first, |common, other| {
            common.iter().zip(other.iter()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
        });
        let deepest = self.root.join(common);
        let existing = deepest.ancestors().take_while(|dir| dir.starts_with(&self.root));
        existing.into_iter().find(|dir| dir.is_dir()).unwrap_or(&self.root).to_owned()
    }

    /// The paths below the root of the cgroups that a pattern means by itself. Of a tree that cannot
    /// be looked at, none.
    pub fn matches(&self, pattern: &CgroupPattern) -> Vec<PathBuf> {
        let found = find(&self.root, pattern.levels(), false, &mut Survey::default());
        let below = |dir: PathBuf| Some(dir.strip_prefix(&self.root).ok()?.to_owned());
        found.unwrap_or_default().into_iter().filter_map(|(_, dir)| below(dir)).collect()
    }

    /// Looks at the whole scope. Cgroups that vanish meanwhile are left out.
    ///
    /// # Errors
    /// Something else than that kept us from looking, such as a lack of descriptors: what was seen
    /// is then not the whole.
    pub fn survey(&self, scope: &Scope) -> io::Result<Survey> {
        let mut survey = Survey::default();
        for pattern in &scope.exclude {
            let found = self.find(pattern, &mut survey)?;
            survey.excluded.extend(found.into_iter().map(|(id, _)| id));
        }
        // What may newly be excluded is treated as before until it has been seen.
        (survey.open, survey.ignored) = (Vec::new(), Vec::new());
        for pattern in &scope.select {
            for (id, dir) in self.find(pattern, &mut survey)? {
                survey.selected.push(id);
                descend(id, &dir, &mut survey)?;
            }
        }
        Ok(survey)
    }

    fn find(
        &self,
        pattern: &CgroupPattern,
        survey: &mut Survey,
    ) -> io::Result<Vec<(CgroupId, PathBuf)>> {
        let levels = pattern.levels();
        find(&self.root, levels, self.may_be_remade(levels), survey)
    }

    /// Whether one cgroup is meant that may go and come again while nobody sees it. Those at the top
    /// stay: slices, and the parents of all containers.
    fn may_be_remade(&self, levels: &[Level]) -> bool {
        let is_one = levels.iter().all(|level| level.fixed().is_some());
        self.fail == FailMode::Closed && is_one && levels.len() > 1
    }
}

/// The id of the cgroup at `dir`.
///
/// # Errors
/// It does not exist.
pub fn id(dir: &Path) -> io::Result<CgroupId> {
    Ok(CgroupId(fs::metadata(dir)?.ino()))
}

/// The cgroups that match `levels` below `dir`. Notes those that were looked into, and what a new
/// child of them would be; that the last one is there tells nothing if it `may_be_remade`.
fn find(
    dir: &Path,
    levels: &[Level],
    may_be_remade: bool,
    survey: &mut Survey,
) -> io::Result<Vec<(CgroupId, PathBuf)>> {
    let Some(own) = unless_gone(id(dir))? else {
        return Ok(Vec::new());
    };
    let [level, deeper @ ..] = levels else {
        return Ok(vec![(own, dir.to_owned())]);
    };
    survey.watch.push(dir.to_owned());
    if let Some(name) = level.fixed()
        && !(may_be_remade && deeper.is_empty())
    {
        let child = dir.join(name);
        if child.is_dir() {
            return find(&child, deeper, may_be_remade, survey);
        }
    }
    survey.open.push(own);
    let mut found = Vec::new();
    for child in children(dir)? {
        if child.file_name().is_some_and(|name| level.matches(name)) {
            found.extend(find(&child, deeper, may_be_remade, survey)?);
        } else {
            survey.ignored.extend(unless_gone(id(&child))?);
        }
    }
    Ok(found)
}

/// Takes in a selected cgroup and everything below it that is not excluded.
fn descend(id: CgroupId, dir: &Path, survey: &mut Survey) -> io::Result<()> {
    if survey.excluded.contains(&id) {
        return Ok(());
    }
    survey.members.push(id);
    survey.watch.push(dir.to_owned());
    // A threaded cgroup has no list; its processes are in that of its domain, further up.
    let procs = unless_gone(fs::read_to_string(dir.join("cgroup.procs")))?.unwrap_or_default();
    survey.pids.extend(procs.lines().filter_map(|pid| pid.parse::<u32>().ok()));
    for child in children(dir)? {
        if let Some(id) = unless_gone(self::id(&child))? {
            descend(id, &child, survey)?;
        }
    }
    Ok(())
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(entries) = unless_gone(fs::read_dir(dir))? else {
        return Ok(Vec::new());
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            children.push(entry.path());
        }
    }
    Ok(children)
}

/// Tells "there is nothing" (any more, or by its nature) from "I could not look".
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(select: &[&str], exclude: &[&str]) -> Scope {
        let parse = |list: &[&str]| list.iter().map(|p| p.parse().expect(p)).collect();
        Scope { select: parse(select), exclude: parse(exclude) }
    }

    /// Plain directories stand in for the tree: only the walk is tested here.
    fn tree(dirs: &[&str]) -> (tempfile::TempDir, CgroupTree) {
        let root = tempfile::tempdir().expect("a temporary directory");
        for dir in dirs {
            fs::create_dir_all(root.path().join(dir)).expect(dir);
            fs::write(root.path().join(dir).join("cgroup.procs"), "1\n22\n").expect(dir);
        }
        let tree = CgroupTree::new(root.path().to_owned(), FailMode::Open);
        (root, tree)
    }

    #[test]
    fn scopes_overlap_unless_one_excludes_what_the_other_selects() {
        let cases = [
            (scope(&["/"], &[]), scope(&["docker"], &[]), true),
            (scope(&["/"], &["docker"]), scope(&["docker"], &[]), false),
            (scope(&["/"], &["docker/a"]), scope(&["docker"], &[]), true),
            (scope(&["/"], &["docker"]), scope(&["docker/a", "docker/b*"], &[]), false),
            (scope(&["docker"], &[]), scope(&["kubepods.slice"], &[]), false),
        ];
        for (one, other, overlap) in cases {
            assert_eq!(one.overlaps(&other), overlap, "{one} {other}");
            assert_eq!(other.overlaps(&one), overlap, "{other} {one}");
        }
    }

    #[test]
    fn everything_below_a_match_is_in_unless_excluded() {
        let (_guard, tree) = tree(&["docker/a/init", "docker/b", "system.slice/x"]);
        let survey = tree.survey(&scope(&["docker"], &["docker/b"])).expect("readable");
        assert_eq!(survey.selected.len(), 1);
        assert_eq!(survey.excluded.len(), 1);
        assert_eq!(survey.members.len(), 3, "docker, docker/a, docker/a/init");
    }

    #[test]
    fn a_pattern_without_a_match_is_watched_for() {
        let (_guard, tree) = tree(&["system.slice"]);
        let survey = tree.survey(&scope(&["system.slice/docker-*.scope"], &[])).expect("readable");
        assert!(survey.selected.is_empty() && survey.members.is_empty());
        assert!(survey.watch.contains(&tree.root().join("system.slice")));
    }

    #[test]
    fn newborn_cgroups_are_undecided_where_their_name_decides() {
        let (_guard, tree) = tree(&["a/app-1/x", "a/other", "b/here"]);
        let id = |dir: &str| id(&tree.root().join(dir)).expect(dir);
        let cases: [(&[&str], &[&str], &[&str]); 4] = [
            (&["a/app-*"], &["a"], &["a/other"]),
            (&["a/*/x"], &["a", "a/other"], &[]),
            (&["b/missing"], &["b"], &["b/here"]),
            (&["b/here"], &[], &[]),
        ];
        for (select, open, ignored) in cases {
            let survey = tree.survey(&scope(select, &[])).expect("readable");
            let ids = |dirs: &[&str]| dirs.iter().map(|dir| id(dir)).collect::<Vec<_>>();
            assert_eq!(survey.open, ids(open), "{select:?}");
            assert_eq!(survey.ignored, ids(ignored), "{select:?}");
        }
    }

    #[test]
    fn to_fail_closed_a_named_cgroup_counts_as_newborn_each_time() {
        let (_guard, open) = tree(&["a/here", "a/other", "top"]);
        let closed = CgroupTree { fail: FailMode::Closed, ..open.clone() };
        let id = |dir: &str| id(&open.root().join(dir)).expect(dir);
        let service = scope(&["a/here"], &[]);
        let survey = closed.survey(&service).expect("readable");
        assert_eq!(survey.selected, [id("a/here")]);
        assert_eq!((survey.open, survey.ignored), (vec![id("a")], vec![id("a/other")]));
        assert_eq!(closed.common_ancestor(&service), open.root().join("a"));
        let top = scope(&["top"], &[]);
        assert!(closed.survey(&top).expect("readable").open.is_empty());
        assert_eq!(closed.common_ancestor(&top), open.root().join("top"));
    }

    #[test]
    fn the_common_ancestor_exists_and_contains_the_scope() {
        let (_guard, tree) = tree(&["a/b/c", "a/d"]);
        let cases: [(&[&str], &str); 5] = [
            (&["a/b/c"], "a/b/c"),
            (&["a/b/c", "a/d"], "a"),
            (&["a/b/x*"], "a/b"),
            (&["a/missing/deep"], "a"),
            (&["a", "z"], ""),
        ];
        for (select, expected) in cases {
            let ancestor = tree.common_ancestor(&scope(select, &[]));
            assert_eq!(ancestor, tree.root().join(expected), "{select:?}");
        }
    }
}
